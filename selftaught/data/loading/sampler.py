"""The order of an epoch, which depends on the seed and the epoch's number alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from selftaught.data.parquet.row_groups import Groups


def epoch(n: int, batch: int, seed: int, number: int, groups: Groups | None = None) -> Tensor:
    """Return the steps of an epoch over n images: [steps, batch] long of 0..n-1, each at most once.

    The last images that fill no batch are left out. groups: row groups of the n images, if any.
    """
    rng = _make_generator(seed, number)
    steps = n // batch
    if groups is None or not groups.exceeds_cache:
        return torch.randperm(n, generator=rng)[: steps * batch].view(steps, batch)
    return groups.order(steps, batch, rng)


def _make_generator(seed: int, number: int) -> torch.Generator:
    # A hash, as seed + number would give neighbouring seeds equal epochs.
    mixed = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
