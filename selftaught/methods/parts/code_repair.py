"""Damage of an autoencoder's code, and the repair of what is decoded from it.

Jenni & Favaro, 2018, https://arxiv.org/abs/1806.05024, section 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.methods.parts.autoencoder import Autoencoder, Change, conv_block


class Repair(nn.Module):
    """Residual blocks that change a decoder's inputs where its code was damaged.

    `widths`: channels of these inputs, in their order.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_block(i + 1, i, 3, padding=1), nn.Conv2d(i, i, 3, padding=1))
            for i in widths
        )

    def change(self, mask: Tensor) -> Change:
        """Return the change; mask [B, 1, h, w]: 1 at places of the code that were kept."""

        def apply(number: int, x: Tensor) -> Tensor:
            keep = enlarge_mask(mask, x.shape[2:])
            repaired: Tensor = x + (1 - keep) * self.blocks[number](torch.cat([x, keep.to(x)], 1))
            return repaired

        return apply


def damage_code(code: Tensor, mask: Tensor) -> Tensor:
    """Replace the places where the mask [B, 1, h, w] is 0 by the mean of their neighbourhood.

    The neighbourhood is 3 x 3, with the place itself and without what is outside of the map.
    """
    means = F.avg_pool2d(code, 3, 1, 1, count_include_pad=False)
    return torch.where(mask > 0, code, means)


def enlarge_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge a mask to `size`; every value stays 0 or 1."""
    return F.interpolate(mask, size=tuple(size), mode="nearest")


def kept_errors(picture: Tensor, view: Tensor, mask: Tensor) -> Tensor:
    """The mean square error of each image [B] where its mask is 1, of pixels in [-1, 1].

    It is 0 where nothing is kept. picture, view: [B, 3, H, W] in [0, 1]; mask: [B, 1, h, w].
    """
    keep = enlarge_mask(mask, view.shape[2:])
    squares = 4 * (picture - view).square().mean(1, keepdim=True)
    return (keep * squares).sum((1, 2, 3)) / keep.sum((1, 2, 3)).clamp_min(1)


@torch.no_grad()
def illustrate_repairs(
    autoencoder: Autoencoder, view: Tensor, mask: Tensor, repaired: Tensor, keep: Tensor
) -> list[dict[str, Tensor]]:
    """Pictures of each image by title, from the view to the damage and its prediction.

    keep: the predicted probability [B, 1, h, w] of each place. The autoencoder is set to evaluation
    mode.
    """
    code, decoded = autoencoder.eval()(view)
    damaged = autoencoder.decoder(damage_code(code, mask), view.shape[2:])
    maps = [enlarge_mask(1 - x, view.shape[2:]).expand(-1, 3, -1, -1) for x in (mask, keep)]
    titles = ("picture", "decoded", "damaged", "repaired", "damage", "predicted damage")
    rows = zip(view, decoded, damaged, repaired, *maps, strict=True)
    return [dict(zip(titles, row, strict=True)) for row in rows]
