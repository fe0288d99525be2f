"""Batches of images, in an order that depends on the seed alone, for any number of processes."""

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
from selftaught.data.loading.ragged import RaggedImages, join_batches
from selftaught.errors import UserError

# What a worker returns: pixels, positions of the images, new losses; or the message of an error.
_Loaded = tuple[Tensor | RaggedImages, Tensor, list[tuple[int, str]]] | str


@dataclass(frozen=True, eq=False, kw_only=True)
class Raw:
    """A batch as loaded, before augmentation.

    A lost image is replaced by another: pixels, aspect and label are those of the substitute.
    `index` stays that of the lost one, so that every index occurs once an epoch.
    """

    # uint8 [B, 3, C, C], whole images resized to squares; or B of their own sizes
    pixels: Tensor | RaggedImages
    aspect: Tensor  # [B] float: true width / height
    index: Tensor  # [B] long, place within the `positions` of the batches, 0..n-1
    label: Tensor  # [B] long, -1 without labels; or [B, classes] int8


class Batches:
    """Batches of the images at `positions`.

    labels: of all images, as in `Index`. batch: images of one process and step. rank, world: this
    process takes its slice of a global batch of batch * world images. workers: processes that load
    images; 0: threads of this one. pin: put batches into pinned memory. own_size: images that are
    not in memory come as `RaggedImages`.

    The order of epoch e depends on (seed, e) alone. Workers draw no random numbers.
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
        self.load = images.read_originals if own_size and not images.in_memory else images.read
        self._schedule = _Schedule()
        self._loader: DataLoader[_Loaded] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole global batches in an epoch. Raises UserError where there is none."""
        n, needed = len(self.positions), self.batch * self.world
        if n < needed:
            processes = (
                f" ({self.batch} in each of {self.world} processes)" if self.world > 1 else ""
            )
            remedy = f"; use a batch of at most {n // self.world}" if n >= self.world else ""
            raise UserError(f"{n} images are fewer than a batch of {needed}{processes}{remedy}")
        return n // needed

    def epoch(self, number: int, start: int = 0) -> Iterator[Raw]:
        """Iterate over the batches of epoch `number` from step `start` on; a partial last batch is
        left out.

        With workers only the latest epoch can be iterated: an earlier one raises RuntimeError.
        """
        steps = self.steps_per_epoch
        if number < 0 or not 0 <= start <= steps:
            raise ValueError(f"epoch {number}, step {start}: an epoch has {steps} steps")
        groups = self.images.groups
        groups = groups.subset(self.positions) if groups is not None else None
        steps_of_all = sampler.epoch(
            len(self.positions), self.batch * self.world, self.seed, number, groups
        )
        own_steps = steps_of_all.view(steps, self.world, self.batch)[start:, self.rank]
        return self._batches(list(own_steps.unbind(0)))

    def _batches(self, steps: list[Tensor]) -> Iterator[Raw]:
        if not self.workers or self.images.in_memory:
            for slots, upcoming in zip(steps, self._plan_prefetch(steps), strict=True):
                for later in upcoming:
                    self.images.prefetch(self.positions[later])
                pixels, sources = self.load(self.positions, slots)
                yield self._make_raw(pixels, sources, slots, self.pin)
            return
        schedule = self._schedule
        self._loader = loader = self._loader or self._make_loader()
        # Row groups beyond the cache: each worker reads its slice of every batch, which lies in few
        # groups.
        groups = self.images.groups
        parts = self.workers if groups is not None and groups.exceeds_cache else 1
        # `iter(loader)` reads the schedule in this process.
        schedule.steps, schedule.upcoming, schedule.parts = steps, self._plan_prefetch(steps), parts
        arriving = iter(loader)
        try:
            for slots in steps:
                if schedule.steps is not steps:  # no batch of the other epoch is consumed
                    raise RuntimeError("another epoch of the same batches has begun")
                pixels, sources = self._join_parts([next(arriving) for _ in range(parts)])
                # the loader's thread pins a single part
                yield self._make_raw(pixels, sources, slots, self.pin and parts > 1)
        finally:
            # A traceback would keep them alive, and the workers would need 5 s to end.
            del arriving, loader

    def _join_parts(self, parts: list[_Loaded]) -> tuple[Tensor | RaggedImages, Tensor]:
        """Join the parts of a batch, and record the losses of their workers."""
        pixels: list[Tensor | RaggedImages] = []
        sources: list[Tensor] = []
        for part in parts:
            if isinstance(part, str):
                self._loader = None
                raise UserError(part)
            pixels.append(part[0])
            sources.append(part[1])
            for i, reason in part[2]:
                self.images.mark_lost(i, reason)
        return (
            (pixels[0], sources[0])
            if len(parts) == 1
            else (join_batches(pixels), torch.cat(sources))
        )

    def _plan_prefetch(self, steps: list[Tensor]) -> list[list[Tensor]]:
        """Return the slots to prefetch before each step, for images in Parquet files.

        Before the first step these are all until the read-ahead; later those of one step ahead.
        """
        groups = self.images.groups
        if groups is None:
            return [[] for _ in steps]
        ahead = -(-groups.ahead // self.batch)
        return [
            steps[: ahead + 1] if k == 0 else steps[k + ahead : k + ahead + 1]
            for k in range(len(steps))
        ]

    def _make_raw(
        self, pixels: Tensor | RaggedImages, sources: Tensor, slots: Tensor, pin: bool
    ) -> Raw:
        label = torch.full((len(slots),), -1) if self.labels is None else self.labels[sources]
        return Raw(
            pixels=pixels.pin_memory() if pin and isinstance(pixels, Tensor) else pixels,
            aspect=self.images.aspect[sources],
            index=slots,
            label=label,
        )

    def _make_loader(self) -> DataLoader[_Loaded]:
        return DataLoader(
            _Reader(self.images, self.positions, self.load),
            batch_sampler=self._schedule,
            num_workers=self.workers,
            collate_fn=_identity,
            pin_memory=self.pin,
            persistent_workers=True,
            # a generator of its own leaves the program's random state unchanged
            generator=torch.Generator().manual_seed(0),
        )


class _Schedule:
    """The steps to come, as a DataLoader's batch sampler. It is set for every epoch, while workers
    live.
    """

    def __init__(self) -> None:
        self.steps: Sequence[Tensor] = ()
        self.upcoming: Sequence[Sequence[Tensor]] = ()  # what to prefetch before each
        self.parts = 1  # of a batch; worker k loads part k of each

    def __iter__(self) -> Iterator[list[list[int]]]:
        for slots, upcoming in zip(self.steps, self.upcoming, strict=True):
            for k, part in enumerate(slots.tensor_split(self.parts)):
                yield [
                    part.tolist(),
                    [
                        slot
                        for later in upcoming
                        for slot in later.tensor_split(self.parts)[k].tolist()
                    ],
                ]

    def __len__(self) -> int:
        return len(self.steps) * self.parts


class _Reader(Dataset[_Loaded]):
    """The data set of a worker process, which loads a whole batch of slots at a time."""

    def __init__(
        self,
        images: Images,
        positions: Tensor,
        load: Callable[..., tuple[Tensor | RaggedImages, Tensor]],
    ) -> None:
        self.images = images
        self.positions = positions
        self.load = load

    def __getitems__(self, request: list[list[int]]) -> _Loaded:
        slots, upcoming = request
        self.images.prefetch(self.positions[upcoming])
        known_losses = set(self.images.reasons)
        try:
            with quiet():
                pixels, sources = self.load(self.positions, torch.tensor(slots), threads=1)
        except UserError as error:  # as a value: a raised one would arrive with a traceback
            return str(error)
        return (
            pixels,
            sources,
            [item for item in self.images.reasons.items() if item[0] not in known_losses],
        )


def _identity(loaded: Any) -> Any:
    return loaded  # `__getitems__` returns whole batches
