"""Jigsaw (Noroozi & Favaro, 2016, https://arxiv.org/abs/1603.09246)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.method import Batch, Defaults, Illustration, Method, Setting, Setup
from selftaught.methods.parts.jigsaw_head import JigsawNetwork
from selftaught.methods.parts.tile_orders import list_orders
from selftaught.methods.parts.tiles import (
    GRID,
    VIEWS,
    TileConfig,
    draw_integers,
    draw_tiles,
    mosaic,
    normalize_tiles,
    take_tiles,
)
from selftaught.models.layers import mlp
from selftaught.ranges import Count, Range, Share


class Jigsaw(Method):
    """Find the order in which nine tiles of an image were shuffled, among some fixed orders."""

    paper = "Noroozi & Favaro, 2016, https://arxiv.org/abs/1603.09246"
    views = 1
    recommended_stage = 0.75  # the middle is the best: the third of five convolutions in AlexNet

    @dataclass(frozen=True, kw_only=True)
    class Config(TileConfig):
        channel_shift: Share = 1 / 32  # 2 of 64 pixels
        orders: Annotated[int, Range(2, 1512)] = 64  # number of orders; the paper has 10 to 1000
        dim: Count = 1024  # numbers of a tile
        hidden: Count = 4096  # width of the layer that sees all tiles

        def defaults(self, setting: Setting) -> Defaults[Self]:
            # The paper shows grey images in part, and so do these views. The rate is that of
            # published trainings of a ResNet-50.
            config = replace(
                self,
                dim=min(self.dim, max(setting.features // 4, 1)),
                hidden=min(self.hidden, setting.features),
            )
            return Defaults(config=config, views={**VIEWS, "gray": 0.5}, lr=0.1)

        @property
        def min_batch(self) -> int:
            return 2  # for the batch norm of the layer that sees all tiles

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        head = nn.Sequential(
            nn.Linear(setup.backbone.features, config.dim, bias=False),
            nn.BatchNorm1d(config.dim),
            nn.ReLU(),
        )
        together = mlp(GRID**2 * config.dim, config.hidden, config.orders)
        self.network = JigsawNetwork(setup.backbone, head, together)

    def inputs(self, batch: Batch) -> Tensor:
        """Return shuffled tiles [B, 9, 3, s, s]."""
        tiles = draw_tiles(batch, self.config, self.backbone)
        orders = torch.tensor(list_orders(self.config.orders), device=tiles.device)
        return take_tiles(tiles, orders[self.draw_order(batch)])

    def draw_order(self, batch: Batch) -> Tensor:
        """Draw the number of each image's order, [B]."""
        return draw_integers(batch, (1,), self.config.orders, "order")[:, 0]

    def predict(self, inputs: Tensor) -> Tensor:
        """Return logits [B, orders]."""
        return self.network(normalize_tiles(inputs) if self.config.normalize else inputs)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return self.draw_order(batch)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(predictions, targets)

    def collapsed_loss(self, batch_size: int) -> float | None:
        return math.log(self.config.orders)

    def grade(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions.argmax(1) == targets).float()

    def chance(self) -> float | None:
        return 1 / self.config.orders

    def illustrate(
        self, batch: Batch, predictions: Tensor, targets: Tensor
    ) -> Sequence[Illustration]:
        orders = torch.tensor(list_orders(self.config.orders), device=targets.device)
        shuffled, answers = self.inputs(batch), predictions.argmax(1)
        solved, whole = (
            take_tiles(shuffled, orders[numbers].argsort(1)) for numbers in (answers, targets)
        )
        right = (orders[answers] == orders[targets]).sum(1).tolist()
        return [
            Illustration(
                pictures={"input": mosaic(x), "prediction": mosaic(y), "truth": mosaic(z)},
                text=f"{count} of 9 tiles in their places",
                correct=count == GRID**2,
            )
            for x, y, z, count in zip(shuffled, solved, whole, right, strict=True)
        ]
