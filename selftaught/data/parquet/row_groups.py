"""Row groups of Parquet files: which images lie together, and how many are read ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CACHE = 256 << 20  # bytes of row groups in the cache of a process
WINDOW = CACHE // 2  # bytes that are shuffled together; the rest is for reading ahead


def ahead(images: int, size: int) -> int:
    """Return how many of `images` images, of `size` bytes in all, to read ahead.

    512, or fewer that take a quarter of the cache.
    """
    return int(min(max(CACHE // 4 * images // max(size, 1), 1), 512))


@dataclass(frozen=True, eq=False)
class Groups:
    """Which images are read together, as rows of one row group."""

    group_of: Tensor  # [N] long: each image's group, numbered in the order of the files
    bytes: Tensor  # [G] long: of all the images of a group

    @classmethod
    def from_images(cls, groups: Sequence[int], sizes: Sequence[int]) -> Groups | None:
        """Return the groups of images with these group numbers and bytes; None where all are files.

        -1 is a file, which becomes a group of its own.
        """
        group_of = torch.tensor(groups, dtype=torch.long)
        alone = group_of < 0
        if bool(alone.all()):
            return None
        group_of[alone] = int(group_of.max()) + 1 + torch.arange(int(alone.sum()))
        return cls(
            group_of,
            torch.zeros(int(group_of.max()) + 1, dtype=torch.long).index_add_(
                0, group_of, torch.tensor(sizes)
            ),
        )

    @cached_property
    def total(self) -> int:
        """Bytes of all images."""
        return int(self.bytes.sum())

    @property
    def exceeds_cache(self) -> bool:
        """Whether the images do not fit into the cache, so that a random order reads groups
        repeatedly.
        """
        return self.total > CACHE

    @property
    def ahead(self) -> int:
        """How many images to prefetch before they are read."""
        return ahead(len(self.group_of), self.total)

    def subset(self, positions: Tensor) -> Groups:
        return Groups(self.group_of[positions], self.bytes)

    def sort_by_group(self, positions: Tensor) -> Tensor:
        """Return the indices [n] that sort `positions` by their order in the files."""
        return self.group_of[positions].argsort(stable=True)

    def sample(self, positions: Tensor, limit: int) -> Tensor:
        """Return at most `limit` of `positions`, evenly spaced within few, evenly spaced groups."""
        present = self.group_of[positions].unique()
        sampled = present[torch.linspace(0, len(present) - 1, min(64, len(present))).round().long()]
        inside = positions[torch.isin(self.group_of[positions], sampled)]
        return inside[torch.linspace(0, len(inside) - 1, min(limit, len(inside))).round().long()]

    def order(self, steps: int, batch: int, rng: torch.Generator) -> Tensor:
        """Return a random order of the N images, [steps, batch], that reads the images of a group
        together.

        Each batch is sorted by one random number per group. The k-th slice of successive batches
        then comes from the same groups, whatever process reads it.
        """
        present, group_of = torch.unique(self.group_of, return_inverse=True)
        shuffled = torch.randperm(len(present), generator=rng)
        ends = self.bytes[present[shuffled]].cumsum(0)
        begins = torch.empty_like(ends)
        # in bytes, so that a window always fits into the cache
        begins[shuffled] = ends - self.bytes[present[shuffled]]
        times = begins[group_of] + WINDOW * torch.rand(
            len(self.group_of), generator=rng, dtype=torch.float64
        )
        order = times.argsort(stable=True)[: steps * batch].view(steps, batch)
        lanes = torch.rand(len(present), generator=rng)[group_of[order]]
        return order.gather(1, lanes.argsort(dim=1, stable=True))
