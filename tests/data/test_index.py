"""The index: what is found, labelled and held out, on folders as untidy as people's are."""

import contextlib
import hashlib
import os
import random
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selftaught.data.decode import Measurement
from selftaught.data.index import file_checks, scan
from selftaught.data.index.build import Index, build_index
from selftaught.data.index.scan import Files
from selftaught.data.index.split import draw_split
from selftaught.errors import UserError
from tests.data.image_files import put, same_index


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos of mine"


def names(index: Index, root: Path, which: Iterable[int] | None = None) -> list[str]:
    places = range(len(index)) if which is None else which
    return [index.paths[i].relative_to(root).as_posix() for i in places]


def has_note(index: Index, *parts: str) -> bool:
    return any(all(part in note for part in parts) for note in index.notes)


def labelled(index: Index, root: Path) -> dict[str, str]:
    assert index.labels is not None
    kinds = [index.classes[c] for c in index.labels.tolist()]
    return dict(zip(names(index, root), kinds, strict=True))


def numbered(folder: str, n: int) -> list[str]:
    return [f"{folder}/{i:03}.png" for i in range(n)]


# What is found


def test_all_suffixes_in_any_case_nested_in_any_way(root: Path) -> None:
    names_of_files = "a.JPG b/c.jpeg b/d/e+f/ü+猫🐱.Png g.webp h.bmp i.TIF j.tiff k.gif -l.png"
    good = sorted(name.replace("+", " ") for name in names_of_files.split())
    put(root, *good, size=(7, 5))
    put(root, ".hidden.png", "b/.thumbs/m.png", "__MACOSX/n.png")
    (root / "notes.txt").write_text("no image")
    index = build_index([root])
    assert names(index, root) == good
    assert index.sizes.tolist() == [[5, 7]] * len(good)
    assert index.sizes.dtype == torch.int64
    assert (index.labels, index.classes, index.split) == (None, (), "drawn")
    assert has_note(index, "hidden")
    assert "no labels" in index.describe()


def test_roots_may_be_files_strings_and_overlap(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, "a.png", "in/b.png", "in/c.png")
    put(tmp_path, "alone.png")
    monkeypatch.chdir(tmp_path)
    roots = ["alone.png", str(root / "in"), root, root / "a.png", root / "in" / ".." / "in"]
    index = build_index(roots)
    assert sorted(path.name for path in index.paths) == ["a.png", "alone.png", "b.png", "c.png"]
    assert all(path.is_absolute() for path in index.paths)
    assert [path.name for path in build_index([root / "in" / "c.png"]).paths] == ["c.png"]


def test_links_are_followed_and_every_image_counts_once(root: Path, tmp_path: Path) -> None:
    put(root, "real/a.png", "real/b.png")
    put(tmp_path / "elsewhere", "c.png", "deep/d.png")
    (root / "above").symlink_to(tmp_path)  # would bring in everything
    # sorts before the real folder, and must not take its images
    (root / "again").symlink_to(root / "real")
    (root / "loop").symlink_to(root)
    (root / "real" / "inner loop").symlink_to("..")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "a0.png").symlink_to(root / "real" / "a.png")
    (root / "self.png").symlink_to("self.png")
    put(tmp_path, "blob")  # as model hubs store them: the name with the suffix is a link
    for name in ("named.png", "named again.png"):
        (root / name).symlink_to(tmp_path / "blob")
    put(root, *(f"real/more{i}.png" for i in range(15)))
    index = build_index([root])
    actual = [name for name in names(index, root) if "more" not in name]
    assert actual == ["far/c.png", "far/deep/d.png", "named again.png", "real/a.png", "real/b.png"]
    assert [Path(path).name for path, _ in index.unreadable] == ["self.png"]
    assert has_note(index, "counted already")
    both = build_index([root, tmp_path / "elsewhere"])
    assert len(both) == len(index)


