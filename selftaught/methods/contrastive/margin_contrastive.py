"""Contrastive learning with a margin (Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100)."""

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor, nn

from selftaught.losses import margin_contrastive
from selftaught.method import Defaults, Method, Setting, Setup
from selftaught.methods.parts.two_view import TwoView
from selftaught.models.layers import Normalize, mlp
from selftaught.ranges import Count, Range


class MarginContrastive(TwoView):
    """Pull the views of an image together, and push other images away up to a margin."""

    paper = "Hadsell et al., 2006, https://doi.org/10.1109/CVPR.2006.100"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 128
        # distance up to which different images repel each other. The largest distance on the unit
        # sphere is 2; evenly spread embeddings are 2 ** .5 apart.
        margin: Annotated[float, Range(0, 2, open_low=True)] = 1.4

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
        return torch.stack([margin_contrastive(x, y, self.margin) for x, y in pairs]).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        return self.margin**2 / 2
