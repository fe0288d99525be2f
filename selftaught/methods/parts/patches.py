"""An image as a grid of overlapping patches, and a network that reads the grid row by row (CPC)."""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from selftaught.errors import UserError


def automatic_side(size: int) -> int:
    """Such that patches half a side apart make seven rows, or fewer where they would be below 32
    pixels.
    """
    rows = min(max(2 * size // 32 - 1, 3), 7)
    return max(2 * size // (rows + 1), 1)


def cut(view: Tensor, side: int, stride: int) -> Tensor:
    """view [B, 3, H, W] -> patches [B, rows, columns, 3, side, side]."""
    if side > min(view.shape[2:]):
        raise UserError(
            f"patches of {side} pixels do not fit a view of {min(view.shape[2:])}: lower"
            " --method.side"
        )
    return view.unfold(2, side, stride).unfold(3, side, stride).permute(0, 2, 3, 1, 4, 5)


def drop_colours(patches: Tensor, numbers: Tensor, share: float) -> Tensor:
    """Leave a `share` of patches [B, rows, columns, 3, s, s] one colour channel, in place of all
    three: those whose numbers [B, rows, columns], uniform in [0, 1), are below it.
    """
    channel = (numbers / max(share, 1e-9) * 3).long().clamp(max=2)[:, :, :, None, None, None]
    kept = patches.gather(3, channel.expand(-1, -1, -1, 1, *patches.shape[4:]))
    return torch.where((numbers < share)[:, :, :, None, None, None], kept, patches)


class Context(nn.Module):
    """Features [B, D, G, G] -> [B, K, G, G, dim]; what stands at row i comes from rows up to i
    alone.
    """

    def __init__(
        self, features: int, hidden: int, blocks: int, norm: str, ahead: int, dim: int
    ) -> None:
        super().__init__()
        self.dim = dim
        self.enter = nn.Conv2d(features, hidden, 1)
        self.blocks = nn.Sequential(*[_Block(hidden, norm) for _ in range(blocks)])
        self.leave = nn.Sequential(_norm(hidden, norm), nn.ReLU())
        # the W_k, K = `ahead` of them, as one layer: an unused one does no harm
        self.say = nn.Conv2d(hidden, ahead * dim, 1)

    def forward(self, grid: Tensor) -> Tensor:
        said = self.say(self.leave(self.blocks(self.enter(grid))))
        return said.unflatten(1, (-1, self.dim)).permute(0, 1, 3, 4, 2)


class _Block(nn.Module):
    """x -> x + what its row and the row above say."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(width, norm), nn.ReLU())
        self.look = nn.Conv2d(width, width, (2, 3))
        self.after = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        # padded above: it never looks below
        return x + self.after(self.look(F.pad(self.before(x), (1, 1, 1, 0))))


def _norm(width: int, kind: str) -> nn.Module:
    # Each place for itself: a norm over the whole grid would tell every row of those below.
    return LayerNorm2d(width) if kind == "layer" else nn.BatchNorm2d(width)
