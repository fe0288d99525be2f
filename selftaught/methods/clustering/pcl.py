"""PCL (Li et al., 2020, https://arxiv.org/abs/2005.04966)."""

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
    """MoCo, with a second loss that finds the prototypes of the image's clusters."""

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
        negatives: Count = 16384  # random prototypes of other clusters a step: the paper's r
        # share of training without clusters; the next epoch then makes them
        warmup: Share = 0.1
        alpha: NonNegative = 10.0  # smoothing of the concentration of small clusters
        iterations: Count = 20  # of k-means, each epoch

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use MoCo's queue, momentum and head, and clusters of about 12, 25 and 50 images.

            The paper's clusters of ImageNet have these sizes.
            """
            moco = moco_config(self).defaults(setting).config
            clusters = min(self.clusters, max(setting.images // 12, 8), setting.shown)
            epoch = setting.images // setting.batch
            # only the start of an epoch makes clusters
            warmup = self.warmup if setting.steps > 2 * epoch else 0.0
            return Defaults(
                config=replace(
                    self,
                    hidden=setting.features,
                    queue=moco.queue,
                    momentum=moco.momentum,
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
        clusterings = zip(
            self.prototypes.split(self.sizes),
            self.concentrations.split(self.sizes),
            clusters.unbind(1),
            strict=True,
        )
        losses = []
        for prototypes, phi, label in clusterings:
            others = to_device(
                torch.randperm(len(prototypes), generator=rng)[: self.config.negatives],
                label.device,
            )
            losses.append(proto_nce(query, prototypes.to(query), phi.to(query), label, others))
        return self.moco.loss(predictions, keys) + torch.stack(losses).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        has_clusters = bool((self.assigned != UNSEEN).any())
        losses = [math.log(min(k, self.config.negatives + 1)) for k in self.sizes]
        mean = sum(losses) / len(losses)
        return self.moco.collapsed_loss(batch_size) + has_clusters * mean

    @torch.no_grad()
    def before_epoch(self, batches: Iterable[Batch]) -> None:
        """Cluster the key encoder's embeddings of one view of each image (algorithm 1)."""
        if self.progress < self.config.warmup:
            return
        indices, points = table(
            ((b.index, self.moco.teacher(b.views[0])) for b in batches), len(self.assigned)
        )
        check_clusters(self.config.clusters, len(indices))
        self.assigned.fill_(UNSEEN)
        prototypes, concentrations = [], []
        for m, size in enumerate(self.sizes):
            centroids, clusters = kmeans(points, size, self.config.iterations)
            self.assigned[indices, m] = clusters
            prototypes.append(centroids)
            temperature, alpha = self.config.temperature, self.config.alpha
            concentrations.append(concentration(points, centroids, clusters, temperature, alpha))
        self.prototypes.copy_(torch.cat(prototypes))
        self.concentrations.copy_(torch.cat(concentrations))

    def after_step(
        self,
        batch: Batch,
        predictions: tuple[Tensor, ...],
        targets: tuple[tuple[Tensor, ...], Tensor],
    ) -> None:
        self.moco.after_step(batch, predictions, targets[0])
        self.steps.value += 1


def moco_config(config: PCL.Config) -> Any:
    """Return the hyperparameters of its MoCo, of v1 or v2."""
    v2 = partial(MoCoV2.Config, hidden=config.hidden)
    kind: Any = MoCoV1.Config if config.version == "v1" else v2
    return kind(
        dim=config.dim, queue=config.queue, momentum=config.momentum, temperature=config.temperature
    )
