"""Batches: the same images in the same order for a seed, on any number of processes and from any
step on; over 200 lines with what its worker processes do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selftaught.data.decode import quiet
from selftaught.data.loading import sampler
from selftaught.data.loading.images import Images
from selftaught.data.loading.ragged import RaggedImages, joined
from selftaught.errors import UserError

# What a worker sends: pixels, which images they really are, and what it found lost; or why nothing
# can be read any more.
_Loaded = tuple[Tensor | RaggedImages, Tensor, list[tuple[int, str]]] | str


@dataclass(frozen=True, eq=False, kw_only=True)
class Raw:
    """A batch as it comes from the disk.

    Where an image was lost since the index was built, another stands in for it: pixels, aspect and
    label are that one's, and `index` stays the lost one's, so that every index comes exactly once
    an epoch.
    """

    # uint8 [B, 3, C, C], whole images squashed to squares; or B of their own sizes
    pixels: Tensor | RaggedImages
    aspect: Tensor  # [B] float: true width / height
    index: Tensor  # [B] long, place within the `positions` of the batches, 0..n-1
    label: Tensor  # [B] long, -1 without labels; or [B, classes] int8


class Batches:
    """Batches of the images at `positions`; `labels` are those of ALL images, as an Index has them.

    `batch` is for one process; `rank` of `world` processes takes its slice of a global batch of
    batch * world. The order of epoch e is a function of (seed, e) alone. Held images come by one
    `index_select`; others from `workers` processes (0: from threads of this one), which draw no
    random numbers, and, if `own_size`, as `RaggedImages`. `pin` puts batches into pinned memory for
    a GPU.
    """

    def __init__(
        self,
        images: Images,
        positions: Tensor,
        labels: Tensor | None,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin: bool = False,
        own_size: bool = False,
    ) -> None:
        if batch < 1 or not 0 <= rank < world or workers < 0:
            raise ValueError(f"batch {batch}, rank {rank} of {world}, workers {workers}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(
                f"{len(labels)} labels for {len(images)} images: one for each image is needed"
            )
        self.images = images
        self.positions = positions.long().cpu()
        self.labels = labels
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.world = world
        self.workers = workers
        self.pin = pin
        self.load = images.originals if own_size and not images.hold else images.take
        self._schedule = _Schedule()
        self._loader: DataLoader[_Loaded] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; UserError when there is none."""
        n, needed = len(self.positions), self.batch * self.world
        if n < needed:
            processes = (
                f" ({self.batch} in each of {self.world} processes)" if self.world > 1 else ""
            )
            most = f"; use a batch of at most {n // self.world}" if n >= self.world else ""
            raise UserError(f"{n} images are fewer than a batch of {needed}{processes}{most}")
        return n // needed

    def epoch(self, number: int, start: int = 0) -> Iterator[Raw]:
        """The batches of epoch `number` from step `start` on; those that fill no whole batch are
        left out.

        With workers only one epoch can be under way: once another begins, the first raises
        RuntimeError.
        """
        steps = self.steps_per_epoch
        if number < 0 or not 0 <= start <= steps:
            raise ValueError(f"epoch {number}, step {start}: an epoch has {steps} steps")
        groups = self.images.groups
        groups = groups.subset(self.positions) if groups is not None else None
        whole = sampler.epoch(
            len(self.positions), self.batch * self.world, self.seed, number, groups
        )
        mine = whole.view(steps, self.world, self.batch)[start:, self.rank]
        return self._batches(list(mine.unbind(0)))

    def _batches(self, steps: list[Tensor]) -> Iterator[Raw]:
        if not self.workers or self.images.hold:
            for slots, soon in zip(steps, self._soon(steps), strict=True):
                for later in soon:
                    self.images.announce(self.positions[later])
                pixels, shown = self.load(self.positions, slots)
                yield self._raw(pixels, shown, slots, self.pin)
            return
        schedule = self._schedule
        self._loader = loader = self._loader or self._new_loader()
        # Of a store too large for the cache each worker reads its slice of every batch: always the
        # same row groups.
        groups = self.images.groups
        parts = self.workers if groups is not None and groups.scattered else 1
        # Read by this process when it asks the loader for an iterator.
        schedule.steps, schedule.soon, schedule.parts = steps, self._soon(steps), parts
        arriving = iter(loader)
        try:
            for slots in steps:
                if schedule.steps is not steps:  # before a batch is taken away from the other epoch
                    raise RuntimeError("another epoch of the same batches has begun")
                pixels, shown = self._whole([next(arriving) for _ in range(parts)])
                # one part is pinned by the loader's thread
                yield self._raw(pixels, shown, slots, self.pin and parts > 1)
        finally:
            del (
                arriving,
                loader,
            )  # kept alive by a traceback, workers would need 5 s to end once it is gone

    def _whole(self, parts: list[_Loaded]) -> tuple[Tensor | RaggedImages, Tensor]:
        """The parts of a batch as one, and what they found lost noted."""
        pixels: list[Tensor | RaggedImages] = []
        shown: list[Tensor] = []
        for part in parts:
            if isinstance(part, str):
                self._loader = None
                raise UserError(part)
            pixels.append(part[0])
            shown.append(part[1])
            for i, reason in part[2]:
                self.images.mark_lost(i, reason)
        return (pixels[0], shown[0]) if len(parts) == 1 else (joined(pixels), torch.cat(shown))

    def _soon(self, steps: list[Tensor]) -> list[list[Tensor]]:
        """What to announce before each step, of images in stores: what is due some steps later, at
        first all until then.
        """
        groups = self.images.groups
        if groups is None:
            return [[] for _ in steps]
        ahead = -(-groups.ahead // self.batch)
        return [
            steps[: ahead + 1] if k == 0 else steps[k + ahead : k + ahead + 1]
            for k in range(len(steps))
        ]

    def _raw(self, pixels: Tensor | RaggedImages, shown: Tensor, slots: Tensor, pin: bool) -> Raw:
        label = torch.full((len(slots),), -1) if self.labels is None else self.labels[shown]
        return Raw(
            pixels=pixels.pin_memory() if pin and isinstance(pixels, Tensor) else pixels,
            aspect=self.images.aspect[shown],
            index=slots,
            label=label,
        )

    def _new_loader(self) -> DataLoader[_Loaded]:
        return DataLoader(
            _Reader(self.images, self.positions, self.load),
            batch_sampler=self._schedule,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=self.pin,
            persistent_workers=True,
            generator=torch.Generator().manual_seed(
                0
            ),  # its own: the program's random state stays as it is
        )


class _Schedule:
    """The steps to come, as a DataLoader's batch sampler: set anew every epoch, while the workers
    live on.
    """

    def __init__(self) -> None:
        self.steps: Sequence[Tensor] = ()
        self.soon: Sequence[Sequence[Tensor]] = ()  # what to announce before each
        self.parts = 1  # of a batch: the k-th of each goes to the k-th worker

    def __iter__(self) -> Iterator[list[list[int]]]:
        for slots, soon in zip(self.steps, self.soon, strict=True):
            for k, part in enumerate(slots.tensor_split(self.parts)):
                yield [
                    part.tolist(),
                    [slot for later in soon for slot in later.tensor_split(self.parts)[k].tolist()],
                ]

    def __len__(self) -> int:
        return len(self.steps) * self.parts


class _Reader(Dataset[_Loaded]):
    """What a worker process does: reads a whole batch of slots at a time."""

    def __init__(
        self,
        images: Images,
        positions: Tensor,
        load: Callable[..., tuple[Tensor | RaggedImages, Tensor]],
    ) -> None:
        self.images = images
        self.positions = positions
        self.load = load

    def __getitems__(self, asked: list[list[int]]) -> _Loaded:
        slots, soon = asked
        self.images.announce(self.positions[soon])
        known = set(self.images.reasons)
        try:
            with quiet():
                pixels, shown = self.load(self.positions, torch.tensor(slots), threads=1)
        except UserError as error:  # as a value: raised here, it would arrive with a traceback
            return str(error)
        return pixels, shown, [item for item in self.images.reasons.items() if item[0] not in known]


def _as_is(loaded: Any) -> Any:
    return loaded  # `__getitems__` has made the batch already
