"""Patches that can be masked, and block masks drawn from the random numbers of a batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.devices import to_device
from selftaught.errors import UserError
from selftaught.method import Batch, Encoder

BLOCKS = 8  # most blocks of a mask; random patches follow where they cover too little
ASPECT = math.log(1 / 0.3)  # aspect ratios are from 0.3 to 1 / 0.3 (Bao et al., 2021, section 2.3)


def require_patches(backbone: Encoder, method: str, other: str) -> tuple[int, int]:
    """Return the size of the patches that a method masks.

    Raises UserError where the backbone has none; `other`: the name of a method that needs none.
    """
    if backbone.patch_size is None:
        raise UserError(
            f"{getattr(backbone, 'name', type(backbone).__name__)} has no patch tokens, which"
            f" {method} masks: choose a ViT, such as --backbone vit_small_patch16_224, or take"
            f" --method {other}"
        )
    return backbone.patch_size


def draw_masks(
    batch: Batch, grid: tuple[int, int], low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Mask patches of one view of each image: two masks [B, h * w], bool, one a view.

    The share of masked patches is from `low` to `high`, and at least one patch. Neighbours in the
    batch, which CutMix and MixUp mix, have equal masks.
    """
    h, w = grid
    numbers = batch.random((2 + 4 * BLOCKS + h * w,), "mask")
    numbers = numbers[_first_of_pairs(len(numbers), numbers.device)]
    view, share = numbers[:, 0] < 0.5, low + (high - low) * numbers[:, 1]
    count = (share * h * w).round().clamp(1, most_masked(h * w, low, high))
    order = _scores(numbers[:, 2:], grid).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(h * w, device=order.device) < count[:, None]
    mask = torch.zeros_like(first).scatter(1, order, first)
    return mask & view[:, None], mask & ~view[:, None]


def most_masked(patches: int, low: float, high: float) -> int:
    """The largest number of masked patches of a view."""
    return min(max(round(max(low, high) * patches), 1), patches)


def masked_places(masks: tuple[Tensor, Tensor], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the masked patches of `draw_masks`; return three tensors for each image.

    The masked view [B], 0 or 1. Patches [B, `most`], the masked ones first. 1 for each masked patch
    of these and 0 for others [B, `most`].
    """
    view = masks[1].any(1).long()
    mask = masks[0] | masks[1]
    patches = mask.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return view, patches, mask.gather(1, patches).float()


def patch_shares(mask: Tensor, patches: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean of a mask of pixels, [H, W] or [1, 1], in each of `patches` [B, M] -> [B, M].

    `size`: height and width of a patch.
    """
    means = mask if mask.numel() == 1 else F.avg_pool2d(mask[None, None], size)
    means = to_device(means.flatten(), patches.device)
    return means.expand(patches.shape) if mask.numel() == 1 else means[patches]


def _first_of_pairs(count: int, device: torch.device) -> Tensor:
    """[B]: 0, 0, 2, 2, ...; the last of an odd number belongs to the pair before it."""
    first = torch.arange(count, device=device) // 2 * 2
    if count % 2 and count > 1:
        first[-1] = count - 3
    return first


def _scores(numbers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Uniform numbers [B, 4 * BLOCKS + h * w] -> scores [B, h * w]; the highest are masked first.

    Patches of the first block come first, in random order, then those of the second block.
    """
    h, w = grid
    area, aspect, row, column = numbers[:, : 4 * BLOCKS].unflatten(1, (4, BLOCKS)).unbind(1)
    noise = numbers[:, 4 * BLOCKS :]
    # a block has from a sixteenth to a quarter of the patches
    pixels = (1 + 3 * area) / 16 * h * w
    ratio = ((2 * aspect - 1) * ASPECT).exp()
    inside = []
    for middle, side, length in (
        (row, (pixels * ratio).sqrt(), h),
        (column, (pixels / ratio).sqrt(), w),
    ):
        place = torch.arange(length, device=numbers.device) + 0.5
        # the border may cut a block; else patches at the border would be masked too rarely
        distance = (place - length * middle[:, :, None]).abs()
        inside.append(distance < side[:, :, None] / 2)  # [B, BLOCKS, length]
    blocks = (inside[0][:, :, :, None] & inside[1][:, :, None, :]).flatten(2)
    rank = torch.arange(BLOCKS, 0, -1, device=numbers.device)[:, None]
    return (blocks * rank).amax(1) + noise
