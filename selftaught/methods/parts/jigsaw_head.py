"""The network of a jigsaw: nine shuffled pieces, each seen alone, and then all together."""

import torch
from torch import Tensor, nn

from selftaught.method import Batch
from selftaught.methods.parts.tiles import GRID, crop_tiles, take_tiles
from selftaught.models.layers import Normalize


def draw_order(batch: Batch) -> Tensor:
    """Draw random numbers [B, 9]. Their order is the order of the pieces."""
    return batch.random((GRID**2,), "pieces")


def shuffled_pieces(view: Tensor, numbers: Tensor) -> Tensor:
    """view [B, 3, S, S], numbers [B, 9] -> pieces [B, 9, 3, s, s], in the order of their numbers.

    A piece is the middle of its cell. Its side is a multiple of 16 (64 of 224 pixels, as in PIRL's
    paper). A cell of less than 16 pixels is a piece as a whole.
    """
    cell = view.shape[-1] // GRID
    side = cell // 16 * 16 or cell
    gap = torch.full((1, GRID**2, 1, 2), (cell - side) // 2, device=view.device)
    return take_tiles(crop_tiles(view, side, gap), numbers.argsort(1))


class JigsawNetwork(nn.Module):
    """Pieces [B, 9, 3, s, s] -> [B, D].

    Each piece passes backbone and `head`, to `dim` numbers. `together`, from 9 `dim` numbers to D,
    compares all nine.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, together: nn.Module) -> None:
        super().__init__()
        self.each = nn.Sequential(backbone, head)
        self.together = together

    def forward(self, pieces: Tensor) -> Tensor:
        embeddings = self.each(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2])
        return self.together(embeddings.flatten(1))


def joint_embedding(dim: int) -> nn.Sequential:
    """Layers from nine embeddings of `dim` numbers to one of unit norm (PIRL)."""
    return nn.Sequential(nn.Linear(GRID**2 * dim, dim), Normalize())
