"""Pixels that are not of 8 bits and sRGB: one scaling for a whole set, in training, evaluation and
packing.
"""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import selftaught
from selftaught.cli import flags
from selftaught.config.stage import Data, Stage
from selftaught.data import decode as decode_module
from selftaught.data.decode import decode, measure, pixels, squash
from selftaught.data.index.build import Index, build_index
from selftaught.data.io import parallel
from selftaught.data.io.integrity import Unreadable
from selftaught.data.io.parallel import run_parallel
from selftaught.data.pack.encode import Encoding
from selftaught.data.pixel_range import FLOATS, INTEGERS, PixelRange, measure_range, to_eight_bits
from selftaught.errors import UserError
from selftaught.evaluation import evaluate
from selftaught.loggers.terminal import Progress
from selftaught.models import backbone
from selftaught.models.weights import io as weights_io
from selftaught.runs import folder as run_folder
from selftaught.training import trainer
from selftaught.training.session import build_session

SIDE = 24


def ramp(k: int = 0) -> np.ndarray:
    """A smooth picture in [0, 1] of which all values are used."""
    return np.roll(np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE), k, axis=1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits with 2, 3 or 4 channels."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {2: 4, 3: 2, 4: 6}[values.shape[2]]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray, order: str = "<", compressed: bool = False, **tags: int) -> bytes:
    """A TIFF of one page: [h, w], [h, w, 3] or, in planes, [3, h, w]."""
    planes = values.ndim == 3 and values.shape[0] == 3
    height, width = values.shape[1:] if planes else values.shape[:2]
    n = 3 if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order))
    parts = [
        zlib.compress(p.tobytes()) if compressed else p.tobytes()
        for p in (data if planes else [data])
    ]
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = {
        256: width,
        257: height,
        258: values.itemsize * 8,
        259: 8 if compressed else 1,
        262: 2 if n == 3 else 1,
    }
    entries |= {277: n, 278: height, 284: 2 if planes else 1, 339: form} | {
        int(t[1:]): v for t, v in tags.items()
    }
    many: dict[int, list[int]] = {258: [entries[258]] * n, 339: [form] * n}
    at, starts = 8, []
    for part in parts:
        starts.append(at)
        at += len(part) + len(part) % 2
    many |= {273: starts, 279: [len(p) for p in parts]}
    directory, more = b"", b""
    keys = sorted({*entries, *many})
    after = at + 2 + 12 * len(keys) + 4
    for key in keys:
        results = many.get(key, [entries.get(key, 0)])
        kind, code, size = (3, "H", 2) if key in (258, 259, 262, 277, 284, 339) else (4, "I", 4)
        packed = struct.pack(f"{order}{len(results)}{code}", *results)
        if size * len(results) > 4:
            packed, more = struct.pack(order + "I", after + len(more)), more + packed
        directory += struct.pack(order + "HHI", key, kind, len(results)) + packed.ljust(4, b"\0")
    body = b"".join(part + bytes(len(part) % 2) for part in parts)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + body + struct.pack(order + "H", len(keys)) + directory + bytes(4) + more


