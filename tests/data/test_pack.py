"""Packs: written whole; read here, over HTTP and from S3 as the folder is, in an order that can be
resumed.
"""

import asyncio
import io
import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
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
from selftaught.data.loading.loader import Batches
from selftaught.data.pack import write
from selftaught.data.pack.encode import Encoding
from selftaught.data.pack.write import pack, verify
from selftaught.data.parquet import row_cache, row_groups
from selftaught.data.parquet.row_groups import Groups
from selftaught.errors import UserError
from selftaught.features.extract import extract
from selftaught.runs import folder as run_folder
from tests.data.image_files import encoded, same_batches
from tests.stopping import stopped_at

SKIPPED = "needs the extra that reads packs: pip install -e '.[dev]'"
pa = pytest.importorskip("pyarrow", reason=SKIPPED)
pq = pytest.importorskip("pyarrow.parquet", reason=SKIPPED)
web = pytest.importorskip("aiohttp.web", reason=SKIPPED)
pytest.importorskip("fsspec", reason=SKIPPED)

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


@pytest.fixture(scope="module")
def here(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index([packed], cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index([folder], cache=tmp_path_factory.mktemp("cache"))


def images_of(index: Index, in_memory: bool | None = False, canvas: int = 24) -> Images:
    return Images(index.paths, index.sizes, canvas, in_memory, groups=index.groups)


def batches_of(index: Index, batch: int = 8, in_memory: bool = False, **more: Any) -> Batches:
    images = images_of(index, in_memory)
    return Batches(images, index.train, index.labels, batch=batch, seed=3, **more)


def contents(out: Path) -> dict[str, bytes]:
    """Of every file but the lock."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"}


def times(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}


def pairs(place: Path, out: Path) -> tuple[Index, Index]:
    """The indices of a folder and of its pack, which have the same classes."""
    one, other = build_index([place]), build_index([pack([place], out, PNG)])
    assert one.classes == other.classes
    return one, other


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    return next(line for line in lines if line.startswith("selftaught:"))


# What is written


def test_a_pack_has_the_index_of_its_folder(
    folder: Path, packed: Path, plain: Index, here: Index, tmp_path: Path
) -> None:
    one, other = plain, here
    assert (one.names, one.classes, one.split) == (other.names, other.classes, other.split)
    assert other.split == "given"
    for field in ("sizes", "labels", "test"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert one.subset("5", 0).names == other.subset("5", 0).names
    half = other.subset("50%", 0)
    assert len(half.groups.group_of) == len(half)
    copied = build_index([shutil.copytree(packed, tmp_path / "elsewhere")])
    assert copied.fingerprint == other.fingerprint
    assert copied.paths != other.paths
    assert build_index([folder], labels="none").fingerprint != other.fingerprint
    assert build_index([packed], labels="none").labels is None
    assert torch.equal(build_index([packed], labels="folders").labels, one.labels)
    sample = pack([folder / "train"], tmp_path / "drawn.pack", PNG)
    tests = [build_index([place], seed=4).test for place in (sample, folder / "train")]
    assert torch.equal(*tests)


def test_a_pack_has_the_split_and_the_labels_of_folders_by_other_names(tmp_path: Path) -> None:
    place = photos(tmp_path / "set", each=3)
    for name, other in (("train", "train_set"), ("test", "val2017")):
        (place / name).rename(place / other)
    (place / "train_set" / "class 2").rename(place / "unlabeled")
    one, other = pairs(tmp_path, tmp_path / "p.pack")
    assert (one.names, one.split) == (other.names, other.split)
    assert (len(one), one.split, int((one.labels < 0).sum())) == (24, "given", 3)
    for field in ("labels", "test"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    # the pack that lies there now is not read with the others
    assert build_index([tmp_path]).fingerprint == one.fingerprint


@pytest.mark.parametrize(("in_memory", "workers"), [(True, 0), (False, 0), (False, 2)])
def test_full_size_png_trains_on_the_batches_of_the_folder(
    plain: Index, here: Index, in_memory: bool, workers: int
) -> None:
    epochs = [
        list(batches_of(index, in_memory=in_memory, workers=workers).epoch(1))
        for index in (plain, here)
    ]
    assert same_batches(*epochs)
    if not workers:
        one, other = (statistics(images_of(i, in_memory), torch.arange(60)) for i in (plain, here))
        assert one == other


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
    rows = file.read().to_pylist()
    assert (rows[0]["height"], rows[0]["width"]) == (24, 30)
    names = [row["image"]["path"] for row in rows]
    assert names[0].startswith("train/class ")
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


def test_labels_and_the_split_of_a_table_are_kept(tmp_path: Path) -> None:
    place = photos(tmp_path / "photos", each=3) / "train"

    def pairs_by(name: str, header: str, rows: list[str]) -> tuple[Index, Index]:
        (place / "labels.csv").write_text("\n".join([header, *rows]))
        return pairs(place, tmp_path / f"{name}.pack")

    rows = ["class 0/000,sun|sea", "class 0/001,", "class 1/000,sea", "class 2/002,sun"]
    one, other = pairs_by("several", "path,class", rows)
    assert torch.equal(one.labels, other.labels)
    assert (one.labels.dim(), one.classes) == (2, ("sea", "sun"))
    one, other = pairs_by("few", "path,class", ["class 0/000,sun", "class 1/000,sea"])
    assert torch.equal(one.labels, other.labels)
    assert int((other.labels < 0).sum()) == 7
    kinds = [(k, kind, i) for k, kind in enumerate("xyz") for i in range(3)]
    rows = [f"class {k}/00{i},{kind},{'train' if i else 'test'}" for k, kind, i in kinds]
    one, other = pairs_by("split", "path,class,split", rows)
    assert (one.split, other.split) == ("table", "given")
    names = [{str(index.names[i]) for i in index.held_out.tolist()} for index in (one, other)]
    assert {f"test/{name}" for name in names[0]} == names[1]
    assert len(other.held_out) == 3


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

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return real(*arguments)

    monkeypatch.setattr(write, "encode", slow)
    fork, shards = get_context("fork"), {"shard": 20}
    victim = fork.Process(target=pack, args=([folder], out, PNG), kwargs=shards)
    victim.start()
    second = out / "train-00001-of-00006.parquet"
    while victim.is_alive() and not (second.exists() and list(out.glob(".*.parquet"))):
        time.sleep(0.005)
    assert victim.is_alive()
    victim.kill()
    victim.join()
    assert list(out.glob(".*.parquet"))  # in the middle of a shard
    with pytest.raises(UserError, match="not finished: run the same"):
        build_index([out])
    first, modified = "train-00000-of-00006.parquet", times(out)
    monkeypatch.setattr(write, "encode", real)
    pack([folder], out, PNG, shard=20)
    assert contents(out) == contents(whole)
    assert times(out)[first] == modified[first]  # gone on with, not begun anew
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
    before = times(Path(out))
    assert main(words) == 0
    assert "done already" in capsys.readouterr().err
    assert times(Path(out)) == before
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
    data[1000] ^= 1
    assert main(["pack", "--verify", str(out)]) == 0
    file.unlink() if harm == "gone" else file.write_bytes(data[:-100] if harm == "cut" else data)
    assert file.name in refused(["pack", "--verify", str(out)], capsys)
    if harm != "flip":  # which costs too much to see each time
        with pytest.raises(UserError, match=f"{file.name} is (damaged|missing)"):
            build_index([out])
        return
    index = build_index([out])
    images = images_of(index)
    assert len(list(Batches(images, index.train, None, batch=4, seed=0).epoch(0))) == 15
    assert len(images.lost) == 4  # of one row group, and others stand in for them
    assert all("damaged" in reason for _, reason in images.lost)


NO_MANIFESTS = [
    *("", '{"format": 1, "shar', "\x82\x00", "null", "[]", "{}", None),  # None: a folder
    *('{"format": 1, "shards": [], "finished": true}', {"settings": 5}, {"shards": [5]}),
    *({"sha256": "no sum"}, {"index": {"file": "../x"}}),
]


@pytest.mark.parametrize("harm", NO_MANIFESTS)
def test_a_damaged_manifest_is_one_line(
    packed: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Any
) -> None:
    out = shutil.copytree(packed, tmp_path / "p.pack")
    file = out / "pack.json"
    content = json.loads(file.read_text())
    file.unlink()
    if harm is None:
        file.mkdir()
    elif isinstance(harm, str):
        file.write_bytes(harm.encode("latin-1"))
    else:
        if "sha256" in harm:
            harm = {"shards": [shard | harm for shard in content["shards"]]}
        file.write_text(json.dumps(content | harm))
    for words in (["pack", "--verify", str(out)], ["pack", str(folder), "--out", str(out)]):
        assert "pack.json" in refused(words, capsys)
    with pytest.raises(UserError, match=r"pack\.json"):
        build_index([out])


def test_a_pack_of_other_pixels_is_other_data(tmp_path: Path) -> None:
    """Of the same names and sizes in bytes; and the same pack elsewhere is the same."""
    root, packs = tmp_path / "photos", []
    root.mkdir()
    for number in (0, 1):
        for i in range(9):
            Image.new("L", (9, 9), i + 100 * number).save(root / f"{i}.bmp")
        packs.append(pack([root], tmp_path / f"{number}.pack", PNG))
    one, other = (build_index([place]) for place in packs)
    assert one.names == other.names
    assert one.fingerprint != other.fingerprint
    moved = shutil.copytree(packs[0], tmp_path / "moved")
    assert build_index([moved]).fingerprint == one.fingerprint


def test_a_pack_that_is_none(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a", "{"), ("b", '{"format": 99, "shards": []}')):
        shutil.copytree(packed, tmp_path / f"{name}.pack")
        (tmp_path / f"{name}.pack" / "pack.json").write_text(content)
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "y.parquet")
    for place, message in (
        (tmp_path / "a.pack", r"pack\.json is damaged"),
        (tmp_path / "b.pack", "another version"),
        (tmp_path / "x.parquet", r"x\.parquet cannot be read \(damaged"),
        (tmp_path / "y.parquet", "has no images"),
        (tmp_path / "none.pack", "no such file"),
        ("https://me:secret@host/p.pack", "query or a password"),
    ):
        with pytest.raises(UserError, match=message):
            build_index([place])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'selftaught\[pack\]'"):
        build_index([packed])


# What others wrote


def hugging_face(root: Path, folder: Path, *, names: bool = True) -> Path:
    """The images of `folder` as `datasets` would write them: no sizes, a class label, splits in the
    files' names.
    """
    index = build_index([folder])
    root.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64()), ("note", pa.string())])
    label = {"names": ["zebra", "ape", "bee"], "_type": "ClassLabel"}
    note = {"dtype": "string", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label, "note": note}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for split, positions in (("train", index.train[:30]), ("validation", index.held_out)):
        paths = [index.paths[i] for i in positions]
        images = [{"bytes": p.read_bytes(), "path": p.name if names else None} for p in paths]
        labels = index.labels[positions].tolist()
        table = pa.table({"image": images, "label": labels, "note": ["x"] * len(paths)}, schema)
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=8)
    return root


@pytest.mark.parametrize("names", [True, False])
def test_hugging_face_files_are_read_as_they_are(
    folder: Path, plain: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: bool
) -> None:
    root, moved = hugging_face(tmp_path / "hf", folder, names=names), tmp_path / "moved"
    measured: list[str] = []
    real = huggingface.measure
    monkeypatch.setattr(huggingface, "measure", lambda *a: (measured.append(a[0]), real(*a))[1])
    index = build_index([root])
    assert len(measured) == len(index) == 45
    assert (index.classes, index.split) == (("zebra", "ape", "bee"), "given")
    assert int(index.test.sum()) == 15
    assert index.sizes.tolist() == [[24, 30]] * 45
    assert any("columns not used: note" in note for note in index.notes)
    again = build_index([root])
    assert len(measured) == 45  # remembered
    assert again.fingerprint == index.fingerprint
    assert torch.equal(again.sizes, index.sizes)
    shutil.move(root, moved)
    assert build_index([moved]).fingerprint == index.fingerprint
    pixels = {image.numpy().tobytes() for image in images_of(plain)}
    assert all(image.numpy().tobytes() in pixels for image in images_of(build_index([moved])))
    single = build_index([moved / "train-00000-of-00001.parquet"])
    assert (len(single), single.split) == (30, "drawn")


def test_columns_of_other_makes(tmp_path: Path) -> None:
    def index_of(columns: dict[str, list[Any]]) -> Index:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return build_index([tmp_path / "a.parquet"])

    data = [encoded(Image.new("RGB", (30, 24), (i, 9, 9))) for i in range(20)]
    index = index_of({"img": data, "label": ["b", "a"] * 9 + ["a", None]})
    assert index.classes == ("a", "b")
    assert int((index.labels < 0).sum()) == 1
    data[3] = b"no image"
    index = index_of({"png": data, "labels": [[0, 2], [], [2]] * 6 + [None, [0]]})
    assert (index.classes, index.labels.shape) == (("0", "2"), (19, 2))
    assert index.unreadable[0][1].startswith("not an image")
    assert index.unreadable[0][0].endswith("a.parquet/3")
    sizes = {"height": [24] * 16, "width": [30] * 16}
    index = index_of({"jpg": data[4:], "label": [-1] * 16, **sizes})
    assert index.labels is None
    assert index.sizes.tolist() == [[24, 30]] * 16


def test_a_folder_of_images_beside_a_table_stays_one_and_both_kinds_go_together(
    packed: Path, tmp_path: Path
) -> None:
    place = photos(tmp_path / "photos", each=3)
    pq.write_table(pa.table({"a": [1]}), place / "table.parquet")
    assert len(build_index([place])) == 24
    index = build_index([place / "train", packed, packed])
    assert (len(index), index.classes) == (9 + 75, ("class 0", "class 1", "class 2"))
    assert bool(index.labelled.all())
    batches = Batches(images_of(index), torch.arange(84), index.labels, batch=21, seed=0)
    raws = list(batches.epoch(0))
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
        modified, actual = row_groups.CACHE // (64 * 16_000), 0
        for reader in range(readers):
            latest: dict[int, None] = {}
            for step in of[table.view(len(table), readers, -1)[:, reader]].tolist():
                for group in step:
                    actual += latest.pop(group, 0) is not None
                    latest[group] = None
                    if len(latest) > modified:
                        del latest[next(iter(latest))]
        return actual / len(groups.bytes)

    assert fetches(1) == 1
    assert fetches(2) < 1.5


@pytest.mark.usefixtures("scattered")
def test_any_start_any_processes_and_any_workers_see_the_same_batches(here: Index) -> None:
    assert here.groups is not None
    assert here.groups.exceeds_cache
    whole = list(batches_of(here, 8).epoch(2))
    indices = torch.cat([raw.index for raw in whole]).tolist()
    assert len(set(indices)) == 56
    in_memory = list(batches_of(here, 8, in_memory=True).epoch(2))
    assert same_batches(in_memory, whole)  # held in memory or not, which free memory decides
    assert same_batches(list(batches_of(here, 8).epoch(2, 3)), whole[3:])
    for workers in (1, 2):
        loaded = batches_of(here, 8, workers=workers)
        assert same_batches(list(loaded.epoch(2)), whole)
        assert same_batches(list(loaded.epoch(2, 5)), whole[5:])
    ranks = [batches_of(here, 4, rank=r, world=2, workers=r).epoch(2, 1) for r in range(2)]
    for step, parts in zip(whole[1:], zip(*ranks, strict=True), strict=True):
        assert torch.equal(torch.cat([part.index for part in parts]), step.index)
        assert torch.equal(torch.cat([part.pixels for part in parts]), step.pixels)
    alone = images_of(here)
    first = torch.stack([alone[int(here.train[i])] for i in indices[:8]])
    assert torch.equal(whole[0].pixels, first)


@pytest.mark.usefixtures("scattered")
def test_each_group_of_a_large_store_is_read_about_once(
    here: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = len(here.groups.group_of[here.train].unique())
    read: list[int] = []
    shard = row_cache.Shard
    real = shard.read_encoded
    monkeypatch.setattr(shard, "read_encoded", lambda *a: (read.append(a[1]), real(*a))[1])
    row_cache._cache.reset()
    list(batches_of(here, 4).epoch(0))
    assert groups <= len(read) <= 1.5 * groups
    images, in_memory, order = images_of(here), images_of(here, True), torch.arange(75).flip(0)
    read.clear()
    row_cache._cache.reset()
    features = extract(Mean(), images, order, size=8, batch=10)
    assert len(read) <= 1.2 * len(here.groups.bytes)
    assert torch.allclose(features, extract(Mean(), in_memory, order, size=8, batch=10))
    images.cache(torch.arange(0, 75, 3))
    before = len(read)
    for _ in range(3):
        images.__getitems__(list(range(0, 75, 3)))
    assert len(read) == before
    assert statistics(images, here.train, 20) == statistics(in_memory, here.train, 20)


class Mean(torch.nn.Module):
    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return views.mean(dim=(2, 3))


@pytest.mark.usefixtures("scattered", "quick_scores")
def test_stopped_in_mid_epoch_and_resumed_from_a_pack(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selftaught.data.loading.images.free_memory", lambda: 0)  # nothing is held
    small = shlex.split("--backbone test_resnet --size 24 --batch 8 --precision fp32 --steps 9")
    words, runs = ["pretrain", "--data", str(packed), *small], [tmp_path / n for n in "ab"]
    assert main([*words, "--workers", "0", "--out", str(runs[0])]) == 0
    with stopped_at(4):
        assert main([*words, "--workers", "2", "--out", str(runs[1])]) == 0
    assert run_folder.read_run(runs[1]).facts["outcome"] == "stopped"
    assert main(["pretrain", "--out", str(runs[1]), "--resume", "--workers", "0"]) == 0
    one, other = (load_file(run / "backbone.safetensors") for run in runs)
    assert all(torch.equal(one[key], other[key]) for key in one)


# Far away


@contextmanager
def serving(root: Path) -> Iterator[SimpleNamespace]:
    """Serves a folder over HTTP in a thread; `harm` may answer in its place."""
    server = SimpleNamespace(harm=lambda request: None, requests=[])
    loop = asyncio.new_event_loop()

    @web.middleware
    async def around(request: web.Request, handler: Any) -> web.StreamResponse:
        server.requests.append((request.path, request.headers.get("Range", "")))
        return await (server.harm(request) or handler(request))

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    app = web.Application(middlewares=[around])
    app.router.add_static("/", root, show_index=True)
    runner = web.AppRunner(app)
    loop.run_until_complete(start())
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def answered(status: int) -> web.StreamResponse:
    return web.Response(status=status)


async def broken_off(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Length": "100000", "Content-Range": "bytes 0-99999/200000"}
    response = web.StreamResponse(status=206, headers=headers)
    await response.prepare(request)
    await response.write(b"x" * 100)
    request.transport.close()
    return response


async def whole_file(packed: Path) -> web.StreamResponse:
    return web.Response(body=(packed / "train-00000-of-00001.parquet").read_bytes())


def test_over_http_it_is_the_same_data_even_from_a_server_that_fails_now_and_then(
    packed: Path, here: Index
) -> None:
    expected = list(batches_of(here).epoch(0))
    count, harmed = 0, set[tuple[str, str]]()  # two readers in turn could meet each failure

    def fail_sometimes(request: web.Request) -> Awaitable[web.StreamResponse] | None:
        nonlocal count
        count += 1
        question = (request.path, request.headers.get("Range", ""))
        fails = count % 7 in (3, 5) and question not in harmed
        (harmed.add if fails else harmed.discard)(question)
        if not fails:
            return None
        return broken_off(request) if count % 7 == 5 and question[1] else answered(503)

    with serving(packed.parent) as server:
        url = f"{server.url}/photos.pack"
        server.harm = fail_sometimes
        index = build_index([url])
        assert index.fingerprint == here.fingerprint
        assert str(index.paths[0]).startswith("http:/")
        assert same_batches(list(batches_of(index).epoch(0)), expected)
        assert same_batches(list(batches_of(index, workers=2).epoch(0)), expected)
        assert verify(url).endswith("as they were written")
        assert count > 30
        assert any(range for path, range in server.requests if path.endswith(".parquet"))
        server.harm = lambda request: None
        assert len(build_index([f"{url}/train-00000-of-00001.parquet"])) == 60  # just a file of it
        assert len(build_index([f"{url}/"])) == 75


@pytest.mark.usefixtures("scattered")
def test_over_http_a_large_pack_comes_in_parts_and_what_fails_is_one_line(
    packed: Path, here: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = list(batches_of(here).epoch(0))
    with serving(packed.parent) as server:
        url = f"{server.url}/photos.pack"
        index = build_index([url])
        server.requests.clear()
        assert same_batches(list(batches_of(index).epoch(0)), expected)
        # 15 row groups, footers, and little twice
        assert 15 <= sum(bool(range) for _, range in server.requests) <= 30
        for harm, message in (
            (lambda r: answered(404), r"no image can be read any more.*no such file"),
            (lambda r: whole_file(packed) if r.method == "GET" else None, "Range"),
        ):
            server.harm = lambda r, harm=harm: harm(r) if "train" in r.path else None
            row_cache._cache.reset()
            with pytest.raises(UserError, match=message):
                list(batches_of(index).epoch(0))
        assert "is no pack" in refused(["pack", "--verify", f"{server.url}/none"], capsys)
    row_cache._cache.reset()
    for read in (
        lambda: list(batches_of(index, workers=1).epoch(0)),
        lambda: extract(Mean(), images_of(index), index.train, size=8, workers=1),
    ):
        with pytest.raises(UserError, match=r"after 5 tries \(.*credentials") as caught:
            read()
        assert "\n" not in str(caught.value)
    words = ["pretrain", "--data", url, "--out", str(tmp_path / "run")]
    assert "after 5 tries" in refused(words, capsys)


def test_hugging_face_files_over_http_in_a_folder_of_their_own_or_of_the_hub(
    folder: Path, tmp_path: Path
) -> None:
    here = build_index([hugging_face(tmp_path / "hf", folder)])
    hub = build_index([as_hub(tmp_path / "hub", tmp_path / "hf")])
    with serving(tmp_path) as server:  # which does not tell folders from files
        assert build_index([f"{server.url}/hf"]).fingerprint == here.fingerprint
        server.requests.clear()
        row_cache._cache.reset()
        assert build_index([f"{server.url}/hf"]).fingerprint == here.fingerprint
        # small columns alone: what was decoded is remembered
        assert sum(bool(range) for _, range in server.requests) < 45
        with pytest.raises(UserError, match="no pack"):
            build_index([f"{server.url}/nothing"])
        index = build_index([f"{server.url}/hub"])
    assert (index.fingerprint, index.split, len(index.held_out)) == (hub.fingerprint, "given", 15)


def as_hub(root: Path, written: Path) -> Path:
    """The same files, as the hub converts a set."""
    for split in ("train", "validation"):
        (root / "default" / split).mkdir(parents=True)
        file = written / f"{split}-00000-of-00001.parquet"
        shutil.copy(file, root / "default" / split / "0000.parquet")
    return root


def test_from_s3(
    packed: Path, here: Index, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # these take long to import, and nothing else needs them
    s3fs = pytest.importorskip("s3fs", reason=SKIPPED)
    moto = pytest.importorskip("moto.server", reason=SKIPPED)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        s3 = s3fs.S3FileSystem()
        s3.mkdir("bucket")
        hf = hugging_face(tmp_path / "hf", folder)
        hub = as_hub(tmp_path / "hub", hf)
        for place, key in ((packed, "photos.pack"), (hf, "hf/data"), (hub, "hub")):
            s3.put(str(place), f"bucket/{key}", recursive=True)
        index = build_index(["s3://bucket/photos.pack"])
        assert index.fingerprint == here.fingerprint
        expected = list(batches_of(here).epoch(0))
        assert same_batches(list(batches_of(index).epoch(0)), expected)
        assert same_batches(list(batches_of(index, workers=2).epoch(0)), expected)
        assert len(build_index(["s3://bucket/hf"])) == 45
        with pytest.raises(UserError, match="no pack"):
            build_index(["s3://bucket/none"])
        on_disk = build_index([hub]).fingerprint
        assert build_index(["s3://bucket/hub"]).fingerprint == on_disk
        s3.put(str(hub / "default"), "bucket/hub/other", recursive=True)
        with pytest.raises(UserError, match="default, other"):
            build_index(["s3://bucket/hub"])
        assert build_index(["s3://bucket/hub/other"]).fingerprint == on_disk
    finally:
        server.stop()
