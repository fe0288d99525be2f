"""Run folders that meet reality: damaged files, full disks, other working directories, moved
folders, two processes.
"""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selftaught import files
from selftaught.cli.main import main
from selftaught.errors import FileError, UserError
from selftaught.evaluation import evaluate
from selftaught.loggers.jsonl import Journal, read_journal
from selftaught.runs import folder as run_folder
from selftaught.runs import reader
from selftaught.training import checkpoint, runtime, trainer
from selftaught.training.checkpoint_folder import CHECKPOINTS, Checkpoints
from tests.commands import argv, succeed
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder
from tests.stopping import stopped_at

pytestmark = pytest.mark.usefixtures("quick_scores")

HERE = ["--workers", "0"]
SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32", *HERE]
SCORED = ["--protocol", "knn", "--labels", "all", "--against", "random", *HERE]
STEPS = 12


@pytest.fixture(scope="module")
def project(tmp_path_factory: Places) -> Path:
    """A folder with photos/, a run o/ that was begun there with relative words, and what was
    adapted from it, r/.
    """
    place = tmp_path_factory.mktemp("project")
    folder(place / "photos", classes=2)
    with contextlib.chdir(place):
        succeed("pretrain", "--data", "photos", "--out", "o", "--steps", STEPS, *SMALL)
        assert main(["evaluate", "o", *SCORED]) == 0
        succeed("adapt", "--init", "o", "--target", "photos", "--out", "r", "--steps", "2", *SMALL)
    return place


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """The same, somewhere else, where it may be harmed."""
    return Path(shutil.copytree(project, tmp_path / "copied"))


def weights(out: Path) -> dict[str, bytes]:
    state = load_file(out / "backbone.safetensors")
    return {key: value.numpy().tobytes() for key, value in state.items()}