def saved(values: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


def put(folder: Path, *files: bytes, suffix: str = "tif") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(files):
        (folder / f"{k:02}.{suffix}").write_bytes(data)
    return folder


def spread(grey: np.ndarray) -> tuple[int, int]:
    return int(grey.min()), int(grey.max())


# What a set holds -> the values that are black and white. Every image is the ramp, brought to these
# values.
SETS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[float, float]]] = {
    "8 bits in 16": (lambda g: (g * 255).astype("u2"), (0, 255)),
    "10 bits in 16": (lambda g: (g * 1023).astype("u2"), (0, 1023)),
    "12 bits in 16": (lambda g: (g * 4095).astype("u2"), (0, 4095)),
    "14 bits in 16": (lambda g: (g * 16383).astype("u2"), (0, 16383)),
    "16 bits": (lambda g: (g * 65535).astype("u2"), (0, 65535)),
    "20 bits in 32": (lambda g: (g * (2**20 - 1)).astype("i4"), (0, 2**20 - 1)),
    "32 bits, unsigned": (lambda g: (g * (2.0**32 - 1)).astype("u4"), (0, 2**32 - 1)),
    "Hounsfield units": (lambda g: (g * 4095 - 1024).astype("i2"), (-1024, 3071)),
    "Kelvin times 100": (lambda g: (g * 5000 + 27315).astype("u2"), (27315, 32315)),
    "floats to 1": (lambda g: g.astype("f4"), (0, 1)),
    "floats a hair above 1": (lambda g: (g * 1.002).astype("f4"), (0, 1)),
    "floats to 255": (lambda g: (g * 255).astype("f4"), (0, 255)),
    "floats around 0": (lambda g: (g * 6 - 3).astype("f4"), (-3, 3)),
    "small floats": (lambda g: (g * 0.03).astype("f4"), (0, 0.03)),
    "doubles": (lambda g: g, (0, 1)),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_shown_by_its_own_range(
    tmp_path: Path, name: str, compressed: bool, order: str
) -> None:
    make, (low, high) = SETS[name]
    index = build_index(
        [put(tmp_path / "set", *(tiff(make(ramp(k)), order, compressed) for k in range(4)))]
    )
    assert index.unreadable == ()
    assert index.pixel_range is not None
    pair = (
        index.pixel_range.floats if make(ramp()).dtype.kind == "f" else index.pixel_range.integers
    )
    assert pair == pytest.approx((low, high), abs=0.01 * (high - low))
    for k, path in enumerate(index.paths):
        grey = np.asarray(decode(path, index.pixel_range))[..., 0]
        assert np.abs(grey - ramp(k) * 255).max() < 4
    assert len(index.notes) == 1


@pytest.mark.parametrize("name", ["12 bits in 16", "16 bits"])
def test_a_png_as_a_tiff(tmp_path: Path, name: str) -> None:
    make, (low, high) = SETS[name]
    index = build_index(
        [put(tmp_path / "set", *(saved(make(ramp(k)), "PNG") for k in range(4)), suffix="png")]
    )
    assert index.pixel_range == PixelRange((low, high))
    assert (
        np.abs(np.asarray(decode(index.paths[1], index.pixel_range))[..., 0] - ramp(1) * 255).max()
        < 2
    )


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize(
    "kind", ["png", "alpha", "grey, alpha", "tiff", "big-endian", "compressed", "planes"]
)
def test_colours_of_more_than_8_bits_keep_them(tmp_path: Path, kind: str, bits: int) -> None:
    top = 2**bits - 1
    rgb = (np.stack([ramp(), ramp(3), 1 - ramp()], -1) * top).astype("u2")
    alpha = np.full((SIDE, SIDE, 1), 65535, "u2")
    data = {
        "png": lambda: png16(rgb),
        "alpha": lambda: png16(np.concatenate([rgb, alpha], -1)),
        "grey, alpha": lambda: png16(np.concatenate([rgb[..., :1], alpha], -1)),
        "tiff": lambda: tiff(rgb),
        "big-endian": lambda: tiff(rgb, ">"),
        "compressed": lambda: tiff(rgb, compressed=True),
        "planes": lambda: tiff(rgb.transpose(2, 0, 1)),
    }[kind]()
    index = build_index([put(tmp_path / "set", data, data, suffix="png")])
    assert index.pixel_range == PixelRange((0, top))
    wanted = rgb[..., :1].repeat(3, -1) if kind.startswith("grey") else rgb
    assert (
        np.abs(np.asarray(decode(index.paths[0], index.pixel_range)) - wanted * (255 / top)).max()
        <= 0.51
    )
    assert (
        np.abs(
            squash(index.paths[0], SIDE, index.pixel_range).permute(1, 2, 0).numpy()
            - wanted * (255 / top)
        ).max()
        <= 0.51
    )


def test_where_0_is_white_and_where_nothing_was_measured(tmp_path: Path) -> None:
    values = (ramp() * 4095).astype("u2")
    inverted = put(tmp_path / "inverted", tiff(values, t262=0), tiff(values, ">", t262=0))
    for path in sorted(inverted.iterdir()):
        assert (
            np.abs(
                np.asarray(decode(path, PixelRange((0, 4095))))[..., 0] - (255 - ramp() * 255)
            ).max()
            < 1
        )
    marked = Image.fromarray(ramp().astype("f4"))
    out = io.BytesIO()
    floats = np.asarray(marked).copy()
    floats[:12] = -9999
    Image.fromarray(floats).save(out, "TIFF", tiffinfo={42113: "-9999"})  # as GDAL notes it
    index = build_index([put(tmp_path / "marked", out.getvalue(), out.getvalue())])
    assert index.pixel_range == PixelRange(floats=(0, 1)) or index.pixel_range.floats[0] > 0.4  # type: ignore[union-attr, index]
    grey = np.asarray(decode(index.paths[0], index.pixel_range))[..., 0]
    assert spread(grey[:12]) == (0, 0)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -3.4e38, 3.4e38])
