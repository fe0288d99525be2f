"""`selftaught demo`: all of it on photographs that come along."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from selftaught.cli.evaluate import evaluate
from selftaught.cli.flag_values import reader
from selftaught.cli.pretrain import pretrain
from selftaught.cli.report import report
from selftaught.config.overrides import Count
from selftaught.data import demo_images
from selftaught.errors import UserError
from selftaught.runs.folder import read_run


@dataclasses.dataclass(kw_only=True)
class Demo:
    """Train a plain method and its HEXA version on photographs that come along, and compare
    both.
    """

    out: str = "demo"
    steps: int = 120
    """of each of the two trainings"""
    seed: int = 0
    threads: Annotated[Count, reader("threads", Count, "auto|THREADS")] = "auto"
    """that compute; auto: one for each free core"""


COMMON = (
    "--method",
    "moco-v2",
    "--size",
    "64",
    "--backbone",
    "resnet10t",
    "--batch",
    "128",
    "--seed",
)


def run_demo(
    out: Path, steps: int, seed: int, run: Callable[[Sequence[str]], int], threads: Count = "auto"
) -> Path:
    """Write the images, train twice, evaluate, and write the report; `run` carries out a command
    line.
    """
    share = [] if threads == "auto" else ["--threads", str(threads)]
    images = out / "images"
    if not images.exists():
        demo_images.write(images, seed=seed)
    plain, hexa = out / "moco-v2", out / "hexa-moco"
    for folder, hard in ((plain, ()), (hexa, ("--hard", "adversarial", "cutmix"))):
        words = [
            "pretrain",
            "--data",
            str(images),
            "--out",
            str(folder),
            "--steps",
            str(steps),
            *COMMON,
            str(seed),
            *hard,
        ]
        begun = (folder / "run.json").exists()
        carry_out(
            run, [*(["pretrain", "--out", str(folder), "--resume"] if begun else words), *share]
        )
        if not read_run(folder).facts["finished"]:
            raise UserError(f"the demo was stopped; the same command goes on with it ({folder})")
    carry_out(run, ["evaluate", str(plain), "--labels", "5", "all", *share])
    carry_out(
        run,
        ["evaluate", str(hexa), "--labels", "5", "all", "--against", "random", str(plain), *share],
    )
    carry_out(run, ["report", str(plain), str(hexa), "--out", str(out / "report.html")])
    return out / "report.html"


def carry_out(run: Callable[[Sequence[str]], int], words: Sequence[str]) -> None:
    began = time.perf_counter()
    print("$ selftaught", " ".join(words), flush=True)
    if run(words):
        raise UserError(f"the demo's command failed: selftaught {' '.join(words)}")
    print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


STEPS = {"pretrain": pretrain, "evaluate": evaluate, "report": report}


def run_command(words: Sequence[str]) -> int:
    return STEPS[words[0]](list(words[1:]))


def demo(words: list[str]) -> int:
    asked = tyro.cli(Demo, prog="selftaught demo", args=words)
    print(run_demo(Path(asked.out), asked.steps, asked.seed, run_command))
    return 0
