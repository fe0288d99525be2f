"""The machine: its cores put to work, and the memory that it has left."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

LARGE = 1 << 28  # bytes; whatever takes less is not counted


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    n: int,
    work: Callable[[int], None],
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Calls `work(i)` once for every i in 0..n-1, from several threads. The first exception stops
    them all.

    `on_progress(done, n)` is called from the calling thread, at most ten times a second and once at
    the end.

    Threads and not processes: Pillow and zlib release the interpreter's lock while they decode and
    resize, nothing has to be pickled, imported anew (0.8 to 1.5 s), or guarded by `if __name__ ==
    "__main__"` in the user's script. In CPU time a JPEG of 128 px takes 154 us (one of 500x375:
    910), of which at most 39 (67) hold the lock: enough for four (thirteen) cores.
    """
    threads = min(threads or min(cores(), 32), max(n, 1))
    counter = itertools.count()  # shared: next() on it is one step of the interpreter
    done = [0] * threads
    stop = threading.Event()

    def run(me: int) -> None:
        try:
            while not stop.is_set() and (i := next(counter)) < n:
                work(i)
                done[me] += 1
        except BaseException:
            stop.set()
            raise

    if threads == 1 and on_progress is None:
        return run(0)
    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(run, me) for me in range(threads)]
        try:
            while not stop.is_set() and wait(tasks, timeout=0.1).not_done:
                if on_progress is not None:
                    on_progress(sum(done), n)
        # Ctrl-C arrives in the calling thread: the others finish the file at hand, and no more
        finally:
            stop.set()
    for task in tasks:
        task.result()  # raises what stopped it
    if on_progress is not None:
        on_progress(n, n)


def free_memory() -> int:
    """Bytes still to be had: the machine's available memory, or what its container leaves if that
    is less.
    """
    free = [2**62]
    try:
        with open("/proc/meminfo") as file:
            free += [
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")
            ]
    except OSError:
        if "SC_PHYS_PAGES" in getattr(
            os, "sysconf_names", {}
        ):  # macOS tells the whole, not the free part
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            free.append(max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0))
        except (OSError, ValueError):  # no such container, or "max"
            continue
    return min(free) if len(free) > 1 else 2**31


class MemoryBudget:
    """Memory for what is large, shared by all threads of a process: it waits until half of what is
    free has room for it.

    Alone it is let in wherever it fits at all; else `hold` raises MemoryError.
    """

    def __init__(self) -> None:
        self.reset()
        if hasattr(
            os, "register_at_fork"
        ):  # what other threads hold at the fork is never given back in the child
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._most = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """`size`: in bytes."""
        if size <= LARGE:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size <= self._most)
            if self._held == 0:
                free = free_memory()
                # set by torchrun
                self._most = free // 2 // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)
                if size > free:
                    raise MemoryError(f"{size:,} bytes are needed, and {free:,} are free")
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
