"""MAE (He et al., 2021, https://arxiv.org/abs/2111.06377)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from selftaught.errors import require
from selftaught.method import Batch, Defaults, Setting, Setup
from selftaught.methods.parts.masked_pixels import (
    Inputs,
    MaskedPixels,
    count_masked,
    draw_cells,
    join_patches,
)
from selftaught.methods.parts.patch_decoder import HEAD_WIDTH, PatchDecoder
from selftaught.methods.parts.patch_masks import require_patches
from selftaught.ranges import Count, Share

EPS = 1e-6  # added to the variance of a patch, which may have one colour


class MAE(MaskedPixels):
    """Fill in masked patches of an image. The encoder computes the visible patches alone."""

    paper = "He et al., 2021, https://arxiv.org/abs/2111.06377"
    recommended_stage = 1.0  # the mean of all patches; most ViTs pool the class token alone
    masks_patches = True
    reference = "each patch's mean colour"

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedPixels.Config):
        mask_ratio: Share = 0.75  # share of the patches that are masked
        width: Count = 512  # of the decoder; a multiple of 32
        depth: Count = 8  # blocks of the decoder

        def __post_init__(self) -> None:
            super().__post_init__()
            rule = f"a multiple of {HEAD_WIDTH}"
            require(self.width % HEAD_WIDTH == 0, "--method.width", rule, self.width)

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use two thirds of the backbone's width, as the paper does; two blocks on small data.

            Views are cropped and mirrored only. The paper's rate is for batches of 4096 images and
            hundreds of epochs. Short trainings of small batches need more.
            """
            width = max(2 * setting.features // 3 // HEAD_WIDTH, 1) * HEAD_WIDTH
            depth = self.depth if setting.images >= 100_000 else min(self.depth, 2)
            return Defaults(
                config=replace(self, width=min(self.width, width), depth=depth),
                views={"scale": (0.2, 1.0), "jitter": 0.0, "gray": 0.0, "blur": 0.0},
                optimizer="adamw",
                lr=1.5e-4 if setting.pretrained else 1e-3,
            )

    config: Config

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        backbone = setup.backbone
        self.patch_size = require_patches(backbone, "MAE", "simmim")
        outputs = 3 * self.patch_size[0] * self.patch_size[1]
        self.decoder = PatchDecoder(
            backbone.features, backbone.channels, config.width, config.depth, outputs
        )

    def grid(self, view: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        return view.shape[2] // self.patch_size[0], view.shape[3] // self.patch_size[1]

    def draw_mask(self, batch: Batch) -> Tensor:
        return draw_cells(batch, self.grid(batch.views[0]), self.config.mask_ratio)

    def predict(self, inputs: Inputs) -> Tensor:
        view, mask = inputs
        grid = self.grid(view)
        visible = grid[0] * grid[1] - count_masked(grid, self.config.mask_ratio)
        keep = mask.value.flatten(1).long().argsort(dim=1, stable=True)[:, :visible]
        features, tokens = self.backbone.tokens(view, keep=keep)
        patches = self.decoder(features, tokens, keep, grid)
        return join_patches(patches.transpose(1, 2), grid, self.patch_size)

    def error(self, difference: Tensor) -> Tensor:
        return difference.square()

    def guess(self, view: Tensor, hidden: Tensor) -> Tensor:
        return torch.zeros_like(view[:, :, :1, :1])

    def encode(self, view: Tensor) -> Tensor:
        """Normalise each patch by the mean and the deviation of all its values."""
        mean, deviation = self.measure_patches(view)
        return (view - mean) / deviation

    def decode(self, picture: Tensor, view: Tensor) -> Tensor:
        """The mean and the deviation of each patch are the true ones; they aren't predicted."""
        mean, deviation = self.measure_patches(view)
        return picture * deviation + mean

    def measure_patches(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the patch of each pixel: [B, 1, H, W] each."""
        high, wide = self.patch_size
        patches = view.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # [B, 3, h, high, w, wide]
        moments = torch.var_mean(patches, dim=(1, 3, 5), correction=0, keepdim=True)
        variance, mean = (x.expand(-1, 1, -1, high, -1, wide) for x in moments)
        return mean.reshape_as(view[:, :1]), (variance + EPS).sqrt().reshape_as(view[:, :1])