@pytest.mark.parametrize("share", [0.0005, 0.3, 1.0])
def test_floats_that_are_no_numbers(tmp_path: Path, odd: float, share: float) -> None:
    values = ramp().astype("f4").reshape(-1)
    values[: max(int(share * values.size), 1)] = odd
    data = tiff(values.reshape(SIDE, SIDE))
    index = build_index([put(tmp_path / "set", data, tiff(ramp().astype("f4")), data)])
    assert index.pixel_range == PixelRange(floats=(0, 1))
    grey = np.asarray(decode(index.paths[0], index.pixel_range))[..., 0].reshape(-1)
    assert grey[0] == (255 if odd == np.inf else 0)
    assert grey[-1] == (255 if share < 1 or odd == np.inf else 0)


@pytest.mark.parametrize("kind", ["u2", "i4", "f4"])
@pytest.mark.parametrize("value", [0, 1, 255, 1000, 65535])
def test_constant_images_divide_by_nothing(tmp_path: Path, kind: str, value: int) -> None:
    data = tiff(np.full((SIDE, SIDE), value, kind))
    index = build_index([put(tmp_path / "set", data, data)])
    with np.errstate(all="raise"):
        low, high = spread(np.asarray(decode(index.paths[0], index.pixel_range)))
    assert low == high
    assert index.pixel_range is not None
    assert all(
        b > a for a, b in filter(None, (index.pixel_range.integers, index.pixel_range.floats))
    )


def test_brightness_stays_comparable_and_a_rare_image_does_not_count() -> None:
    measurements = np.zeros((500, 4))
    measurements[:, :3] = [INTEGERS, 100, 4000]
    measurements[7, 2] = 65535  # of another camera
    measurements[8, 1:3] = np.nan
    assert measure_range(measurements) == PixelRange((0, 4095))
    assert measure_range(measurements[::-1]) == PixelRange((0, 4095))  # whatever the order
    measurements[:100, 2] = 65535
    assert measure_range(measurements) == PixelRange((0, 65535))
    both = np.array([[FLOATS, 0, 1, 0], [INTEGERS, 0, 65535, 0], [0, 0, 0, 0]], float)
    assert measure_range(both) == PixelRange((0, 65535), (0, 1))
    assert measure_range(both[2:]) == PixelRange()
    assert to_eight_bits(np.array([-5.0, 0, 2048, 4095, 9999]), (0, 4095)).tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


def test_8_bit_files_of_a_mixed_set_stay_as_they_are(tmp_path: Path) -> None:
    plain = (ramp() * 200).astype("u1")
    root = put(
        tmp_path / "set",
        saved(plain, "PNG"),
        saved((ramp() * 4095).astype("u2"), "PNG"),
        suffix="png",
    )
    index = build_index([root])
    assert index.pixel_range == PixelRange((0, 4095))
    assert np.array_equal(np.asarray(decode(index.paths[0], index.pixel_range))[..., 0], plain)
    assert any("1 image" in note for note in index.notes)
    alone = build_index([put(tmp_path / "plain", saved(plain, "PNG"), suffix="png")])
    assert alone.pixel_range == PixelRange()
    assert alone.notes == ()