def last_line(capsys: Capture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


# ------------------------------------------------------------------------------------------------
# damaged files

DAMAGE: dict[str, Callable[[bytes], bytes] | None] = {
    "empty": lambda old: b"",
    "half": lambda old: old[: len(old) // 2],
    "binary": lambda old: bytes(range(256)) * 4,
    "null": lambda old: b"null",
    "list": lambda old: b"[[1]]",
    "object": lambda old: b"{}",
    "folder": None,
}


def harm(file: Path, how: str) -> None:
    old, change = file.read_bytes(), DAMAGE[how]
    file.unlink()
    if change is None:
        (file / "inside").mkdir(parents=True)
    else:
        file.write_bytes(change(old))


@pytest.mark.parametrize(
    ("file", "command", "how"),
    [
        *(("o/run.json", "show o", how) for how in DAMAGE),
        *(("o/backbone.safetensors", "export o --to b.pth", how) for how in DAMAGE),
        *(("r/plan.json", "show r", how) for how in DAMAGE),
        ("r/plan.json", "evaluate r", "half"),
        ("o/run.json", "evaluate o", "binary"),
        ("o/run.json", "export o --to b.pth", "object"),
        ("o/run.json", "pretrain --out o --resume", "list"),
        ("o/run.json", "pretrain --out o --resume", "folder"),
        ("o/run.json", "pretrain --data photos --out n --init o", "null"),
        ("o/run.json", "pretrain --data photos --out n --init o", "empty"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    copied: Path, file: str, command: str, how: str, monkeypatch: Patch, capsys: Capture
) -> None:
    harm(copied / file, how)
    before = {p for p in copied.rglob("*") if p.suffix != ".lock"}
    monkeypatch.chdir(copied)
    assert main(argv(command, *(SMALL if "--init" in command else ()))) == 2
    line = last_line(capsys)
    assert line.startswith("selftaught: ")
    assert file in line
    assert {p for p in copied.rglob("*") if p.suffix != ".lock"} == before  # nothing half written


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_only_remembered_is_made_again(
    copied: Path, how: str, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(copied)
    assert main(["evaluate", "o", *SCORED, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for file in [*(copied / "o" / "features").iterdir(), copied / "o" / "evaluation.json"]:
        harm(file, how)
    assert main(["evaluate", "o", *SCORED, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == rows
    assert "features" in output.err
    assert len(run_folder.evaluations(copied / "o")) == 1
    assert (copied / "o" / "evaluation.json.damaged").exists()
    assert main(["show", "o"]) == 0
    assert main(["report", "o", "--out", "page.html"]) == 0


def test_a_damaged_evaluation_is_shown_as_such(copied: Path, capsys: Capture) -> None:
    (copied / "o" / "evaluation.json").write_text("[{}]")
    assert main(["show", str(copied / "o")]) == 0
    assert "evaluation.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "how", ["empty", "half", "binary", "folder", "missing", "another", "lacking"]
)
def test_a_run_goes_on_from_the_checkpoint_that_is_whole(
    copied: Path, how: str, monkeypatch: Patch, capsys: Capture
) -> None:
    """An older one leads to the same end."""
    monkeypatch.chdir(copied)
    expected = weights(copied / "o")
    last = copied / "o" / "checkpoints" / "last.pt"
    (copied / "o" / "backbone.safetensors").unlink()
    if how == "missing":
        last.unlink()
    elif how == "another":
        torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, last)
    elif how == "lacking":
        state = checkpoint.load_checkpoint(last)
        torch.save({**state, "step": dict(list(state["step"].items())[:-3])}, last)
    else:
        harm(last, how)
    if how == "folder":
        monkeypatch.setattr(Checkpoints, "due", lambda *_: False)
        # trained, and the folder cannot be replaced
        assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 2
        assert "last.pt" in last_line(capsys)
        shutil.rmtree(last)
        assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 0
    else:
        assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 0
        assert how == "missing" or "best.pt" in capsys.readouterr().err
    assert weights(copied / "o") == expected
    entries = read_journal(copied / "o" / "journal.jsonl")
    assert [e["step"] for e in entries] == list(range(STEPS + 1))


@pytest.mark.parametrize("how", ["empty", "half", "binary", "folder"])
def test_without_a_whole_checkpoint_it_says_what_to_do(
    copied: Path, how: str, capsys: Capture
) -> None:
    for name in CHECKPOINTS:
        harm(copied / "o" / "checkpoints" / name, how)
    facts = (copied / "o" / "run.json").read_bytes()
    assert main(["pretrain", "--out", str(copied / "o"), "--resume", *HERE]) == 2
    line = last_line(capsys)
    assert all(name in line for name in CHECKPOINTS)
    assert (copied / "o" / "run.json").read_bytes() == facts


def test_an_older_checkpoint_loses_no_candidate(
    project: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The best one is saved before the weights of its step compete for being kept."""
    monkeypatch.chdir(project)
    words = [*argv("pretrain --data photos --steps 14 --keep best --labels-from none"), *SMALL]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "last.pt").write_bytes(b"")
    assert main(["pretrain", "--out", str(tmp_path / "parts"), "--resume", *HERE]) == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    kept = [run_folder.read_run(tmp_path / name).facts["choice"] for name in ("whole", "parts")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_journal_keeps_its_whole_lines(copied: Path, how: str, capsys: Capture) -> None:
    file = copied / "o" / "journal.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    if DAMAGE[how] is None:
        harm(file, how)
        assert main(["pretrain", "--out", str(copied / "o"), "--resume", *HERE]) == 2
        assert "journal.jsonl" in last_line(capsys)
        return
    file.write_bytes(b"".join([whole[0], DAMAGE[how](whole[1]) + b"\n", *whole[2:]]))
    assert main(["pretrain", "--out", str(copied / "o"), "--resume", *HERE]) == 0
    assert file.read_bytes().splitlines(keepends=True) == [whole[0], *whole[2:]]
    assert (how == "empty") or "journal.jsonl" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# the disk refuses


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A real limit, which the system answers with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "name"), [(400_000, "best.pt"), (1_000, "run.json")])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    project: Path, tmp_path: Path, size: int, name: str, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(project)
    out = tmp_path / "o"
    words = ["pretrain", "--data", "photos", "--out", str(out), "--steps", str(STEPS), *SMALL]
    with files_of_at_most(size):
        assert main(words) == 2
    line = last_line(capsys)
    assert line.startswith("selftaught: ")
    assert name in line
    assert not list(out.rglob(f"*{files.DRAFT}*"))
    if name == "best.pt":
        assert run_folder.read_run(out).facts["outcome"] == "failed"
        assert main(words) == 0  # nothing was saved, so that it begins again
        assert weights(out) == weights(project / "o")


def test_the_last_good_checkpoint_stays(
    project: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(project)
    out = tmp_path / "o"
    with stopped_at(5):
        succeed("pretrain", "--data", "photos", "--out", out, "--steps", STEPS, *SMALL)
    last = (out / "checkpoints" / "last.pt").read_bytes()
    with files_of_at_most(400_000):
        assert main(["pretrain", "--out", str(out), "--resume", "--save-every", "0", *HERE]) == 2
    assert "last.pt" in last_line(capsys)
    assert (out / "checkpoints" / "last.pt").read_bytes() == last
    assert run_folder.read_run(out).facts["outcome"] == "failed"
    assert run_folder.read_run(out).doubt
    assert main(["pretrain", "--out", str(out), "--resume", *HERE]) == 0
    assert weights(out) == weights(project / "o")


ERRORS = [
    getattr(errno, name)
    for name in ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO"]
]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("last.pt", number) for number in ERRORS),
        ("run.json", errno.ENOSPC),
        ("backbone.safetensors", errno.EDQUOT),
    ],
)
def test_whatever_the_disk_says_it_is_one_line(
    copied: Path, number: int, name: str, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(copied)
    real = Path.replace

    def refuse(draft: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(number, os.strerror(number))
        return real(draft, target)

    monkeypatch.setattr(Path, "replace", refuse)
    before = (copied / "o" / "checkpoints" / "last.pt").read_bytes()
    assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 2
    line = last_line(capsys)
    assert line.startswith(f"selftaught: o/{'checkpoints/' if name == 'last.pt' else ''}{name} ")
    assert os.strerror(number).lower() in line
    assert (copied / "o" / "checkpoints" / "last.pt").read_bytes() == before
    assert not list(copied.rglob(f"*{files.DRAFT}*"))


@pytest.mark.parametrize("command", ["report", "export", "pack", "study"])
def test_other_commands_say_it_in_one_line_too(
    copied: Path, command: str, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(copied)
    (copied / "file").write_text("in the way")
    (copied / "plan.yaml").write_text(
        "bases: {b: o}\ntargets: {t: photos}\nsettings: {batch: 8, size: 32}\nsteps: {hpt: [1],"
        " target: [1], hpt_bn: [1]}\n"
    )
    words = {
        "report": ["report", "o", "--out", "file/page.html"],
        "export": ["export", "o", "--to", "file/b.pth"],
        "pack": ["pack", "photos", "--out", "file/p"],
        "study": ["study", "separability", "--plan", "plan.yaml", "--out", "file/s"],
    }
    assert main(words[command]) == 2
    line = last_line(capsys)
    assert line.startswith("selftaught: ")
    assert "file/" in line


def test_a_colleagues_run_is_evaluated_shown_and_exported(
    copied: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Where nothing can be written (root may write everywhere, so that files lie in the way
    here).
    """
    monkeypatch.chdir(copied)
    for name in ("o/features", "o/evaluation.lock"):
        place = copied / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    (copied / "o" / "features").write_text("in the way")
    (copied / "o" / "evaluation.lock").mkdir()
    assert main(["evaluate", "o", *SCORED, "--json"]) == 0
    output = capsys.readouterr()
    assert {row["backbone"] for row in json.loads(output.out)} == {"o", "random"}
    assert output.err.count("not kept") == 2  # the features, once, and the scores
    assert main(["show", "o"]) == 0
    assert main(["report", "o", "--out", "page.html"]) == 0
    assert main(["export", "o", "--to", "b.pth"]) == 0


def test_a_cache_that_cannot_be_written_is_said_once(
    copied: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(copied)
    (copied / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copied / "cache"))
    for out in ("a", "b"):
        assert main(["pretrain", "--data", "photos", "--out", out, "--steps", "1", *SMALL]) == 0
    assert capsys.readouterr().err.count("are not cached") == 1


# ------------------------------------------------------------------------------------------------
# places


def test_a_run_is_used_from_another_folder(
    project: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "photos").mkdir()  # of another kind
    monkeypatch.chdir(tmp_path)
    o, r = os.path.relpath(project / "o"), os.path.relpath(project / "r")
    facts = json.loads((project / "o" / "run.json").read_text())
    assert facts["config"]["data"]["roots"] == facts["data"]["roots"] == ["photos"]
    assert facts["places"] == {"photos": str(project / "photos")}
    assert main(["evaluate", o, *SCORED]) == 0
    assert main(["evaluate", r, *SCORED[:-2], "--against", "init", *HERE, "--json"]) == 0
    assert {row["backbone"] for row in json.loads(capsys.readouterr().out)} == {r, "init"}
    rows = run_folder.lineage(run_folder.read_run(project / "r").stage)
    assert len(rows) == 2
    assert main(["show", r]) == 0
    assert main(["pretrain", "--config", f"{o}/run.json", "--out", "again", *HERE]) == 0
    assert weights(tmp_path / "again") == weights(project / "o")
    succeed("pretrain", "--init", o, *argv(f"--data {project}/photos --steps 1 --out n"), *SMALL)


def test_a_run_is_resumed_from_another_folder(
    project: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    place = Path(shutil.copytree(project / "photos", tmp_path / "p" / "photos")).parent
    monkeypatch.chdir(place)
    words = ["pretrain", "--data", "photos", "--out", "o", "--steps", str(STEPS), *SMALL]
    with stopped_at(5):
        assert main(words) == 0
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert main([*argv("pretrain --out ../p/o --data ../p/photos --resume --seed 1"), *HERE]) == 2
    line = last_line(capsys)
    assert "seed" in line
    assert "data" not in line.partition("settings")[2]
    assert main(["pretrain", "--out", "../p/o", "--resume", *HERE]) == 0
    assert weights(place / "o") == weights(project / "o")
    monkeypatch.chdir(place)
    assert run_folder.read_run(Path("o")).stage.data.roots == (str(place / "photos"),)
    assert main(["evaluate", "o", *SCORED]) == 0


def test_a_project_that_was_moved_is_found_beside_its_runs(
    copied: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    actual = run_folder.read_run(Path("../copied/o"))
    assert actual.stage.data.roots == (str(copied / "photos"),)
    assert run_folder.read_run(Path("../copied/r")).base == str(copied / "o")
    assert main(["evaluate", "../copied/o", *SCORED]) == 0


def test_missing_images_are_named_with_the_way_to_name_new_ones(
    project: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    shutil.copytree(project / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    with stopped_at(5):
        succeed("pretrain", "--data", "photos", "--out", "o", "--steps", STEPS, *SMALL)
    (tmp_path / "photos").rename(tmp_path / "new")
    (tmp_path / "o").rename(tmp_path / "elsewhere")
    resume = ["pretrain", "--out", "elsewhere", "--resume", *HERE]
    for words in (resume, ["evaluate", "elsewhere", *SCORED]):
        assert main(words) == 2
        line = last_line(capsys)
        assert str(tmp_path / "photos") in line
        assert "--data" in line
    assert main([*resume, "--data", "new"]) == 0  # the same images
    assert weights(tmp_path / "elsewhere") == weights(project / "o")
    assert run_folder.read_run(Path("elsewhere")).facts["data"]["roots"] == ["new"]
    assert main(["evaluate", "elsewhere", *SCORED]) == 0


def test_other_images_are_no_new_place(copied: Path, monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.chdir(copied)
    folder(copied / "other", classes=2, seed=5)
    assert main(["pretrain", "--out", "o", "--resume", "--data", "other", *HERE]) == 2
    assert "changed" in last_line(capsys)


def test_a_run_of_an_older_version_is_read(copied: Path, monkeypatch: Patch) -> None:
    """It knows its images by their sizes, and no absolute places."""
    monkeypatch.chdir(copied)
    file = copied / "o" / "run.json"
    facts = json.loads(file.read_text())
    del facts["places"], facts["folder"]
    index = run_folder.read_run(Path("o")).stage.data.index(0)
    facts["data"]["fingerprint"] = index.listing
    file.write_text(json.dumps(facts))
    assert main(["evaluate", "o", *SCORED]) == 0
    assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 0
    assert run_folder.read_run(Path("o")).facts["data"]["fingerprint"] == index.fingerprint


# ------------------------------------------------------------------------------------------------
# two processes


def test_a_run_that_is_being_trained_is_not_trained_beside_that(
    copied: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(copied)
    with files.hold_run(copied / "o"):
        assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 2
        line = last_line(capsys)
        assert str(os.getpid()) in line
        assert os.uname().nodename in line
        stage = run_folder.read_run(Path("o")).stage
        index = stage.data.index(0)
        with pytest.raises(UserError, match=str(os.getpid())):
            trainer.train(stage, Path("o"), runtime.Runtime(workers=0, resume=True), index)
        assert main(["evaluate", "o", *SCORED]) == 0  # looking is allowed
    assert main(["pretrain", "--out", "o", "--resume", *HERE]) == 0


def test_a_lock_ends_with_its_process_whoever_it_has_forked(tmp_path: Path) -> None:
    """Workers that decode images outlive a killed parent by some seconds."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with files.hold_run(tmp_path):
            if os.fork() == 0:  # the worker
                os.close(read)
                time.sleep(20)
                os._exit(0)
            os.write(write, b"held")
            time.sleep(20)
        os._exit(0)
    assert os.read(read, 4) == b"held"
    with pytest.raises(UserError):
        files.refuse_busy(tmp_path)
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    files.refuse_busy(tmp_path)
    with files.hold_run(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_said_once(tmp_path: Path, number: int, monkeypatch: Patch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    output: list[str] = []
    for _ in range(2):
        with (
            files.hold_run(tmp_path, output.append),
            files.locked(tmp_path / "other.lock", log=output.append),
        ):
            files.refuse_busy(tmp_path)
            files.write_json(tmp_path / "run.json", {})
    assert len(output) == 1


def test_a_run_that_came_to_be_meanwhile_is_not_overwritten(
    copied: Path, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(copied)
    stage = run_folder.read_run(Path("o")).stage
    with pytest.raises(UserError, match="--resume"):
        trainer.train(stage, Path("o"), runtime.Runtime(workers=0), stage.data.index(0))


# ------------------------------------------------------------------------------------------------
# the clock


def test_a_clock_that_jumps_back_changes_nothing(
    project: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    monkeypatch.chdir(project)
    words = ["pretrain", "--data", "photos", "--steps", str(STEPS), "--save-every", "0", *SMALL]
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    seconds = [entry["seconds"] for entry in read_journal(tmp_path / "o" / "journal.jsonl")]
    assert seconds == sorted(seconds)
    assert weights(tmp_path / "o") == weights(project / "o")


# ------------------------------------------------------------------------------------------------
# killed


class Killed(BaseException):
    """As if by kill -9: nothing is tidied up."""


@pytest.mark.parametrize("after", [False, True], ids=["before it is in its place", "after"])
def test_killed_at_any_write_it_ends_the_same(
    project: Path, tmp_path: Path, after: bool, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(project)
    out, real = tmp_path / "o", Path.replace
    words = [*argv(f"pretrain --data photos --out {out} --steps 2 --save-every 0"), *SMALL]
    assert main([*words[:3], "--out", str(tmp_path / "whole"), *words[5:]]) == 0
    calls, at = 0, 0

    def replace(draft: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise Killed
        done = real(draft, target)
        if calls == at:
            raise Killed
        return done

    monkeypatch.setattr(Path, "replace", replace)
    resume = argv(f"pretrain --out {out} --resume --save-every 0", *HERE)
    kills = 0
    while not (out / "run.json").exists() or not run_folder.read_run(out).facts["finished"]:
        calls, at = 0, 1 + kills
        begun = run_folder.has_run(out)
        with contextlib.suppress(Killed):
            succeed(*(resume if begun else words))
            break
        kills += 1
    assert kills >= 5
    assert weights(out) == weights(tmp_path / "whole")
    assert not list(out.rglob(f"*{files.DRAFT}*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["pretrain", "pack", "evaluate"])
def test_killed_at_25_random_moments_it_ends_the_same(tmp_path: Path, command: str) -> None:
    """By kill -9, the same command each time (with --resume, once there is a run)."""
    folder(tmp_path / "photos", classes=2, each=200 if command == "pack" else 40)
    log = tmp_path / "log"

    def start(*words: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as opened:
            return subprocess.Popen(
                [sys.executable, "-m", "selftaught", *words],
                cwd=tmp_path,
                start_new_session=True,
                stdout=opened,
                stderr=opened,
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
            )

    def words(out: str) -> list[str]:
        if command == "pretrain":
            either = argv(f"pretrain --out {out} --save-every 0.1", *HERE)
            if run_folder.has_run(tmp_path / out):
                return [*either, "--resume"]
            return [*either, *argv("--data photos --steps 60 --keep best", *SMALL[:-2])]
        if command == "pack":
            return ["pack", "photos", "--out", out, "--size", "24", "--shard", "1"]
        return ["evaluate", out, "--labels", "all", "--against", "random", *HERE]

    def result(out: Path) -> Any:
        if command == "pretrain":
            journal = [
                (e["step"], e["loss"], e["features"]) for e in read_journal(out / "journal.jsonl")
            ]
            return weights(out), journal, run_folder.read_run(out).facts["choice"]
        if command == "pack":
            return {file.name: file.read_bytes() for file in out.iterdir() if file.name != ".lock"}
        return [{**row, "backbone": ""} for row in run_folder.evaluations(out)[-1]["rows"]]

    if command == "evaluate":
        trained = start(*argv("pretrain --data photos --out whole --steps 3", *SMALL))
        assert trained.wait(600) == 0
        shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    whole = start(*words("whole"))
    began = time.perf_counter()
    assert whole.wait(600) == 0, log.read_text()
    lasted = time.perf_counter() - began
    rng, kills = random.Random(), 0
    while kills < 25:
        process = start(*words("parts"))
        try:
            assert process.wait(rng.uniform(0.3, 1) * lasted) == 0, log.read_text()
            if command != "evaluate":  # it came to its end: once more from the start
                assert result(tmp_path / "parts") == result(tmp_path / "whole")
                shutil.rmtree(tmp_path / "parts")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        assert "Traceback" not in log.read_text()
    assert start(*words("parts")).wait(600) == 0, log.read_text()
    assert result(tmp_path / "parts") == result(tmp_path / "whole")
    drafts = (tmp_path / "parts").rglob(f"*{files.DRAFT}*")
    assert not [file for file in drafts if file.parent.name != "features"]


# ------------------------------------------------------------------------------------------------
# judge


def test_a_journal_is_torn_at_most_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with files_of_at_most(1000):
        journal = Journal(file, after=0)
        while file.stat().st_size < 970:
            journal.write({"step": len(journal.entries), "loss": 0.5})
        with pytest.raises(FileError, match=r"journal\.jsonl"):
            journal.write({"step": len(journal.entries), "loss": "x" * 100})
        journal.close()
    assert file.stat().st_size == 1000
    steps = [e["step"] for e in read_journal(file)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 20


def test_an_evaluation_moves_a_damaged_one_aside_under_its_lock(
    tmp_path: Path, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = run_folder.read_run(project / "o").stage.data.index(0)
    (tmp_path / run_folder.EVALUATIONS).write_text("[1, 2")
    nothing = evaluate.Evaluation(results=evaluate.Results(rows=()), verdict="")
    for command in ("one", "two"):
        evaluate.save_evaluation(tmp_path, nothing, index, ["photos"], command)
    assert [e["command"] for e in run_folder.evaluations(tmp_path)] == ["one", "two"]
    assert len(caplog.records) == 1
    assert (tmp_path / "evaluation.json.damaged").read_text() == "[1, 2"


def test_a_file_error_is_both(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        files.read_json(tmp_path / "none.json", dict)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, UserError)


def test_an_adapted_run_has_the_name_of_the_folder_that_was_named(project: Path) -> None:
    """And not that of its last stage, which is a hash."""
    assert [run.name for run in reader.load_all([project / "r", project / "o"])] == ["r", "o"]
    stage = run_folder.resolve_run(project / "r")
    assert reader.load_all([stage])[0].name == stage.name
