"""Pretext tasks: each against its paper's formula in plain loops, and two controls of what it can
know: images without content, and answers that belong to other images.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selftaught.cli.main import main
from selftaught.data import demo_images
from selftaught.hard.mixed import partner
from selftaught.method import Batch, image_seeds
from selftaught.methods.pretext.rotation import Rotation
from selftaught.visualize import snapshots
from tests.formulas import close, double, surprise
from tests.laws.toys import batch

# Rotation


def turn_in_loops(view: list[list[float]], turns: int) -> list[list[float]]:
    """Against the clock: the last column becomes the first row."""
    for _ in range(turns):
        side = len(view)
        view = [[view[row][side - 1 - column] for row in range(side)] for column in range(side)]
    return view


def turned_view(view: Tensor, turns: int) -> Tensor:
    rows = [turn_in_loops(channel, turns) for channel in view.tolist()]
    return torch.tensor(rows, dtype=view.dtype)


def test_rotation_is_its_formula() -> None:
    """Gidaris et al., 2018, equations 2 and 3: the mean over all four turns of every image."""
    method, data = double("rotation"), batch(5, dtype=torch.float64)
    total = 0.0
    for view in data.views[0]:
        for turns in range(4):
            turned = turned_view(view, turns)
            total += surprise(method.network(turned[None])[0].tolist(), turns)
    predictions = method.predict(method.inputs(data))
    close(method.loss(predictions, method.targets(data, predictions)), total / 20)


@pytest.mark.parametrize("turns", ["all", "one"])
def test_every_input_is_turned_as_its_target_says(turns: str) -> None:
    method, data = double("rotation", turns=turns), batch(12, dtype=torch.float64)
    inputs, targets = method.inputs(data), method.targets(data, ())
    assert inputs.shape == (12, 4 if turns == "all" else 1, 3, 16, 16)
    for view, copies, angles in zip(data.views[0], inputs, targets.tolist(), strict=True):
        assert turns == "one" or sorted(angles) == [0, 1, 2, 3]
        for copy, angle in zip(copies, angles, strict=True):
            assert torch.equal(copy, turned_view(view, angle))  # no pixel is interpolated
    assert len(set(targets[:, 0].tolist())) > 1


def test_mixing_partners_are_turned_by_different_angles() -> None:
    """Two images that are turned alike would mix into one of the same angle: nothing is harder."""
    targets = double("rotation").targets(batch(4000), ())
    apart = (targets != partner(targets)).double().mean().item()
    assert apart == pytest.approx(0.75, abs=0.04)


def test_its_grade_is_the_share_of_right_angles_of_each_image() -> None:
    method = double("rotation")
    targets = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
    predictions = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 3], [2, 3, 3, 3]]), 4)
    assert method.grade(predictions.double(), targets).tolist() == [1.0, 0.5]  # type: ignore[union-attr]
    assert method.chance() == 0.25
    assert method.collapsed_loss(8) == pytest.approx(math.log(4))


def test_angles_depend_on_the_image_alone() -> None:
    method, data = double("rotation"), batch(8)
    whole = method.targets(data, ())
    parts = [method.targets(data.map(lambda x, s=s: x[s]), ()) for s in (slice(0, 3), slice(3, 8))]  # type: ignore[misc]
    assert torch.equal(torch.cat(parts), whole)
    other = dataclasses.replace(data, seed=image_seeds(9, 0, 8))
    assert not torch.equal(method.targets(other, ()), whole)


# Controls: what a network may not know, it does not know of held-out images


def noise(
    root: Path, mark: bool = False, shape: tuple[int, int] = (24, 24), count: int = 160
) -> Path:
    """Images of independent uniform noise; with a mark, their upper rows are brighter."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for i in range(count):
        pixels = rng.uniform(0, 255, (*shape, 3))
        if mark:
            pixels[: shape[0] // 4] = 128 + pixels[: shape[0] // 4] / 2
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:03}.png")
    return root


def accuracy(images: Path, out: Path, size: int = 24, steps: int = 24) -> tuple[float, int]:
    """Held-out accuracy of a rotation run at its end, and the number of held-out images."""
    flags = ["--method", "rotation", "--backbone", "test_resnet", "--size", str(size)]
    flags += ["--batch", "16", "--precision", "fp32", "--workers", "0", "--steps", str(steps)]
    flags += ["--optimizer", "adamw", "--optimizer.lr", "0.003", "--on-collapse", "warn"]
    assert main(["pretrain", "--data", str(images), "--out", str(out), *flags]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert facts["pretext_chance"] == 0.25
    return facts["pretext"], facts["data"]["held_out"]


def limits(count: int) -> tuple[float, float]:
    """Chance, less and more four standard errors of `count` answers."""
    error = math.sqrt(0.25 * 0.75 / count)
    return 0.25 - 4 * error, 0.25 + 4 * error


@pytest.fixture
def no_album(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "draw", lambda session, folder: None)


def moved(self: Rotation, data: Batch, predictions: Tensor) -> Tensor:
    """The angles of other images."""
    return self.draw_turns(data).roll(1, 0)


@pytest.mark.usefixtures("no_album")
def test_of_noise_nothing_can_be_known(tmp_path: Path) -> None:
    """What exceeds chance would be a leak of the pipeline: borders, resampling, padding."""
    reached, count = accuracy(noise(tmp_path / "noise"), tmp_path / "run")
    low, high = limits(4 * count)
    assert low < reached < high


@pytest.mark.usefixtures("no_album")
def test_a_mark_is_found_and_its_angles_on_other_images_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These few steps do find what tells the angle; and no answer, if it belongs elsewhere."""
    images = noise(tmp_path / "marked", mark=True)
    assert accuracy(images, tmp_path / "right")[0] > 0.7
    monkeypatch.setattr(Rotation, "targets", moved)
    reached, count = accuracy(images, tmp_path / "moved")
    low, high = limits(count)
    assert low < reached < high


@pytest.mark.slow
@pytest.mark.usefixtures("no_album")
@pytest.mark.parametrize("shape", [(64, 64), (48, 64)])
def test_of_noise_nothing_is_known_after_long_training(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    images = noise(tmp_path / "noise", shape=shape, count=640)
    reached, count = accuracy(images, tmp_path / "run", size=32, steps=400)
    low, high = limits(4 * count)
    assert low < reached < high


@pytest.mark.slow
@pytest.mark.usefixtures("no_album")
def test_real_images_are_known_and_their_angles_on_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = demo_images.write(tmp_path / "images", size=32, train_per_class=60, test_per_class=20)
    reached, count = accuracy(images, tmp_path / "right", size=32, steps=300)
    assert reached > limits(4 * count)[1]
    monkeypatch.setattr(Rotation, "targets", moved)
    reached, count = accuracy(images, tmp_path / "moved", size=32, steps=300)
    low, high = limits(count)
    assert low < reached < high
