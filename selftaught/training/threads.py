"""How many threads compute: as many as there are free cores. And a detector that notices when
threads wait for cores.

OpenMP's threads wait for one another after every operation, and keep their cores busy meanwhile. A
thread that has to share its core with another program holds all of them up: two threads beside one
busy program are slower than one thread. (Over 200 lines with what systems tell.)
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
from selftaught.data.io.parallel import cores
from selftaught.distributed import broadcast_object
from selftaught.errors import require

ROOT = Path("/")
PROBE = 0.3  # seconds that the machine is looked at
NOISE = 0.1  # share of a core; below it others' work is what every quiet machine does now and then
MOST = 1024  # threads
WORKERS = 2  # data workers, where enough cores are free
WINDOW = 10.0  # seconds over which the detector counts
WAITING = 0.3  # threads that wait for a core, on average, from which the detector speaks
PATIENCE = 2  # windows in a row


@dataclass(frozen=True, kw_only=True)
class Group:
    """A control group that limits this process."""

    quota: float  # seconds of processor time a second
    used: float | None  # seconds of processor time so far


@dataclass(frozen=True, kw_only=True)
class Load:
    """What others leave of this machine."""

    cores: int  # that this process may use
    busy: int = 0  # of these, as many as others use
    quota: float = math.inf  # cores' worth of time that control groups leave
    processes: int = 1  # of this training, on this machine

    @property
    def free(self) -> int:
        """Cores for each process, at least one."""
        return max(int(min(self.cores - self.busy, self.quota + 0.01)) // self.processes, 1)

    @property
    def reasons(self) -> list[str]:
        """Why there are fewer than all cores."""
        found = []
        if self.busy:
            found.append(f"others use {min(self.busy, self.cores)}")
        if self.quota < self.cores:
            found.append(f"the control group leaves {max(self.quota, 0):.3g}")
        if self.processes > 1:
            found.append(f"{self.processes} processes share them")
        return found


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a command takes of the machine."""

    threads: int
    workers: int  # processes that decode images
    text: str


# ------------------------------------------------------------------------------------------- what
# the system tells


def core_times(stat: str) -> dict[int, tuple[int, int]]:
    """core -> (busy, all) ticks so far, from the text of /proc/stat."""
    found = {}
    for name, *ticks in (line.split() for line in stat.splitlines()):
        if name.startswith("cpu") and name[3:].isdecimal():
            # what follows is part of the user's time
            user, nice, system, idle, *rest = (int(t) for t in ticks[:8])
            total = user + nice + system + idle + sum(rest)
            # waiting for a disk is idle
            found[int(name[3:])] = (total - idle - sum(rest[:1]), total)
    return found


def busy_cores(before: str, after: str, allowed: set[int], own: float = 0.0) -> int:
    """How many of the cores `allowed` others used between two texts of /proc/stat, of which this
    process used `own`.
    """
    was, now = core_times(before), core_times(after)
    shares = [
        (now[c][0] - was[c][0]) / (now[c][1] - was[c][1])
        for c in allowed & was.keys() & now.keys()
        if now[c][1] > was[c][1]
    ]
    return max(int(sum(share for share in shares if share > NOISE) - own + 0.5), 0)


