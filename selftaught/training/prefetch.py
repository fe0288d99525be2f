"""On a GPU the next batch is copied, and its views are made, while it works at this one: on a
stream of their own.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import torch

from selftaught.method import Batch

T = TypeVar("T")


class Prefetcher(Iterator[Batch]):
    """`batches`, in order, each made when it is asked for; on a GPU by `prepare`, where that was
    called before.

    When to prepare is for the loop to say: a step is under way and nothing has waited for it yet.
    An iterator that looked ahead by itself could only do so between two steps, while the device has
    nothing to do.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.batches, self.device = iter(batches), device
        self.made: deque[Batch | Exception] = deque()

    def prepare(self) -> None:
        """Make one more batch. What goes wrong is raised in its turn: it is not this step's
        fault.
        """
        if self.device.type == "cpu":
            return  # which would do it in no less time
        with streams(self.device).stream(side(self.device)):
            try:
                self.made.append(next(self.batches))
            except Exception as error:  # the end, too
                self.made.append(error)

    def __next__(self) -> Batch:
        if self.device.type == "cpu":
            return next(self.batches)
        if not self.made:
            self.prepare()
        batch = self.made.popleft()
        if isinstance(batch, Exception):
            raise batch
        user = streams(self.device).current_stream(self.device)
        user.wait_stream(side(self.device))
        for x in (*batch.views, batch.index, batch.label, batch.seed, *batch.extras.values()):
            if x.device.type == self.device.type:
                # else the side stream might write a later batch into its memory too soon
                x.record_stream(user)
        return batch


def idle(device: torch.device, wait: Callable[[], T]) -> tuple[T, float]:
    """What `wait` returns, and how many seconds of it the device had nothing to do; on a CPU, all
    of them.
    """
    began = time.perf_counter()
    if device.type == "cpu":
        return wait(), time.perf_counter() - began
    done, arrived = (streams(device).Event(enable_timing=True) for _ in range(2))
    done.record(streams(device).default_stream(device))  # where the steps are
    found = wait()
    if not done.query():
        return found, 0.0
    arrived.record(streams(device).current_stream(device))
    arrived.synchronize()
    return found, done.elapsed_time(arrived) / 1000


def streams(device: torch.device) -> Any:
    return torch.get_device_module(device)


@lru_cache
def side(device: torch.device) -> Any:
    """One for good: each stream keeps the memory that it ever used."""
    return streams(device).Stream(device)
