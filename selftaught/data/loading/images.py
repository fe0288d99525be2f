"""The images of a set as squares of one size, held in memory where they fit; over 200 lines with
their pixel statistics.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selftaught.data.decode import pixels, quiet, squash
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

_GIVE_UP = 100  # so many files in a row gone means that the disk is gone


class Images(torch.utils.data.Dataset[Tensor]):
    """Images as squares of one size: `images[i]` is uint8 [3, canvas, canvas], the WHOLE image
    squashed.

    Its true shape is `aspect[i]` (width / height), so that crops can be drawn in the true geometry.
    With `hold` all canvases are decoded now, in parallel, into one uint8 tensor `canvases` [N, 3,
    canvas, canvas]; None holds them when they fit in a quarter of the free memory (shared out among
    the processes of this machine that torchrun started).

    `groups` says which images of stores lie together, so that they are read in an order that is
    kind to them. `pixel_range` brings values of more than 8 bits to 8, as for `decode.decode`.

    A file that vanished or broke since the index was built is shown by the next readable image and
    noted in `lost`; with `strict` it is a UserError, as in an evaluation, where another image has
    another label. Raises UserError when nothing readable follows for long, as then the disk is gone
    and not a file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Tensor,
        canvas: int,
        hold: bool | None = None,
        *,
        groups: Groups | None = None,
        pixel_range: PixelRange | None = None,
        threads: int | None = None,
        strict: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if not len(paths) or tuple(sizes.shape) != (len(paths), 2) or canvas < 1:
            shapes = f"{len(paths)} paths, sizes {tuple(sizes.shape)}, canvas {canvas}"
            raise ValueError(f"{shapes}: need N > 0, sizes [N, 2] and canvas > 0")
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.canvas = canvas
        self.groups = groups  # of images in stores: which lie together
        self.pixel_range = pixel_range
        self._announced: dict[int, set[int]] = {}  # groups, by process
        self.aspect = (sizes[:, 1].double() / sizes[:, 0].double()).float()
        self.threads = threads
        self.strict = strict
        self.canvases: Tensor | None = None
        self.reasons: dict[int, str] = {}  # of each image that cannot be read any more
        processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)  # set by torchrun
        bytes_needed = len(paths) * 3 * canvas * canvas
        if bytes_needed <= free_memory() // 4 // processes if hold is None else hold:
            self._fill(on_progress)

    @property
    def hold(self) -> bool:
        """Whether all canvases are in memory."""
        return self.canvases is not None

    @property
    def lost(self) -> list[tuple[str, str]]:
        """(path, reason) of every image that could not be read any more, in the order of their
        positions.
        """
        return [
            (normalize_location(self.paths[i]), reason)
            for i, reason in sorted(self.reasons.items())
        ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        i = range(len(self))[i]
        return self._one(range(len(self)), i)[0].clone()

    def __getitems__(self, positions: list[int]) -> list[Tensor]:
        """Several at once, as a loader asks for them: what is far away is fetched side by side."""
        self.announce(torch.tensor(positions))
        return [self[i] for i in positions]

    def announce(self, positions: Tensor) -> None:
        """Says that these images are asked for soon, in this order."""
        if self.groups is None or self.hold:
            return
        # one image of each group
        last = dict(zip(self.groups.of[positions].tolist(), positions.tolist(), strict=True))
        if not self.groups.scattered:  # they stay, so that once is enough in each process
            known = self._announced.setdefault(os.getpid(), set())
            last = {group: i for group, i in last.items() if group not in known}
            known.update(last)
        from selftaught.data.parquet import row_cache

        row_cache.announce(self.paths[i] for i in last.values())

    def keep(self, positions: Tensor) -> None:
        """Keeps the bytes of these images at hand, where bringing them in again and again would
        bring in their groups.
        """
        if self.groups is not None and self.groups.scattered and not self.hold:
            from selftaught.data.parquet import row_cache

            row_cache.keep(
                self.paths[i] for i in positions[self.groups.as_stored(positions)].tolist()
            )

    def mark_lost(self, i: int, reason: str) -> None:
        """Notes that image i cannot be read any more (also for what a worker process found)."""
        self.reasons.setdefault(i, reason)
        if self.strict:
            raise UserError(
                f"{printable(normalize_location(self.paths[i]))} cannot be read any more"
                f" ({reason}): run the same command again, which indexes the images anew"
            )

    def take(
        self, positions: Tensor, slots: Tensor | None = None, *, threads: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The canvases of `positions[slots]` (without slots, of all): uint8 [B, 3, canvas, canvas].

        Also returns which images are really shown, [B]: the same as asked for, but for lost ones,
        for which the next readable image within `positions` stands in (so a lost training image
        never brings in a held-out one).
        """
        slots = torch.arange(len(positions)) if slots is None else slots
        shown = positions[slots]
        if self.canvases is not None and self.reasons.keys().isdisjoint(shown.tolist()):
            return self.canvases.index_select(0, shown), shown
        shown = shown.clone()
        canvases = torch.empty(len(slots), 3, self.canvas, self.canvas, dtype=torch.uint8)

        def one(j: int) -> None:
            canvases[j], shown[j] = self._one(positions, int(slots[j]))

        run_parallel(len(slots), one, threads=threads or self.threads)
        return canvases, shown

    def originals(
        self, positions: Tensor, slots: Tensor, *, threads: int | None = None
    ) -> tuple[RaggedImages, Tensor]:
        """As `take`, of images that are not held, in their own sizes (a large JPEG at 1/2, 1/4 or
        1/8 where that leaves all but an eighth of the canvas): views made of these skip one
        resampling, and cost half the time on a CPU.
        """
        shown, found = positions[slots].clone(), [torch.empty(0)] * len(slots)

        def load(path: Path) -> Tensor:
            return pixels(path, math.ceil(0.875 * self.canvas), self.pixel_range)

        def one(j: int) -> None:
            found[j], shown[j] = self._one(positions, int(slots[j]), load)

        run_parallel(len(slots), one, threads=threads or self.threads)
        return RaggedImages(found), shown

    def _one(
        self, positions: Tensor | range, slot: int, load: Callable[[Path], Tensor] | None = None
    ) -> tuple[Tensor, int]:
        """The first readable image from positions[slot] on, going round at the end, and which it
        is; its canvas, if nothing else is to be loaded.
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
            f" {self._last_loss()}): is the disk still there? Index the folder again once it is"
        )

    def _squash(self, path: Path) -> Tensor:
        return squash(path, self.canvas, self.pixel_range)

    def _last_loss(self) -> str:
        i, reason = next(reversed(self.reasons.items()))
        return f"{normalize_location(self.paths[i])}, {reason}"

    def _fill(self, on_progress: Callable[[int, int], None] | None) -> None:
        # Plain memory: forked workers share it copy-on-write, and torch moves it to shared memory
        # by itself when it is sent to a spawned one. /dev/shm from the start would break in
        # containers, which often give it 64 MB.
        canvases = torch.empty(len(self), 3, self.canvas, self.canvas, dtype=torch.uint8)

        positions = torch.arange(len(self))
        order = positions if self.groups is None else self.groups.as_stored(positions)
        ahead = self.groups.ahead if self.groups is not None else len(self)

        def one(j: int) -> None:
            i = int(order[j])
            if j % ahead == 0:
                self.announce(order[j : j + 2 * ahead])
            try:
                canvases[i] = self._squash(self.paths[i])
            except Unreadable as error:
                canvases[i] = 0  # never shown: `take` and [i] pass over what is broken
                self.mark_lost(i, str(error))

        with quiet():
            run_parallel(len(self), one, threads=self.threads, on_progress=on_progress)
        if len(self.reasons) == len(self):
            raise UserError(
                f"none of the {len(self)} images can be read any more, for example"
                f" {self._last_loss()}"
            )
        self.canvases = canvases


def default_canvas(sizes: Tensor, size: int) -> int:
    """The side to keep images at for views of `size` pixels: twice that, so that a crop of a
    quarter of the area is still sharp, but no more than the images have (median short side, rounded
    up to even), and never less than `size`.
    """
    short = int(sizes.min(dim=1).values.median())
    return max(size, min(2 * size, short + short % 2))


def spread_sample(images: Images, positions: Tensor, limit: int) -> Tensor:
    """At most `limit` of `positions`, evenly spaced: every process and every machine takes the same
    ones.
    """
    if not len(positions):
        raise ValueError("a sample of no images")
    if images.groups is not None and images.groups.scattered:  # held or not: the sample is the same
        return images.groups.sample(positions, limit)
    return positions[
        torch.linspace(0, len(positions) - 1, min(limit, len(positions))).round().long()
    ]


def statistics(
    images: Images, positions: Tensor, limit: int = 2000
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, in [0, 1], over all pixels of at most `limit`
    images.

    The sample is fixed (evenly spaced, so it runs through all classes) and the sums are exact
    integers: every process and every machine gets the same numbers. A channel that never changes
    gets 1/255, as one divides by it.
    """
    chosen = spread_sample(images, positions, limit)
    total = torch.zeros(3, dtype=torch.int64)
    squares = torch.zeros(3, dtype=torch.int64)
    parts = chosen.split(64)
    for part, following in zip(parts, [*parts[1:], chosen[:0]], strict=True):
        images.announce(following)
        canvases, _ = images.take(part)
        counts = torch.stack(
            [torch.bincount(channel.flatten(), minlength=256) for channel in canvases.unbind(1)]
        )
        total += counts @ torch.arange(256)
        squares += counts @ torch.arange(256) ** 2
    pixels_seen = len(chosen) * images.canvas**2
    mean = total.double() / pixels_seen / 255
    variance = squares.double() / pixels_seen / 255**2 - mean**2
    std = variance.clamp(min=0).sqrt().clamp(min=1 / 255)
    r, g, b = mean.tolist()
    sr, sg, sb = std.tolist()
    return (r, g, b), (sr, sg, sb)
