"""Rotation against its formula in plain loops. Of all tasks whose answer is one of several, two
controls of what it can know: images without content, and answers that belong to other images.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.data import demo_images
from selftaught.hard.mixed import partner
from selftaught.methods import METHODS
from selftaught.visualize import snapshots
from tests.formulas import close, data64, double, loss_of, surprise
from tests.laws.toys import batch
from tests.methods.controls import limits, run_accuracy, write_noise

# Rotation


def turned_view(view: Tensor, turns: int) -> Tensor:
    """Against the clock: the last column becomes the first row."""
    channels = view.tolist()
    for _ in range(turns):
        channels = [list(zip(*rows, strict=True))[::-1] for rows in channels]
    return torch.tensor(channels, dtype=view.dtype)


def test_rotation_is_its_formula() -> None:
    """Gidaris et al., 2018, equations 2 and 3: the mean over all four turns of every image."""
    method, data = double("rotation"), data64(5)
    total = 0.0
    for view in data.views[0]:
        for turns in range(4):
            total += surprise(method.network(turned_view(view, turns)[None])[0].tolist(), turns)
    close(loss_of(method, data), total / 20)


@pytest.mark.parametrize("turns", ["all", "one"])
def test_every_input_is_turned_as_its_target_says(turns: str) -> None:
    method, data = double("rotation", turns=turns), data64(12)
    inputs, targets = method.inputs(data), method.targets(data, ())
    assert inputs.shape == (12, 4 if turns == "all" else 1, 3, 16, 16)
    for view, copies, angles in zip(data.views[0], inputs, targets.tolist(), strict=True):
        assert turns == "one" or sorted(angles) == [0, 1, 2, 3]
        for copy, angle in zip(copies, angles, strict=True):
            assert torch.equal(copy, turned_view(view, angle))  # no pixel is interpolated
    assert len(set(targets[:, 0].tolist())) > 1


@pytest.mark.parametrize(
    ("name", "share"), [("rotation", 3 / 4), ("jigsaw", 63 / 64), ("context-prediction", 7 / 8)]
)
def test_partners_have_other_answers(name: str, share: float) -> None:
    """Two images of one answer would mix into one of the same answer: nothing is harder."""
    targets = double(name).targets(batch(4000), ())
    apart = (targets != partner(targets)).double().mean().item()
    assert apart == pytest.approx(share, abs=0.03)


def test_its_grade_is_the_share_of_right_angles_of_each_image() -> None:
    method = double("rotation")
    targets = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
    predictions = F.one_hot(torch.tensor([[0, 1, 2, 3], [2, 3, 3, 3]]), 4).double()
    assert method.grade(predictions, targets).tolist() == [1.0, 0.5]
    assert method.chance() == 0.25


# Controls

ANSWERS = {"rotation": 4, "jigsaw": 1, "context-prediction": 8}  # of an image
SIDE = {"rotation": 24, "jigsaw": 48, "context-prediction": 48}
names = pytest.mark.parametrize("name", ANSWERS)
pytestmark = pytest.mark.usefixtures("no_album")


@pytest.fixture
def no_album(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "draw", lambda session, folder: None)


def accuracy(
    name: str, images: Path, out: Path, steps: int, *flags: str, size: int = 0
) -> tuple[float, float, int]:
    adamw = ["--optimizer", "adamw", "--optimizer.lr", "0.003", "--steps", str(steps)]
    size = size or SIDE[name]
    return run_accuracy(name, images, out, size, "--backbone", "test_resnet", *adamw, *flags)


def mark_places(pixels: np.ndarray) -> np.ndarray:
    """Each row and column has waves of its own; in small images the upper rows are brighter."""
    side = len(pixels)
    place = np.arange(side)
    waves = np.sin(2 * np.pi * place / np.array([9.0, 5.0, 3.0])[place * 3 // side])
    if side == SIDE["rotation"]:
        return np.where(place[:, None, None] < side // 4, 128 + pixels / 2, pixels)
    return 128 + 40 * (waves[:, None, None] + waves[None, :, None]) + pixels / 8


def move_answers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the targets be those of other images."""
    own = METHODS[name].targets
    monkeypatch.setattr(METHODS[name], "targets", lambda *arguments: own(*arguments).roll(1, 0))


@names
def test_of_noise_nothing_can_be_known(name: str, tmp_path: Path) -> None:
    """What exceeds chance would be a leak of the pipeline: borders, resampling, padding."""
    images = write_noise(tmp_path / "noise", (SIDE[name], SIDE[name]))
    reached, chance, count = accuracy(name, images, tmp_path / "run", 16)
    low, high = limits(chance, ANSWERS[name] * count)
    assert low < reached < high


@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [
        ("rotation", 24, 0.7),
        ("context-prediction", 24, 0.5),
        pytest.param("jigsaw", 60, 0.15, marks=pytest.mark.slow),
    ],
)
def test_marked_places_are_found_and_those_of_other_images_are_not(
    name: str, steps: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These few steps do find what tells the answer; and no answer, if it belongs elsewhere."""
    images = write_noise(tmp_path / "marked", (SIDE[name], SIDE[name]), mark=mark_places)
    whole = ["--views.scale", "1", "1", "--views.flip", "0"] if name != "rotation" else []
    assert accuracy(name, images, tmp_path / "right", steps, *whole)[0] > least
    move_answers(monkeypatch, name)
    reached, chance, count = accuracy(name, images, tmp_path / "moved", steps, *whole)
    low, high = limits(chance, count)
    assert low < reached < high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("rotation", shape) for shape in ((64, 64), (48, 64))),
        *((name, (side, side)) for name in ("jigsaw", "context-prediction") for side in (48, 100)),
    ],
)
def test_of_noise_nothing_is_known_after_long_training(
    name: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    images = write_noise(tmp_path / "noise", shape, 640)
    size = 32 if name == "rotation" else 48
    reached, chance, count = accuracy(name, images, tmp_path / "run", 400, size=size)
    low, high = limits(chance, ANSWERS[name] * count)
    assert low < reached < high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "steps", "moved"),
    # a jigsaw of 64 orders needs a larger network and more steps
    [("rotation", 32, 300, 300), ("context-prediction", 64, 600, 300)],
)
def test_real_images_are_known_and_answers_of_others_are_not(
    name: str, size: int, steps: int, moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    images = demo_images.write(folder, size=size, train_per_class=60, test_per_class=20)
    reached, chance, count = accuracy(name, images, tmp_path / "right", steps, size=size)
    assert reached > limits(chance, ANSWERS[name] * count)[1]
    move_answers(monkeypatch, name)
    reached, chance, count = accuracy(name, images, tmp_path / "moved", moved, size=size)
    low, high = limits(chance, count)
    assert low < reached < high
