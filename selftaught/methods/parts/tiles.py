"""Nine tiles of a view, with gaps between them, and what hides the traces of their places."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.errors import UserError
from selftaught.method import Batch, Encoder, Method
from selftaught.methods.parts.patches import drop_colours
from selftaught.models.backbone import nearest_size
from selftaught.ranges import Natural, Share

GRID = 3  # tiles along each side
SHARE = 11 / 16  # of a cell's side that is the tile's
SMALLEST = 8  # pixels of a cell, unless the tile's side is given: smaller tiles show nothing
MARGIN = 5  # a fifth of the free pixels of a cell stays free at each of its ends
FLAT = 0.01  # deviation of pixels below which a tile counts as flat
# Crops and flips with mild colours: strong ones and blurs hide what a tile shows.
VIEWS = {
    "scale": (0.35, 1.0),
    "blur": 0.0,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.05,
}


@dataclass(frozen=True, kw_only=True)
class TileConfig(Method.Config):
    """Hyperparameters of a method that cuts a view into nine tiles."""

    tile: Natural = 0  # pixels of a tile's side; 0 = 11/16 of its cell, a third of the view
    # Colour fringes of a lens tell the place of a tile. drop: one random channel of each tile
    # replaces all three. project: the axis from green to magenta, that of the fringes, is removed.
    colours: Literal["keep", "drop", "project"] = "keep"
    # largest shift of each colour channel, as a share of the tile's side, against the same fringes
    channel_shift: Share = 0.0
    normalize: bool = True  # each tile and channel to the same mean and deviation


def draw_tiles(batch: Batch, config: TileConfig, backbone: Encoder) -> Tensor:
    """Cut the first view into tiles [B, 9, 3, s, s], row by row, at random places of their cells.

    Raises UserError where the view is too small for the tiles.
    """
    view = batch.views[0]
    side = tile_side(view.shape[-1], config.tile, backbone)
    free = view.shape[-1] // GRID - side
    margin = free // MARGIN
    reach = round(config.channel_shift * side)
    offsets = margin + draw_integers(batch, (GRID**2, 1, 2), free - 2 * margin + 1, "offsets")
    shifts = draw_integers(batch, (GRID**2, 3, 2), 2 * reach + 1, "shifts") - reach
    tiles = crop_tiles(view, side, (offsets + shifts).clamp(0, free))
    if config.colours == "drop":
        return drop_colours(tiles, batch.random((GRID**2,), "colours"), 1.0)
    return remove_green(tiles) if config.colours == "project" else tiles


def draw_integers(batch: Batch, shape: tuple[int, ...], count: int, salt: str) -> Tensor:
    """Draw random numbers [B, *shape] from 0 to `count` - 1."""
    return (batch.random(shape, salt) * count).long()


def tile_side(size: int, tile: int, backbone: Encoder) -> int:
    """Return the pixels of a tile's side in a view of `size` pixels; `tile`: 0, or the side.

    Raises UserError where it does not fit the backbone, or leaves no gap between tiles.
    """
    cell = size // GRID
    if not tile and cell < SMALLEST:
        raise UserError(
            f"views of {size} pixels are too small for nine tiles: --size {GRID * SMALLEST} or more"
        )
    target = tile or round(SHARE * cell)
    side, patch, limit = (nearest_size(backbone, (n, n))[0] for n in (target, 1, 2**20))
    if patch == limit:
        raise UserError(
            f"this backbone takes images of {patch} pixels and no tiles: choose another --backbone"
        )
    if tile and side != tile:
        raise UserError(
            f"the backbone takes no tiles of {tile} pixels: --method.tile {side}, or leave it out"
        )
    if side >= cell:
        enough = -(-GRID * (side + 1) // patch) * patch
        smaller = ", or a smaller --method.tile" if tile else ""
        raise UserError(
            f"views of {size} pixels have no gap between nine tiles of {side}: --size {enough} or"
            f" more{smaller}"
        )
    return side


def crop_tiles(view: Tensor, side: int, offsets: Tensor) -> Tensor:
    """view [B, C, S, S] -> a tile of each of nine cells, [B, 9, C, side, side], row by row.

    offsets: int64 [B or 1, 9, C or 1, 2], pixels down and to the right of the cell's corner.
    """
    places = torch.arange(GRID, device=view.device)
    corners = view.shape[-1] // GRID * torch.cartesian_prod(places, places)
    start = corners[:, None] + offsets
    pixels = torch.arange(side, device=view.device)
    rows = start[..., 0, None, None] + pixels[:, None]
    columns = start[..., 1, None, None] + pixels
    images = torch.arange(len(view), device=view.device)[:, None, None, None, None]
    channels = torch.arange(view.shape[1], device=view.device)[:, None, None]
    return view[images, channels, rows, columns]


def take_tiles(tiles: Tensor, order: Tensor) -> Tensor:
    """tiles [B, 9, ...], order [B, n] -> [B, n, ...]: at place k the tile `order`[:, k]."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]


def remove_green(tiles: Tensor) -> Tensor:
    """Project colours [..., 3, s, s] onto the plane without green and magenta (Doersch, 2015)."""
    green = tiles.new_tensor([-1.0, 2.0, -1.0])[:, None, None]
    return (tiles - (tiles * green).sum(-3, keepdim=True) * green / 6).clamp(0, 1)


def normalize_tiles(tiles: Tensor) -> Tensor:
    """Give each channel of a tile [..., s, s] the mean .5 and the deviation .25.

    These are about those of photographs. A flat tile gets a lower deviation.
    """
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    variance = centred.square().mean((-2, -1), keepdim=True)
    return 0.5 + 0.25 * centred / (variance + FLAT**2).sqrt()


def mosaic(tiles: Tensor) -> Tensor:
    """Lay nine tiles [9, 3, s, s] out as one picture [3, H, W], with grey between them."""
    framed = F.pad(tiles, (1, 1, 1, 1), value=0.5)
    return framed.unflatten(0, (GRID, GRID)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
