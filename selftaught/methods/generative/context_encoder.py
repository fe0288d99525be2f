"""Context encoder (Pathak et al., 2016, https://arxiv.org/abs/1604.07379)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.losses import discriminator_loss
from selftaught.method import Batch, GroupOptions, Setup
from selftaught.methods.parts.gan_networks import PictureDiscriminator
from selftaught.methods.parts.picture_errors import GREY
from selftaught.methods.parts.reconstruction import Damage, Reconstruction, Targets
from selftaught.methods.parts.two_player import (
    ADAM,
    call_detached,
    call_pure,
    update_spectral_norms,
)
from selftaught.ranges import NonNegative

AREA = 0.25  # of the view that is a hole
CELLS = 6  # rows of the noise that makes random holes
RIM = 1 / 32  # width of the ring around a hole, of the view's side


class ContextEncoder(Reconstruction):
    """Fill in a hole of an image from what is around it."""

    paper = "Pathak et al., 2016, https://arxiv.org/abs/1604.07379"

    @dataclass(frozen=True, kw_only=True)
    class Config(Reconstruction.Config):
        # regions of any shape, drawn for each image; or the square in the middle. The paper's
        # features are of the first kind, its pictures of the second.
        hole: Literal["centre", "random"] = "random"
        rim: NonNegative = 10.0  # weight of the visible pixels around a hole; one of the hole has 1
        # weight of the loss at a discriminator of fills; .001 makes sharper ones. 0: there is none
        adversarial: NonNegative = 0.0

        @property
        def two_player(self) -> bool:
            return self.adversarial > 0

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.discriminator: nn.Module | None = None
        if config.two_player:
            self.discriminator = PictureDiscriminator(config.hidden)

    def parameter_groups(self) -> dict[str, GroupOptions]:
        return {"discriminator": ADAM} if self.discriminator else {}

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
        holes = torch.zeros(len(view), height, width, dtype=torch.bool, device=view.device)
        holes[:, middle(height), middle(width)] = True
        return holes

    def weigh(self, keep: Tensor) -> Tensor:
        """The hole, and the ring around it: what is filled in must continue what is seen."""
        hole, reach = 1 - keep, max(round(RIM * keep.shape[3]), 1)
        ring = F.max_pool2d(hole, 2 * reach + 1, 1, reach) - hole
        return hole + self.config.rim * ring

    def loss(self, predictions: Tensor, targets: Targets) -> Tensor:
        """The error, and the two losses of fill and discriminator if there is one."""
        error = self.error(predictions, targets)
        if self.discriminator is None:
            return error
        view, keep, _ = targets
        real, fake = self.cut_fill(view, keep), self.cut_fill(predictions, keep)
        scores = call_pure(self.discriminator, torch.cat([real, fake.detach()])).chunk(2)
        passed = call_detached(self.discriminator, fake)
        fooling = F.softplus(-passed).mean()
        return error + discriminator_loss(*scores) + self.config.adversarial * fooling

    def cut_fill(self, picture: Tensor, keep: Tensor) -> Tensor:
        """Cut the square of the hole; of a random hole, put its pixels on grey.

        A discriminator that saw the surroundings would learn to find the seam.
        """
        if self.config.hole == "random":
            return torch.lerp(picture, torch.full_like(picture, GREY), keep)
        return picture[:, :, middle(picture.shape[2]), middle(picture.shape[3])]

    def after_step(self, batch: Batch, predictions: Tensor, targets: Targets) -> None:
        if self.discriminator is not None:
            update_spectral_norms(self.discriminator)


def middle(side: int) -> slice:
    """The middle half of a side, in pixels: less than a quarter of it from the centre."""
    first = math.floor((1 - AREA**0.5) * side / 2 - 0.5) + 1
    return slice(first, side - first)