def test_the_range_is_remembered_and_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "set", *(tiff((ramp(k) * 5000 + 27315).astype("u2")) for k in range(6)))
    index = build_index([root])
    monkeypatch.setattr(
        "selftaught.data.index.file_checks.measure", lambda *_: pytest.fail("it is decoded again")
    )
    again = build_index([root])
    assert (again.pixel_range, again.fingerprint, again.notes) == (
        index.pixel_range,
        index.fingerprint,
        index.notes,
    )
    others = [
        build_index([root], pixel_range=r)
        for r in (None, PixelRange((0, 65535)), PixelRange(floats=(0, 1)))
    ]
    assert [other.pixel_range for other in others[:2]] == [None, PixelRange((0, 65535))]
    assert others[2].pixel_range == replace(index.pixel_range, floats=(0, 1))  # type: ignore[type-var]
    assert others[2].fingerprint == index.fingerprint  # there are no floats
    assert len({index.fingerprint, others[0].fingerprint, others[1].fingerprint}) == 3
    assert all(len(other.notes) == 1 for other in others)


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        [],
        {},
        {"integers": [0, 1]},
        {"integers": [1, 1], "floats": None},
        {"integers": [0], "floats": None},
        {"integers": ["a", 1], "floats": None},
        {"integers": None, "floats": [0, float("inf")]},
    ],
)
def test_a_range_that_is_none_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match="pixel range"):
        PixelRange.from_json(content)
    for run in (PixelRange(), PixelRange((-1024.0, 3071.5)), PixelRange((0.0, 255.0), (0.0, 1.0))):
        assert PixelRange.from_json(json.loads(json.dumps(run.to_json()))) == run
    root = put(tmp_path / "set", saved((ramp() * 255).astype("u1"), "PNG"))
    write_run(root, tmp_path / "run", build_index([root]))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["data"]["pixel_range"] = content
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    if content is not None:  # which is how runs of before are known
        with pytest.raises(UserError, match=r"run\.json"):
            _ = run_folder.read_run(tmp_path / "run").pixel_range


def test_pillow_s_own_limit_is_none_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = (np.stack([ramp()] * 3, -1) * 4095).astype("u2")
    files = [
        saved((ramp() * 4095).astype("u2"), "PNG"),
        png16(rgb),
        tiff(rgb),
        tiff(ramp()),
        several("GIF", 3),
        several("MPO", 2),
    ]
    files.append(saved((ramp() * 255).astype("u1"), "JPEG"))
    root = put(tmp_path / "set", *files)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = build_index([root])
        assert len(index) == len(files)
        for path in index.paths:
            assert squash(path, 16, index.pixel_range).shape == (3, 16, 16)
    assert Image.MAX_IMAGE_PIXELS == 10


# Runs


def write_run(root: Path, out: Path, index: Index, **data: float) -> Stage:
    """A run of no steps, in its folder."""
    stage = Stage(
        data=Data(roots=(str(root),), **data), size=32, backbone="resnet10t", batch=4, steps=2
    )  # type: ignore[arg-type]
    run_folder.write_run(out, stage, index, "stopped", {})
    return stage


def test_a_run_keeps_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "set", tmp_path / "other"
    for name in ("a", "b"):
        put(root / name, *(tiff((ramp(k) * 4095).astype("u2")) for k in range(4)))
        put(other / name, *(tiff((ramp(k) * 65535).astype("u2")) for k in range(4)))
    out = tmp_path / "run"
    index = Data(roots=(str(root),)).index(0)
    stage = write_run(root, out, index)
    weights_io.save_backbone(
        build_session(stage, index, torch.device("cpu"), 0).backbone, out / "backbone.safetensors"
    )
    run = run_folder.read_run(out)
    assert run.pixel_range == PixelRange((0, 4095))
    assert run.facts["data"]["pixel_range"] == {"integers": [0, 4095], "floats": None}
    assert run.backbone().pixel_range == run.random().pixel_range == run.pixel_range
    assert "4095" in backbone.recipe(run.backbone(), out)

    calls: list[PixelRange | None] = []  # evaluated by the run's range, and not by the images' own
    images = evaluate.Images
    monkeypatch.setattr(
        evaluate, "Images", lambda *a, **k: (calls.append(k["pixel_range"]), images(*a, **k))[1]
    )
    for learnt in (out, out / "backbone.safetensors"):
        evaluate.evaluate_run(
            learnt,
            [other],
            protocols=[evaluate.KNN()],
            labels=["all"],
            against=[],
            size=32,
            draws=1,
        )
    content = json.loads((out / "run.json").read_text())
    del content["data"]["pixel_range"]  # as runs were before
    (out / "run.json").write_text(json.dumps(content))
    assert run_folder.read_run(out).pixel_range is None
    evaluate.evaluate_run(
        out, [other], protocols=[evaluate.KNN()], labels=["all"], against=[], draws=1
    )
    assert calls == [PixelRange((0, 4095))] * 2 + [None]