def test_what_cannot_be_read_is_listed_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, *numbered("good", 60))
    put(root, "locked/x.png", "bad/mine.png", "bad/whole.png")
    (root / "bad/cut.png").write_bytes((root / "bad/whole.png").read_bytes()[:50])
    (root / "bad/empty.jpg").write_bytes(b"")
    (root / "bad/text.jpg").write_text("hello")
    (root / "bad/gone.png").symlink_to(root / "nowhere.png")
    (root / "bad/gone folder").symlink_to(root / "nowhere")
    (root / "bad/line\nbreak.png").write_bytes(b"x")
    scandir, stat = os.scandir, os.stat

    def locked_scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    def locked_stat(path: str, **options: bool) -> os.stat_result:
        if str(path).endswith("mine.png"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", locked_scandir)
    monkeypatch.setattr(scan.os, "stat", locked_stat)
    index = build_index([root])
    assert len(index) == 61
    reasons = {path.removeprefix(str(root) + "/"): reason for path, reason in index.unreadable}
    assert reasons == {
        "locked": "folder: permission denied",
        "bad/mine.png": "permission denied",
        "bad/cut.png": "truncated: the PNG has no end chunk",
        "bad/empty.jpg": "empty file",
        "bad/text.jpg": "not an image, or its header is damaged",
        "bad/gone.png": "broken link",
        "bad/gone folder": "broken link",
        "bad/line\\nbreak.png": "not an image, or its header is damaged",
    }
    assert "8 not readable" in index.describe()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is locked to root"
)
def test_a_folder_without_permission(root: Path) -> None:
    put(root, *numbered("good", 3), "locked/x.png")
    (root / "locked").chmod(0)
    try:
        assert [Path(path).name for path, _ in build_index([root]).unreadable] == ["locked"]
    finally:
        (root / "locked").chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems insist on UTF-8 names")
def test_names_that_are_no_utf8(root: Path, tmp_path: Path) -> None:
    put(root, *numbered("caf", 10))
    for name in (b"caf\xe9.png", b"\xff.png"):
        shutil.copy(root / "caf/000.png", os.fsencode(root) + b"/" + name)
    (root / "broken.png").write_bytes(b"x")
    os.rename(root / "broken.png", os.fsencode(root) + b"/broken\xfe.png")
    index = build_index([root])
    assert len(index) == 12
    assert all(path.exists() for path in index.paths)
    assert index.unreadable[0][0].endswith("broken\\xfe.png")
    index.describe().encode("utf-8")  # any terminal takes it
    assert build_index([root]).fingerprint == index.fingerprint


def test_more_than_a_tenth_unreadable_stops(root: Path) -> None:
    put(root, *numbered("x", 9))
    (root / "x/bad0.jpg").write_bytes(b"")
    assert len(build_index([root])) == 9
    (root / "x/bad1.jpg").write_bytes(b"")
    message = r"2 of 11 image files in .* cannot be read, more than 10%: .*empty"
    with pytest.raises(UserError, match=message) as caught:
        build_index([root])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("roots", "holdout", "message"),
    [
        ([""], 0.2, r"no images in .*: looked for jpg .* gif"),
        (["nowhere"], 0.2, "no such file or folder"),
        (["a.txt"], 0.2, "is no image file"),
        ([], 0.2, "no data"),
        ([""], 1, "--holdout"),
    ],
)
def test_nothing_there_stops_with_what_is_looked_for(
    tmp_path: Path, roots: list[str], holdout: float, message: str
) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=message):
        build_index([tmp_path / root for root in roots], holdout=holdout)


# The cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are really decoded, as they are."""
    decoded_paths: list[str] = []
    measure = file_checks.measure

    def noting(path: str, max_pixels: int) -> Measurement:
        decoded_paths.append(os.path.basename(path))
        return measure(path, max_pixels)

    monkeypatch.setattr(file_checks, "measure", noting)
    return decoded_paths