def groups(root: Path = ROOT) -> dict[Path, Group]:
    """Every control group, of version 1 or 2, that limits the processor time of this process."""
    found = {}
    for line in contents(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        place = Path(path.lstrip("/"))
        for folder in (mount / p for p in (place, *place.parents)):
            if (quota := quota_of(folder)) is not None:
                found[folder] = Group(quota=quota, used=used_by(folder))
    return found


def quota_of(group: Path) -> float | None:
    """Seconds a second; None without a limit."""
    period = contents(group / "cpu.cfs_period_us") or "0"
    words = contents(group / "cpu.max").split() or [
        contents(group / "cpu.cfs_quota_us").strip() or "-1",
        period,
    ]
    try:
        quota, length = float(words[0]), float(words[1])
    except (ValueError, IndexError):  # "max"
        return None
    return quota / length if quota > 0 and length > 0 else None


def used_by(group: Path) -> float | None:
    """Seconds of processor time of a control group so far; None where it does not tell."""
    stat = dict(line.split() for line in contents(group / "cpu.stat").splitlines())
    if "usage_usec" in stat:
        return int(stat["usage_usec"]) / 1e6
    nanoseconds = contents(
        group / "cpuacct.usage"
    ).strip()  # of version 1, where cpu and cpuacct are one mount, as usual
    return int(nanoseconds) / 1e9 if nanoseconds else None


def contents(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def measure_load(root: Path = ROOT, wait: Callable[[float], None] = time.sleep) -> Load:
    """Look at the machine for PROBE seconds. Without /proc, as on macOS, all cores count as
    free.
    """
    began, mine, stat, limits = (
        time.perf_counter(),
        time.process_time(),
        contents(root / "proc/stat"),
        groups(root),
    )
    wait(PROBE)
    seconds, own = time.perf_counter() - began, time.process_time() - mine
    left = []
    for folder, group in groups(root).items():
        was = limits[folder].used if folder in limits else None
        others = 0.0 if was is None or group.used is None else (group.used - was - own) / seconds
        left.append(group.quota - (others if others > NOISE else 0.0))
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return Load(
        cores=cores(),
        busy=busy_cores(stat, contents(root / "proc/stat"), allowed, own / seconds),
        quota=min(left, default=math.inf),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


# --------------------------------------------------------------------------------------------------
# the choice


def choose(threads: Count, workers: Count, most: int, measure: Callable[[], Load]) -> Share:
    """Threads and data workers. `auto` takes at most `most` threads, which is what torch is set
    to.
    """
    stated = next(
        (name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)), None
    )
    load = Load(cores=cores())
    if "auto" in (threads, workers) and not stated and most > 1:
        load = measure()
    if threads != "auto":
        number, reasons = threads, ["--threads"]
    elif stated:
        number, reasons = most, [stated]
    else:
        number = min(load.free, most)
        reasons = load.reasons if load.free <= most else ["as torch is set"]
    text = f"threads: {number} of {load.cores} cores" + (
        f" ({', '.join(reasons)})" if number != load.cores else ""
    )
    return Share(
        threads=number, workers=min(load.free, WORKERS) if workers == "auto" else workers, text=text
    )


def check(threads: Count, workers: Count) -> None:
    """Raises UserError for numbers that make no sense."""
    if threads != "auto":
        require(1 <= threads <= MOST, "--threads", f"auto, or from 1 to {MOST}", threads)
    if workers != "auto":
        require(workers >= 0, "--workers", "auto, or 0 or more", workers)


@contextmanager
def take_share(threads: Count, workers: Count, say: Callable[[str], None]) -> Iterator[Share]:
    """Choose, say what, and compute with so many threads inside. All processes of a training choose
    what the first does.
    """
    share: Share = broadcast_object(choose(threads, workers, torch.get_num_threads(), measure_load))
    say(share.text)
    with use_threads(share.threads):
        yield share


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_of_run(recorded: int | None, asked: int | None, say: Callable[[str], None]) -> int:
    """The threads of a run that goes on: as it began, since sums of other threads round otherwise;
    or those `asked` for.
    """
    now = torch.get_num_threads()
    if recorded is None:
        return asked or now
    number = asked or min(recorded, max(cores(), now))
    if number != recorded:
        why = "" if asked else ", as there are no more cores"
        say(
            f"the run began with {recorded} threads and goes on with {number}{why}: its numbers"
            " will differ in last digits"
        )
    elif number != now:
        say(
            f"the run began with {recorded} threads and goes on with as many, for equal numbers;"
            " --threads takes others"
        )
    return number


# --------------------------------------------------------------------------------------------------
# the detector


def run_delays() -> dict[int, float]:
    """thread -> seconds that it has waited for a core so far; empty where the system does not
    tell.
    """
    found = {}
    for thread in Path("/proc/self/task").glob("[0-9]*"):
        words = contents(thread / "schedstat").split()
        if len(words) == 3:
            found[int(thread.name)] = int(words[1]) / 1e9
    return found


class WaitDetector:
    """Notices, once, that threads wait for cores which others use.

    `read` gives the seconds that each thread has waited for a core so far.
    """

    def __init__(
        self,
        threads: int,
        read: Callable[[], dict[int, float]] = run_delays,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads, self.read, self.clock = threads, read, clock
        self.active = threads > 1  # one thread has nothing to wait for but its core
        self.windows = 0
        self.restart()

    def restart(self) -> None:
        self.began, self.waited = self.clock(), self.read()

    def check(self) -> str | None:
        """To be called after each step: what a person should know, the first time that it is so."""
        if not self.active or self.clock() - self.began < WINDOW:
            return None
        seconds, before = self.clock() - self.began, self.waited
        self.restart()
        waiting = (
            sum(waited - before.get(thread, 0.0) for thread, waited in self.waited.items())
            / seconds
        )
        self.windows = self.windows + 1 if waiting > WAITING else 0
        if self.windows < PATIENCE:
            return None
        self.active = False
        fewer = max(self.threads - math.ceil(waiting), 1)
        return (
            f"others use this machine: of {self.threads} threads {waiting:.1f} wait for a core at"
            " any time, and all the rest for these. Fewer are faster: stop, and go on with"
            f" --threads {fewer} (and --resume, if it is pretrain)"
        )
