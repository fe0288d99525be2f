"""Work in threads, and the memory that this machine has free."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

LARGE = 1 << 28  # bytes; smaller requests are not counted


def count_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    n: int,
    work: Callable[[int], None],
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Call `work(i)` once for every i in 0..n-1, in several threads; the first exception stops all.

    `on_progress(completed, n)` is called from the calling thread: at most ten times a second, and
    once at the end.

    Threads suffice, as Pillow and zlib release the interpreter's lock while they decode and resize.
    Processes would pickle the work and import modules again (0.8 to 1.5 s). They would need a guard
    `if __name__ == "__main__"` in a user's script. A JPEG of 128 px takes 154 us of CPU time, 39 of
    them under the lock: four cores are used. For one of 500x375 it is 910 and 67 us: thirteen
    cores.
    """
    threads = min(threads or min(count_cores(), 32), max(n, 1))
    counter = itertools.count()  # shared by the threads: next() on it is atomic
    completed = [0] * threads
    stop = threading.Event()

    def worker(number: int) -> None:
        try:
            while not stop.is_set() and (i := next(counter)) < n:
                work(i)
                completed[number] += 1
        except BaseException:
            stop.set()
            raise

    if threads == 1 and on_progress is None:
        return worker(0)
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(worker, number) for number in range(threads)]
        try:
            while not stop.is_set() and wait(tasks, timeout=0.1).not_done:
                if on_progress is not None:
                    on_progress(sum(completed), n)
        finally:
            # Ctrl-C arrives in the calling thread: the others stop after their current file
            stop.set()
    for task in tasks:
        task.result()  # raises the exception of a worker
    if on_progress is not None:
        on_progress(n, n)


def free_memory() -> int:
    """Return the free bytes of the machine, or of its container where that has fewer."""
    limits = [2**62]
    try:
        with open("/proc/meminfo") as file:
            limits += [
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")
            ]
    except OSError:
        # macOS states the total memory, and not the free part
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            limits.append(max(int(Path(limit).read_text()) - int(Path(usage).read_text()), 0))
        except (OSError, ValueError):  # no such container, or "max"
            continue
    return min(limits) if len(limits) > 1 else 2**31


class MemoryBudget:
    """Memory for large images, shared by all threads of a process: half of the free memory.

    A request waits for room. Without other requests it may use all of the free memory.
    """

    def __init__(self) -> None:
        self.reset()
        # reservations of other threads at a fork are never released in the child
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        self._changed = threading.Condition()
        self._reserved = 0
        self._limit = 0

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes within the block. Raises MemoryError for more than is free."""
        if size <= LARGE:
            yield
            return
        with self._changed:
            self._changed.wait_for(
                lambda: self._reserved == 0 or self._reserved + size <= self._limit
            )
            if self._reserved == 0:
                free = free_memory()
                processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)  # of torchrun
                self._limit = free // 2 // processes
                if size > free:
                    raise MemoryError(f"{size:,} bytes are needed, and {free:,} are free")
            self._reserved += size
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= size
                self._changed.notify_all()