def test_a_second_index_decodes_only_what_changed(root: Path, decoded: list[str]) -> None:
    put(root, *numbered("a", 12))
    (root / "bad.png").write_bytes(b"bad")
    first = build_index([root])
    assert len(decoded) == 13
    decoded.clear()
    assert same_index(build_index([root]), first)
    assert decoded == []
    (root / "a/000.png").unlink()
    put(root, "a/new.png", "bad.png")
    put(root, "a/001.png", size=(9, 9))
    os.utime(root / "a/002.png", ns=(1, 1))
    changed = build_index([root])
    assert sorted(decoded) == ["001.png", "002.png", "bad.png", "new.png"]
    assert len(changed) == 13
    assert changed.unreadable == ()
    assert changed.sizes[names(changed, root).index("a/001.png")].tolist() == [9, 9]
    assert changed.fingerprint != first.fingerprint
    decoded.clear()
    for named in (["a/003.png", "a/004.png"], ["a/004.png"], ["a/003.png"], [""]):
        build_index([root / name for name in named])  # files are kept apart, with their folder
    assert sorted(decoded) == ["003.png", "004.png"]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_built_anew(
    root: Path, own_cache: Path, decoded: list[str], damage: bytes | None
) -> None:
    put(root, *numbered("a", 5))
    first = build_index([root])
    (file,) = (own_cache / "selftaught" / "index").iterdir()
    good = file.read_bytes()
    at = good.index(b"000.png")
    file.write_bytes(good[:at] + b"999" + good[at + 3 :] if damage is None else damage)
    decoded.clear()
    for _ in range(2):
        assert same_index(build_index([root]), first)
        assert len(decoded) == 5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_no_damage_to_the_cache_changes_an_index(tmp_path_factory, place: int, value: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage"
    if not folder.exists():
        put(folder / "images", *numbered("a", 3))
    expected = build_index([folder / "images"], cache=folder / "good")
    (file,) = (folder / "good" / "index").iterdir()
    data = bytearray(file.read_bytes())
    data[place % len(data)] = value
    (folder / "bad" / "index").mkdir(parents=True, exist_ok=True)
    (folder / "bad" / "index" / file.name).write_bytes(data)
    assert same_index(build_index([folder / "images"], cache=folder / "bad"), expected)


def test_what_may_pass_is_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, *numbered("a", 20))
    reads = file_checks.measure
    with monkeypatch.context() as patch:
        torn = {"003.png": "/nowhere"}
        patch.setattr(file_checks, "measure", lambda p, n: reads(torn.get(Path(p).name, p), n))
        assert len(build_index([root]).unreadable) == 1
    assert build_index([root]).unreadable == ()


def test_a_cache_that_cannot_be_written_is_done_without_and_progress_is_told(
    root: Path, tmp_path: Path
) -> None:
    put(root, *numbered("a", 8))
    (tmp_path / "file").write_text("no folder")
    progress: list[tuple[int, int]] = []
    cache, note = tmp_path / "file", lambda *done: progress.append(done)
    assert len(build_index([root], cache=cache, on_progress=note)) == 8
    assert progress[-1] == (8, 8)


