"""Momentum contrast: the base of MoCo v1 and v2 (He et al., 2019, https://arxiv.org/abs/1911.05722)."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import gather, shuffle_batch, unshuffle_batch
from selftaught.errors import UserError
from selftaught.losses import info_nce
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.models.layers import Normalize
from selftaught.models.teacher import Teacher, teacher_momentum
from selftaught.ranges import Count, Positive, Share


class MoCo(Method):
    """Find an image's momentum-encoded key among a queue of past keys. Subclasses add the head."""

    # keys are normalised with other images than their queries: see `shuffle_batch`
    local_batch_norm: ClassVar[bool] = True
    queue: Tensor
    oldest: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        dim: Count = 128
        queue: Count = 65536  # past keys: the negatives
        momentum: Share = 0.999  # of the key encoder
        temperature: Positive = 0.07
        symmetric: bool = False  # both views are queries, each the other's key

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Fit the momentum and the queue to the length of training and the data.

            The key encoder averages over 1 % of a long training at most. A key stays in the queue
            for half an epoch at most. Random weights change fast: there it stays for a tenth of the
            steps that the key encoder averages over.
            """
            momentum = teacher_momentum(self.momentum, setting.steps, 100)
            horizon = math.inf if setting.pretrained else setting.batch / (1 - momentum)
            keys = max(min(setting.images // 2, horizon / 10), 1)
            queue = min(self.queue, max(2 ** int(math.log2(keys)), setting.batch))
            return Defaults(config=replace(self, queue=queue, momentum=momentum))

    def __init__(self, config: Any, setup: Setup) -> None:
        super().__init__(config, setup)
        check_queue(config.queue, setup.images)
        self.config = config
        self.network = nn.Sequential(setup.backbone, self.build_head(), Normalize())
        self.teacher = Teacher(self.network)
        self.register_buffer("queue", random_keys(config.queue, config.dim))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    @abstractmethod
    def build_head(self) -> nn.Module:
        """Build a network from the backbone's features to embeddings [B, dim] of any length."""

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2] if self.config.symmetric else batch.views[:1]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.network(queries) for queries in inputs)

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        others = batch.views[1::-1][: len(predictions)]
        return tuple(unshuffle_batch(self.teacher(shuffle_batch(keys))) for keys in others)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack(
            [info_nce(q, k, self.queue, self.config.temperature) for q, k in pairs]
        ).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        return math.log(self.config.queue + 1)

    @torch.no_grad()
    def after_step(
        self, batch: Batch, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> None:
        self.teacher.follow(self.network, self.config.momentum)
        keys = torch.cat([gather(k) for k in targets])
        self.oldest.copy_(enqueue(self.queue, keys, self.oldest))


def check_queue(queue: int, images: int) -> None:
    """Raise UserError where the queue is longer than the training set."""
    if queue > images:
        raise UserError(
            f"a queue of {queue} keys would hold each of {images} images several times, as"
            f" negatives of themselves: set --method.queue to at most {images // 2}"
        )


def random_keys(queue: int, dim: int) -> Tensor:
    """Random keys [K, D] of unit norm."""
    return F.normalize(torch.randn(queue, dim), dim=1)


def enqueue(queue: Tensor, keys: Tensor, oldest: Tensor) -> Tensor:
    """Replace the oldest rows of the queue [K, D] by keys [N, D]; return the next oldest place.

    The queue is a ring buffer.
    """
    keys = keys[: len(queue)]
    queue[(oldest + torch.arange(len(keys), device=keys.device)) % len(queue)] = keys
    return (oldest + len(keys)) % len(queue)
