"""SwAV (Caron et al., 2020, https://arxiv.org/abs/2006.09882)."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import gather, local_chunk
from selftaught.errors import UserError
from selftaught.losses import sinkhorn, soft_cross_entropy
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.models.layers import Counter, Normalize, mlp, on_views
from selftaught.ranges import Count, Natural, Positive, Range, Share


class SwAV(Method):
    """Predict the code of one view, its balanced cluster assignment, from every other view."""

    paper = "Caron et al., 2020, https://arxiv.org/abs/2006.09882"
    multi_crop = True
    couples_samples = True  # codes are balanced over the batch
    queue: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 128
        prototypes: Count = 3000
        temperature: Positive = 0.1
        # below the minimum, exponentials underflow
        epsilon: Annotated[float, Range(0.025)] = 0.05
        iterations: Count = 3  # of Sinkhorn-Knopp
        freeze_prototypes: Share = 0.01  # share of training in which they stay fixed
        # past embeddings of each view in the balancing, for batches smaller than the prototypes
        queue: Natural = 0
        queue_start: Share = 0.15  # share of training before the queue is used

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use about fifty images a prototype, and a queue where the batch is small.

            About ten prototypes a class are best. Random weights change too fast for a queue, and
            need sharper codes (docs/LOG.md).
            """
            prototypes = min(self.prototypes, max(setting.images // 50, 8))
            config = replace(self, hidden=setting.features, prototypes=prototypes)
            if not setting.pretrained:
                return Defaults(config=replace(config, queue=0, epsilon=min(self.epsilon, 0.03)))
            large = setting.batch // setting.parts >= 2 * prototypes
            queue = 0 if large else min(setting.images // 4, 3840)
            return Defaults(config=replace(config, queue=queue - queue % setting.batch))

        @property
        def min_batch(self) -> int:
            return 2  # a single small view of its size can be a batch of its own

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.queue > setup.images:
            raise UserError(
                f"a queue of {config.queue} embeddings never fills with {setup.images} images:"
                " lower --method.queue"
            )
        self.config = config
        self.network = nn.Sequential(
            setup.backbone, mlp(setup.backbone.features, config.hidden, config.dim), Normalize()
        )
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(self.views, config.queue, config.dim))
        self.stored = Counter()  # number of embeddings written to the queue so far
        self._normalize_prototypes()

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return on_views(self.network, inputs)  # embeddings [B, D] of each view

    def scores(self, embeddings: Tensor) -> Tensor:
        """Embeddings [B, D] -> similarities to the prototypes [B, K], at full precision."""
        # Sinkhorn divides them by a small epsilon, so bf16 is too coarse
        with torch.autocast(embeddings.device.type, enabled=False):
            return cast(Tensor, self.prototypes(embeddings))

    @torch.no_grad()
    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Codes of the two large crops, balanced over the global batch and the queue."""
        codes = []
        for past, embeddings in zip(self.queue, predictions, strict=False):
            global_batch = gather(embeddings.detach())
            use_queue = (
                self.progress >= self.config.queue_start and 0 < len(past) <= self.stored.value
            )
            pool = torch.cat([global_batch, past]) if use_queue else global_batch
            balanced = sinkhorn(self.scores(pool), self.config.epsilon, self.config.iterations)
            codes.append(local_chunk(balanced[: len(global_batch)]))
        return tuple(codes)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        swapped = [
            soft_cross_entropy(self.scores(embedding) / self.config.temperature, code)
            for c, code in enumerate(targets)
            for v, embedding in enumerate(predictions)
            if v != c
        ]
        return torch.stack(swapped).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        return math.log(self.config.prototypes)

    def after_backward(self) -> None:
        if self.progress < self.config.freeze_prototypes:
            assert self.prototypes.weight.grad is not None
            # weight decay changes only their length, which `after_step` normalises
            self.prototypes.weight.grad.zero_()

    @torch.no_grad()
    def after_step(
        self, batch: Batch, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> None:
        self._normalize_prototypes()
        if self.config.queue:
            newest = torch.stack(
                [gather(e.to(self.queue.dtype)) for e in predictions[: self.views]]
            )
            self.stored.value += newest.shape[1]
            self.queue.copy_(torch.cat([newest, self.queue], dim=1)[:, : self.config.queue])

    @torch.no_grad()
    def _normalize_prototypes(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