def test_writers_at_once_and_an_interrupted_one(
    root: Path, own_cache: Path, decoded: list[str]
) -> None:
    put(root, *numbered("a", 30))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: build_index([root]), range(4)))
    assert all(same_index(result, results[0]) for result in results)
    assert [file.suffix for file in (own_cache / "selftaught" / "index").iterdir()] == [".npz"]

    put(root, *numbered("b", 30))
    decoded.clear()

    def interrupt(done: int, n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index([root], on_progress=interrupt)
    so_far = len(decoded)
    build_index([root])
    assert len(decoded) == 30  # nothing twice
    assert so_far > 0


# Labels


def test_class_folders(root: Path) -> None:
    put(root, "cat/a.png", "cat/deep/b.png", "dog/c.png", "dog/d.png")
    expected = {"cat/a.png": "cat", "cat/deep/b.png": "cat", "dog/c.png": "dog", "dog/d.png": "dog"}
    for labels in ("auto", "folders"):
        index = build_index([root], labels=labels)
        assert labelled(index, root) == expected
        assert index.labels is not None
        assert index.labels.dtype == torch.int64
    assert build_index([root], labels="none").labels is None
    put(root, "10/e.png", "9/f.png")
    assert build_index([root]).classes == ("10", "9", "cat", "dog")
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")
    assert build_index([root]).classes == ("9", "10")  # numbers by their size


@pytest.mark.parametrize(
    ("files", "objection"),
    [
        (["a.png", "b.png"], "no class folder"),
        (["cat/a.png", "cat/b.png"], "one folder"),
        (["cat/a.png", "dog/b.png", "c.png", "d.png", "e.png"], "3 images of 5 in no class folder"),
        (["images/a.png", "images/b.png", "masks/a.png", "masks/b.png"], "parts of a data set"),
        (["x/train/a.png", "x/test/b.png", "y/train/a.png", "y/test/b.png"], "parts of a data set"),
        ([f"day {i}/a.png" for i in range(60)], "too many"),
    ],
)
def test_folders_that_are_no_classes(root: Path, files: list[str], objection: str) -> None:
    put(root, *files)
    index = build_index([root])
    assert (index.labels, index.classes) == (None, ())
    if len({file.split("/")[0] for file in files if "/" in file}) > 1:
        assert any(objection in note for note in index.notes)  # auto says why it took none
    if "no class" in objection or "one folder" in objection:
        with pytest.raises(UserError, match=objection):
            build_index([root], labels="folders")


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_a_csv_of_classes(root: Path, tmp_path: Path) -> None:
    put(root, "x/a.png", "x/b b.png", "c.png", "é.png")
    rows = 'file,class\nx/a.png,tree\n"x/b b.png",stone\n./c.png,tree\ne\u0301.png,stone\n'
    expected = {"x/a.png": "tree", "x/b b.png": "stone", "c.png": "tree", "é.png": "stone"}
    inside = table(root / "labels.csv", rows)
    assert labelled(build_index([root]), root) == expected  # found by its name
    assert labelled(build_index([root], labels=str(inside)), root) == expected
    with pytest.raises(UserError, match="no class folder"):
        build_index([root], labels="folders")
    inside.unlink()
    outside = table(tmp_path / "t.csv", rows)  # paths from the root
    assert labelled(build_index([root], labels=outside), root) == expected
    assert build_index([root], labels=outside).notes == ()


def test_a_csv_of_several_classes_an_image(root: Path) -> None:
    put(root, "a.png", "b.png", "c.png")
    table(root / "labels.csv", "file,class\na.png,x|y\nb.png,\nc.png,y | z\n")
    by_bars = build_index([root])
    assert by_bars.classes == ("x", "y", "z")
    assert by_bars.labels is not None
    assert by_bars.labels.dtype == torch.int8
    assert by_bars.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    table(root / "labels.csv", "file,z,y,x\na.png,0,1,1\nb.png,0,0,0\nc.png,1,1,0\n")
    by_columns = build_index([root])
    assert by_columns.classes == ("z", "y", "x")  # as the header has them
    assert by_columns.labels is not None
    assert by_columns.labels.flip(1).tolist() == by_bars.labels.tolist()
    assert "several an image" in by_columns.describe()


def test_columns_and_rows_that_are_not_used_are_said(root: Path) -> None:
    put(root, "a.png", "b.png")
    table(root / "labels.csv", "file,class,camera\na.png,x,1\nb.png,y,2\nmissing.png,y,2\n")
    index = build_index([root])
    assert has_note(index, "columns not used: camera")
    assert has_note(index, "1 row of")
    table(root / "labels.csv", "file,class\na.png,x\nb.png,x\n")
    index = build_index([root])
    assert index.labels is None
    assert has_note(index, "one class only")
    table(root / "labels.csv", "a.png,x\nb.png,y\n")
    index = build_index([root])
    assert labelled(index, root) == {"a.png": "x", "b.png": "y"}
    assert has_note(index, "no header")


def test_a_few_labels_among_many_images(root: Path) -> None:
    """Two hundred labels for five thousand images: the others are trained on, and only labelled
    ones are held out.
    """
    names = [f"{i:02}.png" for i in range(40)]
    put(root, *names)
    for text in ("x", "x|y"):  # one class an image, and several
        rows = [f"{name},{text if i % 2 else 'z'}\n" for i, name in enumerate(names[:10])]
        table(root / "labels.csv", "file,class\n" + "".join(rows))
        index = build_index([root])
        assert index.labels is not None
        assert index.labelled.tolist() == [True] * 10 + [False] * 30
        assert (index.labels[10:] == -1).all()
        assert len(index.held_out) == 2
        assert index.labelled[index.held_out].all()
        assert has_note(index, "30 of 40 images have no row")
    rows = [f"{name},{'xyz'[i % 3]}\n" for i, name in enumerate(names)]
    table(root / "labels.csv", "file,class\n" + "".join(rows))
    assert build_index([root]).fingerprint != index.fingerprint


def test_a_csv_that_does_not_fit_is_refused_by_its_name(root: Path) -> None:
    put(root, "a.png", "b.png")
    table(root / "labels.csv", "file,class\nc.png,x\nd.png,y\n")
    with pytest.raises(UserError, match=r"2 images .*labels.csv, for example .*a.png"):
        build_index([root])
    with pytest.raises(UserError, match="labels 'nonsense': no such file"):
        build_index([root], labels="nonsense")


def test_tables_in_the_folders_of_a_split(root: Path) -> None:
    rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(6))
    for part in ("train", "test"):
        put(root, *numbered(part, 6))
        table(root / part / "labels.csv", f"image,class\n{rows}")
    index = build_index([root])
    assert (index.split, index.classes) == ("given", ("a", "b"))
    assert labelled(index, root) == {
        name: "ab"[int(name[-5]) % 2] for name in numbered("train", 6) + numbered("test", 6)
    }
    assert has_note(index, "train/labels.csv (6 images)")
    split = root / "labels.csv"  # which is above, and so is not asked
    table(split, "image,class,split\ntrain/000.png,c,test\ntest/000.png,d,train\n")
    assert labelled(build_index([root]), root) == labelled(index, root)
    index = build_index([root], labels=split)
    assert index.split == "given"
    assert has_note(index, "as folders name one")


