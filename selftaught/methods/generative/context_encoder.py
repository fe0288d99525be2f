"""Context encoder (Pathak et al., 2016, https://arxiv.org/abs/1604.07379)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.method import Batch, Setup
from selftaught.methods.parts.picture_errors import GREY
from selftaught.methods.parts.reconstruction import Damage, Reconstruction
from selftaught.ranges import NonNegative

AREA = 0.25  # of the view that is a hole
CELLS = 6  # rows of the noise that makes random holes
RIM = 1 / 32  # width of the ring around a hole, of the view's side


class ContextEncoder(Reconstruction):
    """Fill in a hole of an image from what is around it."""

    paper = "Pathak et al., 2016, https://arxiv.org/abs/1604.07379"

    @dataclass(frozen=True, kw_only=True)
    class Config(Reconstruction.Config):
        # the square in the middle; or regions of any shape, drawn for each image
        hole: Literal["centre", "random"] = "centre"
        rim: NonNegative = 10.0  # weight of the visible pixels around a hole; one of the hole has 1

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config

    def draw_damage(self, batch: Batch) -> Damage:
        """Fill a quarter of each view with grey."""
        view = batch.views[0]
        hole = self.draw_holes(batch).to(view.dtype)[:, None]
        return 1 - hole, GREY * hole

    def draw_holes(self, batch: Batch) -> Tensor:
        """Draw holes [B, H, W], bool."""
        view = batch.views[0]
        height, width = view.shape[2:]
        if self.config.hole == "random":
            noise = batch.random((1, CELLS, CELLS), "hole")
            smooth = F.interpolate(noise, size=(height, width), mode="bicubic")[:, 0]
            count = max(round(AREA * height * width), 1)
            return smooth <= smooth.flatten(1).kthvalue(count).values[:, None, None]
        rows, columns = (
            (torch.arange(side, device=view.device) + 0.5 - side / 2).abs() < AREA**0.5 * side / 2
            for side in (height, width)
        )
        return (rows[:, None] & columns).expand(len(view), -1, -1)

    def weigh(self, keep: Tensor) -> Tensor:
        """The hole, and the ring around it: what is filled in must continue what is seen."""
        hole, reach = 1 - keep, max(round(RIM * keep.shape[3]), 1)
        ring = F.max_pool2d(hole, 2 * reach + 1, 1, reach) - hole
        return hole + self.config.rim * ring
