"""Triplet loss with semi-hard negatives (Schroff et al., 2015, https://arxiv.org/abs/1503.03832)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.losses import triplet
from selftaught.method import Defaults, Method, Setting, Setup
from selftaught.methods.parts.two_view import TwoView
from selftaught.models.layers import Normalize, mlp
from selftaught.ranges import Count, Positive


class Triplet(TwoView):
    """Make the other view of an image nearer, by a margin, than its semi-hard negative.

    That negative is the nearest other image that is farther than the other view.
    """

    paper = "Schroff et al., 2015, https://arxiv.org/abs/1503.03832"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 128
        margin: Positive = 0.2  # of squared distances of unit-norm embeddings, 0 to 4

        def defaults(self, setting: Setting) -> Defaults[Self]:
            return Defaults(config=replace(self, hidden=setting.features))

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.margin = config.margin
        self.network = nn.Sequential(
            setup.backbone, mlp(setup.backbone.features, config.hidden, config.dim), Normalize()
        )

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([triplet(x, y, self.margin) for x, y in pairs]).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        return self.margin
