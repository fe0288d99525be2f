"""VICReg (Bardes et al., 2021, https://arxiv.org/abs/2105.04906)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.losses import spread_loss, squared_covariance
from selftaught.method import Defaults, Method, Setting, Setup
from selftaught.methods.parts.two_view import TwoView
from selftaught.models.layers import mlp
from selftaught.ranges import Count, NonNegative


class VICReg(TwoView):
    """Bring an image's views together; keep each dimension's variance, and covariances at 0."""

    paper = "Bardes et al., 2021, https://arxiv.org/abs/2105.04906"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 8192
        dim: Count = 8192
        invariance: NonNegative = 25.0
        variance: NonNegative = 25.0
        covariance: NonNegative = 1.0

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use four times the features' width, as the paper does: 2048 with a ResNet-18."""
            width = 4 * setting.features
            return Defaults(
                config=replace(self, hidden=min(self.hidden, width), dim=min(self.dim, width))
            )

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        expander = mlp(
            setup.backbone.features, config.hidden, config.hidden, config.dim, last_bias=False
        )
        self.network = nn.Sequential(setup.backbone, expander)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        c = self.config
        pairs = zip(predictions, targets, strict=True)
        distance = torch.stack([F.mse_loss(z, t) for z, t in pairs]).mean()
        spread = torch.stack([spread_loss(z) for z in predictions]).mean()
        covariance = torch.stack([squared_covariance(z) for z in predictions]).sum()
        return c.invariance * distance + c.variance * spread + c.covariance * covariance

    def collapsed_loss(self, batch_size: int) -> float:
        # the variance term alone: the other two are 0
        return float(self.config.variance * spread_loss(torch.zeros(2, 1)))
