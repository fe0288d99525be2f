"""Packs: written whole; read here, over HTTP and from S3 as the folder is, in an order that can be
resumed.
"""

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from selftaught.cli.main import main
from selftaught.data.index import huggingface
from selftaught.data.index.build import Index, build_index
from selftaught.data.io import filesystem
from selftaught.data.io.source import read_bytes
from selftaught.data.loading import sampler
from selftaught.data.loading.images import Images, statistics
from selftaught.data.loading.loader import Batches, Raw
from selftaught.data.pack import write
from selftaught.data.pack.encode import Encoding
from selftaught.data.pack.write import pack, verify
from selftaught.data.parquet import row_cache, row_groups
from selftaught.data.parquet.row_groups import Groups
from selftaught.errors import UserError
from selftaught.features.extract import extract
from selftaught.runs import folder as run_folder
from tests.stopping import stopped_at

SKIPPED = "needs the extra that reads packs: pip install -e '.[dev]'"
pa = pytest.importorskip("pyarrow", reason=SKIPPED)
pq = pytest.importorskip("pyarrow.parquet", reason=SKIPPED)
web = pytest.importorskip("aiohttp.web", reason=SKIPPED)
for name in ("fsspec", "s3fs", "moto.server"):
    pytest.importorskip(name, reason=SKIPPED)

PNG = Encoding(format="png")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(filesystem, "_PAUSE", 0.01)
    yield
    row_cache._cache.reset()  # what servers sent is not left to other tests


def photos(root: Path, each: int = 20, size: tuple[int, int] = (30, 24)) -> Path:
    """train/ and test/ with three classes of noise, which no two images share; wider than high."""
    rng = np.random.default_rng(0)
    for split, n in (("train", each), ("test", 5)):
        for c in range(3):
            place = root / split / f"class {c}"
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pixels of `folder`, in many small row groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_GROUP_IMAGES", 4)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return pack([folder], tmp_path_factory.mktemp("packed") / "photos.pack", PNG)


