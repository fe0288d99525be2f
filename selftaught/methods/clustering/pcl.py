"""PCL (Li et al., 2020, https://arxiv.org/abs/2005.04966): MoCo, and prototypes of several
clusterings.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from selftaught.devices import to_device
from selftaught.losses import concentration, proto_nce
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.contrastive.moco import MoCo
from selftaught.methods.contrastive.moco_v1 import MoCoV1
from selftaught.methods.contrastive.moco_v2 import MoCoV2
from selftaught.methods.parts.kmeans import UNSEEN, check_clusters, kmeans, table
from selftaught.models.layers import Counter
from selftaught.ranges import Count, NonNegative, Positive, Share


class PCL(Method):
    """Recognise an image by its momentum-encoded key, and by the prototypes of the clusters that it
    lies in.
    """

    paper = "Li et al., 2020, https://arxiv.org/abs/2005.04966"
    assigned: Tensor
    prototypes: Tensor
    concentrations: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        version: Literal["v1", "v2"] = "v2"  # v1 has a linear head, v2 an MLP
        hidden: Count = 2048  # of v2
        dim: Count = 128
        queue: Count = 16384  # past keys: the negatives
        momentum: Share = 0.999  # of the key encoder
        temperature: Positive = 0.2  # also the mean concentration of clusters
        clusters: Count = 100_000  # of the finest clustering; each further one has half as many
        clusterings: Count = 3
        negatives: Count = 16384  # prototypes of other clusters, drawn each step: the paper's r
        # share of training; the first epoch that begins after it begins with clusters
        warmup: Share = 0.1
        alpha: NonNegative = 10.0  # smooths the concentration of small clusters
        iterations: Count = 20  # of k-means, each epoch

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Queue, momentum and head as MoCo's; clusters of some 12, 25 and 50 images, as the
            paper's on ImageNet.
            """
            like = moco_config(self).defaults(setting).config
            clusters = min(self.clusters, max(setting.images // 12, 8), setting.shown)
            epoch = setting.images // setting.batch
            # clusters are made where epochs begin
            warmup = self.warmup if setting.steps > 2 * epoch else 0.0
            return Defaults(
                config=replace(
                    self,
                    hidden=setting.features,
                    queue=like.queue,
                    momentum=like.momentum,
                    clusters=clusters,
                    warmup=warmup,
                )
            )

        @property
        def min_images(self) -> int:
            return self.clusters

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.sizes = [max(config.clusters // 2**m, 1) for m in range(config.clusterings)]
        check_clusters(config.clusters, setup.images)
        build = MoCoV1 if config.version == "v1" else MoCoV2
        self.moco: MoCo = build(moco_config(config), setup)
        self.register_buffer("assigned", torch.full((setup.images, config.clusterings), UNSEEN))
        self.register_buffer("prototypes", torch.zeros(sum(self.sizes), config.dim))
        self.register_buffer("concentrations", torch.ones(sum(self.sizes)))
        self.steps = Counter()

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return self.moco.inputs(batch)

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.moco.predict(inputs)  # one view's embedding [B, D]

    def targets(
        self, batch: Batch, predictions: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        # keys, and [B, clusterings]
        return self.moco.targets(batch, predictions), self.assigned[batch.index]

    def loss(
        self, predictions: tuple[Tensor, ...], targets: tuple[tuple[Tensor, ...], Tensor]
    ) -> Tensor:
        keys, clusters = targets
        (query,) = predictions
        # the same on every rank, and for every loss of a step
        rng = torch.Generator().manual_seed(self.steps.value)
        each = zip(
            self.prototypes.split(self.sizes),
            self.concentrations.split(self.sizes),
            clusters.unbind(1),
            strict=True,
        )
        losses = []
        for prototypes, phi, label in each:
            others = to_device(
                torch.randperm(len(prototypes), generator=rng)[: self.config.negatives],
                label.device,
            )
            losses.append(proto_nce(query, prototypes.to(query), phi.to(query), label, others))
        return self.moco.loss(predictions, keys) + torch.stack(losses).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        clustered = bool((self.assigned != UNSEEN).any())
        prototypes = sum(math.log(min(k, self.config.negatives + 1)) for k in self.sizes) / len(
            self.sizes
        )
        return self.moco.collapsed_loss(batch_size) + clustered * prototypes

    @torch.no_grad()
    def before_epoch(self, batches: Iterable[Batch]) -> None:
        """Cluster what the key encoder says of one view of each image (algorithm 1)."""
        if self.progress < self.config.warmup:
            return
        seen, points = table(
            ((b.index, self.moco.teacher(b.views[0])) for b in batches), len(self.assigned)
        )
        check_clusters(self.config.clusters, len(seen))
        self.assigned.fill_(UNSEEN)
        found = []
        for m, size in enumerate(self.sizes):
            centroids, clusters = kmeans(points, size, self.config.iterations)
            self.assigned[seen, m] = clusters
            found.append(
                (
                    centroids,
                    concentration(
                        points, centroids, clusters, self.config.temperature, self.config.alpha
                    ),
                )
            )
        self.prototypes.copy_(torch.cat([centroids for centroids, _ in found]))
        self.concentrations.copy_(torch.cat([phi for _, phi in found]))

    def after_step(
        self,
        batch: Batch,
        predictions: tuple[Tensor, ...],
        targets: tuple[tuple[Tensor, ...], Tensor],
    ) -> None:
        self.moco.after_step(batch, predictions, targets[0])
        self.steps.value += 1


def moco_config(config: PCL.Config) -> Any:
    """The part of it that is MoCo's."""
    kind: Any = (
        MoCoV1.Config if config.version == "v1" else partial(MoCoV2.Config, hidden=config.hidden)
    )
    return kind(
        dim=config.dim, queue=config.queue, momentum=config.momentum, temperature=config.temperature
    )
