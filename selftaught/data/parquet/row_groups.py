"""Row groups of Parquet files: which images lie together, and how many are read ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CACHE = 256 << 20  # bytes of row groups that a process keeps


WINDOW = CACHE // 2  # half of it: what is read ahead needs room besides


def ahead(images: int, size: int) -> int:
    """How many of so many images, of `size` bytes in all, to read ahead: 512, or what takes a
    quarter of the cache.
    """
    return int(min(max(CACHE // 4 * images // max(size, 1), 1), 512))


@dataclass(frozen=True, eq=False)
class Groups:
    """Which images are read together."""

    of: Tensor  # [N] long: each image's group, numbered as they lie in the store
    bytes: Tensor  # [G] long: of all the images of a group

    @classmethod
    def counted(cls, groups: Sequence[int], sizes: Sequence[int]) -> Groups | None:
        """From each image's group and bytes; -1 is a file, which is a group by itself. None: all
        are files.
        """
        of = torch.tensor(groups, dtype=torch.long)
        alone = of < 0
        if bool(alone.all()):
            return None
        of[alone] = int(of.max()) + 1 + torch.arange(int(alone.sum()))
        return cls(
            of,
            torch.zeros(int(of.max()) + 1, dtype=torch.long).index_add_(0, of, torch.tensor(sizes)),
        )

    @cached_property
    def total(self) -> int:
        """Bytes of all images."""
        return int(self.bytes.sum())

    @property
    def scattered(self) -> bool:
        """Whether images in any order would be read many times over: they do not fit into the
        cache.
        """
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
        """At most so many of `positions`, evenly spaced within evenly spaced groups, of which there
        are few.
        """
        present = self.of[positions].unique()
        some = present[torch.linspace(0, len(present) - 1, min(64, len(present))).round().long()]
        inside = positions[torch.isin(self.of[positions], some)]
        return inside[torch.linspace(0, len(inside) - 1, min(most, len(inside))).round().long()]

    def order(self, steps: int, batch: int, rng: torch.Generator) -> Tensor:
        """A random order of the N images, [steps, batch], in which those of a group are read at
        about one time.

        The images of a batch are sorted by a random number of their group's. The k-th slice of
        every batch then comes from the same groups while these last, whoever reads it, of however
        many processes.
        """
        present, of = torch.unique(self.of, return_inverse=True)
        shuffled = torch.randperm(len(present), generator=rng)
        ends = self.bytes[present[shuffled]].cumsum(0)
        begins = torch.empty_like(ends)
        # in bytes: a window always fits into the cache
        begins[shuffled] = ends - self.bytes[present[shuffled]]
        when = begins[of] + WINDOW * torch.rand(len(self.of), generator=rng, dtype=torch.float64)
        order = when.argsort(stable=True)[: steps * batch].view(steps, batch)
        lane = torch.rand(len(present), generator=rng)[of[order]]
        return order.gather(1, lane.argsort(dim=1, stable=True))
