"""The number of compute threads, and a detector of threads that wait for cores.

OpenMP's threads synchronise after every operation. So a thread that shares its core with another
program delays all others. Beside one busy program, two threads are slower than one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from selftaught.config.overrides import Count
from selftaught.data.io.parallel import count_cores
from selftaught.distributed import broadcast_object
from selftaught.errors import require

ROOT = Path("/")
PROBE = 0.3  # seconds over which the load of the machine is measured
NOISE = 0.1  # share of a core; smaller loads occur on every idle machine and are ignored
MOST = 1024  # maximum of --threads
WORKERS = 2  # data workers by default, if enough cores are free
WINDOW = 10.0  # seconds over which the detector averages
WAITING = 0.3  # threads waiting for a core, on average, above which a window counts
PATIENCE = 2  # such windows in a row before the warning


@dataclass(frozen=True, kw_only=True)
class Group:
    """A control group that limits this process."""

    quota: float  # seconds of processor time a second
    used: float | None  # seconds of processor time so far


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of this machine by other programs."""

    cores: int  # cores that this process may use
    busy: int = 0  # of these, the number in use by other programs
    quota: float = math.inf  # the limit of the control groups, in cores
    processes: int = 1  # processes of this training on this machine

    @property
    def free(self) -> int:
        """Cores for each process, at least one."""
        return max(int(min(self.cores - self.busy, self.quota + 0.01)) // self.processes, 1)

    @property
    def reasons(self) -> list[str]:
        """Why fewer than all cores are free."""
        reasons = []
        if self.busy:
            reasons.append(f"others use {min(self.busy, self.cores)}")
        if self.quota < self.cores:
            reasons.append(f"the control group leaves {max(self.quota, 0):.3g}")
        if self.processes > 1:
            reasons.append(f"{self.processes} processes share them")
        return reasons


@dataclass(frozen=True, kw_only=True)
class Share:
    """The threads and data workers of one command."""

    threads: int
    workers: int  # processes that decode images
    text: str


# Load of the machine


def core_times(stat: str) -> dict[int, tuple[int, int]]:
    """Busy and total ticks of each core, from the text of /proc/stat: {core: (busy, total)}."""
    times = {}
    for name, *ticks in (line.split() for line in stat.splitlines()):
        if name.startswith("cpu") and name[3:].isdecimal():
            # Columns after the eighth are included in the user's time.
            user, nice, system, idle, *rest = (int(t) for t in ticks[:8])
            total = user + nice + system + idle + sum(rest)
            io_wait = sum(rest[:1])  # counts as idle
            times[int(name[3:])] = (total - idle - io_wait, total)
    return times


def busy_cores(before: str, after: str, allowed: set[int], own: float = 0.0) -> int:
    """The number of cores in `allowed` that other programs used between two texts of /proc/stat.

    `own` is the number of cores that this process used meanwhile.
    """
    start, end = core_times(before), core_times(after)
    shares = [
        (end[core][0] - start[core][0]) / (end[core][1] - start[core][1])
        for core in allowed & start.keys() & end.keys()
        if end[core][1] > start[core][1]
    ]
    return max(int(sum(share for share in shares if share > NOISE) - own + 0.5), 0)


def find_groups(root: Path = ROOT) -> dict[Path, Group]:
    """Find every control group, version 1 or 2, that limits the processor time of this process."""
    groups = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = Path(path.lstrip("/"))
        for folder in (mount / p for p in (place, *place.parents)):
            if (quota := read_quota(folder)) is not None:
                groups[folder] = Group(quota=quota, used=read_usage(folder))
    return groups


def read_quota(group: Path) -> float | None:
    """The limit of a control group in seconds of processor time a second; None without a limit."""
    fields = read_text(group / "cpu.max").split()  # version 2
    if not fields:
        quota_text = read_text(group / "cpu.cfs_quota_us").strip() or "-1"
        fields = [quota_text, read_text(group / "cpu.cfs_period_us") or "0"]
    try:
        quota, period = float(fields[0]), float(fields[1])
    except (ValueError, IndexError):  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def read_usage(group: Path) -> float | None:
    """Seconds of processor time that a control group has used; None where it is not recorded."""
    stat = dict(line.split() for line in read_text(group / "cpu.stat").splitlines())
    if "usage_usec" in stat:
        return int(stat["usage_usec"]) / 1e6
    # Version 1, where cpu and cpuacct usually are one mount.
    nanoseconds = read_text(group / "cpuacct.usage").strip()
    return int(nanoseconds) / 1e9 if nanoseconds else None


def read_text(file: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""


def measure_load(root: Path = ROOT, wait: Callable[[float], None] = time.sleep) -> Load:
    """Measure the load of the machine for PROBE seconds.

    Without /proc, as on macOS, all cores count as free.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    stat, groups = read_text(root / "proc/stat"), find_groups(root)
    wait(PROBE)
    seconds, own = time.perf_counter() - start, time.process_time() - cpu_start
    quotas = []
    for folder, group in find_groups(root).items():
        before = groups[folder].used if folder in groups else None
        others = 0.0
        if before is not None and group.used is not None:
            others = (group.used - before - own) / seconds
        quotas.append(group.quota - (others if others > NOISE else 0.0))
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return Load(
        cores=count_cores(),
        busy=busy_cores(stat, read_text(root / "proc/stat"), allowed, own / seconds),
        quota=min(quotas, default=math.inf),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


# Choice of threads and workers


def choose(threads: Count, workers: Count, most: int, measure: Callable[[], Load]) -> Share:
    """Choose the numbers of threads and data workers.

    `most` is the number of threads that torch uses now; `auto` takes at most that many. The load is
    measured only if a choice depends on it.
    """
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    variable = next((name for name in variables if os.environ.get(name)), None)
    load = Load(cores=count_cores())
    if "auto" in (threads, workers) and not variable and most > 1:
        load = measure()
    if threads != "auto":
        number, reasons = threads, ["--threads"]
    elif variable:
        number, reasons = most, [variable]
    else:
        number = min(load.free, most)
        reasons = load.reasons if load.free <= most else ["as torch is set"]
    text = f"threads: {number} of {load.cores} cores"
    if number != load.cores:
        text += f" ({', '.join(reasons)})"
    chosen = min(load.free, WORKERS) if workers == "auto" else workers
    return Share(threads=number, workers=chosen, text=text)


def check(threads: Count, workers: Count) -> None:
    """Raise UserError for --threads or --workers out of range."""
    if threads != "auto":
        require(1 <= threads <= MOST, "--threads", f"auto, or from 1 to {MOST}", threads)
    if workers != "auto":
        require(workers >= 0, "--workers", "auto, or 0 or more", workers)


@contextmanager
def take_share(threads: Count, workers: Count, log: Callable[[str], None]) -> Iterator[Share]:
    """Choose threads and workers, log the choice, and use so many threads inside.

    All processes of a training use the choice of rank 0.
    """
    share: Share = broadcast_object(choose(threads, workers, torch.get_num_threads(), measure_load))
    log(share.text)
    with use_threads(share.threads):
        yield share


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Inside, torch computes with `number` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_of_run(recorded: int | None, flag: int | None, log: Callable[[str], None]) -> int:
    """The number of threads of a resumed run: that of --threads (`flag`), or the `recorded` one.

    Another number of threads rounds sums differently, so a change is logged.
    """
    now = torch.get_num_threads()
    if recorded is None:
        return flag or now
    number = flag or min(recorded, max(count_cores(), now))
    if number != recorded:
        why = "" if flag else ", as there are no more cores"
        log(
            f"the run began with {recorded} threads and continues with {number}{why}: its numbers"
            " will differ in the last digits"
        )
    elif number != now:
        log(
            f"the run began with {recorded} threads and continues with as many, for equal numbers;"
            " --threads changes this"
        )
    return number


# Detector of waiting threads


def read_delays() -> dict[int, float]:
    """Seconds that each thread has waited for a core: {thread: seconds}.

    Empty where the system does not record it.
    """
    delays = {}
    for thread in Path("/proc/self/task").glob("[0-9]*"):
        fields = read_text(thread / "schedstat").split()
        if len(fields) == 3:
            delays[int(thread.name)] = int(fields[1]) / 1e9
    return delays


class WaitDetector:
    """Detects, once, that threads wait for cores which other programs use.

    `read` returns the seconds that each thread has waited for a core.
    """

    def __init__(
        self,
        threads: int,
        read: Callable[[], dict[int, float]] = read_delays,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads, self.read, self.clock = threads, read, clock
        self.active = threads > 1  # a single thread delays no other
        self.windows = 0
        self.restart()

    def restart(self) -> None:
        """Start a new window."""
        self.start, self.delays = self.clock(), self.read()

    def check(self) -> str | None:
        """Call this after each step: returns a warning, the first time that threads wait."""
        if not self.active or self.clock() - self.start < WINDOW:
            return None
        seconds, before = self.clock() - self.start, self.delays
        self.restart()
        delay = sum(total - before.get(thread, 0.0) for thread, total in self.delays.items())
        waiting = delay / seconds
        self.windows = self.windows + 1 if waiting > WAITING else 0
        if self.windows < PATIENCE:
            return None
        self.active = False
        fewer = max(self.threads - math.ceil(waiting), 1)
        return (
            f"other programs use this machine: on average {waiting:.1f} of {self.threads} threads"
            " wait for a core, and delay all others. Fewer threads are faster: stop, and continue"
            f" with --threads {fewer} (and --resume, if it is pretrain)"
        )
