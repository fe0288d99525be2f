"""Parquet files in folders, as Hugging Face's hub lays them out; beside image files; with rows that
no path tells apart.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.index.build import Index, build_index
from selftaught.data.index.hub import choose_set, infer_splits
from selftaught.data.parquet import row_cache
from selftaught.errors import UserError
from tests.data.image_files import encoded, put

pa = pytest.importorskip("pyarrow", reason="needs the extra that reads packs")
pq = pytest.importorskip("pyarrow.parquet")

Naming = Callable[[int], str | None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def has_note(index: Index, *parts: str) -> bool:
    return any(all(part in note for part in parts) for note in index.notes)


def write(file: Path, n: int = 8, path: Naming = lambda row: None, labels: bool = True) -> None:
    image = [
        {"bytes": encoded(Image.new("RGB", (7, 5), (i, len(file.name), 9))), "path": path(i)}
        for i in range(n)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    label = {"label": [i % 2 for i in range(n)]} if labels else {}
    pq.write_table(pa.table({"image": image} | label), file)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("plain_text/partial-train/0000.parquet", "plain_text/partial-test/0000.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("set/default/train/0.parquet", "set/default/val/0.parquet"),
        ("train/0.parquet", "test/0.parquet"),
        ("train.parquet", "test.parquet"),
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("train_set-00000-of-00001.parquet", "test_set-00000-of-00001.parquet"),
        ("config/train-00000-of-00001.parquet", "config/test-00000-of-00001.parquet"),
    ],
)
def test_a_folder_of_the_hub_with_its_split(root: Path, train: str, test: str) -> None:
    write(root / train, n=10)
    write(root / test, n=6)
    index = build_index([root])
    assert (len(index), index.split, index.classes) == (16, "given", ("0", "1"))
    held_out = [str(index.paths[i]) for i in index.held_out.tolist()]
    assert held_out == [f"{root / test}/{row}" for row in range(6)]
    assert build_index([root / train]).split == "drawn"
    same_folder = (root / train).parent == (root / test).parent
    assert len(build_index([(root / train).parent])) == (16 if same_folder else 10)


def test_several_configurations_are_refused_by_name_unless_one_is_named(root: Path) -> None:
    for language in ("de", "en"):
        for split in ("train", "test"):
            write(root / language / split / "0000.parquet")
    with pytest.raises(UserError, match=r"de, en.*/de") as caught:
        build_index([root])
    assert "\n" not in str(caught.value)
    index = build_index([root / "en"])
    assert (len(index), len(index.held_out)) == (16, 8)
    # files of no configuration are one set, and it is said what is not in it
    write(root / "0000.parquet", n=3)
    index = build_index([root])
    assert len(index) == 3
    assert any("de/" in note or "de," in note for note in index.notes)


def test_packs_and_hidden_folders_are_none_of_the_files(root: Path) -> None:
    write(root / "a.parquet", n=4)
    write(root / "mine.pack/train-00000-of-00001.parquet")
    (root / "mine.pack/pack.json").write_text("{}")
    write(root / ".cache/b.parquet")
    write(root / "@eaDir/c.parquet")
    index = build_index([root])
    assert len(index) == 4
    assert has_note(index, "mine.pack")
    (root / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"mine\.pack"):
        build_index([root])


def test_beside_image_files_what_there_is_more_of_is_read_and_the_rest_is_said(root: Path) -> None:
    write(root / "data/train.parquet", n=8)
    put(root, "logo.png", "figure.png")
    index = build_index([root])
    assert len(index) == 8
    assert has_note(index, "2 image files")
    put(root, *(f"{c}/{i}.png" for c in "ab" for i in range(9)))
    index = build_index([root])
    assert (len(index), index.classes) == (20, ("a", "b"))
    assert has_note(index, "1 Parquet file", "train.parquet")
    both = build_index([root, root / "data/train.parquet"])  # who wants both names both
    assert len(both) == 28
    assert not has_note(both, "Parquet file")


def test_a_damaged_table_beside_image_files_does_not_matter(root: Path) -> None:
    put(root, "a/0.png", "a/1.png", "b/0.png")
    (root / "table.parquet").write_bytes(b"no parquet")
    pq.write_table(pa.table({"a": list(range(100))}), root / "numbers.parquet")
    index = build_index([root])
    assert (len(index), index.classes) == (3, ("a", "b"))
    assert has_note(index, "2 Parquet files")


@pytest.mark.parametrize("name", ["image.png", "{}/image.png", None])
@pytest.mark.parametrize("files", [1, 2])
def test_rows_that_no_path_tells_apart_are_held_out_by_the_seed(
    root: Path, name: str | None, files: int
) -> None:
    def path(row: int) -> str | None:
        return name and name.format("ab"[row % 2])

    for i in range(files):
        write(root / f"part-{i}.parquet", n=40 // files, path=path, labels=False)
    indices = [build_index([root], seed=seed) for seed in range(4)]
    samples = {tuple(index.held_out.tolist()) for index in indices}
    assert len(samples) == 4
    assert all(len(held_out) == 8 for held_out in samples)
    assert min(map(max, samples)) > 8  # not the first ones
    assert len(set(indices[0].names)) == 40
    # the files are no classes
    assert indices[0].classes == (("a", "b") if name == "{}/image.png" else ())
    assert [str(p) for p in build_index([root]).paths] == [str(p) for p in indices[0].paths]


def test_rows_of_paths_of_their_own_keep_their_names(root: Path) -> None:
    for path, names in (
        (lambda row: f"{row}.png", ["train/0.png", "train/1.png"]),
        (lambda row: None, ["train/000000", "train/000001"]),
    ):
        row_cache._cache.reset()
        write(root / "train.parquet", n=2, path=path)
        assert [name.as_posix() for name in build_index([root]).names] == names


def test_labels_are_kept_where_the_paths_are_alike(root: Path) -> None:
    write(root / "a.parquet", n=6, path=lambda row: "image.png")
    index = build_index([root])
    assert index.labels is not None
    rows = [int(path.name) for path in index.paths]
    assert index.labels.tolist() == [row % 2 for row in rows]
    assert np.array_equal(np.sort(rows), np.arange(6))


def test_the_choice_of_files_by_their_names_alone() -> None:
    notes: list[str] = []
    assert choose_set("d", [], notes) == []
    files = ["data/a.parquet", "b.parquet"]
    assert choose_set("d", files, notes) == sorted(files)
    assert notes == []
    assert infer_splits(["d/en/train/0.parquet", "d/en/test/0.parquet"]) == ["train", "test"]
    # what all lie in says nothing
    assert infer_splits(["train/a/0.parquet", "train/b/0.parquet"]) == ["", ""]
    names = ["x/valid-0.parquet", "x/part.parquet", "x/test_tube.parquet"]
    assert infer_splits(names) == ["valid", "", ""]
