"""The order of an epoch: a function of the seed and its number alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from selftaught.data.parquet.row_groups import WINDOW, Groups


def epoch(n: int, batch: int, seed: int, number: int, groups: Groups | None = None) -> Tensor:
    """The steps of an epoch over n images: [steps, batch] long of 0..n-1, each at most once; what fills no batch is left
    out. `groups` are those of the n images, where they are read in groups.

    For scattered groups the images of a batch are sorted by a random number of their group's: the k-th slice of every
    batch then comes from the same groups while these last, whoever reads it, of however many processes.
    """
    rng = _generator(seed, number)
    steps = n // batch
    if groups is None or not groups.scattered:
        return torch.randperm(n, generator=rng)[: steps * batch].view(steps, batch)
    present, of = torch.unique(groups.of, return_inverse=True)
    shuffled = torch.randperm(len(present), generator=rng)
    ends = groups.bytes[present[shuffled]].cumsum(0)
    begins = torch.empty_like(ends)
    begins[shuffled] = ends - groups.bytes[present[shuffled]]  # in bytes: a window always fits into the cache
    when = begins[of] + WINDOW * torch.rand(n, generator=rng, dtype=torch.float64)
    order = when.argsort(stable=True)[: steps * batch].view(steps, batch)
    lane = torch.rand(len(present), generator=rng)[of[order]]
    return order.gather(1, lane.argsort(dim=1, stable=True))


def _generator(seed: int, number: int) -> torch.Generator:
    # A hash, because seed + number would give neighbouring seeds the same epochs.
    mixed = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
