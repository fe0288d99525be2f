"""Signals and kill -9: at random moments, and then the same command again, or --resume, comes to
the same end.
"""

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.abuse.harness import (
    DONE,
    EVALUATE,
    SMALL,
    Case,
    Outcome,
    Sandbox,
    assert_done,
    assert_no_harm,
    copied,
    inside,
    learnt,
    network,
    photos,
    rows,
)
from tests.abuse.processes import start

pytestmark = pytest.mark.abuse


def stored(sandbox: Sandbox) -> dict[str, bytes]:
    """A pack, file by file."""
    return {
        file.name: file.read_bytes()
        for file in sorted((sandbox / "out").iterdir())
        if not file.name.startswith(".")
    }


def scores(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The latest evaluation of the run; every earlier one can be read."""
    written = json.loads((sandbox / "run" / "evaluation.json").read_text())
    return list(written[-1]["rows"])


@dataclass(frozen=True)
class Command:
    words: Sequence[str]
    outcome: Callable[[Sandbox], Any]  # what must be the same in the end
    resume: bool = False  # whether it goes on by --resume, and not by itself


COMMANDS = {
    "pretrain": Command(
        (
            "pretrain",
            "--data",
            "photos",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "24",
            "--save-every",
            "0",
            "--hard",
            "cutmix",
        ),
        lambda sandbox: learnt(sandbox / "out"),
        resume=True,
    ),
    "adapt": Command(
        (
            "adapt",
            "--init",
            "w.pth",
            "--source",
            "others",
            "--source-steps",
            "8",
            "--target",
            "photos",
            "--out",
            "out",
            "--steps",
            "10",
            "--save-every",
            "0",
            *SMALL,
        ),
        lambda sandbox: learnt(sandbox / "out"),
    ),
    "pack": Command(("pack", "large", "--out", "out", "--format", "png", "--shard", "1"), stored),
    "evaluate": Command((*EVALUATE[:2], "--protocol", "knn", "linear", *EVALUATE[4:]), scores),
}


@dataclass(frozen=True)
class Whole:
    """The command undisturbed: how long it took, and what came out."""

    seconds: float
    outcome: Any


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, trained_once: Path) -> Path:
    """What the four commands read."""
    import torch

    place = tmp_path_factory.mktemp("inputs")
    photos(place / "photos", ("a", "b"), 16)
    photos(place / "others", ("c", "d"), 12)
    photos(place / "large", ("a", "b"), 60, 160)
    torch.save(network(), place / "w.pth")
    copied(trained_once / "run", place / "run")
    return place


@pytest.fixture(scope="session")
def wholes(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    cache: dict[str, Whole] = {}

    def whole(name: str) -> Whole:
        if name not in cache:
            with (
                pytest.MonkeyPatch.context() as patch,
                inside(tmp_path_factory.mktemp(f"whole {name}"), patch) as box,
            ):
                _filled(box, inputs)
                outcome = start(box, *COMMANDS[name].words).wait(writes=("run",))
                assert_done(outcome)
                cache[name] = Whole(outcome.seconds, COMMANDS[name].outcome(box))
        return cache[name]

    return whole


def _filled(sandbox: Sandbox, inputs: Path) -> Sandbox:
    for name in ("photos", "others", "large", "w.pth"):
        (sandbox / name).symlink_to(inputs / name)
    copied(inputs / "run", sandbox / "run")
    return sandbox


@pytest.fixture
def filled(sandbox: Sandbox, inputs: Path) -> Sandbox:
    return _filled(sandbox, inputs)


def struck(sandbox: Sandbox, command: Command, number: int, seconds: float) -> Outcome:
    """The command, hit by a signal after some seconds; a second start of a run goes on with it."""
    running = start(sandbox, *again(sandbox, command))
    time.sleep(seconds)
    running.signal(number)
    return running.wait(writes=("run",))


def again(sandbox: Sandbox, command: Command) -> list[str]:
    begun = (sandbox / "out" / "run.json").exists()
    return [*command.words, *(["--resume"] if command.resume and begun else [])]


def comes_to_its_end(sandbox: Sandbox, command: Command, whole: Whole) -> None:
    outcome = sandbox.run(*again(sandbox, command), writes=("run",))
    assert_done(outcome)
    assert command.outcome(sandbox) == whole.outcome
    left = [
        str(p)
        for name in ("out", "run")
        for p in (sandbox / name).rglob(".*")
        if p.is_file() and p.name != ".lock"
    ]
    assert not left, f"drafts are left: {left}"


KILLS = [
    Case(
        id=f"{name}-{seed}",
        what=f"kill -9 of `{name}` at a random moment (seed {seed})",
        words=COMMANDS[name].words,
        promise=DONE,
        right="the next start comes to the same end",
        seconds=240,
    )
    for name, number in (("pretrain", 7), ("adapt", 7), ("pack", 5), ("evaluate", 6))
    for seed in range(number)
]


@pytest.mark.parametrize("case", rows(KILLS))
def test_killed_at_a_random_moment(
    case: Case, filled: Sandbox, wholes: Callable[[str], Whole]
) -> None:
    name, _, seed = case.id.rpartition("-")
    whole = wholes(name)
    moment = random.Random(f"{name} {seed}").uniform(0, whole.seconds)
    outcome = struck(filled, COMMANDS[name], signal.SIGKILL, moment)
    assert outcome.code in (-signal.SIGKILL, 0), outcome.err
    assert_no_harm(outcome)
    comes_to_its_end(filled, COMMANDS[name], whole)


IN_A_ROW = [
    Case(
        id=f"{name}-in-a-row",
        what=f"kill -9 of `{name}` at five random moments, one after the other",
        words=COMMANDS[name].words,
        right="the next start comes to the same end",
        seconds=300,
    )
    for name in ("pretrain", "adapt", "pack")
]


@pytest.mark.parametrize("case", rows(IN_A_ROW))
def test_killed_again_and_again(
    case: Case, filled: Sandbox, wholes: Callable[[str], Whole]
) -> None:
    name = case.id.partition("-")[0]
    whole, rng = wholes(name), random.Random(case.id)
    for _ in range(5):
        assert_no_harm(
            struck(filled, COMMANDS[name], signal.SIGKILL, rng.uniform(0, whole.seconds / 2))
        )
    comes_to_its_end(filled, COMMANDS[name], whole)


SIGNALS = [
    Case(
        id=f"{name}-{number.name.lower()}-{seed}",
        what=f"{number.name} to `{name}` at a random moment (seed {seed})",
        words=COMMANDS[name].words,
        right="the next start comes to the same end",
        seconds=240,
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for name, seed in (("pretrain", 0), ("pretrain", 1), ("adapt", 0), ("pack", 0), ("evaluate", 0))
]


@pytest.mark.parametrize("case", rows(SIGNALS))
def test_a_signal_at_a_random_moment(
    case: Case, filled: Sandbox, wholes: Callable[[str], Whole]
) -> None:
    name, number, _ = case.id.split("-")
    whole = wholes(name)
    moment = random.Random(case.id).uniform(0.1, 0.9) * whole.seconds
    outcome = struck(filled, COMMANDS[name], signal.Signals[number.upper()], moment)
    assert outcome.code in (0, 130, -signal.Signals[number.upper()]), (outcome.code, outcome.err)
    assert_no_harm(outcome)
    comes_to_its_end(filled, COMMANDS[name], whole)


PAUSES = [
    Case(
        id=f"{name}-paused",
        what=f"`{name}` stopped for two seconds, as of a computer that sleeps",
        words=COMMANDS[name].words,
        right="it comes to the same end",
        seconds=240,
    )
    for name in ("pretrain", "pack")
]


@pytest.mark.parametrize("case", rows(PAUSES))
def test_paused_it_goes_on(case: Case, filled: Sandbox, wholes: Callable[[str], Whole]) -> None:
    name = case.id.partition("-")[0]
    whole = wholes(name)
    running = start(filled, *COMMANDS[name].words)
    time.sleep(whole.seconds / 2)
    running.signal(signal.SIGSTOP)
    time.sleep(2)
    running.signal(signal.SIGCONT)
    assert_done(running.wait(writes=("run",)))
    assert COMMANDS[name].outcome(filled) == whole.outcome
