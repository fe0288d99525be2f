"""SimCLR (Chen et al., 2020, https://arxiv.org/abs/2002.05709)."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.losses import nt_xent
from selftaught.method import Batch, Defaults, Method, Setting, Setup, detach
from selftaught.methods.parts.two_view import TwoView
from selftaught.models.layers import Normalize, mlp
from selftaught.ranges import Count, Positive


class SimCLR(TwoView):
    """Find the other view of an image among all views of the batch."""

    paper = "Chen et al., 2020, https://arxiv.org/abs/2002.05709"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 128
        layers: Count = 2  # of the head
        temperature: Positive = 0.1
        # no gradient through the keys, as in SimSiam
        stop_gradient: bool = False

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Stop the keys' gradient for random weights, which then learn faster.

            docs/methods/simclr.md has the measurements.
            """
            return Defaults(
                config=replace(self, hidden=setting.features, stop_gradient=not setting.pretrained)
            )

        @property
        def hidden_layers(self) -> int:
            return self.layers - 1

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.temperature, self.stop_gradient = config.temperature, config.stop_gradient
        hidden = [config.hidden] * config.hidden_layers
        self.projection = mlp(setup.backbone.features, *hidden, config.dim)
        self.network = nn.Sequential(setup.backbone, self.projection, Normalize())

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keys = super().targets(batch, predictions)
        return detach(keys) if self.stop_gradient else keys

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        """NT-Xent over the batch. The negatives of hard views are the other hard views.

        With clean views as negatives, fixed as targets are, hard examples made results worse
        (docs/LOG.md).
        """
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([nt_xent(q, k, self.temperature) for q, k in pairs]).mean()

    @property
    def head(self) -> nn.Sequential:
        return self.projection

    def collapsed_loss(self, batch_size: int) -> float:
        return math.log(2 * batch_size - 1)
