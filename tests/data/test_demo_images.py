"""The demo's photo patches: no pixel in both parts, the same every time, without the network."""

import socket
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selftaught.data import demo_images
from selftaught.errors import UserError

SMALL = {"size": 24, "train_per_class": 13, "test_per_class": 5}


def digest(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return demo_images.write(tmp_path_factory.mktemp("data") / "patches", **SMALL)


@pytest.mark.parametrize("name", sorted(demo_images.PHOTOGRAPHS))
def test_train_and_test_share_no_pixel(name):
    with Image.open(demo_images.photographs()[name]) as photo:
        width, height = photo.size
    coverage = {"train": np.zeros((height, width), bool), "test": np.zeros((height, width), bool)}
    for patch in demo_images.plan(name, width, height, seed=0, train=188, test=50):
        left, top, right, bottom = patch.box
        coverage[patch.split][top:bottom, left:right] = True
    assert not (coverage["train"] & coverage["test"]).any()
    assert coverage["train"].mean() > 0.6
    assert coverage["test"].mean() > 0.2


@given(width=st.integers(8, 900), height=st.integers(8, 900), seed=st.integers(0, 99))
def test_a_patch_is_a_square_inside_its_cell(width, height, seed):
    plan = demo_images.plan("any", width, height, seed=seed, train=24, test=8)
    assert [sum(patch.split == split for patch in plan) for split in ("train", "test")] == [24, 8]
    for patch in plan:
        left, top, right, bottom = patch.box
        row, column = patch.cell
        assert right - left == bottom - top >= 1
        assert column * width // 4 <= left < right <= (column + 1) * width // 4
        assert row * height // 4 <= top < bottom <= (row + 1) * height // 4
    train, test = ({p.cell for p in plan if p.split == split} for split in ("train", "test"))
    assert sorted(train | test) == list(product(range(4), range(4)))
    assert not train & test
    assert [sorted(axis) for axis in zip(*test, strict=True)] == [[0, 1, 2, 3]] * 2


def test_scale_is_random_between_half_a_cell_and_a_whole_one():
    plan = demo_images.plan("any", 800, 800, seed=0, train=300, test=0)
    sides = [p.box[2] - p.box[0] for p in plan]
    assert min(sides) in range(100, 105)
    assert max(sides) in range(196, 201)


def test_resizing_lets_nothing_in_from_outside_the_box(tmp_path, monkeypatch):
    """A photograph whose train cells are white and test cells black gives patches without a shade
    between.
    """
    plan = demo_images.plan("cat", 203, 187, seed=0, train=40, test=20)
    photo = np.full((187, 203, 3), 255, np.uint8)
    for row, column in {patch.cell for patch in plan if patch.split == "test"}:
        rows = slice(row * 187 // 4, (row + 1) * 187 // 4)
        photo[rows, column * 203 // 4 : (column + 1) * 203 // 4] = 0
    Image.fromarray(photo).save(tmp_path / "photo.png")
    monkeypatch.setattr(demo_images, "photographs", lambda: {"cat": tmp_path / "photo.png"})
    out = demo_images.write(tmp_path / "out", size=32, train_per_class=40, test_per_class=20)
    for split, value in (("train", 255), ("test", 0)):
        files = sorted((out / split / "cat").iterdir())
        assert files
        for file in files:
            with Image.open(file) as image:
                assert set(np.unique(np.asarray(image))) == {value}


def test_layout(folder):
    names = sorted(demo_images.PHOTOGRAPHS)
    for split, count in (("train", 13), ("test", 5)):
        assert sorted(path.name for path in (folder / split).iterdir()) == names
        for name in names:
            files = sorted((folder / split / name).glob("*.png"))
            assert len(files) == count
            with Image.open(files[0]) as image:
                assert image.size == (24, 24)
                assert image.mode in ("L", "RGB")


def test_every_photograph_is_another_one():
    contents = {path.read_bytes() for path in demo_images.photographs().values()}
    assert len(contents) == len(demo_images.PHOTOGRAPHS) == 16


def test_same_arguments_same_bytes_without_the_network(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert digest(demo_images.write(tmp_path / "again", **SMALL)) == digest(folder)


def test_another_seed_gives_other_patches(folder, tmp_path):
    other, mine = digest(demo_images.write(tmp_path, **SMALL, seed=1)), digest(folder)
    assert other.keys() == mine.keys()
    assert sum(other[key] != mine[key] for key in mine) > 0.9 * len(mine)


def test_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        demo_images.write(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_an_empty_folder_is_filled_and_a_second_call_writes_nothing_or_is_refused(tmp_path):
    (tmp_path / "p").mkdir()
    first = demo_images.write(tmp_path / "p", **SMALL)
    assert len(list(first.glob("*/*/*.png"))) == 16 * 18
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert demo_images.write(tmp_path / "p", **SMALL) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    with pytest.raises(UserError, match="something else"):
        demo_images.write(first, **{**SMALL, "size": 32})
    (first / "train" / "cat" / "0000.png").unlink()
    with pytest.raises(UserError, match="something else"):
        demo_images.write(first, **SMALL)


def test_without_scikit_image_it_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_images, "find_spec", lambda name: name != "skimage" or None)
    with pytest.raises(UserError, match=r"pip install 'selftaught\[demo\]'"):
        demo_images.write(tmp_path / "p", **SMALL)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(demo_images.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        demo_images.write(tmp_path / "p", **SMALL)
    assert not list(tmp_path.iterdir())


def test_night_images_are_of_another_kind(folder: Path, tmp_path: Path) -> None:
    night = demo_images.write_night(tmp_path / "night", folder)
    names = sorted(f.relative_to(folder) for f in folder.glob("*/*/*.png"))
    assert sorted(f.relative_to(night) for f in night.glob("*/*/*.png")) == names
    day, dark = (np.asarray(Image.open(root / names[0]).convert("L")) for root in (folder, night))
    assert Image.open(night / names[0]).mode == "L"
    assert dark.mean() < max(day.mean(), 60)
    assert demo_images.write_night(night, folder) == night
    (night / names[0]).unlink()
    with pytest.raises(UserError):
        demo_images.write_night(night, folder)