@pytest.fixture
def scattered(monkeypatch: pytest.MonkeyPatch, packed: Path) -> None:
    """As if the pack were many times larger than the cache."""
    size = sum(file.stat().st_size for file in packed.glob("t*.parquet"))
    monkeypatch.setattr(row_groups, "CACHE", size // 2)
    monkeypatch.setattr(row_groups, "WINDOW", size // 4)


def images_of(index: Index, in_memory: bool | None = False, canvas: int = 24) -> Images:
    return Images(index.paths, index.sizes, canvas, in_memory, groups=index.groups)


def batches_of(index: Index, batch: int = 8, in_memory: bool = False, **more: Any) -> Batches:
    return Batches(
        images_of(index, in_memory), index.train, index.labels, batch=batch, seed=3, **more
    )


def same(one: Raw, other: Raw) -> bool:
    return all(
        torch.equal(getattr(one, f), getattr(other, f))
        for f in ("pixels", "aspect", "index", "label")
    )


def alike(one: list[Raw], other: list[Raw]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def contents(out: Path) -> dict[str, str]:
    """Of every file but the lock its digest."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in out.iterdir()
        if p.name != ".lock"
    }


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    return next(line for line in lines if line.startswith("selftaught:"))


# What is written


def test_a_pack_has_the_index_of_its_folder(folder: Path, packed: Path, tmp_path: Path) -> None:
    one, other = build_index([folder]), build_index([packed])
    assert (one.names, one.classes, one.split) == (other.names, other.classes, other.split)
    assert other.split == "given"
    for field in ("sizes", "labels", "test"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert one.subset("5", 0).names == other.subset("5", 0).names
    assert len(other.subset("50%", 0).groups.group_of) == len(other.subset("50%", 0))  # type: ignore[union-attr]
    copied = build_index([shutil.copytree(packed, tmp_path / "elsewhere")])
    assert copied.fingerprint == other.fingerprint
    assert copied.paths != other.paths
    assert build_index([folder], labels="none").fingerprint != other.fingerprint
    assert build_index([packed], labels="none").labels is None
    assert torch.equal(build_index([packed], labels="folders").labels, one.labels)  # type: ignore[arg-type]
    drawn = pack([folder / "train"], tmp_path / "drawn.pack", PNG)
    assert torch.equal(
        build_index([drawn], seed=4).test, build_index([folder / "train"], seed=4).test
    )


def test_a_pack_has_the_split_and_the_labels_of_folders_by_other_names(tmp_path: Path) -> None:
    place = photos(tmp_path / "set", each=3)
    for name, other in (("train", "train_set"), ("test", "val2017")):
        (place / name).rename(place / other)
    (place / "train_set" / "class 2").rename(place / "unlabeled")
    one, other = build_index([tmp_path]), build_index([pack([tmp_path], tmp_path / "p.pack", PNG)])
    assert (one.names, one.classes, one.split) == (other.names, other.classes, other.split)
    assert (len(one), one.split, int((one.labels < 0).sum())) == (24, "given", 3)  # type: ignore[operator]
    for field in ("labels", "test"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    # the pack that lies there now is not read with the others
    assert build_index([tmp_path]).fingerprint == one.fingerprint


@pytest.mark.parametrize(("in_memory", "workers"), [(True, 0), (False, 0), (False, 2)])
def test_full_size_png_trains_on_the_batches_of_the_folder(
    folder: Path, packed: Path, in_memory: bool, workers: int
) -> None:
    epochs = [
        list(batches_of(build_index([p]), in_memory=in_memory, workers=workers).epoch(1))
        for p in (folder, packed)
    ]
    assert alike(*epochs)
    assert statistics(images_of(build_index([folder])), torch.arange(60)) == statistics(
        images_of(build_index([packed])), torch.arange(60)
    )


def test_others_read_a_pack(packed: Path) -> None:
    """Its schema says to Hugging Face's `datasets` what the columns are; groups are small and
    nothing is compressed.
    """
    file = pq.ParquetFile(packed / "train-00000-of-00001.parquet")
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": ["class 0", "class 1", "class 2"]}
    assert file.num_row_groups == 15
    assert file.metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
    row = file.read().to_pylist()[0]
    assert row["image"]["path"].startswith("train/class ")
    assert (row["height"], row["width"]) == (24, 30)
    names = [r["image"]["path"] for r in file.read().to_pylist()]
    assert names != sorted(names)  # a row group is a sample of the whole


@pytest.mark.parametrize(
    ("format", "magic"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("png", b"\x89PNG")]
)
def test_images_are_brought_down_once_and_never_up(
    tmp_path: Path, format: Any, magic: bytes
) -> None:
    place = tmp_path / "images"
    place.mkdir()
    smooth = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    smooth.save(place / "a.jpg", quality=95, exif=exif)
    smooth.resize((20, 12)).save(place / "b.jpg", quality=95)
    smooth.save(place / "c.png")
    smooth.convert("RGBA").save(place / "d.png")
    index = build_index([pack([place], tmp_path / "p.pack", Encoding(size=16, format=format))])
    assert index.sizes.tolist() == [[24, 16], [12, 20], [16, 24], [16, 24]]
    data = [read_bytes(path) for path in index.paths]
    assert all(d.startswith(magic) for d in data)
    # no second loss where nothing changes
    assert (data[1] == (place / "b.jpg").read_bytes()) == (format == "jpeg")
    folder_, pack_ = (images_of(build_index([p]), canvas=12) for p in (place, tmp_path / "p.pack"))
    for i in range(4):
        assert (folder_[i].float() - pack_[i].float()).abs().mean() < 4


def test_several_labels_and_unknown_ones(tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", each=3) / "train"
    (place / "labels.csv").write_text(
        "path,class\nclass 0/000,sun|sea\nclass 0/001,\nclass 1/000,sea\nclass 2/002,sun\n"
    )
    one, other = build_index([place]), build_index([pack([place], tmp_path / "p.pack", PNG)])
    assert one.labels is not None
    assert one.labels.dim() == 2
    assert one.classes == other.classes == ("sea", "sun")
    assert torch.equal(one.labels, other.labels)  # type: ignore[arg-type]
    (place / "labels.csv").write_text("path,class\nclass 0/000,sun\nclass 1/000,sea\n")
    one, other = build_index([place]), build_index([pack([place], tmp_path / "q.pack", PNG)])
    assert torch.equal(one.labels, other.labels)  # type: ignore[arg-type]
    assert int((other.labels < 0).sum()) == 7  # type: ignore[operator]


def test_a_split_by_a_table_is_kept(tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", each=3) / "train"
    rows = [
        f"class {k}/00{i},{'xyz'[k]},{'train' if i else 'test'}\n"
        for k in range(3)
        for i in range(3)
    ]
    (place / "labels.csv").write_text("path,class,split\n" + "".join(rows))
    one, other = build_index([place]), build_index([pack([place], tmp_path / "p.pack", PNG)])
    assert (one.split, other.split) == ("table", "given")
    assert {f"test/{one.names[i]}" for i in one.held_out.tolist()} == {
        str(other.names[i]) for i in other.held_out.tolist()
    }
    assert len(other.held_out) == 3
    assert other.classes == one.classes


def test_masks_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = photos(tmp_path / "photos", each=2) / "train"
    masks = tmp_path / "masks" / "class 1"
    masks.mkdir(parents=True)
    values = np.zeros((24, 30), dtype=np.uint8)
    values[6:18, 10:20] = 7
    Image.fromarray(values).save(masks / "000.png")
    words = ["pack", str(place), "--masks", str(masks.parent), "--size", "12", "--out"]
    assert main([*words, str(tmp_path / "p.pack")]) == 0
    assert "5 of 6 images without a mask" in capsys.readouterr().err
    index = build_index([tmp_path / "p.pack"])
    at = [name.as_posix() for name in index.names].index("class 1/000.png")
    mask = np.asarray(Image.open(io.BytesIO(read_bytes(index.paths[at], "mask"))))
    assert mask.shape == (12, 15)
    assert set(np.unique(mask)) == {0, 7}  # no value in between
    with pytest.raises(ValueError, match="no bytes"):
        read_bytes(index.paths[at - 1], "mask")
    Image.fromarray(values[:5]).save(masks / "000.png")
    assert "must be the same" in refused([*words, str(tmp_path / "q.pack")], capsys)
    (masks / "000.png").rename(masks / "x.png")
    assert "no image has a mask" in refused([*words, str(tmp_path / "r.pack")], capsys)


# Killed, run again, asked for otherwise


def test_killed_and_run_again_it_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(write._BYTES_PER_PIXEL, "png", 3000.0)  # several shards of so few images
    whole = pack([folder], tmp_path / "whole.pack", PNG, shard=20)
    assert len(list(whole.glob("train-*-of-00006.parquet"))) == 6
    out, real = tmp_path / "parts.pack", write.encode

    def slow(*asked: Any) -> Any:
        time.sleep(0.02)
        return real(*asked)

    monkeypatch.setattr(write, "encode", slow)
    victim = get_context("fork").Process(
        target=pack, args=([folder], out, PNG), kwargs={"shard": 20}
    )
    victim.start()
    while victim.is_alive() and not (
        (out / "train-00001-of-00006.parquet").exists() and list(out.glob(".*.parquet"))
    ):
        time.sleep(0.005)
    assert victim.is_alive()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert list(out.glob(".*.parquet"))  # in the middle of a shard
    with pytest.raises(UserError, match="not finished: run the same"):
        build_index([out])
    modified = (out / "train-00000-of-00006.parquet").stat().st_mtime_ns
    monkeypatch.setattr(write, "encode", real)
    pack([folder], out, PNG, shard=20)
    assert contents(out) == contents(whole)
    assert (
        out / "train-00000-of-00006.parquet"
    ).stat().st_mtime_ns == modified  # gone on with, not begun anew
    next(out.glob("test-00000-*")).unlink()  # lost later: the same command brings it back
    pack([folder], out, PNG, shard=20)
    assert contents(out) == contents(whole)


def test_a_rerun_does_nothing_and_another_wish_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, out = photos(tmp_path / "photos", each=4), str(tmp_path / "p.pack")
    (place / "train" / "bad.png").write_bytes(b"x")
    words = ["pack", str(place), "--out", out, "--size", "16"]
    assert main(words) == 0
    assert "bad.png" in capsys.readouterr().err  # named and left out
    before = {p.name: p.stat().st_mtime_ns for p in Path(out).iterdir() if p.name != ".lock"}
    assert main(words) == 0
    assert "done already" in capsys.readouterr().err
    assert {
        p.name: p.stat().st_mtime_ns for p in Path(out).iterdir() if p.name != ".lock"
    } == before
    assert "--size 16" in refused([*words[:-1], "20"], capsys)
    assert "--quality" in refused([*words, "--format", "png", "--quality", "3"], capsys)
    assert "name the images" in refused(["pack", "--out", out], capsys)
    assert "other files" in refused(["pack", str(place), "--out", str(place)], capsys)
    shutil.copy(place / "train/class 0/000.png", place / "train/class 0/new.png")
    assert "have changed" in refused(words, capsys)
    again = pack([out], tmp_path / "again.pack", Encoding(size=8))  # a pack can be packed
    assert build_index([again]).names == build_index([out]).names


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    out = shutil.copytree(packed, tmp_path / "p.pack")
    file = out / "train-00000-of-00001.parquet"
    data = bytearray(file.read_bytes())
    assert main(["pack", "--verify", str(out)]) == 0
    if harm == "flip":
        data[1000] ^= 1
        file.write_bytes(data)
    elif harm == "cut":
        file.write_bytes(data[:-100])
    else:
        file.unlink()
    assert file.name in refused(["pack", "--verify", str(out)], capsys)
    if harm != "flip":  # which costs too much to see each time
        with pytest.raises(UserError, match=f"{file.name} is (damaged|missing)"):
            build_index([out])
        return
    images = images_of(build_index([out]))
    raws = list(Batches(images, build_index([out]).train, None, batch=4, seed=0).epoch(0))
    assert len(raws) == 15
    assert len(images.lost) == 4  # of one row group, and others stand in for them
    assert all("damaged" in reason for _, reason in images.lost)


NO_MANIFEST = {
    "empty": "",
    "half": '{"format": 1, "shar',
    "binary": "\x82\x00",
    "null": "null",
    "list": "[]",
    "object": "{}",
    "no shards": '{"format": 1, "shards": [], "finished": true}',
    "folder": None,
}


@pytest.mark.parametrize("harm", [*NO_MANIFEST, "settings", "shards", "sha256", "index"])
def test_a_damaged_manifest_is_one_line(
    packed: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    out = shutil.copytree(packed, tmp_path / "p.pack")
    file = out / "pack.json"
    content = json.loads(file.read_text())
    file.unlink()
    if harm == "folder":
        file.mkdir()
    elif harm in NO_MANIFEST:
        file.write_bytes(NO_MANIFEST[harm].encode("latin-1"))  # type: ignore[union-attr]
    else:
        harmed = {"settings": 5, "shards": [5], "index": {"file": "../x"}}.get(harm)
        shards = [{**entry, "sha256": "no sum"} for entry in content["shards"]]
        file.write_text(
            json.dumps({**content, **({"shards": shards} if harm == "sha256" else {harm: harmed})})
        )
    for words in (["pack", "--verify", str(out)], ["pack", str(folder), "--out", str(out)]):
        assert "pack.json" in refused(words, capsys)
    with pytest.raises(UserError, match=r"pack\.json"):
        build_index([out])


def test_a_pack_of_other_pixels_is_other_data(folder: Path, tmp_path: Path) -> None:
    """Of the same names and sizes in bytes; and the same pack elsewhere is the same."""
    root = shutil.copytree(folder, tmp_path / "photos")
    for number in (0, 1):
        for i, file in enumerate(sorted(root.rglob("*.png"))):
            Image.new("L", (9, 9), i + 100 * number).save(file.with_suffix(".bmp"))
            file.unlink(missing_ok=True)
        for i, file in enumerate(sorted(root.rglob("*.bmp"))):
            Image.new("L", (9, 9), i + 100 * number).save(file)
        pack([root], tmp_path / f"{number}.pack", PNG)
    one, other = (build_index([tmp_path / f"{number}.pack"]) for number in (0, 1))
    assert one.names == other.names
    assert one.fingerprint != other.fingerprint
    assert (
        build_index([shutil.copytree(tmp_path / "0.pack", tmp_path / "moved")]).fingerprint
        == one.fingerprint
    )


def test_a_pack_that_is_none(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shutil.copytree(packed, tmp_path / "p.pack")
    (out / "pack.json").write_text("{")
    with pytest.raises(UserError, match=r"pack\.json is damaged"):
        build_index([out])
    (out / "pack.json").write_text('{"format": 99, "shards": []}')
    with pytest.raises(UserError, match="another version"):
        build_index([out])
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"x\.parquet cannot be read \(damaged"):
        build_index([tmp_path / "x.parquet"])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no images"):
        build_index([tmp_path / "x.parquet"])
    with pytest.raises(UserError, match="no such file"):
        build_index([tmp_path / "none.pack"])
    with pytest.raises(UserError, match="query or a password"):
        build_index(["https://me:secret@host/p.pack"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'selftaught\[pack\]'"):
        build_index([packed])


# What others wrote


def hugging_face(root: Path, folder: Path, *, names: bool = True, n: int = 30) -> Path:
    """The images of `folder` as `datasets` would write them: no sizes, a class label, splits in the
    files' names.
    """
    index = build_index([folder])
    root.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = {"names": ["zebra", "ape", "bee"], "_type": "ClassLabel"}
    features = {
        "image": {"_type": "Image"},
        "label": label,
        "note": {"dtype": "string", "_type": "Value"},
    }
    for file, positions in (
        ("train-00000-of-00001", index.train[:n]),
        ("validation-00000-of-00001", index.held_out),
    ):
        rows = [
            {
                "image": {
                    "bytes": index.paths[i].read_bytes(),
                    "path": index.paths[i].name if names else None,
                },
                "label": int(index.labels[i]),  # type: ignore[index]
                "note": "x",
            }
            for i in positions.tolist()
        ]
        schema = pa.schema([("image", kind), ("label", pa.int64()), ("note", pa.string())])
        with_features = schema.with_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(
            pa.Table.from_pylist(rows, with_features), root / f"{file}.parquet", row_group_size=8
        )
    return root


@pytest.mark.parametrize("names", [True, False])
def test_hugging_face_files_are_read_as_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: bool
) -> None:
    root = hugging_face(tmp_path / "hf", folder, names=names)
    measured_paths: list[str] = []
    real = huggingface.measure
    monkeypatch.setattr(
        huggingface,
        "measure",
        lambda path, most: (measured_paths.append(path), real(path, most))[1],
    )
    index = build_index([root])
    assert len(measured_paths) == len(index) == 45
    assert index.classes == ("zebra", "ape", "bee")
    assert index.split == "given"
    assert int(index.test.sum()) == 15
    assert index.sizes.tolist() == [[24, 30]] * 45
    assert any("columns not used: note" in note for note in index.notes)
    again = build_index([root])
    assert len(measured_paths) == 45  # remembered
    assert again.fingerprint == index.fingerprint
    assert torch.equal(again.sizes, index.sizes)
    shutil.move(root, tmp_path / "moved")
    assert build_index([tmp_path / "moved"]).fingerprint == index.fingerprint
    pixels = {images_of(build_index([folder]))[i].numpy().tobytes() for i in range(75)}
    assert all(
        image.numpy().tobytes() in pixels for image in images_of(build_index([tmp_path / "moved"]))
    )  # type: ignore[attr-defined]
    single = build_index([tmp_path / "moved" / "train-00000-of-00001.parquet"])
    assert len(single) == 30
    assert single.split == "drawn"


def test_columns_of_other_makes(folder: Path, tmp_path: Path) -> None:
    data = [path.read_bytes() for path in build_index([folder]).paths[:20]]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": data, "label": ["b", "a"] * 9 + ["a", None]}), file)
    index = build_index([file])
    assert index.classes == ("a", "b")
    assert int((index.labels < 0).sum()) == 1  # type: ignore[operator]
    data[3] = b"no image"
    pq.write_table(pa.table({"png": data, "labels": [[0, 2], [], [2]] * 6 + [None, [0]]}), file)
    index = build_index([file])
    assert index.labels is not None
    assert index.classes == ("0", "2")
    assert index.labels.shape == (19, 2)
    assert index.unreadable[0][1].startswith("not an image")
    assert index.unreadable[0][0].endswith("a.parquet/3")
    pq.write_table(
        pa.table({"jpg": data[4:], "label": [-1] * 16, "height": [24] * 16, "width": [30] * 16}),
        file,
    )
    index = build_index([file])
    assert index.labels is None
    assert index.sizes.tolist() == [[24, 30]] * 16


def test_a_folder_of_images_beside_a_table_stays_one_and_both_kinds_go_together(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    place = photos(tmp_path / "photos", each=3)
    pq.write_table(pa.table({"a": [1]}), place / "table.parquet")
    assert len(build_index([place])) == 24
    index = build_index([place / "train", packed, packed])
    assert len(index) == 9 + 75
    assert index.classes == ("class 0", "class 1", "class 2")
    assert bool(index.labelled.all())
    raws = list(
        Batches(images_of(index), torch.arange(84), index.labels, batch=21, seed=0).epoch(0)
    )
    assert torch.cat([raw.index for raw in raws]).sort().values.tolist() == list(range(84))


# The order


def test_a_large_store_is_shuffled_in_windows_as_well_as_all_at_once() -> None:
    """How often images of one class meet in a batch, against a perfect shuffle (1), where the store
    is sorted or hashed.
    """
    n, classes, batch = 80_000, 20, 128
    of = torch.arange(n) // 64
    groups = Groups(of, torch.bincount(of) * 16_000)
    assert groups.exceeds_cache
    table = sampler.epoch(n, batch, 0, 1, groups)
    assert table.shape == (n // batch, batch)
    assert len(table.unique()) == table.numel()
    assert torch.equal(table, sampler.epoch(n, batch, 0, 1, groups))
    assert not torch.equal(table, sampler.epoch(n, batch, 0, 2, groups))
    by_class = torch.arange(n) * classes // n
    hashed = by_class[torch.randperm(n, generator=torch.Generator().manual_seed(1))]

    def clumping(labels: torch.Tensor, steps: torch.Tensor) -> float:
        counts = torch.nn.functional.one_hot(labels[steps], classes).sum(1).double()
        return float(counts.var(0, unbiased=False).mean() / (batch / classes * (1 - 1 / classes)))

    assert clumping(by_class, torch.arange(n // batch * batch).view(-1, batch)) > 100
    assert clumping(by_class, table) < 3
    assert 0.9 < clumping(hashed, table) < 1.1

    def fetches(readers: int) -> float:
        """Of a group, with as many groups kept as a process keeps."""
        modified, found = row_groups.CACHE // (64 * 16_000), 0
        for reader in range(readers):
            latest: dict[int, None] = {}
            for step in of[table.view(len(table), readers, -1)[:, reader]].tolist():
                for group in step:
                    found += latest.pop(group, 0) is not None
                    latest[group] = None
                    if len(latest) > modified:
                        del latest[next(iter(latest))]
        return found / len(groups.bytes)

    assert fetches(1) == 1
    assert fetches(2) < 1.5


@pytest.mark.usefixtures("scattered")
def test_any_start_any_processes_and_any_workers_see_the_same_batches(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index([packed])
    assert index.groups is not None
    assert index.groups.exceeds_cache
    whole = list(batches_of(index, 8).epoch(2))
    indices = torch.cat([raw.index for raw in whole]).tolist()
    assert len(set(indices)) == 56
    plain = list(
        batches_of(build_index([packed.parent / "photos.pack"]), 8, in_memory=True).epoch(2)
    )
    assert alike(plain, whole)  # held in memory or not, which free memory decides
    assert alike(list(batches_of(index, 8).epoch(2, 3)), whole[3:])
    for workers in (1, 2):
        loaded = batches_of(index, 8, workers=workers)
        assert alike(list(loaded.epoch(2)), whole)
        assert alike(list(loaded.epoch(2, 5)), whole[5:])
    ranks = [
        batches_of(index, 4, rank=rank, world=2, workers=rank).epoch(2, 1) for rank in range(2)
    ]
    for step, parts in zip(whole[1:], zip(*ranks, strict=True), strict=True):
        assert torch.equal(torch.cat([part.index for part in parts]), step.index)
        assert torch.equal(torch.cat([part.pixels for part in parts]), step.pixels)
    alone = images_of(index)
    assert torch.equal(
        torch.cat([r.pixels for r in whole[:1]]),
        torch.stack([alone[int(index.train[i])] for i in indices[:8]]),
    )


@pytest.mark.usefixtures("scattered")
def test_each_group_of_a_large_store_is_read_about_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index([packed])
    groups = len(index.groups.group_of[index.train].unique())  # type: ignore[union-attr]
    read: list[int] = []
    real = row_cache.Shard.read_encoded
    monkeypatch.setattr(
        row_cache.Shard,
        "read_encoded",
        lambda self, *asked: (read.append(asked[0]), real(self, *asked))[1],
    )
    row_cache._cache.reset()
    list(batches_of(index, 4).epoch(0))
    assert groups <= len(read) <= 1.5 * groups
    read.clear()
    row_cache._cache.reset()
    images = images_of(index)
    features = extract(Mean(), images, torch.arange(75).flip(0), size=8, batch=10)
    assert len(read) <= 1.2 * len(index.groups.bytes)  # type: ignore[union-attr]
    expected = extract(
        Mean(), images_of(index, in_memory=True), torch.arange(75).flip(0), size=8, batch=10
    )
    assert torch.allclose(features, expected)
    read.clear()
    images.cache(torch.arange(0, 75, 3))
    before = len(read)
    for _ in range(3):
        images.__getitems__(list(range(0, 75, 3)))
    assert len(read) == before
    assert statistics(images, index.train, 20) == statistics(
        images_of(index, in_memory=True), index.train, 20
    )


class Mean(torch.nn.Module):
    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return views.mean(dim=(2, 3))


@pytest.mark.usefixtures("scattered")
def test_stopped_in_mid_epoch_and_resumed_from_a_pack(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [
        "--backbone",
        "test_resnet",
        "--size",
        "24",
        "--batch",
        "8",
        "--precision",
        "fp32",
        "--workers",
        "2",
    ]
    words = ["pretrain", "--data", str(packed), "--steps", "9", *small]
    monkeypatch.setattr("selftaught.data.loading.images.free_memory", lambda: 0)  # nothing is held
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    with stopped_at(4):
        assert main([*words, "--out", str(tmp_path / "parts")]) == 0
    assert run_folder.read_run(tmp_path / "parts").facts["outcome"] == "stopped"
    assert main(["pretrain", "--out", str(tmp_path / "parts"), "--resume", "--workers", "0"]) == 0
    one, other = (
        load_file(tmp_path / name / "backbone.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


# Far away


class Server:
    """Serves a folder over HTTP in a thread; `harm` may answer in its place."""

    def __init__(self, root: Path) -> None:
        self.harm: Callable[[web.Request], Awaitable[web.StreamResponse] | None] = lambda request: (
            None
        )
        self.requests: list[tuple[str, str]] = []
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()

        @web.middleware
        async def around(request: web.Request, handler: Any) -> web.StreamResponse:
            self.requests.append((request.path, request.headers.get("Range", "")))
            answer = self.harm(request)
            return await (answer or handler(request))  # type: ignore[no-any-return]

        async def start() -> None:
            app = web.Application(middlewares=[around])
            app.router.add_static("/", root, show_index=True)
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
            ready.set()

        def serve() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    server = Server(root)
    try:
        yield server
    finally:
        server.stop()


async def answered(status: int) -> web.StreamResponse:
    return web.Response(status=status)


async def broken_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=206, headers={"Content-Length": "100000", "Content-Range": "bytes 0-99999/200000"}
    )
    await response.prepare(request)
    await response.write(b"x" * 100)
    assert request.transport is not None
    request.transport.close()
    return response


def test_over_http_it_is_the_same_data_even_from_a_server_that_fails_now_and_then(
    packed: Path, tmp_path: Path
) -> None:
    here = build_index([packed])
    expected = list(batches_of(here).epoch(0))
    with serving(packed.parent) as server:
        url = f"{server.url}/photos.pack"
        count = 0

        harmed: set[tuple[str, str]] = set()  # two readers in turn could meet each failure

        def moody(request: web.Request) -> Awaitable[web.StreamResponse] | None:
            nonlocal count
            count += 1
            question = (request.path, request.headers.get("Range", ""))
            fails = count % 7 in (3, 5) and question not in harmed
            (harmed.add if fails else harmed.discard)(question)
            if not fails:
                return None
            return broken_off(request) if count % 7 == 5 and question[1] else answered(503)

        server.harm = moody
        index = build_index([url])
        assert index.fingerprint == here.fingerprint
        assert str(index.paths[0]).startswith("http:/")
        assert alike(list(batches_of(index).epoch(0)), expected)
        assert alike(list(batches_of(index, workers=2).epoch(0)), expected)
        assert verify(url).endswith("as they were written")
        assert count > 30
        ranges = [r for path, r in server.requests if path.endswith(".parquet")]
        assert ranges
        server.harm = lambda request: None
        single = build_index([f"{url}/train-00000-of-00001.parquet"])  # of a pack just a file
        assert len(single) == 60
        assert len(build_index([server.url + "/photos.pack/"])) == 75


@pytest.mark.usefixtures("scattered")
def test_over_http_a_large_pack_comes_in_parts_and_what_fails_is_one_line(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(packed.parent) as server:
        url = f"{server.url}/photos.pack"
        index = build_index([url])
        expected = list(batches_of(build_index([packed])).epoch(0))
        server.requests.clear()
        assert alike(list(batches_of(index).epoch(0)), expected)
        parts = [r for path, r in server.requests if r]
        assert 15 <= len(parts) <= 30  # 15 row groups, footers, and little twice
        server.harm = lambda request: answered(404) if "train" in request.path else None
        row_cache._cache.reset()
        with pytest.raises(UserError, match=r"no image can be read any more.*no such file"):
            list(batches_of(index).epoch(0))
        server.harm = lambda request: (
            web_whole(packed) if "train" in request.path and request.method == "GET" else None
        )
        row_cache._cache.reset()
        with pytest.raises(UserError, match="Range"):
            list(batches_of(index).epoch(0))
        assert "is no pack" in refused(["pack", "--verify", f"{server.url}/none"], capsys)
    row_cache._cache.reset()
    for read in (
        lambda: list(batches_of(index, workers=1).epoch(0)),
        lambda: extract(Mean(), images_of(index), index.train, size=8, workers=1),
    ):
        with pytest.raises(
            UserError, match=r"cannot be read after 5 tries \(.*credentials"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert "after 5 tries" in refused(
        ["pretrain", "--data", url, "--out", str(tmp_path / "run")], capsys
    )


async def web_whole(packed: Path) -> web.StreamResponse:
    return web.Response(body=(packed / "train-00000-of-00001.parquet").read_bytes())


def test_hugging_face_files_over_http(folder: Path, tmp_path: Path) -> None:
    root = hugging_face(tmp_path / "hf", folder)
    with serving(tmp_path) as server:
        index = build_index([f"{server.url}/hf"])
        assert index.fingerprint == build_index([root]).fingerprint
        server.requests.clear()
        row_cache._cache.reset()
        assert build_index([f"{server.url}/hf"]).fingerprint == index.fingerprint
        # small columns alone: what was decoded is remembered
        assert sum(bool(r) for _, r in server.requests) < 45
        with pytest.raises(UserError, match="no pack"):
            build_index([f"{server.url}/nothing"])


def hub(root: Path, folder: Path) -> Path:
    """The same files, as the hub converts a set."""
    content = hugging_face(root.with_name("written"), folder)
    for split in ("train", "validation"):
        place = root / "default" / split
        place.mkdir(parents=True)
        shutil.move(content / f"{split}-00000-of-00001.parquet", place / "0000.parquet")
    return root


def test_a_folder_of_the_hub_over_http(folder: Path, tmp_path: Path) -> None:
    here = build_index([hub(tmp_path / "hub", folder)])
    with serving(tmp_path) as server:  # which does not tell folders from files
        index = build_index([f"{server.url}/hub"])
    assert (index.fingerprint, index.split, len(index.held_out)) == (here.fingerprint, "given", 15)


def test_from_s3(
    packed: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        import s3fs

        s3 = s3fs.S3FileSystem()
        s3.mkdir("bucket")
        s3.put(str(packed), "bucket/photos.pack", recursive=True)
        index, here = build_index(["s3://bucket/photos.pack"]), build_index([packed])
        assert index.fingerprint == here.fingerprint
        expected = list(batches_of(here).epoch(0))
        assert alike(list(batches_of(index).epoch(0)), expected)
        assert alike(list(batches_of(index, workers=2).epoch(0)), expected)
        s3.put(str(hugging_face(tmp_path / "hf", folder)), "bucket/hf/data", recursive=True)
        assert len(build_index(["s3://bucket/hf"])) == 45
        with pytest.raises(UserError, match="no pack"):
            build_index(["s3://bucket/none"])
        here = build_index([hub(tmp_path / "hub", folder)])
        s3.put(str(tmp_path / "hub"), "bucket/hub", recursive=True)
        assert build_index(["s3://bucket/hub"]).fingerprint == here.fingerprint
        s3.put(str(tmp_path / "hub" / "default"), "bucket/hub/other", recursive=True)
        with pytest.raises(UserError, match="default, other"):
            build_index(["s3://bucket/hub"])
        assert build_index(["s3://bucket/hub/other"]).fingerprint == here.fingerprint
    finally:
        server.stop()
