"""Context prediction (Doersch et al., 2015, https://arxiv.org/abs/1505.05192)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.method import Batch, Defaults, Illustration, Method, Setting, Setup
from selftaught.methods.parts.tiles import (
    VIEWS,
    TileConfig,
    draw_integers,
    draw_tiles,
    mosaic,
    normalize_tiles,
    take_tiles,
)
from selftaught.models.layers import mlp
from selftaught.ranges import Count

CENTRE = 4  # the tile in the middle, of nine in rows
NEIGHBOURS = {
    "above left": 0,
    "above": 1,
    "above right": 2,
    "left": 3,
    "right": 5,
    "below left": 6,
    "below": 7,
    "below right": 8,
}


class ContextPrediction(Method):
    """Find the place of a patch beside another one of the same image, among eight places."""

    paper = "Doersch et al., 2015, https://arxiv.org/abs/1505.05192"
    views = 1
    recommended_stage = 0.75  # stage 3 of 4 is the best one in published probes of ResNet-50

    @dataclass(frozen=True, kw_only=True)
    class Config(TileConfig):
        colours: Literal["keep", "drop", "project"] = "drop"
        hidden: Count = 4096  # width of the layer that sees both patches

        def defaults(self, setting: Setting) -> Defaults[Self]:
            # the rate of published trainings of a ResNet-50
            config = replace(self, hidden=min(self.hidden, 2 * setting.features))
            return Defaults(config=config, views=VIEWS, lr=0.1)

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.pairs = mlp(2 * setup.backbone.features, config.hidden, len(NEIGHBOURS))

    def inputs(self, batch: Batch) -> Tensor:
        """Return patches [B, 9, 3, s, s]: the one in the middle, then its neighbours."""
        tiles = draw_tiles(batch, self.config, self.backbone)
        neighbours = torch.tensor([*NEIGHBOURS.values()], device=tiles.device)
        order = F.pad(neighbours[self.draw_places(batch)], (1, 0), value=CENTRE)
        return take_tiles(tiles, order)

    def draw_places(self, batch: Batch) -> Tensor:
        """Return the places of the neighbours, [B, 8] in 0..7.

        The first one is random, so that patches which are mixed differ in their places.
        """
        first = draw_integers(batch, (1,), len(NEIGHBOURS), "first")
        return (first + torch.arange(len(NEIGHBOURS), device=first.device)) % len(NEIGHBOURS)

    def predict(self, inputs: Tensor) -> Tensor:
        """Return logits [B, 8, 8] of each neighbour's place."""
        patches = normalize_tiles(inputs) if self.config.normalize else inputs
        features = self.backbone(patches.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        centre, neighbours = features[:, :1], features[:, 1:]
        pairs = torch.cat([centre.expand_as(neighbours), neighbours], 2)
        return self.pairs(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return self.draw_places(batch)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(predictions.flatten(0, 1), targets.flatten())

    def collapsed_loss(self, batch_size: int) -> float | None:
        return math.log(len(NEIGHBOURS))

    def grade(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions.argmax(2) == targets).float().mean(1)

    def chance(self) -> float | None:
        return 1 / len(NEIGHBOURS)

    def illustrate(
        self, batch: Batch, predictions: Tensor, targets: Tensor
    ) -> Sequence[Illustration]:
        """Show the first neighbour of each image, at the predicted place and at the true one."""
        names = list(NEIGHBOURS)
        answers = zip(predictions[:, 0].argmax(1).tolist(), targets[:, 0].tolist(), strict=True)
        return [
            Illustration(
                pictures={
                    "input": patches[1],
                    "prediction": _board(patches, names[answer]),
                    "truth": _board(patches, names[truth]),
                },
                text=f"predicted {names[answer]}, truth {names[truth]}",
                correct=answer == truth,
            )
            for patches, (answer, truth) in zip(self.inputs(batch), answers, strict=True)
        ]


def _board(patches: Tensor, place: str) -> Tensor:
    """A picture of nine places with the middle patch and one neighbour; the rest is grey."""
    board = torch.full_like(patches, 0.5)
    board[CENTRE], board[NEIGHBOURS[place]] = patches[0], patches[1]
    return mosaic(board)
