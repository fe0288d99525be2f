"""Images that are all alike: refused before anything is trained or scored; copies among others are
only said.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught.cli.main import main
from selftaught.data.alike import MAX_SAMPLE, SAMPLE, refuse_alike
from selftaught.data.index.build import build_index
from selftaught.data.loading import images as images_module
from selftaught.data.loading.images import Images, default_canvas
from selftaught.errors import UserError
from tests.pictures import folder

SMALL = shlex.split("--backbone test_resnet --size 32 --batch 8 --precision fp32 --workers 0")


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype="u1"))


def copies(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for k in range(12):
        noise().save(root / f"{k}.png")


def encodings(root: Path) -> None:
    kinds = ("png", "bmp", "tiff", "ppm")
    for k in range(12):
        noise().save(root / f"{k}.{kinds[k % 4]}")
    noise().save(root / "lossless.webp", lossless=True)
    noise().save(root / "small.png", compress_level=9)


def black(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for k in range(12):
        image = Image.new(("RGB", "L", "1")[k % 3], (40 + k, 30 + 2 * k))
        image.save(root / f"{k}.{('jpg', 'png', 'png')[k % 3]}")


def one_colour(root: Path) -> None:
    for k in range(12):
        image = Image.new("RGB", (40, 40 + k), (200, 30, 90))
        image.save(root / f"{k}.{('png', 'jpg', 'bmp')[k % 3]}", quality=95)


def transparent(root: Path) -> None:
    for k in range(12):
        Image.fromarray(np.full((40, 40, 4), (k, k, k, 0), dtype="u1")).save(root / f"{k}.png")


def compare(data: Path | Images) -> list[str]:
    """What is said of images, where they are not refused."""
    if isinstance(data, Path):
        index = build_index([data], labels="none", holdout=0)
        canvas = default_canvas(index.sizes, 32)
        data = Images(index.paths, index.sizes, canvas, pixel_range=index.pixel_range)
    lines: list[str] = []
    refuse_alike(data, torch.arange(len(data)), lines.append)
    return lines


@pytest.mark.parametrize("kind", [copies, encodings, black, one_colour, transparent])
def test_images_that_are_all_alike_are_refused_and_one_that_differs_is_enough(
    kind: Callable[[Path], None], tmp_path: Path
) -> None:
    kind(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        compare(tmp_path)
    noise(1).save(tmp_path / "other.png")
    assert compare(tmp_path) == []


def test_one_that_differs_is_found_beyond_the_first_sample(tmp_path: Path) -> None:
    noise().save(tmp_path / "0.png")
    many = Images([tmp_path / "0.png"] * (4 * SAMPLE), torch.full((4 * SAMPLE, 2), 40), 32, True)
    assert many.canvases is not None
    with pytest.raises(UserError):
        compare(many)
    many.canvases[1] = 0
    assert compare(many) == []


def test_the_cost_does_not_grow_with_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    noise().save(tmp_path / "d" / "0.png")
    many = Images([tmp_path / "d" / "0.png"] * 100_000, torch.full((100_000, 2), 40), 32, False)
    decoded: list[torch.Tensor] = []

    def squash(path: Path, canvas: int, *_: object) -> torch.Tensor:
        decoded.append(torch.randint(levels, (3, canvas, canvas)).byte())
        return decoded[-1]

    monkeypatch.setattr(images_module, "squash", squash)
    levels = 256
    compare(many)
    assert len(decoded) <= SAMPLE
    levels = 1
    decoded.clear()
    with pytest.raises(UserError):
        compare(many)
    assert len(decoded) <= MAX_SAMPLE + SAMPLE


@pytest.mark.parametrize("kind", ["jpg", "levels"])
def test_images_that_are_nearly_alike_are_said(kind: str, tmp_path: Path) -> None:
    base = np.asarray(noise().resize((6, 6)).resize((80, 80), Image.Resampling.BICUBIC))
    for k in range(8):
        if kind == "jpg":
            Image.fromarray(base).save(tmp_path / f"{k}.jpg", quality=60 + 5 * k)
        else:
            shaken = base + np.random.default_rng(k).normal(0, 3, base.shape)
            Image.fromarray(shaken.clip(0, 255).astype("u1")).save(tmp_path / f"{k}.png")
    assert len(compare(tmp_path)) == 1


def test_many_copies_are_a_note(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", classes=1, each=8)
    place = root / "class 0"
    for k in range(5):
        assert build_index([root]).notes == ()  # a few are usual
        (place / f"copy {k}.png").write_bytes((place / "003.png").read_bytes())
    (note,) = build_index([root]).notes
    assert "copy 0.png" in note
    assert "003.png" in note
    folder(tmp_path / "d", classes=1, each=64)
    assert build_index([root]).notes == ()  # among many, too


def test_training_on_them_and_scores_of_them_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    good, run = folder(tmp_path / "good", classes=2, each=8), tmp_path / "run"
    for place in ("a", "b"):
        copies(tmp_path / "copies" / place)
        black(tmp_path / "black" / place)
    words = ["pretrain", "--out", str(run), *SMALL, "--data"]
    for method in ("simclr", "supervised"):
        refused = [*words, str(tmp_path / "copies"), "--method", method, "--steps", "2"]
        assert main(refused) == 2
        assert not run.exists()
    assert main([*words, str(good), "--steps", "0"]) == 0
    data = ["--data", str(tmp_path / "black")]
    assert main(["evaluate", str(run), *data, "--protocol", "knn", "--workers", "0"]) == 2
    assert not (run / "evaluation.json").exists()
