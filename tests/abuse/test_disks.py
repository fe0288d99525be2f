"""Full disks and permissions: nothing is lost, and with room again the same command comes to its
end.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import pytest

from tests.abuse.harness import (
    CACHE,
    DONE,
    EITHER,
    EVALUATE,
    REFUSED,
    SMALL,
    TRAIN,
    Case,
    Outcome,
    Sandbox,
    assert_done,
    assert_no_harm,
    assert_one_line,
    assert_refused,
    carry_out,
    facts,
    files_of_at_most,
    full_disk,
    is_readable_checkpoint,
    learnt,
    rows,
)
from tests.abuse.processes import Running, can_mount, on_small_disk, start

pytestmark = pytest.mark.abuse

STEPS = (*TRAIN[:-1], "4", "--save-every", "0")
ADAPT = ("adapt", "--init", "run", "--target", "photos", "--out", "out", *SMALL[2:], "--steps", "2")
COMMANDS: dict[str, Sequence[str]] = {
    "pretrain": STEPS,
    "adapt": ADAPT,
    "pack": ("pack", "photos", "--out", "out"),
    "evaluate": EVALUATE,
    "export": ("export", "run", "--to", "out.safetensors"),
    "report": ("report", "run", "--out", "out.html"),
}


def again(sandbox: Sandbox, words: Sequence[str]) -> None:
    """With room again the same command, or --resume, comes to its end; what is there is whole."""
    begun = words[0] == "pretrain" and (sandbox / "out" / "run.json").exists()
    assert_done(sandbox.run(*words, *(["--resume"] if begun else []), writes=("run",)))
    for file in sandbox.path.glob("*/checkpoints/last.pt"):
        assert is_readable_checkpoint(file)
    drafts = [
        str(p)
        for place in ("out", "run")
        for p in (sandbox / place).rglob(".*")
        if p.name.count(".") > 1 and p.is_file()
    ]
    assert not [d for d in drafts if not d.endswith(".lock")], drafts


def limited(command: str, size: int) -> Case:
    return Case(
        id=f"{command}-files-of-{size}",
        what=f"`{command}` where a file may have {size:,} bytes at most",
        words=COMMANDS[command],
        promise=EITHER,
        right="then the same command comes to its end",
    )


def run_short(case: Case, sandbox: Sandbox, shortage: AbstractContextManager[object]) -> None:
    with shortage:
        outcome = sandbox.run(*case.words, writes=("run",))
    if outcome.code == 0:
        assert_done(outcome)
    else:
        assert_one_line(outcome)
    assert learnt(sandbox / "run")  # the older run is as it was
    again(sandbox, case.words)


LIMITED = [limited(command, size) for command in COMMANDS for size in (0, 20_000, 1_000_000)]


@pytest.mark.parametrize("case", rows(LIMITED))
def test_files_may_not_grow(case: Case, trained: Sandbox) -> None:
    run_short(case, trained, files_of_at_most(int(case.id.rpartition("-")[2])))


FULL = [
    Case(
        id=f"{command}-full-after-{n}",
        what=f"`{command}` on a disk that is full after {n} files",
        words=COMMANDS[command],
        promise=EITHER,
        right="then the same command comes to its end",
    )
    for command, n in [
        *(("pretrain", n) for n in (0, 1, 2, 4, 6, 9)),
        *(("adapt", n) for n in (0, 1, 3, 5)),
        ("pack", 0),
        ("pack", 1),
        ("evaluate", 0),
        ("evaluate", 2),
        ("export", 0),
        ("report", 0),
    ]
]


@pytest.mark.parametrize("case", rows(FULL))
def test_the_disk_is_full(case: Case, trained: Sandbox) -> None:
    run_short(case, trained, full_disk(int(case.id.rpartition("-")[2])))


SMALL_DISKS = [
    Case(
        id=f"{command}-disk-of-{size}",
        what=f"`{command}` on a real disk of {size:,} KB, which then grows",
        promise=EITHER,
        seconds=180,
        words=[word if word != "out" else "disk/out" for word in COMMANDS[command]],
        right="one line, then the same command comes to its end",
    )
    for command, size in (("pretrain", 64), ("pretrain", 1024), ("adapt", 512), ("pack", 32))
]


@pytest.mark.parametrize("case", rows(SMALL_DISKS))
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a disk")
def test_a_small_disk(case: Case, trained: Sandbox) -> None:
    (trained / "disk").mkdir()
    running = Running(
        trained, case.words, on_small_disk, str(trained / "disk"), int(case.id.rpartition("-")[2])
    )
    outcome = running.wait(150)
    assert outcome.code in (20, 0), outcome.err  # 2, then 0
    assert_no_harm(outcome)
    first = outcome.err.partition("=== more room")[0]
    trained.note(Outcome(2 if outcome.code else 0, "", first, 0.0))
    assert outcome.code == 0 or first.rstrip().splitlines()[-1].startswith("selftaught:"), first


# ---------------------------------------------------------------------------------------------
# permissions


def read_only(name: str) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        (sandbox / name).mkdir(exist_ok=True)
        for folder in (sandbox / name, *(p for p in (sandbox / name).rglob("*") if p.is_dir())):
            folder.chmod(0o555)

    return prepare


def a_file(name: str) -> Callable[[Sandbox], object]:
    return lambda sandbox: sandbox.write(name, "a diary")


def still_a_diary(name: str) -> Callable[[Sandbox, Outcome], None]:
    def check(sandbox: Sandbox, outcome: Outcome) -> None:
        assert (sandbox / name).read_text() == "a diary"

    return check


def no_cache(sandbox: Sandbox) -> None:
    (sandbox / CACHE).rmdir()
    sandbox.write(CACHE, "")


def a_device(sandbox: Sandbox) -> None:
    try:
        os.mknod(sandbox / "null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def still_a_device(sandbox: Sandbox, outcome: Outcome) -> None:
    assert stat.S_ISCHR((sandbox / "null").stat().st_mode), "a device was replaced by a file"


def other_things(sandbox: Sandbox) -> None:
    sandbox.write("out/diary.txt", "a diary")


def into(place: str) -> list[str]:
    """The training with another --out."""
    return [place if word == "out" else word for word in STEPS]


PERMISSIONS = [
    Case(
        id="out-is-file",
        what="--out is a file",
        prepare=a_file("out"),
        words=STEPS,
        promise=REFUSED,
        names=("out",),
        then=still_a_diary("out"),
    ),
    Case(
        id="out-below-file",
        what="--out lies below a file",
        prepare=a_file("diary"),
        words=into("diary/run"),
        promise=REFUSED,
        names=("diary",),
        then=still_a_diary("diary"),
    ),
    Case(
        id="out-holds-others",
        what="--out holds other files",
        prepare=other_things,
        words=STEPS,
        promise=EITHER,
        then=still_a_diary("out/diary.txt"),
        right="they stay",
    ),
    Case(
        id="out-read-only",
        what="--out is a folder that must not be written to",
        prepare=read_only("out"),
        words=STEPS,
        promise=REFUSED,
        names=("out",),
        permissions=True,
    ),
    Case(
        id="out-parent-read-only",
        what="--out lies in a folder that must not be written to",
        prepare=read_only("locked"),
        words=into("locked/out"),
        promise=REFUSED,
        names=("locked",),
        permissions=True,
    ),
    Case(
        id="out-proc",
        what="--out in /proc, where nothing can be written",
        words=into("/proc/out"),
        promise=REFUSED,
        names=("/proc",),
    ),
    Case(
        id="out-link-gone",
        what="--out is a link to a folder that is gone",
        prepare=lambda s: (s / "out").symlink_to("gone"),
        words=STEPS,
        promise=EITHER,
        writes=("gone",),
    ),
    Case(
        id="out-link-loop",
        what="--out is a link to itself",
        prepare=lambda s: (s / "out").symlink_to("out"),
        words=STEPS,
        promise=REFUSED,
        names=("out",),
    ),
    Case(
        id="out-long-name",
        what="--out has a name of 300 letters",
        words=into("n" * 300),
        promise=REFUSED,
        names=("nnn",),
    ),
    Case(
        id="out-fifo",
        what="--out is a named pipe",
        prepare=lambda s: os.mkfifo(s / "out"),
        words=STEPS,
        promise=REFUSED,
        names=("out",),
    ),
    Case(id="out-odd-name", what="--out is called [/red] 🦩", words=into("[/red] 🦩")),
    Case(
        id="run-read-only",
        what="a run that may be read alone: `evaluate`",
        prepare=read_only("run"),
        words=EVALUATE,
        permissions=True,
        right="the scores are shown",
    ),
    Case(
        id="resume-read-only",
        what="a run that may be read alone: --resume",
        prepare=read_only("run"),
        words=("pretrain", "--out", "run", "--resume", "--workers", "0"),
        promise=REFUSED,
        names=("run",),
        permissions=True,
    ),
    Case(
        id="show-read-only",
        what="a run that may be read alone: `show`",
        prepare=read_only("run"),
        words=("show", "run"),
        permissions=True,
    ),
    Case(
        id="cache-read-only",
        what="a cache that must not be written to",
        prepare=read_only(CACHE),
        words=STEPS,
        permissions=True,
    ),
    Case(
        id="cache-is-file", what="a file where the cache should be", prepare=no_cache, words=STEPS
    ),
    Case(
        id="pack-out-file",
        what="`pack --out` is a file",
        prepare=a_file("out"),
        words=COMMANDS["pack"],
        promise=REFUSED,
        names=("out",),
        then=still_a_diary("out"),
    ),
    Case(
        id="pack-read-only",
        what="`pack --out` must not be written to",
        prepare=read_only("out"),
        words=COMMANDS["pack"],
        promise=REFUSED,
        names=("out",),
        permissions=True,
    ),
    Case(
        id="adapt-out-file",
        what="`adapt --out` is a file",
        prepare=a_file("out"),
        words=ADAPT,
        promise=REFUSED,
        names=("out",),
        then=still_a_diary("out"),
    ),
    Case(
        id="export-read-only",
        what="`export --to` in a folder that must not be written to",
        prepare=read_only("locked"),
        words=("export", "run", "--to", "locked/x.pth"),
        promise=REFUSED,
        names=("locked",),
        permissions=True,
    ),
    Case(
        id="export-folder",
        what="`export --to` is a folder",
        prepare=lambda s: (s / "x.pth").mkdir(),
        words=("export", "run", "--to", "x.pth"),
        promise=REFUSED,
        names=("x.pth",),
    ),
    Case(
        id="export-onto-run",
        what="`export --to` the run's own backbone",
        words=("export", "run", "--to", "run/backbone.safetensors"),
        promise=EITHER,
        then=lambda s, o: learnt(s / "run"),
        right="it stays whole",
    ),
    Case(
        id="report-read-only",
        what="`report --out` in a folder that must not be written to",
        prepare=read_only("locked"),
        words=("report", "run", "--out", "locked/x.html"),
        promise=REFUSED,
        names=("locked",),
        permissions=True,
    ),
    Case(
        id="report-device",
        what="`report --out` is a device",
        prepare=a_device,
        words=("report", "run", "--out", "null"),
        promise=EITHER,
        then=still_a_device,
        right="it stays one",
    ),
    Case(
        id="demo-out-file",
        what="`demo --out` is a file",
        prepare=a_file("out"),
        words=("demo", "--out", "out"),
        promise=REFUSED,
        names=("out",),
        then=still_a_diary("out"),
    ),
]


@pytest.mark.parametrize("case", rows(PERMISSIONS))
def test_places_that_cannot_be_written_to(case: Case, trained: Sandbox) -> None:
    carry_out(case, trained)


LOCKED = [
    Case(
        id="all-locked",
        what="no cache, no home and no folder for temporary files",
        words=STEPS,
        right="trains all the same",
    )
]


@pytest.mark.parametrize("case", rows(LOCKED))
def test_a_home_that_cannot_be_written_to(case: Case, trained: Sandbox) -> None:
    for name in ("home", "tmp", CACHE):
        (trained / name).chmod(0o555)
    assert_done(trained.run(*case.words, permissions=True))
    assert facts(trained)["images"] == 16


STREAMS = [
    Case(
        id="stdout-full",
        what="`methods --json` to a full disk, /dev/full",
        words=("methods", "--json"),
        promise=REFUSED,
    ),
    Case(
        id="stdout-closed",
        what="`methods --json` to a pipe that nobody reads",
        words=("methods", "--json"),
        promise=DONE,
    ),
]


@pytest.mark.parametrize("case", rows(STREAMS))
def test_standard_output_that_takes_nothing(case: Case, sandbox: Sandbox) -> None:
    """As a process of its own: Python itself writes the rest when it ends."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        stdout = full if case.id == "stdout-full" else writer
        words = [sys.executable, "-m", "selftaught", *case.words]
        done = subprocess.run(
            words, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=50
        )
    os.close(writer)
    outcome = Outcome(done.returncode, "", done.stderr, 0.0)
    sandbox.note(outcome)
    assert "Exception ignored" not in outcome.err, outcome.err
    if case.promise == REFUSED:
        assert_refused(outcome)
    else:
        assert_done(outcome)


def test_a_process_that_ends_leaves_no_draft(trained: Sandbox) -> None:
    """A run in a process of its own, with what it leaves."""
    assert_done(start(trained, *STEPS).wait())
    assert not [p for p in (trained / "out").rglob(".*") if not p.name.endswith(".lock")]
