"""Which images are measured while a stage trains."""

import torch
from torch import Tensor

from selftaught.data.index.build import Index


def sample(index: Index, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the labelled images that vote, of those that are voted on, and of those whose
    features are watched: fixed for a data set. Held-back images are voted on and watched; where
    there are few, training images are watched besides, and where there are none, some are voted on
    that do not vote.
    """
    rng = torch.Generator().manual_seed(0)

    def some(positions: Tensor, most: int) -> Tensor:
        return positions[torch.randperm(len(positions), generator=rng)[:most]]

    known = index.labelled
    bank, held = some(index.train[known[index.train]], 5 * number), some(index.held_out, number)
    voted = held[known[held]]
    if not len(voted):
        half = min(number, len(bank) // 2)
        bank, voted = bank[half:], bank[:half]
    watched = torch.cat([held, some(index.train, number)])[:number]
    return bank[: 4 * number], voted, watched
