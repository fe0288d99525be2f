"""The base of MAE and SimMIM: predict the pixels of masked parts of a view from the others."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.devices import upcast
from selftaught.errors import UserError
from selftaught.method import Batch, Fixed, Illustration, Method
from selftaught.methods.parts.picture_errors import GREY, avoided_share, illustrate_pictures
from selftaught.models.layers import mix_areas
from selftaught.ranges import Share

Inputs = tuple[Tensor, Fixed]  # a view [B, 3, H, W]; its mask [B, h, w], bool
Targets = tuple[Tensor, Tensor]  # the view; 1 at each masked pixel and 0 at others [B, 1, H, W]


class MaskedPixels(Method):
    """Predictions are pictures [B, 3, H, W]. Only masked pixels have a part in the loss.

    A subclass says what is masked, what a picture shows, and what a wrong pixel costs.
    """

    views = 1
    reference: ClassVar[str]  # what `guess` predicts, in words

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        mask_ratio: Share = 0.75  # share of the view that is masked

    config: Config

    @abstractmethod
    def draw_mask(self, batch: Batch) -> Tensor:
        """Draw the masked cells of a grid over each view: [B, h, w], bool."""

    @abstractmethod
    def error(self, difference: Tensor) -> Tensor:
        """Return the cost of each value of a difference from the target."""

    @abstractmethod
    def guess(self, view: Tensor, hidden: Tensor) -> Tensor:
        """Return the prediction [B, 3, 1, 1] of a network that has learnt nothing: `reference`."""

    def encode(self, view: Tensor) -> Tensor:
        """Return the target picture of a view [B, 3, H, W]."""
        return view

    def decode(self, picture: Tensor, view: Tensor) -> Tensor:
        """Return pixels for a predicted picture; `view` is the true one."""
        return picture

    def inputs(self, batch: Batch) -> Inputs:
        return batch.views[0], Fixed(self.draw_mask(batch))

    def targets(self, batch: Batch, predictions: Tensor) -> Targets:
        view = batch.views[0]
        return view, spread_mask(self.draw_mask(batch), view)

    def loss(self, predictions: Tensor, targets: Targets) -> Tensor:
        return self.image_errors(predictions, targets).mean()

    def image_errors(self, predictions: Tensor, targets: Targets) -> Tensor:
        """The mean error of the masked pixels of each image [B]."""
        view, hidden = targets
        error = self.error(predictions - self.encode(view)) * hidden
        return error.sum((1, 2, 3)) / (error.shape[1] * hidden.sum((1, 2, 3)))

    def mix_targets(self, own: Targets, partner: Targets, mask: Tensor) -> Targets:
        """The pixels of a mixed view are those of both views, so its targets are exact."""
        return mix_areas(own[0], partner[0], mask), own[1]

    def grade(self, predictions: Tensor, targets: Targets) -> Tensor:
        """The share of the error of `guess` that the prediction avoids; 0 if it avoids none."""
        error = self.image_errors(predictions, targets)
        guessed = self.image_errors(self.guess(*targets), targets)
        return avoided_share(error, guessed).clamp(0, 1)

    def chance(self) -> float | None:
        return 0.0  # the grade of `guess`

    def illustrate(
        self, batch: Batch, predictions: Tensor, targets: Targets
    ) -> Sequence[Illustration]:
        view, hidden = targets
        pixels = self.decode(predictions, view).clamp(0, 1)
        filled = torch.where(hidden > 0, pixels, view)
        shown = torch.where(hidden > 0, GREY, view)
        grades = self.grade(predictions, targets)
        return illustrate_pictures(shown, filled, view, grades, self.reference)


def draw_cells(batch: Batch, grid: tuple[int, int], ratio: float) -> Tensor:
    """Mask the same number of random cells in each image: [B, h, w], bool.

    Raises UserError where the grid has one cell.
    """
    count = count_masked(grid, ratio)
    order = batch.random((grid[0] * grid[1],), "mask").argsort(dim=1, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :count], True)
    return mask.unflatten(1, grid)


def count_masked(grid: tuple[int, int], ratio: float) -> int:
    """The number of masked cells: at least one is masked, and at least one is not."""
    cells = grid[0] * grid[1]
    if cells < 2:
        raise UserError(
            "the view is one patch, and masking needs two: choose a larger --size, or a backbone of"
            " smaller patches"
        )
    return min(max(round(ratio * cells), 1), cells - 1)


def spread_mask(mask: Tensor, view: Tensor) -> Tensor:
    """Mask [B, h, w] of cells -> 1 at each masked pixel of the view, 0 at others [B, 1, H, W]."""
    return F.interpolate(mask[:, None].float(), size=view.shape[2:], mode="nearest-exact")


def join_patches(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Patches [B, 3 * height * width, N], row by row -> a picture [B, 3, H, W]; `size` of each."""
    whole = (grid[0] * size[0], grid[1] * size[1])
    return F.fold(upcast(patches), whole, kernel_size=size, stride=size)
