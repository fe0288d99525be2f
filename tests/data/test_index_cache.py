"""A remembered index is the one that would be made, and is made anew when anything shows that it
would be another.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from selftaught.data.index import build, cache
from selftaught.data.index.build import Index, build_index

OLD = time.time() - 1000


def settled(root: Path) -> None:
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
    settled(root)
    return root


def same(one: Index, other: Index) -> bool:
    plain = ("classes", "split", "unreadable", "fingerprint", "notes")
    tensors = all(
        torch.equal(getattr(one, n), getattr(other, n)) for n in ("sizes", "labels", "test")
    )
    return (
        tensors
        and list(one.paths) == list(other.paths)
        and all(getattr(one, n) == getattr(other, n) for n in plain)
    )


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever folders are really walked."""
    done: list[int] = []
    scan = build.Scan
    monkeypatch.setattr(build, "Scan", lambda places: (done.append(1), scan(places))[1])
    return done


def test_the_second_index_is_recalled_and_the_same(
    root: Path, tmp_path: Path, scans: list[int]
) -> None:
    first = build_index([root], cache=tmp_path / "cache")
    assert len(first.unreadable) == 1
    assert same(build_index([root], cache=tmp_path / "cache"), first)
    assert len(scans) == 1
    for other in ({"seed": 1}, {"holdout": 0.5}, {"labels": "folders"}):
        build_index([root], cache=tmp_path / "cache", **other)  # type: ignore[arg-type]
    assert len(scans) == 4
    build_index([root / "cat"], cache=tmp_path / "cache", labels="none")
    assert len(scans) == 5


def mend(root: Path) -> None:
    Image.new("RGB", (5, 5)).save(root / "cat" / "torn.png")


def label(root: Path) -> None:
    (root / "labels.csv").write_text(
        "image,class\n" + "".join(f"cat/{i:02}.png,{'ab'[i % 2]}\n" for i in range(12))
    )


def repaint(root: Path) -> None:
    """Other pixels, the same size, and the same time of change as far as that can be set."""
    file = root / "dog" / "04.png"
    before, folder = file.stat(), file.parent.stat()
    Image.new("RGB", Image.open(file).size, (200, 0, 0)).save(file)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(file.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: Image.new("RGB", (5, 5)).save(root / "cat" / "new.png"),
    "removed": lambda root: (root / "dog" / "03.png").unlink(),
    "renamed": lambda root: (root / "dog").rename(root / "wolf"),
    "written anew in its place": lambda root: Image.new("RGB", (30, 30)).save(
        root / "dog" / "04.png"
    ),
    "other pixels in its place": repaint,
    "an unreadable one mended in its place": mend,
    "a table of labels": label,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_followed(
    root: Path, tmp_path: Path, change: str, scans: list[int]
) -> None:
    before = build_index([root], cache=tmp_path / "cache")
    CHANGES[change](root)
    after = build_index([root], cache=tmp_path / "cache")
    assert len(scans) == 2
    assert same(after, build_index([root], cache=tmp_path / "other"))
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "file", ["labels.csv", "cat/labels.csv", "cat/metadata.csv", "cat/metadata.jsonl"]
)
def test_a_table_written_anew_in_its_place_is_read_again(
    root: Path, tmp_path: Path, file: str, scans: list[int]
) -> None:
    """Also one that had no classes."""
    (root / file).write_text(
        '{"file_name": "00.png"}\n'
        if file.endswith("jsonl")
        else "file_name,text\n00.png,a\n02.png,b\n"
    )
    if file.endswith("labels.csv"):
        (root / file).write_text("image,class\ncat/00.png,a\ncat/01.png,b\n")
    settled(root)
    before = build_index([root], cache=tmp_path / "cache")
    assert same(build_index([root], cache=tmp_path / "cache"), before)
    assert len(scans) == 1
    rows = [("00.png", "x"), ("01.png", "y")]
    if file.endswith("jsonl"):
        (root / file).write_text(
            "".join(json.dumps({"file_name": name, "label": kind}) + "\n" for name, kind in rows)
        )
    else:
        (root / file).write_text(
            "file_name,label\n" + "".join(f"cat/{name},{kind}\n" for name, kind in rows)
        )
    settled(root)
    assert build_index([root], cache=tmp_path / "cache").classes == ("x", "y")
    assert len(scans) == 2


def test_what_may_change_unseen_is_not_remembered(
    root: Path, tmp_path: Path, scans: list[int]
) -> None:
    (root / "link").symlink_to(tmp_path)
    for _ in range(2):
        build_index([root], cache=tmp_path / "cache")
    (root / "link").unlink()  # and now the folder has only just changed
    for _ in range(2):
        build_index([root], cache=tmp_path / "cache")
    assert len(scans) == 4


def test_a_damaged_memory_is_as_none(root: Path, tmp_path: Path, scans: list[int]) -> None:
    first = build_index([root], cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "index").glob("*.whole.npz")
    file.write_bytes(file.read_bytes()[:-100])
    assert same(build_index([root], cache=tmp_path / "cache"), first)
    assert len(scans) == 2
