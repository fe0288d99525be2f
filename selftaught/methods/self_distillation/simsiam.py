"""SimSiam (Chen & He, 2020, https://arxiv.org/abs/2011.10566)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.losses import cosine_distance
from selftaught.method import Batch, Defaults, GroupOptions, Method, Setting, Setup
from selftaught.models.layers import mlp, on_views
from selftaught.ranges import Count

# for each view: the predictor's output and the projector's
Pairs = tuple[tuple[Tensor, Tensor], ...]


class SimSiam(Method):
    """Predict the detached embedding of the other view. There are no negatives and no teacher."""

    paper = "Chen & He, 2020, https://arxiv.org/abs/2011.10566"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 2048
        bottleneck: Count = 512  # the predictor's hidden layer

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use heads of four times the features' width, as the paper does for CIFAR.

            That is 2048 with a ResNet-18.
            """
            width = min(self.dim, 4 * setting.features)
            return Defaults(
                config=replace(
                    self,
                    dim=width,
                    hidden=min(self.hidden, width),
                    bottleneck=min(self.bottleneck, max(width // 4, 1)),
                )
            )

        @property
        def min_batch(self) -> int:
            return 2  # the predictor's batch norms get one view at a time

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        projector = mlp(
            setup.backbone.features, config.hidden, config.hidden, config.dim, last_bias=False
        )
        self.network = nn.Sequential(
            setup.backbone, projector, nn.BatchNorm1d(config.dim, affine=False)
        )
        self.predictor = mlp(config.dim, config.bottleneck, config.dim)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2]

    def predict(self, inputs: tuple[Tensor, ...]) -> Pairs:
        return tuple((self.predictor(z), z) for z in on_views(self.network, inputs))

    def targets(self, batch: Batch, predictions: Pairs) -> tuple[Tensor, ...]:
        (_, first), (_, second) = predictions
        # the stop-gradient, which alone prevents collapse
        return second.detach(), first.detach()

    def loss(self, predictions: Pairs, targets: tuple[Tensor, ...]) -> Tensor:
        """The paper's loss plus 1, so that its minimum is 0."""
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([cosine_distance(p, t) for (p, _), t in pairs]).mean() / 2

    def parameter_groups(self) -> dict[str, GroupOptions]:
        # the predictor must adapt to embeddings that keep changing (section 4.2)
        return {"predictor": {"constant_lr": True}}

    def collapsed_loss(self, batch_size: int) -> float:
        return 0.0  # both views have the same constant embedding
