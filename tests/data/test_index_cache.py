"""A remembered index is the one that would be made, and is made anew when anything shows that it
would be another.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from selftaught.data.index import build, cache
from selftaught.data.index.build import Index, build_index
from tests.data.image_files import same_index

OLD = time.time() - 1000


def settle(root: Path) -> None:
    """As if nothing had been written for a while."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (OLD, OLD))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "MIN_IMAGES", 1)
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8 + i, 9), (i, 0, 0)).save(root / name / f"{i:02}.png")
    (root / "cat" / "torn.png").write_bytes(b"no image")
    settle(root)
    return root


@pytest.fixture
def index(root: Path, tmp_path: Path) -> Callable[..., Index]:
    """Indexes the root with a cache."""
    return partial(build_index, [root], cache=tmp_path / "cache")


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever folders are really walked."""
    done: list[int] = []
    scan = build.Scan
    monkeypatch.setattr(build, "Scan", lambda places: (done.append(1), scan(places))[1])
    return done


def test_the_second_index_is_recalled_and_the_same_and_a_damaged_memory_is_as_none(
    root: Path, tmp_path: Path, index: Callable[..., Index], scans: list[int]
) -> None:
    first = index()
    assert len(first.unreadable) == 1
    assert same_index(index(), first)
    assert len(scans) == 1
    (file,) = (tmp_path / "cache" / "index").glob("*.whole.npz")
    file.write_bytes(file.read_bytes()[:-100])
    assert same_index(index(), first)
    assert len(scans) == 2
    for other in ({"seed": 1}, {"holdout": 0.5}, {"labels": "folders"}):
        index(**other)
    build_index([root / "cat"], cache=tmp_path / "cache", labels="none")
    assert len(scans) == 6


def repaint(root: Path) -> None:
    """Other pixels, the same size, and the same time of change as far as that can be set."""
    file = root / "dog" / "04.png"
    before, folder = file.stat(), file.parent.stat()
    Image.new("RGB", Image.open(file).size, (200, 0, 0)).save(file)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))


TABLE = "image,class\n" + "".join(f"cat/{i:02}.png,{'ab'[i % 2]}\n" for i in range(12))
CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: Image.new("RGB", (5, 5)).save(root / "cat/new.png"),
    "removed": lambda root: (root / "dog/03.png").unlink(),
    "renamed": lambda root: (root / "dog").rename(root / "wolf"),
    "written anew in its place": lambda root: Image.new("RGB", (30, 30)).save(root / "dog/04.png"),
    "other pixels in its place": repaint,
    "an unreadable one mended": lambda root: Image.new("RGB", (5, 5)).save(root / "cat/torn.png"),
    "a table of labels": lambda root: (root / "labels.csv").write_text(TABLE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_followed(
    root: Path, tmp_path: Path, index: Callable[..., Index], change: str, scans: list[int]
) -> None:
    before = index()
    CHANGES[change](root)
    after = index()
    assert len(scans) == 2
    assert same_index(after, index(cache=tmp_path / "other"))
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("file", "before"),
    [
        ("labels.csv", "image,class\ncat/00.png,a\ncat/01.png,b\n"),
        ("cat/labels.csv", "image,class\ncat/00.png,a\ncat/01.png,b\n"),
        ("cat/metadata.csv", "file_name,text\n00.png,a\n02.png,b\n"),
        ("cat/metadata.jsonl", '{"file_name": "00.png"}\n'),
    ],
)
def test_a_table_written_anew_in_its_place_is_read_again(
    root: Path, index: Callable[..., Index], file: str, before: str, scans: list[int]
) -> None:
    (root / file).write_text(before)
    settle(root)
    assert same_index(index(), index())
    assert len(scans) == 1
    rows = [("00.png", "x"), ("01.png", "y")]
    if file.endswith("jsonl"):
        lines = [json.dumps({"file_name": name, "label": kind}) for name, kind in rows]
    else:
        lines = ["file_name,label", *(f"cat/{name},{kind}" for name, kind in rows)]
    (root / file).write_text("\n".join(lines) + "\n")
    settle(root)
    assert index().classes == ("x", "y")
    assert len(scans) == 2


def test_what_may_change_unseen_is_not_remembered(
    root: Path, tmp_path: Path, index: Callable[..., Index], scans: list[int]
) -> None:
    (root / "link").symlink_to(tmp_path)
    index(), index()
    (root / "link").unlink()  # and now the folder has only just changed
    index(), index()
    assert len(scans) == 4