# The split


def test_a_column_of_the_table_names_the_split(root: Path) -> None:
    files = numbered("a", 4) + numbered("b", 4)
    put(root, *files)
    rows = [f"{name},{name[0]},{'val' if '003' in name else 'train'}\n" for name in files]
    table(root / "labels.csv", "image,class,split\n" + "".join(rows))
    index = build_index([root])
    assert index.split == "table"
    assert names(index, root, index.held_out.tolist()) == ["a/003.png", "b/003.png"]
    assert "as their table says" in index.describe()
    table(root / "labels.csv", "image,class,fold of mine\n" + "".join(rows))
    assert build_index([root]).fingerprint != index.fingerprint


@pytest.mark.parametrize("held_out", ["test", "val", "Valid", "validation"])
def test_a_given_split_is_kept(root: Path, held_out: str) -> None:
    put(root, *numbered("train/cat", 4), *numbered("train/dog", 3))
    put(root, *numbered(f"{held_out}/cat", 2), *numbered(f"{held_out}/fox", 1))
    index = build_index([root])
    assert (index.split, len(index.train), len(index.held_out)) == ("given", 7, 3)
    assert index.classes == ("cat", "dog", "fox")  # a class may be in one part only
    assert all(name.startswith(held_out) for name in names(index, root, index.held_out.tolist()))
    assert all(name.startswith("train") for name in names(index, root, index.train.tolist()))
    assert "as their folders say" in index.describe()
    put(root, *numbered("unlabelled", 2))
    more = build_index([root])
    assert (len(more.train), int(more.labelled.sum()), more.classes) == (9, 10, index.classes)
    assert has_note(more, "2 images outside of the train and test folders")


def files_of(folder: str, numbers: Iterable[int]) -> Files:
    files = Files()
    for i in numbers:
        files.add(f"{folder}/{i}.png", f"{i}.png", 0, 1, 1)
    return files


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    holdout=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_a_drawn_split_is_stratified(counts: list[int], holdout: float, seed: int) -> None:
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(seed).permutation(len(rows))
    test = draw_split(files_of("/r", order), rows[order], holdout, seed)
    for c, n in enumerate(counts):
        held_out = int(test[rows[order] == c].sum())
        assert held_out <= max(n - 1, 0)
        assert held_out >= (n >= 2 and holdout > 0)
        assert abs(held_out - holdout * n) <= 1
    again = draw_split(files_of("/s", range(len(rows))), rows, holdout, seed)
    # whatever the order and wherever it lies
    assert np.flatnonzero(again).tolist() == sorted(order[test])


def test_the_drawn_split_depends_on_the_seed_and_hardly_on_additions(root: Path) -> None:
    put(root, *numbered("cat", 50), *numbered("dog", 50))
    index = build_index([root])
    assert len(index.held_out) == 20
    held_out = set(names(index, root, index.held_out.tolist()))
    other = build_index([root], seed=1)
    assert set(names(other, root, other.held_out.tolist())) != held_out
    assert len(build_index([root], holdout=0).held_out) == 0
    put(root, *[f"cat/new{i}.png" for i in range(10)])
    later = build_index([root])
    moved = held_out ^ set(names(later, root, later.held_out.tolist()))
    assert len([name for name in moved if "new" not in name]) <= 4
    unlabelled = build_index([root], labels="none", holdout=0.5)
    assert len(unlabelled.held_out) == 55


