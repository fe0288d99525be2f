"""MoCo v2 (Chen et al., 2020, https://arxiv.org/abs/2003.04297)."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import collect, deal, gather
from selftaught.errors import UserError
from selftaught.losses import info_nce
from selftaught.method import Batch, Encoder, Method, Setting
from selftaught.networks import Normalize, Teacher, mlp


class MoCoV2(Method):
    """Recognise an image by its momentum-encoded key, among a queue of past keys."""

    paper = "Chen et al., 2020, https://arxiv.org/abs/2003.04297"
    queue: Tensor
    oldest: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: int = 2048
        dim: int = 128
        queue: int = 65536  # past keys: the negatives
        momentum: float = 0.999  # of the key encoder
        temperature: float = 0.2
        symmetric: bool = False  # both views are queries, each the other's key

        def suited(self, setting: Setting) -> Self:
            """A key stays in the queue for at most half an epoch; the key encoder forgets within 1 % of training."""
            queue = min(self.queue, max(2 ** int(math.log2(max(setting.images // 2, 1))), setting.batch))
            momentum = min(max(1 - 100 / max(setting.steps, 1), 0.99), self.momentum)
            return replace(self, hidden=setting.features, queue=queue, momentum=momentum)

    def __init__(self, config: Config, backbone: Encoder, images: int) -> None:
        super().__init__(config, backbone, images)
        if config.queue > images:
            raise UserError(
                f"a queue of {config.queue} keys would hold each of {images} images several times, as negatives of "
                f"themselves: set --method.queue to at most {images // 2}"
            )
        self.config = config
        self.backbone = backbone
        head = mlp(backbone.features, config.hidden, config.dim, batch_norm=False)
        self.network = nn.Sequential(backbone, head, Normalize())
        self.teacher = Teacher(self.network)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2] if self.config.symmetric else batch.views[:1]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.network(queries) for queries in inputs)

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        others = batch.views[1::-1][: len(predictions)]
        return tuple(collect(self.teacher(deal(keys))) for keys in others)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([info_nce(q, k, self.queue, self.config.temperature) for q, k in pairs]).mean()

    def chance(self) -> float:
        return math.log(self.config.queue + 1)

    @torch.no_grad()
    def after_step(self, batch: Batch, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> None:
        self.teacher.follow(self.network, self.config.momentum)
        keys = torch.cat([gather(k) for k in targets])[: len(self.queue)]
        where = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[where] = keys
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))