@pytest.mark.parametrize("old", [False, True])
def test_a_run_goes_on_with_the_range_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    root, out = (
        put(tmp_path / "set", *(tiff((ramp(k) * 4095).astype("u2")) for k in range(12))),
        tmp_path / "run",
    )
    run_range = (
        None if old else PixelRange((0, 2**13 - 1))
    )  # as another version may have measured it
    index = build_index([root], holdout=0.25, pixel_range=run_range)
    stage = write_run(root, out, index, holdout=0.25)
    if old:
        content = json.loads((out / "run.json").read_text())
        del content["data"]["pixel_range"], content["config"]["data"]["max_pixels"]
        (out / "run.json").write_text(json.dumps(content))
    calls: list[Index] = []

    def assembled(stage: Stage, index: Index, *more: object, **others: object) -> None:
        calls.append(index)
        raise UserError("that is enough")

    monkeypatch.setattr(trainer, "build_session", assembled)
    with pytest.raises(UserError, match="enough"):
        selftaught.pretrain(out=out, resume=True)
    with pytest.raises(UserError, match="enough"):
        trainer.train(stage, out, trainer.Runtime(resume=True), stage.data.index(0))
    assert [i.pixel_range for i in calls] == [run_range, run_range]
    assert (
        [i.fingerprint for i in calls]
        == [index.fingerprint] * 2
        == [run_folder.read_run(out).facts["data"]["fingerprint"]] * 2
    )
    with pytest.raises(UserError, match="enough"):
        trainer.train(stage, tmp_path / "new")
    assert calls[2].pixel_range == PixelRange((0, 4095))