def test_a_draw_with_several_classes_an_image_shares_out_the_rare_ones() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.random((400, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]).astype(np.uint8)
    test = draw_split(files_of("/r", range(400)), rows, 0.2, 0)
    for c in range(6):
        n, held_out = int(rows[:, c].sum()), int(rows[test, c].sum())
        assert 1 <= held_out < n
        assert abs(held_out - 0.2 * n) < 2 + 0.05 * n
    assert 70 <= test.sum() <= 90


# What names the data


def test_the_fingerprint_is_that_of_the_data_and_not_of_its_place(
    root: Path, tmp_path: Path
) -> None:
    put(root, *numbered("cat", 3), *numbered("dog", 3))
    first = build_index([root])
    copy = shutil.copytree(root, tmp_path / "copy")
    for path in copy.rglob("*.png"):
        os.utime(path, ns=(5, 5))
    twin = build_index([copy])
    assert (twin.fingerprint, names(twin, copy)) == (first.fingerprint, names(first, root))
    assert torch.equal(twin.test, first.test)
    assert build_index([root], labels="none").fingerprint != first.fingerprint
    shutil.move(copy / "cat/000.png", copy / "dog/999.png")
    assert build_index([copy]).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("files", "known"),
    [
        (["cat/0.png", "dog/0.png"], True),
        (["train/cat/0.png", "train/dog/0.png", "Val/cat/0.png"], True),
        (["set/train/0.png", "set/test/0.png"], False),
        (["x/train/a.png", "x/test/b.png", "y/train/a.png"], False),
    ],
)
def test_a_split_by_folders_is_a_part_of_the_data(
    root: Path, files: list[str], known: bool
) -> None:
    """That by the first folder was so from the beginning: old runs go on. That by others held
    nothing out for them.
    """
    put(root, *files)
    index = build_index([root])
    plain = hashlib.sha256()
    own = [""] * len(index) if index.labels is None else [index.classes[c] for c in index.labels]
    for path, name, kind in zip(index.paths, names(index, root), own, strict=True):
        plain.update(f"{name}\0{path.stat().st_size}\0{kind}\n".encode())
    assert (index.listing == plain.hexdigest()) == known


@pytest.mark.parametrize("by_rename", [False, True])  # as cp does, and as rsync does
@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".png"])
def test_other_pixels_under_the_same_name_size_and_time_are_other_data(
    root: Path, tmp_path: Path, decoded: list[str], by_rename: bool, suffix: str
) -> None:
    root.mkdir()
    for i in range(3):
        Image.new("L", (9, 9), 40 + i).save(root / f"{i}{suffix}", compress_level=0)
    first = build_index([root])
    file, other = root / f"1{suffix}", tmp_path / f"x{suffix}"
    before, folder = file.stat(), root.stat()
    Image.new("L", (9, 9), 200).save(other, compress_level=0)
    assert other.stat().st_size == before.st_size
    if by_rename:
        other.rename(file)
    else:
        file.write_bytes(other.read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(root, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    decoded.clear()
    second = build_index([root])
    assert decoded == [f"1{suffix}"]
    assert second.fingerprint != first.fingerprint
    assert second.listing == first.listing
    assert second.subset("50%", 0).fingerprint != first.subset("50%", 0).fingerprint


def test_the_order_does_not_depend_on_that_of_the_roots_or_the_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, *numbered("a", 5), *numbered("c", 5))
    put(tmp_path / "other", *numbered("b", 5), *numbered("d", 5))
    first = build_index([root, tmp_path / "other"])
    scandir = os.scandir

    def scan_shuffled(path: str) -> contextlib.nullcontext[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            shuffled = list(entries)
        return contextlib.nullcontext(random.sample(shuffled, len(shuffled)))

    monkeypatch.setattr(os, "scandir", scan_shuffled)
    assert same_index(build_index([tmp_path / "other", root]), first)
