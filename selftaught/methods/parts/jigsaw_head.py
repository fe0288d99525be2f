"""The jigsaw head: one embedding of nine shuffled pieces (Misra & van der Maaten, 2019)."""

import torch
from torch import Tensor, nn

from selftaught.method import Batch
from selftaught.methods.parts.patches import cut
from selftaught.models.layers import Normalize

GRID = 3  # pieces along each side


def draw_order(batch: Batch) -> Tensor:
    """Draw random numbers [B, 9]. Their order is the order of the pieces."""
    return batch.random((GRID**2,), "pieces")


def shuffled_pieces(view: Tensor, numbers: Tensor) -> Tensor:
    """view [B, 3, S, S], numbers [B, 9] -> pieces [B, 9, 3, s, s], in the order of their numbers.

    A piece is the middle of its cell. Its side is a multiple of 16 (64 of 224 pixels, as in the
    paper). A cell of less than 16 pixels is a piece as a whole.
    """
    cell = view.shape[-1] // GRID
    side = cell // 16 * 16 or cell
    gap = (cell - side) // 2
    pieces = cut(view[..., gap:, gap:], side, cell)[:, :GRID, :GRID].flatten(1, 2)
    order = numbers.argsort(1)
    return pieces[torch.arange(len(view), device=view.device)[:, None], order]


class Jigsaw(nn.Module):
    """Pieces [B, 9, 3, s, s] -> embedding [B, dim] of unit norm.

    Each piece passes backbone and `head`, to `dim` numbers. A linear layer joins all nine.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dim: int) -> None:
        super().__init__()
        self.each = nn.Sequential(backbone, head)
        self.together = nn.Sequential(nn.Linear(GRID**2 * dim, dim), Normalize())

    def forward(self, pieces: Tensor) -> Tensor:
        embeddings = self.each(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2])
        return self.together(embeddings.flatten(1))
