"""DeepCluster (Caron et al., 2018, https://arxiv.org/abs/1807.05520)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.parts.kmeans import UNSEEN, check_clusters, kmeans, table, whiten
from selftaught.models.layers import Counter, on_views
from selftaught.ranges import Count


class DeepCluster(Method):
    """Predict the cluster of the image's features. The classifier is new after each clustering."""

    paper = "Caron et al., 2018, https://arxiv.org/abs/1807.05520"
    assigned: Tensor
    weight: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        clusters: Count = 10_000
        # principal components of the features that k-means uses
        dim: Count = 256
        iterations: Count = 20  # of k-means, each epoch
        every: Count = 1  # epochs from one clustering to the next
        symmetric: bool = False  # train on both views

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use about fifty images a cluster. Cluster every 200 steps, and five times or more."""
            epoch = max(setting.images // setting.batch, 1)
            every = max(min(-(-200 // epoch), setting.steps // epoch // 5), self.every)
            clusters = min(self.clusters, max(setting.images // 50, 8), setting.shown)
            return Defaults(config=replace(self, clusters=clusters, every=every))

        @property
        def min_batch(self) -> int:
            return 1 if self.symmetric else 2

        @property
        def min_images(self) -> int:
            return self.clusters

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        check_clusters(config.clusters, setup.images)
        self.config = config
        # The features are small. Without standardisation a new classifier would learn too slowly.
        self.standardize = nn.BatchNorm1d(setup.backbone.features, affine=False)
        self.classifier = nn.Linear(setup.backbone.features, config.clusters)
        self.register_buffer("assigned", torch.full((setup.images,), UNSEEN))
        self.register_buffer("weight", torch.zeros(config.clusters))
        self.epochs = Counter()  # number of the present epoch

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2] if self.config.symmetric else batch.views[:1]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            self.classifier(self.standardize(features))
            for features in on_views(self.backbone, inputs)
        )

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> Tensor:
        return self.assigned[batch.index]  # [B], the same for both views

    def loss(self, predictions: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Cross-entropy with weights that sample all clusters equally often (section 3.3)."""
        weight = self.weight.to(predictions[0])
        sums = [
            F.cross_entropy(p, targets, weight, ignore_index=UNSEEN, reduction="sum")
            for p in predictions
        ]
        # divided by the images, because the sum of the weights differs between processes
        return torch.stack(sums).mean() / len(targets)

    def collapsed_loss(self, batch_size: int) -> float | None:
        used = int((self.weight > 0).sum())
        return math.log(used) if used else None

    @torch.no_grad()
    def before_epoch(self, batches: Iterable[Batch]) -> None:
        self.epochs.value += 1
        if (self.epochs.value - 1) % self.config.every:
            return
        indices, features = table(
            ((b.index, self.backbone(b.views[0])) for b in batches), len(self.assigned)
        )
        check_clusters(self.config.clusters, len(indices))
        points = whiten(features, min(self.config.dim, features.shape[1]))
        _, clusters = kmeans(points, self.config.clusters, self.config.iterations)
        self.assigned.fill_(UNSEEN)
        self.assigned[indices] = clusters
        counts = torch.bincount(clusters, minlength=self.config.clusters).to(self.weight)
        share = len(indices) / (counts > 0).sum()  # images for each cluster that is not empty
        self.weight.copy_(torch.where(counts > 0, share / counts.clamp_min(1), 0))
        # The new clusters do not correspond to the old ones. A GPU would draw other weights.
        weight = self.classifier.weight
        weight.copy_(torch.empty(weight.shape, dtype=weight.dtype).normal_(std=0.01))
        nn.init.zeros_(self.classifier.bias)
