"""The base of methods that rebuild an image from a damaged copy of it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from selftaught.method import Batch, Defaults, Fixed, Illustration, Method, Setting, Setup
from selftaught.methods.parts.decoder import Decoder
from selftaught.methods.parts.picture_errors import GREY, avoided_share, illustrate_pictures
from selftaught.models.layers import mix_areas
from selftaught.ranges import Count

# `keep` [B, 1, H, W] and `add` [B, 1 or 3, H, W]: a damaged view is view * keep + add
Damage = tuple[Tensor, Tensor]
Inputs = tuple[Tensor, Fixed, Fixed]  # a view [B, 3, H, W] and its damage
Targets = tuple[Tensor, Tensor, Tensor]  # the same

REFERENCE = (
    "the mean colour of the pixels that are left"  # the guess that answers are compared with
)


class Reconstruction(Method):
    """Predictions are pictures [B, 3, H, W]. The loss contains their mean square error.

    A view is damaged in `predict`. So attacks see nothing that is hidden, and mixed views have
    exact targets.
    """

    views = 1
    # of the five convolutions of AlexNet, trained as a context encoder, the third is the best one
    recommended_stage = 0.5

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 128  # width of the decoder

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use crops and flips alone."""
            views = {"scale": (0.35, 1.0), "jitter": 0.0, "gray": 0.0, "blur": 0.0}
            return Defaults(config=self, views=views, optimizer="adamw", lr=1e-3)

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.decoder = Decoder(setup.backbone, config.hidden, 3)

    @abstractmethod
    def draw_damage(self, batch: Batch) -> Damage:
        """Draw the damage of each view from `batch.random`."""

    @abstractmethod
    def weigh(self, keep: Tensor) -> Tensor:
        """Return the weight of each pixel in the loss, [B, 1, H, W], relative to the others."""

    def inputs(self, batch: Batch) -> Inputs:
        keep, add = self.draw_damage(batch)
        return batch.views[0], Fixed(keep), Fixed(add)

    def predict(self, inputs: Inputs) -> Tensor:
        view, keep, add = inputs
        features, feature_map = self.backbone.with_map(damage(view, keep.value, add.value))
        return GREY + self.decoder(features, feature_map, view.shape[2:])

    def targets(self, batch: Batch, predictions: Tensor) -> Targets:
        return batch.views[0], *self.draw_damage(batch)

    def error(self, predictions: Tensor, targets: Targets) -> Tensor:
        """The mean square error of the pixels, by their weights."""
        view, keep, _ = targets
        return image_errors(predictions, view, self.weigh(keep)).mean()

    def mix_targets(self, own: Targets, partner: Targets, mask: Tensor) -> Targets:
        """The pixels of a mixed view are those of both views; its damage is its own."""
        return mix_areas(own[0], partner[0], mask), *own[1:]

    def grade(self, predictions: Tensor, targets: Targets) -> Tensor:
        """The share of a guess's error that is avoided where the view is damaged; at least 0.

        The guess is the mean colour of the pixels that are left.
        """
        return measure_avoided_error(predictions, targets).clamp_min(0)

    def chance(self) -> float | None:
        return 0.0  # the grade of the guess

    def illustrate(
        self, batch: Batch, predictions: Tensor, targets: Targets
    ) -> Sequence[Illustration]:
        view, keep, _ = targets
        damaged = damage(*targets)
        rebuilt = torch.where(self.weigh(keep) > 0, predictions.clamp(0, 1), damaged)
        grades = self.grade(predictions, targets)
        return illustrate_pictures(damaged, rebuilt, view, grades, REFERENCE)


def damage(view: Tensor, keep: Tensor, add: Tensor) -> Tensor:
    """Return the damaged views [B, 3, H, W], in [0, 1]."""
    return (view * keep + add).clamp(0, 1)


def image_errors(predictions: Tensor, view: Tensor, weights: Tensor) -> Tensor:
    """The mean square error of each image [B]; weights [B, 1, H, W] of the pixels."""
    squares = (predictions - view).square().mean(1, keepdim=True)
    return (weights * squares).sum((1, 2, 3)) / weights.sum((1, 2, 3))


def measure_avoided_error(predictions: Tensor, targets: Targets) -> Tensor:
    """The share of a guess's error that each prediction avoids, [B]: below 0 it is worse.

    It is that of the pixels that were lost, or of all where none was.
    """
    view, keep, _ = targets
    lost = 1 - keep
    lost = lost + (lost.sum((1, 2, 3), keepdim=True) == 0)
    left = damage(*targets) * keep
    guess = left.sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True).clamp_min(1)
    return avoided_share(image_errors(predictions, view, lost), image_errors(guess, view, lost))
