"""SimMIM (Xie et al., 2022, https://arxiv.org/abs/2111.09886)."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.features.extract import evaluation_mode
from selftaught.method import Batch, Defaults, Encoder, Setting, Setup
from selftaught.methods.parts.masked_pixels import (
    Inputs,
    MaskedPixels,
    draw_cells,
    join_patches,
    spread_mask,
)
from selftaught.models.layers import resize
from selftaught.ranges import Share, TwoOrMore


class SimMIM(MaskedPixels):
    """Fill in masked squares of an image, by one linear layer on the backbone's last map."""

    paper = "Xie et al., 2022, https://arxiv.org/abs/2111.09886"
    recommended_stage = 0.75  # with so light a head, the last layers are the decoder
    reference = "the visible pixels' mean colour"

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedPixels.Config):
        mask_ratio: Share = 0.6  # share of the squares that are masked
        # squares along a side of the view: of 32 pixels in 224, as in the paper
        cells: TwoOrMore = 7

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Crop and mirror views only. Short trainings need a rate above the paper's."""
            return Defaults(
                config=self,
                views={"scale": (0.67, 1.0), "jitter": 0.0, "gray": 0.0, "blur": 0.0},
                optimizer="adamw",
                lr=1e-4 if setting.pretrained else 1e-3,
                clip=5.0,
            )

    config: Config

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.network = _MaskedNetwork(setup.backbone)

    def draw_mask(self, batch: Batch) -> Tensor:
        """Squares are whole patches of a ViT; they differ in size where 7 does not divide them."""
        high, wide = batch.views[0].shape[2:]
        patch = self.backbone.patch_size or (1, 1)
        grid = (high // patch[0], wide // patch[1])
        cells = (min(self.config.cells, grid[0]), min(self.config.cells, grid[1]))
        mask = draw_cells(batch, cells, self.config.mask_ratio)
        if self.backbone.patch_size is None:
            return mask
        places = mask.new_zeros(len(mask), 1, *grid)
        return spread_mask(mask, places)[:, 0] > 0

    def predict(self, inputs: Inputs) -> Tensor:
        view, mask = inputs
        picture: Tensor = self.network(view, mask.value)
        return picture

    def error(self, difference: Tensor) -> Tensor:
        return difference.abs()

    def guess(self, view: Tensor, hidden: Tensor) -> Tensor:
        visible = 1 - hidden
        return (view * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)


class _MaskedNetwork(nn.Module):
    """A view and its mask -> a picture [B, 3, H, W].

    A ViT gets a learnt token in place of a masked patch, another backbone a learnt colour in place
    of a masked pixel.
    """

    def __init__(self, backbone: Encoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.stride = backbone.patch_size or measure_stride(backbone)
        self.head = nn.Conv2d(backbone.channels, 3 * self.stride[0] * self.stride[1], 1)
        # pyrefly: ignore[bad-argument-type]
        nn.init.constant_(self.head.bias, 0.5)  # grey
        width = 3 if backbone.patch_size is None else backbone.channels
        self.mask_token = nn.Embedding(1, width)  # as a layer, FSDP gathers it
        nn.init.normal_(self.mask_token.weight, 0.5 if backbone.patch_size is None else 0.0, 0.02)

    def forward(self, view: Tensor, mask: Tensor) -> Tensor:
        token = self.mask_token(torch.zeros(1, dtype=torch.long, device=view.device))[0]
        if self.backbone.patch_size is None:
            masked = torch.where(spread_mask(mask, view) > 0, token[:, None, None], view)
            features, feature_map = self.backbone.with_map(masked)
        else:
            features, tokens = self.backbone.tokens(view, mask.flatten(1), token)
            feature_map = tokens.transpose(1, 2).unflatten(2, mask.shape[1:])
        grid = (feature_map.shape[2], feature_map.shape[3])
        picture = join_patches(self.head(feature_map).flatten(2), grid, self.stride)
        # Several processes need a gradient of every parameter, and pooling may have some.
        return resize(picture, view.shape[2:]) + 0 * features.sum()


@torch.no_grad()
def measure_stride(backbone: Encoder) -> tuple[int, int]:
    """Height and width in pixels of a place of the last map, measured on a black image.

    The strides that timm states are not those of other stems.
    """
    side = getattr(backbone, "image_size", None) or 224
    black = next(backbone.parameters()).new_zeros(1, 3, side, side)
    with evaluation_mode(backbone):
        high, wide = backbone.with_map(black)[1].shape[2:]
    return max(round(side / high), 1), max(round(side / wide), 1)
