"""Images that are all alike: refused before anything is trained or scored; copies among others are
only said.
"""

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

SMALL = [
    "--backbone",
    "test_resnet",
    "--size",
    "32",
    "--batch",
    "8",
    "--precision",
    "fp32",
    "--workers",
    "0",
]


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype="u1"))


def copies(root: Path) -> None:
    for k in range(12):
        noise().save(root / f"{k}.png")


def encodings(root: Path) -> None:
    kinds = ("png", "bmp", "tiff", "ppm")
    for k in range(12):
        noise().save(root / f"{k}.{kinds[k % 4]}")
    noise().save(root / "lossless.webp", lossless=True)
    noise().save(root / "small.png", compress_level=9)


def black(root: Path) -> None:
    for k in range(12):
        Image.new(("RGB", "L", "1")[k % 3], (40 + k, 30 + 2 * k)).save(
            root / f"{k}.{'jpg' if k % 3 == 0 else 'png'}"
        )


def one_colour(root: Path) -> None:
    for k in range(12):
        Image.new("RGB", (40, 40 + k), (200, 30, 90)).save(
            root / f"{k}.{('png', 'jpg', 'bmp')[k % 3]}", quality=95
        )


def transparent(root: Path) -> None:
    for k in range(12):
        Image.fromarray(np.full((40, 40, 4), (k, k, k, 0), dtype="u1")).save(root / f"{k}.png")


KINDS = pytest.mark.parametrize("kind", [copies, encodings, black, one_colour, transparent])


def opened(root: Path, hold: bool | None = None) -> Images:
    index = build_index([root], labels="none", holdout=0)
    return Images(
        index.paths,
        index.sizes,
        default_canvas(index.sizes, 32),
        hold,
        pixel_range=index.pixel_range,
    )


def compare(images: Images) -> list[str]:
    """What is said of them, where they are not refused."""
    lines: list[str] = []
    refuse_alike(images, torch.arange(len(images)), lines.append)
    return lines


@KINDS
def test_images_that_are_all_alike_are_refused(
    kind: Callable[[Path], None], tmp_path: Path
) -> None:
    kind(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        compare(opened(tmp_path))


@KINDS
def test_one_that_differs_is_enough(kind: Callable[[Path], None], tmp_path: Path) -> None:
    kind(tmp_path)
    noise(1).save(tmp_path / "other.png")
    assert compare(opened(tmp_path)) == []


def test_one_that_differs_is_found_beyond_the_first_sample(tmp_path: Path) -> None:
    noise().save(tmp_path / "0.png")
    many = Images([tmp_path / "0.png"] * (4 * SAMPLE), torch.full((4 * SAMPLE, 2), 40), 32, True)
    assert many.canvases is not None
    with pytest.raises(UserError):
        compare(many)
    many.canvases[1] = 0
    assert compare(many) == []


@pytest.mark.parametrize("alike", [False, True])
def test_the_cost_does_not_grow_with_the_set(
    alike: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    noise().save(tmp_path / "d" / "0.png")
    decoded: list[Path] = []

    def squash(path: Path, canvas: int, *_: object) -> torch.Tensor:
        decoded.append(path)
        return (
            torch.zeros(3, canvas, canvas, dtype=torch.uint8)
            if alike
            else torch.randint(256, (3, canvas, canvas)).byte()
        )

    monkeypatch.setattr(images_module, "squash", squash)
    many = Images([tmp_path / "d" / "0.png"] * 100_000, torch.full((100_000, 2), 40), 32, False)
    if alike:
        with pytest.raises(UserError):
            compare(many)
    else:
        compare(many)
    assert len(decoded) <= (MAX_SAMPLE + SAMPLE if alike else SAMPLE)


@pytest.mark.parametrize("kind", ["jpg", "levels"])
def test_images_that_are_nearly_alike_are_said(kind: str, tmp_path: Path) -> None:
    base = np.asarray(noise().resize((6, 6)).resize((80, 80), Image.Resampling.BICUBIC))
    for k in range(8):
        if kind == "jpg":
            Image.fromarray(base).save(tmp_path / f"{k}.jpg", quality=60 + 5 * k)
        else:
            shaken = base + np.random.default_rng(k).normal(0, 3, base.shape)
            Image.fromarray(shaken.clip(0, 255).astype("u1")).save(tmp_path / f"{k}.png")
    assert len(compare(opened(tmp_path))) == 1


def test_many_copies_are_a_note(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", classes=1, each=8)
    assert build_index([root]).notes == ()
    for k in range(5):
        assert build_index([root]).notes == ()  # a few are usual
        (root / "class 0" / f"copy {k}.png").write_bytes(
            (root / "class 0" / "003.png").read_bytes()
        )
    (note,) = build_index([root]).notes
    assert "copy 0.png" in note
    assert "003.png" in note
    folder(tmp_path / "d", classes=1, each=64)
    assert build_index([root]).notes == ()  # among many, too


@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_training_on_them_is_refused_and_leaves_no_folder(method: str, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / "d" / place).mkdir(parents=True)
        copies(tmp_path / "d" / place)
    words = [
        "pretrain",
        "--data",
        str(tmp_path / "d"),
        "--method",
        method,
        "--out",
        str(tmp_path / "run"),
        *SMALL,
    ]
    assert main([*words, "--steps", "2"]) == 2
    assert not (tmp_path / "run").exists()


def test_scores_of_them_are_refused(tmp_path: Path) -> None:
    good = folder(tmp_path / "good", classes=2, each=8)
    assert (
        main(
            [
                "pretrain",
                "--data",
                str(good),
                "--out",
                str(tmp_path / "run"),
                "--steps",
                "0",
                *SMALL,
            ]
        )
        == 0
    )
    for place in ("a", "b"):
        (tmp_path / "d" / place).mkdir(parents=True)
        black(tmp_path / "d" / place)
    words = [
        "evaluate",
        str(tmp_path / "run"),
        "--data",
        str(tmp_path / "d"),
        "--protocol",
        "knn",
        "--workers",
        "0",
    ]
    assert main(words) == 2
    assert not (tmp_path / "run" / "evaluation.json").exists()