def test_a_pack_is_scaled_once_and_says_how(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from selftaught.data.pack.write import pack

    root = put(tmp_path / "set", *(tiff((ramp(k) * 1023).astype("u2")) for k in range(4)))
    rgb = (np.stack([ramp()] * 3, -1) * 1023).astype("u2")
    put(root / "colours", png16(rgb), suffix="png")
    lines: list[str] = []
    packed = pack([root], tmp_path / "pack", Encoding(format="png"), say=lines.append)
    index = build_index([packed])
    assert index.pixel_range == PixelRange((0, 1023))
    assert all(
        spread(pixels(path, 10**4, index.pixel_range).numpy()) == (0, 255) for path in index.paths
    )
    assert all(measure(path).kind == 0 for path in index.paths)


def test_rows_of_other_parquet_files_are_measured(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [
        {
            "image": {"bytes": saved((ramp(k) * 4095).astype("u2"), "PNG"), "path": f"{k}.png"},
            "height": SIDE,
            "width": SIDE,
        }
        for k in range(5)
    ]
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    index = build_index([tmp_path / "hub"])
    assert index.pixel_range == build_index([tmp_path / "hub"]).pixel_range == PixelRange((0, 4095))
    assert any("12 bits" in note for note in index.notes)


# Pages


def several(kind: str, n: int, **options: object) -> bytes:
    pictures = [Image.fromarray((ramp(5 * k) * 255).astype("u1")).convert("RGB") for k in range(n)]
    out = io.BytesIO()
    pictures[0].save(out, kind, save_all=True, append_images=pictures[1:], **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "MPO", "AVIF"])
@pytest.mark.parametrize("n", [1, 5])
def test_pages_that_are_not_used_are_counted(tmp_path: Path, kind: str, n: int) -> None:
    if kind == "AVIF" and "AVIF" not in decode_module._FORMATS:
        pytest.skip("Pillow without AVIF")
    root = put(tmp_path / "set", *[several(kind, n)] * 3)
    index = build_index([root])
    assert len(index) == 3
    assert [measure(path).pages for path in index.paths] == [0 if n == 1 else n] * 3
    assert len(index.notes) == (n > 1)
    assert all("15" in note and "3 files" in note for note in index.notes)


def test_smaller_copies_are_no_pages(tmp_path: Path) -> None:
    first, *more = [Image.new("RGB", (side, side)) for side in (64, 32, 16)]
    out = io.BytesIO()
    for image in more:
        image.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(out, "TIFF", save_all=True, append_images=more)
    assert measure(put(tmp_path / "set", out.getvalue()) / "00.tif").pages == 0


def test_a_tiff_of_another_kind_says_of_which(tmp_path: Path) -> None:
    path = put(tmp_path / "set", tiff(np.zeros((SIDE, SIDE, 3), "f4"))) / "00.tif"
    with pytest.raises(Unreadable, match=r"3 x 32 floating-point bits"):
        measure(path)


# Colours


def profile(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """A colour profile (ICC 2.1) of RGB with these primaries, its white that of daylight."""
    white, d50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])
    matrix = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    matrix = matrix * np.linalg.solve(matrix, white)
    cones = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    matrix = np.linalg.inv(cones) @ np.diag((cones @ d50) / (cones @ white)) @ cones @ matrix

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = [
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(82)),
        (b"wtpt", xyz(d50)),
    ]
    tags += [(name, xyz(matrix[:, i])) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    tags.append((b"cprt", b"text" + bytes(4) + b"none"))
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += b"".join(struct.pack(">i", round(v * 65536)) for v in d50)
    return head.ljust(128, b"\0") + table + body


P3 = profile(((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), 2.2)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_colours_of_another_profile_become_those_of_srgb(
    tmp_path: Path, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (kind, mode) in (("JPEG", "RGBA"), ("WEBP", "L")):
        pytest.skip("there is no such file")
    picture = Image.new("RGB", (32, 32), (200, 100, 50)).convert(mode)
    plain = picture.convert("RGB").getpixel((0, 0))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    for name, icc, wanted in (
        ("none", None, plain),
        ("srgb", SRGB, plain),
        ("broken", b"no profile", plain),
        (
            "p3",
            P3,
            plain if mode == "L" else (216, 93, 24),
        ),  # a profile of colours says nothing of grey
    ):
        out = io.BytesIO()
        picture.save(out, kind, **options, **({"icc_profile": icc} if icc else {}))
        path = put(tmp_path / f"{name}{kind}", out.getvalue()) / "00.tif"
        for quick in (True, False):
            with monkeypatch.context() as patch:
                if not quick:
                    patch.setattr(decode_module, "decode_jpeg", None)
                results = pixels(path, 32, PixelRange())[:, 9, 9].tolist()
                before = pixels(path, 32, None)[:, 9, 9].tolist()
                assert results == pytest.approx(wanted, abs=3), (name, quick)
                # runs of before go on as they began
                assert before == pytest.approx(plain, abs=3), (name, quick)


def test_lab(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), (200, 100, 50))
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    out = io.BytesIO()
    to_lab.apply(picture).save(out, "TIFF")
    path = put(tmp_path / "set", out.getvalue()) / "00.tif"
    assert decode(path, PixelRange()).getpixel((3, 3)) == pytest.approx((200, 100, 50), abs=4)
    assert measure(path)[:2] == (32, 32)


# Formats and sizes


@pytest.mark.parametrize("name", ["a.jpg", "a.avif", "a.jfif"])
def test_content_counts_and_not_the_suffix(tmp_path: Path, name: str) -> None:
    if "AVIF" not in decode_module._FORMATS:
        pytest.skip("Pillow without AVIF")
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 100, 50)).save(out, "AVIF", quality=95)
    path = tmp_path / name
    path.write_bytes(out.getvalue())
    assert decode(path).getpixel((3, 3)) == pytest.approx((200, 100, 50), abs=3)
    path.write_bytes(out.getvalue()[:-40])
    with pytest.raises(Unreadable):
        measure(path)


@pytest.mark.parametrize("suffix", ["heic", "jpg"])  # telephones and transfers call them both
def test_heif_is_read_where_its_reader_is_installed(tmp_path: Path, suffix: str) -> None:
    path = (
        put(tmp_path / "set", b"\0\0\0\x18ftypheic" + bytes(4000), suffix=suffix) / f"00.{suffix}"
    )
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        with pytest.raises(Unreadable, match="heic") as caught:
            measure(path)
        assert caught.value.transient  # it may be installed
    else:
        with pytest.raises(Unreadable, match="damaged"):
            measure(path)
    assert decode_module.register_heif() == ("HEIF" in decode_module._FORMATS)


