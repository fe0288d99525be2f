"""Prefetching: on a GPU, the next batch and its views are prepared on a side stream."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import torch

from selftaught.method import Batch

T = TypeVar("T")


class Prefetcher(Iterator[Batch]):
    """An iterator over `batches`, in order, that prepares batches ahead on a GPU.

    The training loop calls `prepare` while a step runs on the device. An iterator alone could
    prepare only between two steps, while the device is idle. On a CPU nothing is prepared ahead.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.batches, self.device = iter(batches), device
        self.queue: deque[Batch | Exception] = deque()

    def prepare(self) -> None:
        """Prepare one more batch; an error is raised later, in place of that batch."""
        if self.device.type == "cpu":
            return  # it would take the same time
        with streams(self.device).stream(side(self.device)):
            try:
                self.queue.append(next(self.batches))
            except Exception as error:  # StopIteration included
                self.queue.append(error)

    def __next__(self) -> Batch:
        if self.device.type == "cpu":
            return next(self.batches)
        if not self.queue:
            self.prepare()
        batch = self.queue.popleft()
        if isinstance(batch, Exception):
            raise batch
        user = streams(self.device).current_stream(self.device)
        user.wait_stream(side(self.device))
        for x in (*batch.views, batch.index, batch.label, batch.seed, *batch.extras.values()):
            if x.device.type == self.device.type:
                # Otherwise the side stream could reuse this memory before the step has read it.
                x.record_stream(user)
        return batch


def idle(device: torch.device, wait: Callable[[], T]) -> tuple[T, float]:
    """Call `wait`; return its result and the seconds in which the device was idle meanwhile.

    A CPU counts as idle for the whole call.
    """
    start = time.perf_counter()
    if device.type == "cpu":
        return wait(), time.perf_counter() - start
    step_end, wait_end = (streams(device).Event(enable_timing=True) for _ in range(2))
    step_end.record(streams(device).default_stream(device))  # steps run on the default stream
    result = wait()
    if not step_end.query():
        return result, 0.0
    wait_end.record(streams(device).current_stream(device))
    wait_end.synchronize()
    return result, step_end.elapsed_time(wait_end) / 1000


def streams(device: torch.device) -> Any:
    """The module of the device's streams and events, such as torch.cuda."""
    return torch.get_device_module(device)


@lru_cache
def side(device: torch.device) -> Any:
    """The side stream of the device. It is created once, as each stream keeps its own memory."""
    return streams(device).Stream(device)
