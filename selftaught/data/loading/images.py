"""The images of a set as squares of one size, in memory where they fit; their pixel statistics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selftaught.data.decode import centre_square, pixels, quiet, squash
from selftaught.data.io.filesystem import normalize_location
from selftaught.data.io.integrity import Unreadable
from selftaught.data.io.parallel import free_memory, run_parallel
from selftaught.data.io.paths import Paths
from selftaught.data.loading.ragged import RaggedImages
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError
from selftaught.text import printable

if TYPE_CHECKING:
    from selftaught.data.parquet.row_groups import Groups

_GIVE_UP = 100  # unreadable files in a row that mean a missing disk


class Images(torch.utils.data.Dataset[Tensor]):
    """Images as squares of one size: `images[i]` is uint8 [3, canvas, canvas], the whole image
    resized.

    `aspect[i]` is the true width / height, so that crops keep their true shape.

    paths: N of them. sizes: [N, 2] long, height and width. canvas: side of a square in pixels.
    in_memory: decode all images now into `canvases`, uint8 [N, 3, canvas, canvas]. None: where they
    fit in a quarter of the free memory, divided among the processes of this machine. groups: which
    rows of Parquet files lie together; images are read in an order that suits them. pixel_range:
    scales values of more than 8 bits, as in `decode.decode`. strict: raise UserError for an image
    that is lost, as its substitute has another label. square: crop each image to its centre square
    first, so that both axes are equally sharp; all aspects are 1.

    An image that became unreadable since the index was built is listed in `lost`. The next readable
    image replaces it. Raises UserError after `_GIVE_UP` unreadable images in a row, as for a
    missing disk.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Tensor,
        canvas: int,
        in_memory: bool | None = None,
        *,
        groups: Groups | None = None,
        pixel_range: PixelRange | None = None,
        threads: int | None = None,
        strict: bool = False,
        square: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not len(paths) or tuple(sizes.shape) != (len(paths), 2) or canvas < 1:
            shapes = f"{len(paths)} paths, sizes {tuple(sizes.shape)}, canvas {canvas}"
            raise ValueError(f"{shapes}: need N > 0, sizes [N, 2] and canvas > 0")
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.canvas = canvas
        self.groups = groups
        self.pixel_range = pixel_range
        self._prefetched: dict[int, set[int]] = {}  # groups by process id
        self.square = square
        aspect = (sizes[:, 1].double() / sizes[:, 0].double()).float()
        self.aspect = torch.ones_like(aspect) if square else aspect
        self.threads = threads
        self.strict = strict
        self.canvases: Tensor | None = None
        self.reasons: dict[int, str] = {}  # by position, of lost images
        processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)  # set by torchrun
        bytes_needed = len(paths) * 3 * canvas * canvas
        if bytes_needed <= free_memory() // 4 // processes if in_memory is None else in_memory:
            self._fill(on_progress)

    @property
    def in_memory(self) -> bool:
        """Whether all canvases are in memory."""
        return self.canvases is not None

    @property
    def lost(self) -> list[tuple[str, str]]:
        """(path, reason) of every image that became unreadable, by position."""
        return [
            (normalize_location(self.paths[i]), reason)
            for i, reason in sorted(self.reasons.items())
        ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        i = range(len(self))[i]
        return self._read_one(range(len(self)), i)[0].clone()

    def __getitems__(self, positions: list[int]) -> list[Tensor]:
        """Return several images at once, as a DataLoader requests them; their groups are fetched in
        parallel.
        """
        self.prefetch(torch.tensor(positions))
        return [self[i] for i in positions]

    def prefetch(self, positions: Tensor) -> None:
        """Start to fetch the row groups of these images, in this order."""
        if self.groups is None or self.in_memory:
            return
        # one image stands for its group
        last = dict(zip(self.groups.group_of[positions].tolist(), positions.tolist(), strict=True))
        if not self.groups.exceeds_cache:  # all groups stay in the cache of a process
            prefetched = self._prefetched.setdefault(os.getpid(), set())
            last = {group: i for group, i in last.items() if group not in prefetched}
            prefetched.update(last)
        from selftaught.data.parquet import row_cache

        row_cache.prefetch(self.paths[i] for i in last.values())

    def cache(self, positions: Tensor) -> None:
        """Keep the bytes of these images in memory, where their row groups would be fetched
        repeatedly.
        """
        if self.groups is not None and self.groups.exceeds_cache and not self.in_memory:
            from selftaught.data.parquet import row_cache

            row_cache.pin(
                self.paths[i] for i in positions[self.groups.sort_by_group(positions)].tolist()
            )

    def mark_lost(self, i: int, reason: str) -> None:
        """Record that image i became unreadable, in this process or in a worker."""
        self.reasons.setdefault(i, reason)
        if self.strict:
            raise UserError(
                f"{printable(normalize_location(self.paths[i]))} cannot be read any more"
                f" ({reason}): run the same command again, which indexes the images anew"
            )

    def read(
        self, positions: Tensor, slots: Tensor | None = None, *, threads: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the canvases of `positions[slots]`, of all `positions` without slots.

        Returns uint8 [B, 3, canvas, canvas] and the positions [B] of the images in it. These differ
        from the requested ones for lost images. Substitutes come from `positions`, so that a lost
        training image is never replaced by a held-out one.
        """
        slots = torch.arange(len(positions)) if slots is None else slots
        sources = positions[slots]
        if self.canvases is not None and self.reasons.keys().isdisjoint(sources.tolist()):
            return self.canvases.index_select(0, sources), sources
        sources = sources.clone()
        canvases = torch.empty(len(slots), 3, self.canvas, self.canvas, dtype=torch.uint8)

        def read_slot(j: int) -> None:
            canvases[j], sources[j] = self._read_one(positions, int(slots[j]))

        run_parallel(len(slots), read_slot, threads=threads or self.threads)
        return canvases, sources

    def read_originals(
        self, positions: Tensor, slots: Tensor, *, threads: int | None = None
    ) -> tuple[RaggedImages, Tensor]:
        """As `read`, of images that are not in memory, in their own sizes.

        A large JPEG is decoded at 1/2, 1/4 or 1/8, where that leaves 7/8 of the canvas or more.
        Views of these need one resampling less, and half the time on a CPU.
        """
        sources, images = positions[slots].clone(), [torch.empty(0)] * len(slots)

        def load(path: Path) -> Tensor:
            image = pixels(path, math.ceil(0.875 * self.canvas), self.pixel_range)
            return centre_square(image) if self.square else image

        def read_slot(j: int) -> None:
            images[j], sources[j] = self._read_one(positions, int(slots[j]), load)

        run_parallel(len(slots), read_slot, threads=threads or self.threads)
        return RaggedImages(images), sources

    def _read_one(
        self, positions: Tensor | range, slot: int, load: Callable[[Path], Tensor] | None = None
    ) -> tuple[Tensor, int]:
        """Return the first readable image from positions[slot] on, cyclically, and its position.

        It is the canvas, or what `load` makes of the path.
        """
        failed = 0
        for step in range(len(positions)):
            i = int(positions[(slot + step) % len(positions)])
            if i in self.reasons:
                continue
            if self.canvases is not None:
                return self.canvases[i], i
            try:
                return (load or self._squash)(self.paths[i]), i
            except Unreadable as error:
                self.mark_lost(i, str(error))
                failed += 1
                if failed == _GIVE_UP:
                    break
        raise UserError(
            f"no image can be read any more ({len(self.reasons)} lost, the last:"
            f" {self._describe_last_loss()}): check the disk, then run the same command again"
        )

    def _squash(self, path: Path) -> Tensor:
        return squash(path, self.canvas, self.pixel_range, self.square)

    def _describe_last_loss(self) -> str:
        i, reason = next(reversed(self.reasons.items()))
        return f"{normalize_location(self.paths[i])}, {reason}"

    def _fill(self, on_progress: Callable[[int, int], None] | None) -> None:
        # Plain memory, as containers often limit /dev/shm to 64 MB. Forked workers share it
        # copy-on-write; torch moves it to shared memory for spawned ones.
        canvases = torch.empty(len(self), 3, self.canvas, self.canvas, dtype=torch.uint8)

        positions = torch.arange(len(self))
        order = positions if self.groups is None else self.groups.sort_by_group(positions)
        read_ahead = self.groups.ahead if self.groups is not None else len(self)

        def read_slot(j: int) -> None:
            i = int(order[j])
            if j % read_ahead == 0:
                self.prefetch(order[j : j + 2 * read_ahead])
            try:
                canvases[i] = self._squash(self.paths[i])
            except Unreadable as error:
                canvases[i] = 0  # never used: `read` and [i] skip lost images
                self.mark_lost(i, str(error))

        with quiet():
            run_parallel(len(self), read_slot, threads=self.threads, on_progress=on_progress)
        if len(self.reasons) == len(self):
            raise UserError(
                f"none of the {len(self)} images can be read any more, for example"
                f" {self._describe_last_loss()}"
            )
        self.canvases = canvases


def default_canvas(sizes: Tensor, size: int) -> int:
    """Return the canvas for views of `size` pixels: twice that, at least `size`, at most the
    images' own.

    Twice keeps a crop of a quarter of the area sharp. The images' own is the median of their short
    sides, rounded up to even.
    """
    short = int(sizes.min(dim=1).values.median())
    return max(size, min(2 * size, short + short % 2))


def spread_sample(images: Images, positions: Tensor, limit: int) -> Tensor:
    """Return at most `limit` of `positions`, evenly spaced; equal in every process and on every
    machine.
    """
    if not len(positions):
        raise ValueError("a sample of no images")
    if images.groups is not None and images.groups.exceeds_cache:  # in memory or not
        return images.groups.sample(positions, limit)
    return positions[
        torch.linspace(0, len(positions) - 1, min(limit, len(positions))).round().long()
    ]


def statistics(
    images: Images, positions: Tensor, limit: int = 2000
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of each channel, in [0, 1], over at most `limit` images.

    The sample is evenly spaced, so it covers all classes. The sums are exact integers, so every
    process and machine gets equal numbers. A constant channel gets 1/255, as the result is a
    divisor.
    """
    sample = spread_sample(images, positions, limit)
    total = torch.zeros(3, dtype=torch.int64)
    squares = torch.zeros(3, dtype=torch.int64)
    parts = sample.split(64)
    for part, following in zip(parts, [*parts[1:], sample[:0]], strict=True):
        images.prefetch(following)
        canvases, _ = images.read(part)
        counts = torch.stack(
            [torch.bincount(channel.flatten(), minlength=256) for channel in canvases.unbind(1)]
        )
        total += counts @ torch.arange(256)
        squares += counts @ torch.arange(256) ** 2
    pixels_seen = len(sample) * images.canvas**2
    mean = total.double() / pixels_seen / 255
    variance = squares.double() / pixels_seen / 255**2 - mean**2
    std = variance.clamp(min=0).sqrt().clamp(min=1 / 255)
    r, g, b = mean.tolist()
    sr, sg, sb = std.tolist()
    return (r, g, b), (sr, sg, sb)
