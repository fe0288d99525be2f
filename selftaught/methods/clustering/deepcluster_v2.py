"""DeepCluster v2 (Caron et al., 2020, https://arxiv.org/abs/2006.09882, appendix)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import gather
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.parts.kmeans import UNSEEN, check_clusters, kmeans
from selftaught.models.layers import Normalize, mlp, on_views
from selftaught.ranges import Count, Positive


class DeepClusterV2(Method):
    """Predict the cluster of the image's embedding of the last epoch, in several clusterings."""

    paper = "Caron et al., 2020, https://arxiv.org/abs/2006.09882"
    multi_crop = True
    memory: Tensor
    assigned: Tensor
    prototypes: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 128
        clusters: Count = 3000
        clusterings: Count = 3
        temperature: Positive = 0.1
        iterations: Count = 10  # of k-means, each epoch

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use about fifty images a cluster.

            About ten clusters a class are best, but the number of classes is unknown.
            """
            clusters = min(self.clusters, max(setting.images // 50, 8), setting.shown)
            return Defaults(config=replace(self, hidden=setting.features, clusters=clusters))

        @property
        def min_batch(self) -> int:
            return 2  # a single small view of its size can be a batch of its own

        @property
        def min_images(self) -> int:
            return self.clusters

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        check_clusters(config.clusters, setup.images)
        self.config = config
        self.network = nn.Sequential(
            setup.backbone, mlp(setup.backbone.features, config.hidden, config.dim), Normalize()
        )
        c = config
        # Buffers, so that checkpoints hold them. `memory`: the last embeddings of each image's two
        # large views, 0 where there is none.
        self.register_buffer("memory", torch.zeros(self.views, setup.images, c.dim))
        self.register_buffer("assigned", torch.full((setup.images, c.clusterings), UNSEEN))
        self.register_buffer("prototypes", torch.zeros(c.clusterings, c.clusters, c.dim))

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return on_views(self.network, inputs)  # embeddings [B, D] of each view

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> Tensor:
        return self.assigned[batch.index]  # [B, clusterings], the same for all views

    def loss(self, predictions: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        logits = (
            torch.einsum("vbd,hkd->vbhk", torch.stack(predictions), self.prototypes)
            / self.config.temperature
        )
        labels = targets.expand(len(predictions), -1, -1)
        sums = F.cross_entropy(
            logits.flatten(0, 2), labels.flatten(), ignore_index=UNSEEN, reduction="sum"
        )
        # divided by all labels, because the number of valid ones differs between processes
        return sums / labels.numel()

    def collapsed_loss(self, batch_size: int) -> float:
        return math.log(self.config.clusters)

    @torch.no_grad()
    def before_epoch(self, batches: Iterable[Batch]) -> None:
        if not self.memory.any():
            for batch in batches:
                self._store(batch, self.predict(self.inputs(batch)[: self.views]))
        indices = self.memory[0].any(dim=1).nonzero()[:, 0]
        check_clusters(self.config.clusters, len(indices))
        for h in range(self.config.clusterings):
            points = self.memory[h % self.views, indices]
            self.prototypes[h], self.assigned[indices, h] = kmeans(
                points, self.config.clusters, self.config.iterations
            )

    def after_step(self, batch: Batch, predictions: tuple[Tensor, ...], targets: Tensor) -> None:
        self._store(batch, predictions)

    @torch.no_grad()
    def _store(self, batch: Batch, embeddings: tuple[Tensor, ...]) -> None:
        index = gather(batch.index)
        for view in range(self.views):
            self.memory[view, index] = gather(embeddings[view].detach().float()).to(
                self.memory.dtype
            )
