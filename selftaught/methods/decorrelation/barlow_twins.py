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
    """Make each dimension agree with itself in the other view, and with no other dimension."""

    paper = "Zbontar et al., 2021, https://arxiv.org/abs/2103.03230"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 8192
        dim: Count = 8192
        redundancy: NonNegative = 0.0051  # weight of what dimensions share: the paper's lambda

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Four times as wide as the features, as the paper's is: 2048 with a ResNet-18."""
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
        """The paper's, by the width: SGD, unlike LARS, would feel a sum over thousands of
        dimensions.
        """
        # of clean views both are the same; of hard ones they are not
        pairs = zip(predictions, targets, strict=True)
        return (
            torch.stack([barlow(z, t, self.config.redundancy) for z, t in pairs]).mean()
            / self.config.dim
        )

    def collapsed_loss(self, batch_size: int) -> float:
        return 1.0  # what does not vary correlates with nothing
