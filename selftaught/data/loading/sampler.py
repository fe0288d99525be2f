"""The order of an epoch: a function of the seed and its number alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from selftaught.data.parquet.row_groups import Groups


def epoch(n: int, batch: int, seed: int, number: int, groups: Groups | None = None) -> Tensor:
    """The steps of an epoch over n images: [steps, batch] long of 0..n-1, each at most once; what
    fills no batch is left out. `groups` are those of the n images, where they are read in groups.
    """
    rng = _generator(seed, number)
    steps = n // batch
    if groups is None or not groups.scattered:
        return torch.randperm(n, generator=rng)[: steps * batch].view(steps, batch)
    return groups.order(steps, batch, rng)


def _generator(seed: int, number: int) -> torch.Generator:
    # A hash, because seed + number would give neighbouring seeds the same epochs.
    mixed = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
