"""How many threads compute, on machines that are made up; what a run remembers of it; when it says
that threads wait.
"""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.cli import demo
from selftaught.cli.main import main
from selftaught.config import overrides
from selftaught.errors import UserError
from selftaught.pipeline import plan
from selftaught.runs import folder as run_folder
from selftaught.training import threads
from selftaught.training.threads import (
    Load,
    WaitDetector,
    busy_cores,
    choose,
    measure_load,
    threads_of_run,
)
from tests.commands import argv
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder
from tests.stopping import stopped_at

SMALL = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --workers 0")


@pytest.fixture(autouse=True)
def undecided(monkeypatch: Patch) -> None:
    """No environment variable decides, whatever the tests were started with."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def stat(*cores: tuple[int, int]) -> str:
    """/proc/stat of cores with so many busy and idle ticks."""
    lines = [f"cpu{i} {busy} 0 0 {idle} 0 0 0 0 0 0" for i, (busy, idle) in enumerate(cores)]
    return "\n".join(["cpu  999 0 0 9 0 0 0 0 0 0", *lines, "intr 1 2 3", ""])


@pytest.mark.parametrize(
    ("ticks", "own", "busy"),
    [
        ([(0, 30), (0, 30)], 0.0, 0),
        ([(30, 0), (0, 30)], 0.0, 1),
        ([(30, 0), (30, 0)], 0.0, 2),
        ([(15, 15), (15, 15)], 0.0, 1),  # one program that changed its core
        ([(4, 26), (0, 30)], 0.0, 0),
        ([(2, 28)] * 64, 0.0, 0),  # what every machine does now and then, sixty-four times
        ([(30, 0)] * 5 + [(1, 29)] * 11, 0.0, 5),
        ([(30, 0), (0, 30)], 1.0, 0),  # this process itself
        ([(0, 0), (0, 30)], 0.0, 0),  # a core without a tick
    ],
)
def test_cores_that_others_use_are_counted(
    ticks: list[tuple[int, int]], own: float, busy: int
) -> None:
    before = [(1000 + i, 5000) for i in range(len(ticks))]
    after = [
        (b + busy_ticks, i + idle) for (b, i), (busy_ticks, idle) in zip(before, ticks, strict=True)
    ]
    assert busy_cores(stat(*before), stat(*after), set(range(len(ticks))), own) == busy


def test_cores_of_others_do_not_count() -> None:
    before, after = stat(*[(0, 0)] * 4), stat((30, 0), (30, 0), (0, 30), (30, 0))
    assert busy_cores(before, after, {2, 3}) == 1
    assert busy_cores("", "", {0, 1}) == 0


def test_waiting_for_a_disk_is_idle_and_stolen_time_is_busy() -> None:
    before = "cpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0"
    after = "cpu0 0 0 0 0 30 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 30 0 0"
    assert busy_cores(before, after, {0}) == 0
    assert busy_cores(before, after, {1}) == 1


@pytest.mark.parametrize(
    ("load", "free"),
    [
        (Load(cores=8), 8),
        (Load(cores=8, busy=3), 5),
        (Load(cores=2, busy=5), 1),
        (Load(cores=64, quota=2.0), 2),
        (Load(cores=64, quota=2.5), 2),
        (Load(cores=64, quota=0.5), 1),
        (Load(cores=64, busy=60, quota=8), 4),
        (Load(cores=8, processes=2), 4),
        (Load(cores=8, busy=3, processes=2), 2),
        (Load(cores=2, processes=4), 1),
    ],
)
def test_free_cores_are_shared_out(load: Load, free: int) -> None:
    assert load.free == free
    assert bool(load.reasons) == (free < load.cores)


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup/", "sys/fs/cgroup/cpu/"
HERE, NESTED = (
    {"proc/self/cgroup": "0::/\n"},
    {"proc/self/cgroup": "0::/a/b\n", f"{V2}a/cpu.max": "200000 100000\n"},
)
DOCKER = {
    "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/docker/1\n",
    f"{V1}cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({**HERE, f"{V2}cpu.max": "max 100000\n"}, None),
        ({**HERE, f"{V2}cpu.max": "150000 100000\n"}, 1.5),
        ({**NESTED, f"{V2}a/b/cpu.max": "max 100000\n"}, 2.0),
        ({**NESTED, f"{V2}a/b/cpu.max": "100000 100000\n"}, 1.0),
        (
            {"proc/self/cgroup": "0::/elsewhere\n", f"{V2}cpu.max": "300000 100000"},
            3.0,
        ),  # a container's own root
        ({**DOCKER, f"{V1}cpu.cfs_quota_us": "400000\n"}, 4.0),
        ({**DOCKER, f"{V1}cpu.cfs_quota_us": "-1\n"}, None),
        ({"proc/self/cgroup": "1:cpuset:/\n0::/\n"}, None),
        ({}, None),
    ],
)
def test_the_least_quota_of_all_groups_counts(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    result = threads.find_groups(machine(tmp_path, files))
    assert min((g.quota for g in result.values()), default=None) == quota
    measured = measure_load(tmp_path, lambda seconds: None)
    assert measured.quota == (float("inf") if quota is None else quota)
    assert measured.busy == 0


@pytest.mark.parametrize("version", [1, 2])
def test_what_others_take_of_the_same_quota_is_gone(version: int, tmp_path: Path) -> None:
    if version == 2:
        limit = {**HERE, f"{V2}cpu.max": "400000 100000\n"}
        used, unit = f"{V2}cpu.stat", "user_usec 1\nusage_usec {:.0f}\n"
    else:
        limit = {**DOCKER, f"{V1}cpu.cfs_quota_us": "400000\n"}
        used, unit = f"{V1}cpuacct.usage", "{:.0f}000\n"
    root = machine(tmp_path, {**limit, used: unit.format(5e6)})
    clock = itertools.count(0.0, 10.0)  # ten seconds pass between two looks

    def wait(seconds: float) -> None:
        (root / used).write_text(unit.format(5e6 + 25e6))  # two and a half cores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads.time, "perf_counter", lambda: next(clock))
        patch.setattr(threads.time, "process_time", lambda: 0.0)
        assert measure_load(root, wait).quota == pytest.approx(1.5)


# --------------------------------------------------------------------------------------------------
# the choice


def share(load: Load, asked: Any = "auto", workers: Any = "auto", most: int = 8) -> tuple[int, int]:
    result = choose(asked, workers, most, lambda: load)
    return result.threads, result.workers


def test_auto_takes_the_free_cores_and_no_more_than_torch_has() -> None:
    assert share(Load(cores=8)) == (8, 2)
    assert share(Load(cores=8, busy=3)) == (5, 2)
    assert share(Load(cores=8, busy=7)) == (1, 1)
    assert share(Load(cores=16), most=8) == (8, 2)
    assert share(Load(cores=8, busy=8)) == (1, 1)


def test_what_is_asked_for_is_taken() -> None:
    assert share(Load(cores=8, busy=8), asked=3, workers=5) == (3, 5)
    assert share(Load(cores=8, busy=8), workers=0) == (1, 0)
    assert share(Load(cores=8, busy=7), asked=3) == (3, 1)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_an_environment_variable_decides_and_nothing_is_measured(
    name: str, monkeypatch: Patch
) -> None:
    def measure() -> Load:
        raise AssertionError("measured")

    monkeypatch.setenv(name, "3")
    result = choose("auto", "auto", 3, measure)
    assert result.threads == 3
    assert name in result.text
    monkeypatch.delenv(name)
    assert choose("auto", "auto", 1, measure).threads == 1  # one thread is one, on whatever machine
    assert choose(2, 0, 4, measure).threads == 2


def test_the_first_line_says_why_there_are_fewer() -> None:
    for load, part in (
        (Load(cores=8, busy=3), "others use 3"),
        (Load(cores=8, quota=2.5), "2.5"),
        (Load(cores=8, processes=4), "4 processes"),
    ):
        assert part in choose("auto", 0, 8, lambda load=load: load).text
    assert "(" not in choose("auto", 0, 8, lambda: Load(cores=8)).text


NONSENSE = [f"--threads={word}" for word in ("0", "-2", "many", "1.5", "9999999")]
NONSENSE += ["--workers=-1", "--workers=some"]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *(("evaluate x", flag) for flag in NONSENSE),
        *(("pretrain --out a", flag) for flag in NONSENSE),
        *(("adapt --out a", flag) for flag in NONSENSE[3::2]),
        *(("study data --plan x --out a", flag) for flag in NONSENSE[2::3]),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    command: str, flag: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv(command, flag)) == 2
    messages = capsys.readouterr().err
    assert flag.partition("=")[0] in messages
    assert "auto" in messages
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["threads", "workers"])
def test_a_plan_leaves_the_machine_to_the_command(flag: str) -> None:
    with pytest.raises(UserError, match=f"--{flag}"):
        plan.from_mapping({"stages": {"a": {"data": "x", flag: 2}}}, "plan")
    assert flag in overrides.CONDUCT


@pytest.mark.parametrize(("threads", "expected"), [(3, True), ("auto", False)])
def test_the_demo_hands_its_threads_on(
    threads: int | str, expected: bool, tmp_path: Path, monkeypatch: Patch
) -> None:
    """To all that computes; with "auto", what goes on keeps its own."""
    typed: list[list[str]] = []

    def record(words: list[str]) -> int:
        typed.append(words)
        return 0

    monkeypatch.setattr(demo, "COMMANDS", dict.fromkeys(demo.COMMANDS, record))
    monkeypatch.setattr(demo.demo_images, "write", lambda folder, seed: folder)
    monkeypatch.setattr(demo.demo_images, "write_night", lambda folder, images, seed: folder)
    monkeypatch.setattr(demo, "refuse_unfinished", lambda folder: None)
    more = ["--threads", str(threads)] if expected else []
    assert demo.demo(["--out", str(tmp_path), "--steps", "2", *more]) == 0
    assert len(typed) == 8
    assert sum("--threads" in words for words in typed) == (6 if expected else 0)  # not the reports


# --------------------------------------------------------------------------------------------------
# in a run


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def two_cores(monkeypatch: Patch) -> None:
    """Torch takes its threads for two, and computes with one: in tests on a busy machine two would
    be slow.
    """
    number = [2]
    monkeypatch.setattr(threads, "count_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: number.__setitem__(0, n))


def test_a_run_goes_on_with_the_threads_that_it_began_with(
    images: Path, tmp_path: Path, monkeypatch: Patch, two_cores: None
) -> None:
    used: list[int] = []
    monkeypatch.setattr(
        threads.WaitDetector, "check", lambda self: used.append(torch.get_num_threads())
    )
    words = [*argv(f"pretrain --data {images} --out {tmp_path}/run --steps 4"), *SMALL]
    with stopped_at(2):
        assert main([*words, "--threads", "1"]) == 0
    assert run_folder.read_run(tmp_path / "run").facts["threads"] == 1
    resume = ["pretrain", "--out", str(tmp_path / "run"), "--resume", "--workers", "0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what a new run would take
    with stopped_at(1):
        assert main(resume) == 0
    assert used == [1] * 3
    assert run_folder.read_run(tmp_path / "run").facts["threads"] == 1
    assert main([*resume, "--threads", "2"]) == 0  # as asked for now
    assert used[3:] == [2]
    assert run_folder.read_run(tmp_path / "run").facts["threads"] == 2
    assert torch.get_num_threads() == 2  # as before the commands


def test_a_run_of_old_takes_what_there_is(two_cores: None) -> None:
    messages: list[str] = []
    assert threads_of_run(None, None, messages.append) == 2
    assert threads_of_run(None, 1, messages.append) == 1
    assert threads_of_run(2, None, messages.append) == 2
    assert messages == []


def test_it_is_said_where_the_threads_of_a_run_change(two_cores: None) -> None:
    for recorded, asked, number in ((1, None, 1), (1, 2, 2), (64, None, 2)):
        messages: list[str] = []
        assert threads_of_run(recorded, asked, messages.append) == number
        assert len(messages) == 1


def test_threads_are_as_before_after_an_error(two_cores: None) -> None:
    with pytest.raises(UserError, match="1 thread"), threads.use_threads(1):
        raise UserError(f"{torch.get_num_threads()} thread")
    assert torch.get_num_threads() == 2


def test_an_evaluation_computes_with_the_threads_asked_for(
    images: Path, tmp_path: Path, monkeypatch: Patch, two_cores: None
) -> None:
    words = [*argv(f"pretrain --data {images} --out {tmp_path}/run --steps 1"), *SMALL]
    assert main([*words, "--threads", "1"]) == 0
    used: list[tuple[int, int]] = []

    def judged(*_: Any, workers: int, **__: Any) -> Any:
        used.append((torch.get_num_threads(), workers))
        raise UserError("enough")

    monkeypatch.setattr("selftaught.evaluation.evaluate.evaluate_run", judged)
    monkeypatch.setattr(threads, "measure_load", lambda: Load(cores=2, busy=1))
    for more in ([], ["--threads", "2"], ["--workers", "0"]):
        assert main(["evaluate", str(tmp_path / "run"), *more]) == 2
    assert used == [(1, 1), (2, 1), (1, 0)]


# --------------------------------------------------------------------------------------------------
# the detector


def detector(number: int, waits: list[dict[int, float]], seconds: float = 11.0) -> list[str | None]:
    """What it says at each look, `seconds` apart; `waits`: of each thread, so far."""
    clock, reads = [0.0], iter([{1: 5.0, 2: 5.0}, *waits])
    wait_detector = WaitDetector(number, lambda: next(reads), lambda: clock[0])
    messages = []
    for _ in waits:
        clock[0] += seconds
        messages.append(wait_detector.check())
    return messages


def growing(each: float, looks: int, number: int = 2) -> list[dict[int, float]]:
    return [
        {thread: 5.0 + each * k for thread in range(1, number + 1)} for k in range(1, looks + 1)
    ]


def test_threads_that_wait_are_said_once_with_the_remedy() -> None:
    messages = detector(2, growing(4.0, 6))
    assert [text is not None for text in messages] == [False, True, False, False, False, False]
    assert "--threads 1" in str(messages[1])
    assert "--resume" in str(messages[1])


def test_fewer_threads_are_advised_by_as_many_as_wait() -> None:
    _, messages = detector(16, growing(11 * 3.2 / 16, 2, 16))
    assert "--threads 12" in str(messages)


@pytest.mark.parametrize(
    "waits",
    [
        growing(0.0, 6),
        growing(1.0, 6),  # a fifth of a thread
        [{1: 5.0 + k, 2: 5.0 + k} for k in (5, 5, 10, 10, 15, 15)],  # a busy window now and then
        [{}, {}, {}],  # a system that does not tell
        [{k: 0.5} for k in range(3, 9)],  # new threads each time
    ],
)
def test_a_quiet_machine_is_not_spoken_of(waits: list[dict[int, float]]) -> None:
    assert not any(detector(2, waits))


def test_one_thread_has_no_other_to_wait_for_and_steps_do_not_look_each_time() -> None:
    assert not any(detector(1, growing(10.0, 6)))
    wait_detector = WaitDetector(
        2, itertools.repeat({1: 0.0}).__next__, iter([0.0, 1.0, 2.0]).__next__
    )
    reads = wait_detector.delays
    assert wait_detector.check() is None
    assert wait_detector.delays is reads


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="this system does not tell")
def test_the_system_tells_of_every_thread() -> None:
    assert os.getpid() in threads.read_delays()
