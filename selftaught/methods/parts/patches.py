"""Grids of overlapping patches, and the context network of CPC, which reads them row by row."""

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from selftaught.errors import UserError


def automatic_side(size: int) -> int:
    """Choose the side of a patch for a view of `size` pixels and a stride of half a side.

    It makes seven rows, or fewer (at least three) where patches would have less than 32 pixels.
    """
    rows = min(max(2 * size // 32 - 1, 3), 7)
    return max(2 * size // (rows + 1), 1)


def cut(view: Tensor, side: int, stride: int) -> Tensor:
    """view [B, 3, H, W] -> patches [B, rows, columns, 3, side, side].

    Raises UserError where a patch is larger than the view.
    """
    if side > min(view.shape[2:]):
        raise UserError(
            f"patches of {side} pixels do not fit a view of {min(view.shape[2:])}: lower"
            " --method.side"
        )
    return view.unfold(2, side, stride).unfold(3, side, stride).permute(0, 2, 3, 1, 4, 5)


def drop_colours(patches: Tensor, numbers: Tensor, share: float) -> Tensor:
    """Give a `share` of the patches [..., 3, s, s] one colour channel in all three.

    They are the patches whose `numbers` [...], uniform in [0, 1), are below `share`.
    """
    channel = (numbers / max(share, 1e-9) * 3).long().clamp(max=2)[..., None, None, None]
    single = patches.gather(-3, channel.expand(*numbers.shape, 1, *patches.shape[-2:]))
    return torch.where((numbers < share)[..., None, None, None], single, patches)


class Context(nn.Module):
    """Features [B, D, G, G] -> predictions [B, K, G, G, dim]; row i sees rows 0 to i only."""

    def __init__(
        self, features: int, hidden: int, blocks: int, norm: str, ahead: int, dim: int
    ) -> None:
        super().__init__()
        self.dim = dim
        self.enter = nn.Conv2d(features, hidden, 1)
        self.blocks = nn.Sequential(*[_Block(hidden, norm) for _ in range(blocks)])
        self.leave = nn.Sequential(_norm(hidden, norm), nn.ReLU())
        # the paper's W_k, K = `ahead` of them, as one layer: every parameter gets a gradient, even
        # if it is zero, as training on several processes needs
        self.say = nn.Conv2d(hidden, ahead * dim, 1)

    def forward(self, grid: Tensor) -> Tensor:
        predictions = self.say(self.leave(self.blocks(self.enter(grid))))
        return predictions.unflatten(1, (-1, self.dim)).permute(0, 1, 3, 4, 2)


class _Block(nn.Module):
    """A residual block, [B, C, G, G] -> [B, C, G, G], over each row and the one above."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(width, norm), nn.ReLU())
        self.look = nn.Conv2d(width, width, (2, 3))
        self.after = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        # padding above keeps rows below out of the convolution
        return x + self.after(self.look(F.pad(self.before(x), (1, 1, 1, 0))))


def _norm(width: int, kind: str) -> nn.Module:
    # A layer norm of each place alone: one over the grid would leak rows below into every row.
    return LayerNorm2d(width) if kind == "layer" else nn.BatchNorm2d(width)
