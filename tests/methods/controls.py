"""Controls of pretext tasks: what a network may not know, it does not know of held-out images."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from selftaught.cli.main import main
from selftaught.method import Batch, Method
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import answer


def held_out_grade(
    method: Method,
    images: Callable[[int], Batch],
    steps: int,
    move: Callable[[Any], Any] = lambda targets: targets,
    held_out: Iterable[int] = (99,),
    schedule: Callable[[float], float] = lambda progress: 1.0,
) -> float:
    """The mean grade of other images after a brief training; `move` changes all targets."""
    own, step = method.targets, Step(method)
    method.targets = lambda data, predictions: move(own(data, predictions))
    optimizer = torch.optim.Adam([{"params": step.parameters(), "peak": 0.01}], lr=0)
    loop = Loop(steps=steps, steps_per_epoch=steps, schedule=schedule)
    for _ in fit(step, method, lambda *_: map(images, range(steps)), optimizer, loop):
        pass
    method.eval()
    with torch.no_grad():
        grades = [method.grade(*answer(method, images(seed))) for seed in held_out]
    return torch.cat(grades).mean().item()


def write_noise(
    root: Path,
    shape: tuple[int, int],
    count: int = 160,
    mark: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Path:
    """Images of independent uniform noise, which `mark` may change."""
    numbers = np.random.default_rng(0)
    root.mkdir(parents=True)
    for i in range(count):
        pixels = mark(numbers.uniform(0, 255, (*shape, 3))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:03}.png")
    return root


def run_accuracy(name: str, images: Path, out: Path, size: int, *flags: str) -> tuple[Any, ...]:
    """Of held-out images at the end of a run: the accuracy, that of chance, and their number."""
    words = ["--method", name, "--size", str(size), "--batch", "16", "--precision", "fp32"]
    words += ["--workers", "0", "--on-collapse", "warn", *flags]
    assert main(["pretrain", "--data", str(images), "--out", str(out), *words]) == 0
    facts = json.loads((out / "run.json").read_text())
    return facts["pretext"], facts["pretext_chance"], facts["data"]["held_out"]


def limits(chance: float, count: int) -> tuple[float, float]:
    """Chance, less and more four standard errors of `count` answers."""
    error = math.sqrt(chance * (1 - chance) / count)
    return chance - 4 * error, chance + 4 * error
