"""The order of an epoch: a function of data, seed and epoch alone, and kind to data that is read in groups.

Reading one image of a store brings in its row group. A store that fits into the cache of groups is shuffled perfectly. Of a
larger one the groups are permuted, and every image is moved back by a random distance within a window: a shuffle buffer that
needs no state, so that an epoch can be entered at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CACHE = 256 << 20  # bytes of row groups that a process keeps
WINDOW = CACHE // 2  # half of it: what is read ahead needs room besides


def ahead(images: int, size: int) -> int:
    """How many of so many images, of `size` bytes in all, to read ahead: 512, or what takes a quarter of the cache."""
    return int(min(max(CACHE // 4 * images // max(size, 1), 1), 512))


@dataclass(frozen=True, eq=False)
class Groups:
    """Which images are read together."""

    of: Tensor  # [N] long: each image's group, numbered as they lie in the store
    bytes: Tensor  # [G] long: of all the images of a group

    @classmethod
    def counted(cls, groups: Sequence[int], sizes: Sequence[int]) -> Groups | None:
        """From each image's group and bytes; -1 is a file, which is a group by itself. None: all are files."""
        of = torch.tensor(groups, dtype=torch.long)
        alone = of < 0
        if bool(alone.all()):
            return None
        of[alone] = int(of.max()) + 1 + torch.arange(int(alone.sum()))
        return cls(of, torch.zeros(int(of.max()) + 1, dtype=torch.long).index_add_(0, of, torch.tensor(sizes)))

    @cached_property
    def total(self) -> int:
        """Bytes of all images."""
        return int(self.bytes.sum())

    @property
    def scattered(self) -> bool:
        """Whether images in any order would be read many times over: they do not fit into the cache."""
        return self.total > CACHE

    @property
    def ahead(self) -> int:
        """How many images to announce before they are read."""
        return ahead(len(self.of), self.total)

    def subset(self, kept: Tensor) -> Groups:
        return Groups(self.of[kept], self.bytes)

    def as_stored(self, positions: Tensor) -> Tensor:
        """[n]: what sorts `positions` as they lie in the store."""
        return self.of[positions].argsort(stable=True)

    def sample(self, positions: Tensor, most: int) -> Tensor:
        """At most so many of `positions`, evenly spaced within evenly spaced groups, of which there are few."""
        present = self.of[positions].unique()
        some = present[torch.linspace(0, len(present) - 1, min(64, len(present))).round().long()]
        inside = positions[torch.isin(self.of[positions], some)]
        return inside[torch.linspace(0, len(inside) - 1, min(most, len(inside))).round().long()]


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