def test_larger_images_than_asked_for_are_left_out_and_taken_in_again(tmp_path: Path) -> None:
    sizes = [(20, 20)] * 12 + [(100, 90)]
    root = put(
        tmp_path / "set", *(saved(np.zeros(size, "u1"), "PNG") for size in sizes), suffix="png"
    )
    for _ in range(2):  # decoded, and remembered
        (left,) = build_index([root], max_pixels=8999).unreadable
        assert "--max-pixels" in left[1]
        assert "attack" not in left[1]
        assert len(build_index([root], max_pixels=9000)) == 13
    assert (
        Data(roots=(str(root),), max_pixels=8999).index(0).fingerprint
        != Data(roots=(str(root),)).index(0).fingerprint
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P", "I;16", "CMYK"])
def test_large_images_wait_for_memory_and_are_the_same(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Image.fromarray((ramp() * 255).astype("u1")).resize(
        (400, 300), Image.Resampling.BICUBIC
    )
    image = (
        Image.fromarray(np.asarray(small).astype("u2") * 257)
        if mode == "I;16"
        else small.convert(mode)
    )
    out = io.BytesIO()
    image.save(out, "TIFF")
    paths = [put(tmp_path / "set", *[out.getvalue()] * 6) / f"{k:02}.tif" for k in range(6)]
    pixel_range = PixelRange((0, 65535))
    usual = squash(paths[0], 32, pixel_range)

    monkeypatch.setattr(parallel, "LARGE", 1000)
    monkeypatch.setattr(decode_module, "LARGE", 1000)
    monkeypatch.setattr(parallel, "free_memory", lambda: 10**7)
    memory = decode_module._memory
    at_once: list[int] = []
    reduce = decode_module._to_upright

    def noting(*arguments: object) -> Image.Image:
        at_once.append(memory._reserved)
        return reduce(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_module, "_to_upright", noting)
    results: dict[int, torch.Tensor] = {}
    run_parallel(6, lambda k: results.__setitem__(k, squash(paths[k], 32, pixel_range)), threads=6)
    assert memory._reserved == 0
    assert max(at_once) <= 10**7 // 2
    assert all(
        (results[k].float() - usual.float()).abs().mean() < (40 if mode == "1" else 3)
        for k in range(6)
    )
    monkeypatch.setattr(parallel, "free_memory", lambda: 10**4)
    with pytest.raises(Unreadable, match="memory") as caught:
        squash(paths[0], 32, pixel_range)
    assert caught.value.transient


def test_evaluation_takes_the_limit_of_the_run_or_another(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a", "b"):
        put(
            root / name,
            *(saved(np.zeros((20, 20 + k), "u1"), "PNG") for k in range(12)),
            suffix="png",
        )
    data = Data(roots=(str(root),), max_pixels=20 * 30)
    write_run(root, tmp_path / "run", data.index(0), max_pixels=20 * 30)
    run = run_folder.read_run(tmp_path / "run")
    assert run.stage.data.max_pixels == 600
    assert run.facts["data"]["images"] == 22
    for most, images in ((None, 22), (10**6, 24)):
        index = evaluate.build_labelled_index(
            run, [], "auto", most, 0, run.pixel_range, Progress(show=False)
        )
        assert len(index) == images


@pytest.mark.parametrize(
    ("words", "most"), [([], 500_000_000), (["--max-pixels", "200000000"], 200_000_000)]
)
def test_the_limit_is_a_flag(tmp_path: Path, words: list[str], most: int) -> None:
    root = put(
        tmp_path / "set", *(saved(np.zeros((20, 20), "u1"), "PNG") for _ in range(12)), suffix="png"
    )
    requests: list[Data] = []

    def index_of(data: Data, seed: int) -> Index:
        requests.append(data)
        return data.index(seed)

    args = [
        "--out",
        str(tmp_path / "run"),
        "--data",
        str(root),
        "--steps",
        "1",
        "--precision",
        "fp32",
        *words,
    ]
    stage = flags.stage_from(args, None, "cpu", index_of)
    assert requests[0].max_pixels == stage.data.max_pixels == most
    again = flags.stage_from(["--out", str(tmp_path / "run")], stage, "cpu", index_of)
    assert again.data == stage.data
    with pytest.raises(UserError, match="--max-pixels"):
        flags.stage_from([*args, "--max-pixels", "0"], None, "cpu", index_of)
