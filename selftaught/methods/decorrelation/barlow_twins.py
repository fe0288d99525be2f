"""Barlow Twins (Zbontar et al., 2021, https://arxiv.org/abs/2103.03230)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.losses import barlow
from selftaught.method import Defaults, Method, Setting, Setup
from selftaught.methods.parts.two_view import TwoView
from selftaught.models.layers import mlp
from selftaught.ranges import Count, NonNegative


class BarlowTwins(TwoView):
    """Correlate each dimension with itself in the other view, and with no other dimension."""

    paper = "Zbontar et al., 2021, https://arxiv.org/abs/2103.03230"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 8192
        dim: Count = 8192
        redundancy: NonNegative = 0.0051  # weight of correlations between dimensions: lambda

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use four times the features' width, as the paper does: 2048 with a ResNet-18."""
            width = 4 * setting.features
            return Defaults(
                config=replace(self, hidden=min(self.hidden, width), dim=min(self.dim, width))
            )

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        projector = mlp(
            setup.backbone.features, config.hidden, config.hidden, config.dim, last_bias=False
        )
        self.network = nn.Sequential(setup.backbone, projector)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        """The paper's loss, divided by the width.

        The paper sums over thousands of dimensions. LARS ignores the scale of a loss; SGD does not.
        """
        # for clean views both losses are equal, for hard ones they are not
        pairs = zip(predictions, targets, strict=True)
        losses = torch.stack([barlow(z, t, self.config.redundancy) for z, t in pairs])
        return losses.mean() / self.config.dim

    def collapsed_loss(self, batch_size: int) -> float:
        return 1.0  # a constant dimension has correlation 0 with every other and itself
