"""`selftaught demo`: training, HEXA and adapting on the included photographs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from selftaught.cli.adapt import adapt
from selftaught.cli.evaluate import evaluate
from selftaught.cli.options import option, parse_options, threads_option
from selftaught.cli.pretrain import pretrain
from selftaught.cli.report import report
from selftaught.config.overrides import Count
from selftaught.data import demo_images
from selftaught.errors import UserError
from selftaught.ranges import check_seed
from selftaught.runs.folder import has_run, read_run

Command = Callable[[list[str]], int]
COMMANDS: dict[str, Command] = {
    "pretrain": pretrain,
    "adapt": adapt,
    "evaluate": evaluate,
    "report": report,
}
METHOD = ["--method", "moco-v2", "--size", "64", "--backbone", "resnet10t", "--batch", "64"]
HEXA = ["--hard", "adversarial", "cutmix"]
LABELS = ["--labels", "5", "all"]


@dataclasses.dataclass(kw_only=True)
class Demo:
    """Train a method and its HEXA version on the included photographs, adapt, and compare."""

    out: str = option("FOLDER", "folder of images, runs and pages", default="demo")
    steps: int = option(
        "STEPS", "steps of each of the two trainings; adapting takes half as many", default=120
    )
    seed: int = option("NUMBER", "the same seed gives the same runs", default=0)
    threads: Count = threads_option()


def demo(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Demo, "demo", words)
    print(run_demo(Path(options.out), options.steps, options.seed, options.threads))
    return 0


def run_demo(out: Path, steps: int, seed: int, threads: Count = "auto") -> Path:
    """Write the images, train, adapt, evaluate; return the report's file.

    Parts that are done are not repeated, so a demo that was stopped can continue.
    """
    check_seed(seed)
    share = [] if threads == "auto" else ["--threads", str(threads)]
    images = demo_images.write(out / "images", seed=seed)
    night = demo_images.write_night(out / "night", images, seed)
    plain, hexa, adapted = out / "moco-v2", out / "hexa-moco", out / "adapted"
    settings = [*METHOD, "--seed", str(seed), *share]
    for folder, hard in ((plain, []), (hexa, HEXA)):
        words = ["--data", str(images), "--steps", str(steps), *settings, *hard]
        if has_run(folder):
            words = ["--resume", *share]
        run_command(["pretrain", "--out", str(folder), *words])
        refuse_unfinished(folder)
    words = ["--init", str(plain), "--target", str(night), "--steps", str(steps // 2)]
    run_command(["adapt", "--out", str(adapted), *words, *settings])
    refuse_unfinished(adapted)
    run_command(["evaluate", str(plain), *LABELS, *share])
    run_command(["evaluate", str(hexa), *LABELS, "--against", "random", str(plain), *share])
    run_command(["evaluate", str(adapted), *LABELS, "--against", "random", str(plain), *share])
    page = out / "report.html"
    run_command(["report", str(plain), str(hexa), "--out", str(page)])
    run_command(["report", str(adapted), "--out", str(out / "adapted.html")])
    return page


def refuse_unfinished(folder: Path) -> None:
    """Raise UserError if a training was stopped."""
    if not read_run(folder).facts["finished"]:
        raise UserError(f"the demo was stopped; the same command goes on with it ({folder})")


def run_command(words: Sequence[str]) -> None:
    """Print a command, and run it. Raises UserError if it fails."""
    start = time.perf_counter()
    print("$ selftaught", " ".join(words), flush=True)
    if COMMANDS[words[0]](list(words[1:])):
        raise UserError(f"the demo's command failed: selftaught {' '.join(words)}")
    print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
