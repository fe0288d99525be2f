"""Pixels that are not of 8 bits and sRGB: one scaling for a whole set, in training, evaluation and
packing.
"""

import importlib.util
import json
import struct
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
from tests.data.image_files import encoded, png16, tiff

SIDE = 24


def ramp(k: int = 0) -> np.ndarray:
    """A smooth picture in [0, 1] of which all values are used."""
    return np.roll(np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE), k, axis=1)


def put(folder: Path, *files: bytes, suffix: str = "tif") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(files):
        (folder / f"{k:02}.{suffix}").write_bytes(data)
    return folder


def spread(grey: np.ndarray) -> tuple[int, int]:
    return int(grey.min()), int(grey.max())


def grey_of(path: Path, pixel_range: PixelRange | None) -> np.ndarray:
    return np.asarray(decode(path, pixel_range))[..., 0]


def is_close(made: np.ndarray, wanted: np.ndarray, levels: float) -> bool:
    return bool(np.abs(made - wanted).max() < levels)


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


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_shown_by_its_own_range(tmp_path: Path, name: str) -> None:
    make, (low, high) = SETS[name]
    ways = [("<", False), ("<", True), (">", False), (">", True)]
    files = [tiff(make(ramp(k)), *way) for k, way in enumerate(ways)]
    is_float = make(ramp()).dtype.kind == "f"
    if make(ramp()).dtype == np.uint16:
        files.append(encoded(make(ramp(4))))  # a PNG as a TIFF
    index = build_index([put(tmp_path / "set", *files)])
    assert index.unreadable == ()
    assert index.pixel_range is not None
    pair = index.pixel_range.floats if is_float else index.pixel_range.integers
    assert pair == pytest.approx((low, high), abs=0.01 * (high - low))
    for k, path in enumerate(index.paths):
        assert is_close(grey_of(path, index.pixel_range), ramp(k) * 255, 4), path
    assert len(index.notes) == 1


COLOURS: dict[str, Callable[[np.ndarray, np.ndarray], bytes]] = {
    "png": lambda rgb, alpha: png16(rgb),
    "alpha": lambda rgb, alpha: png16(np.concatenate([rgb, alpha], -1)),
    "grey, alpha": lambda rgb, alpha: png16(np.concatenate([rgb[..., :1], alpha], -1)),
    "tiff": lambda rgb, alpha: tiff(rgb),
    "big-endian": lambda rgb, alpha: tiff(rgb, ">"),
    "compressed": lambda rgb, alpha: tiff(rgb, compressed=True),
    "planes": lambda rgb, alpha: tiff(rgb.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", COLOURS)
def test_colours_of_more_than_8_bits_keep_them(tmp_path: Path, kind: str, bits: int) -> None:
    top = 2**bits - 1
    rgb = (np.stack([ramp(), ramp(3), 1 - ramp()], -1) * top).astype("u2")
    data = COLOURS[kind](rgb, np.full((SIDE, SIDE, 1), 65535, "u2"))
    index = build_index([put(tmp_path / "set", data, data)])
    assert index.pixel_range == PixelRange((0, top))
    wanted = (rgb[..., :1].repeat(3, -1) if kind.startswith("grey") else rgb) * (255 / top)
    path = index.paths[0]
    assert is_close(np.asarray(decode(path, index.pixel_range)), wanted, 0.511)
    squashed = squash(path, SIDE, index.pixel_range).permute(1, 2, 0).numpy()
    assert is_close(squashed, wanted, 0.511)


def test_where_0_is_white_and_where_nothing_was_measured(tmp_path: Path) -> None:
    values = (ramp() * 4095).astype("u2")
    inverted = put(tmp_path / "inverted", tiff(values, t262=0), tiff(values, ">", t262=0))
    for path in sorted(inverted.iterdir()):
        assert is_close(grey_of(path, PixelRange((0, 4095))), 255 - ramp() * 255, 1)
    floats = ramp().astype("f4")
    floats[:12] = -9999
    data = encoded(floats, "TIFF", tiffinfo={42113: "-9999"})  # as GDAL notes it
    index = build_index([put(tmp_path / "marked", data, data)])
    assert index.pixel_range is not None
    assert index.pixel_range == PixelRange(floats=(0, 1)) or index.pixel_range.floats[0] > 0.4
    assert spread(grey_of(index.paths[0], index.pixel_range)[:12]) == (0, 0)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -3.4e38, 3.4e38])
@pytest.mark.parametrize("share", [0.0005, 0.3, 1.0])
def test_floats_that_are_no_numbers(tmp_path: Path, odd: float, share: float) -> None:
    values = ramp().astype("f4").reshape(-1)
    values[: max(int(share * values.size), 1)] = odd
    data = tiff(values.reshape(SIDE, SIDE))
    index = build_index([put(tmp_path / "set", data, tiff(ramp().astype("f4")), data)])
    assert index.pixel_range == PixelRange(floats=(0, 1))
    grey = grey_of(index.paths[0], index.pixel_range).reshape(-1)
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
    values = np.array([-5.0, 0, 2048, 4095, 9999])
    assert to_eight_bits(values, (0, 4095)).tolist() == [0, 0, 128, 255, 255]


def test_8_bit_files_of_a_mixed_set_stay_as_they_are(tmp_path: Path) -> None:
    plain = (ramp() * 200).astype("u1")
    deep = (ramp() * 4095).astype("u2")
    index = build_index([put(tmp_path / "set", encoded(plain), encoded(deep))])
    assert index.pixel_range == PixelRange((0, 4095))
    assert np.array_equal(grey_of(index.paths[0], index.pixel_range), plain)
    assert any("1 image" in note for note in index.notes)
    alone = build_index([put(tmp_path / "plain", encoded(plain))])
    assert (alone.pixel_range, alone.notes) == (PixelRange(), ())


def test_the_range_is_remembered_and_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "set", *(tiff((ramp(k) * 5000 + 27315).astype("u2")) for k in range(6)))
    index = build_index([root])
    monkeypatch.setattr(
        "selftaught.data.index.file_checks.measure", lambda *_: pytest.fail("it is decoded again")
    )
    again = build_index([root])
    for field in ("pixel_range", "fingerprint", "notes"):
        assert getattr(again, field) == getattr(index, field)
    ranges = (None, PixelRange((0, 65535)), PixelRange(floats=(0, 1)))
    others = [build_index([root], pixel_range=r) for r in ranges]
    assert [other.pixel_range for other in others[:2]] == [None, PixelRange((0, 65535))]
    assert others[2].pixel_range == replace(index.pixel_range, floats=(0, 1))
    assert others[2].fingerprint == index.fingerprint  # there are no floats
    assert len({index.fingerprint, others[0].fingerprint, others[1].fingerprint}) == 3
    assert all(len(other.notes) == 1 for other in others)


def test_a_range_that_is_none_is_refused(tmp_path: Path) -> None:
    for valid in (
        PixelRange(),
        PixelRange((-1024.0, 3071.5)),
        PixelRange((0.0, 255.0), (0.0, 1.0)),
    ):
        assert PixelRange.from_json(json.loads(json.dumps(valid.to_json()))) == valid
    root = put(tmp_path / "set", encoded((ramp() * 255).astype("u1")))
    write_run(root, tmp_path / "run", build_index([root]))
    file = tmp_path / "run" / "run.json"
    facts = json.loads(file.read_text())
    one_sided = [{"integers": i, "floats": None} for i in ([1, 1], [0], ["a", 1])]
    infinite = {"integers": None, "floats": [0, float("inf")]}
    for content in (None, 3, [], {}, {"integers": [0, 1]}, *one_sided, infinite):
        with pytest.raises(UserError, match="pixel range"):
            PixelRange.from_json(content)
        facts["data"]["pixel_range"] = content
        file.write_text(json.dumps(facts))
        if content is not None:  # which is how runs of before are known
            with pytest.raises(UserError, match=r"run\.json"):
                _ = run_folder.read_run(tmp_path / "run").pixel_range


@pytest.mark.filterwarnings("error")
def test_pillow_s_own_limit_is_none_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = (np.stack([ramp()] * 3, -1) * 4095).astype("u2")
    files = [encoded(rgb[..., 0]), png16(rgb), tiff(rgb), tiff(ramp()), several("GIF", 3)]
    files += [several("MPO", 2), encoded((ramp() * 255).astype("u1"), "JPEG")]
    root = put(tmp_path / "set", *files)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    index = build_index([root])
    assert len(index) == len(files)
    for path in index.paths:
        assert squash(path, 16, index.pixel_range).shape == (3, 16, 16)
    assert Image.MAX_IMAGE_PIXELS == 10


# Runs


def write_run(root: Path, out: Path, index: Index, **data: float) -> Stage:
    """A run of no steps, in its folder."""
    images = Data(roots=(str(root),), **data)
    stage = Stage(data=images, size=32, backbone="test_resnet", batch=4, steps=2)
    run_folder.write_run(out, stage, index, "stopped", {})
    return stage


def test_a_run_keeps_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "set", tmp_path / "other"
    for name in ("a", "b"):
        put(root / name, *(tiff((ramp(k) * 4095).astype("u2")) for k in range(4)))
        put(other / name, *(tiff((ramp(k) * 65535).astype("u2")) for k in range(4)))
    out = tmp_path / "run"
    index = Data(roots=(str(root),)).index(0)
    session = build_session(write_run(root, out, index), index, torch.device("cpu"), 0)
    weights_io.save_backbone(session.backbone, out / "backbone.safetensors")
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
    options = {"protocols": [evaluate.KNN()], "labels": ["all"], "against": [], "draws": 1}
    for learnt in (out, out / "backbone.safetensors"):
        evaluate.evaluate_run(learnt, [other], size=32, **options)
    content = json.loads((out / "run.json").read_text())
    del content["data"]["pixel_range"]  # as runs were before
    (out / "run.json").write_text(json.dumps(content))
    assert run_folder.read_run(out).pixel_range is None
    evaluate.evaluate_run(out, [other], **options)
    assert calls == [PixelRange((0, 4095))] * 2 + [None]


@pytest.mark.parametrize("old", [False, True])
def test_a_run_goes_on_with_the_range_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    root = put(tmp_path / "set", *(tiff((ramp(k) * 4095).astype("u2")) for k in range(12)))
    out = tmp_path / "run"
    run_range = None if old else PixelRange((0, 2**13 - 1))  # as another version measured it
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
    assert [i.fingerprint for i in calls] == [index.fingerprint] * 2
    assert run_folder.read_run(out).facts["data"]["fingerprint"] == index.fingerprint
    with pytest.raises(UserError, match="enough"):
        trainer.train(stage, tmp_path / "new")
    assert calls[2].pixel_range == PixelRange((0, 4095))


def test_a_pack_is_scaled_once_and_says_how(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from selftaught.data.pack.write import pack

    root = put(tmp_path / "set", *(tiff((ramp(k) * 1023).astype("u2")) for k in range(4)))
    rgb = (np.stack([ramp()] * 3, -1) * 1023).astype("u2")
    put(root / "colours", png16(rgb), suffix="png")
    index = build_index([pack([root], tmp_path / "pack", Encoding(format="png"))])
    assert index.pixel_range == PixelRange((0, 1023))
    for path in index.paths:
        assert spread(pixels(path, 10**4, index.pixel_range).numpy()) == (0, 255)
        assert measure(path).kind == 0


def test_rows_of_other_parquet_files_are_measured(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = [encoded((ramp(k) * 4095).astype("u2")) for k in range(5)]
    images = [{"bytes": content, "path": f"{k}.png"} for k, content in enumerate(data)]
    table = pa.table({"image": images, "height": [SIDE] * 5, "width": [SIDE] * 5})
    pq.write_table(table, tmp_path / "train.parquet")
    index = build_index([tmp_path])
    assert index.pixel_range == build_index([tmp_path]).pixel_range == PixelRange((0, 4095))
    assert any("12 bits" in note for note in index.notes)


# Pages


def several(kind: str, n: int) -> bytes:
    grey = [(ramp(5 * k) * 255).astype("u1") for k in range(n)]
    first, *more = (Image.fromarray(page).convert("RGB") for page in grey)
    return encoded(first, kind, save_all=True, append_images=more)


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


def test_smaller_copies_are_no_pages_and_a_tiff_of_another_kind_says_of_which(
    tmp_path: Path,
) -> None:
    first, *more = [Image.new("RGB", (side, side)) for side in (64, 32, 16)]
    for image in more:
        image.encoderinfo = {"tiffinfo": {254: 1}}
    copies = encoded(first, "TIFF", save_all=True, append_images=more)
    put(tmp_path, copies, tiff(np.zeros((SIDE, SIDE, 3), "f4")))
    assert measure(tmp_path / "00.tif").pages == 0
    with pytest.raises(Unreadable, match=r"3 x 32 floating-point bits"):
        measure(tmp_path / "01.tif")


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


KINDS = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
KINDS |= {"PNG": {}, "TIFF": {}}
MODES = [(k, m) for k in KINDS for m in ("RGB", "RGBA", "L") if k + m not in ("JPEGRGBA", "WEBPL")]


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_colours_of_another_profile_become_those_of_srgb(
    tmp_path: Path, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("RGB", (32, 32), (200, 100, 50)).convert(mode)
    plain = picture.convert("RGB").getpixel((0, 0))
    p3 = plain if mode == "L" else (216, 93, 24)  # a profile of colours says nothing of grey
    for icc, wanted in ((None, plain), (SRGB, plain), (b"no profile", plain), (P3, p3)):
        profile = {"icc_profile": icc} if icc else {}
        path = put(tmp_path, encoded(picture, kind, **KINDS[kind], **profile)) / "00.tif"
        for quick in (True, False):
            with monkeypatch.context() as patch:
                if not quick:
                    patch.setattr(decode_module, "decode_jpeg", None)
                results = pixels(path, 32, PixelRange())[:, 9, 9].tolist()
                before = pixels(path, 32, None)[:, 9, 9].tolist()
                assert results == pytest.approx(wanted, abs=3), (icc, quick)
                # runs of before go on as they began
                assert before == pytest.approx(plain, abs=3), (icc, quick)


def test_lab(tmp_path: Path) -> None:
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    picture = Image.new("RGB", (32, 32), (200, 100, 50))
    picture = ImageCms.buildTransform(srgb, lab, "RGB", "LAB").apply(picture)
    path = put(tmp_path / "set", encoded(picture, "TIFF")) / "00.tif"
    assert decode(path, PixelRange()).getpixel((3, 3)) == pytest.approx((200, 100, 50), abs=4)
    assert measure(path)[:2] == (32, 32)


# Formats and sizes


@pytest.mark.parametrize("name", ["a.jpg", "a.avif", "a.jfif"])
def test_content_counts_and_not_the_suffix(tmp_path: Path, name: str) -> None:
    if "AVIF" not in decode_module._FORMATS:
        pytest.skip("Pillow without AVIF")
    path, data = tmp_path / name, encoded(Image.new("RGB", (40, 30), (200, 100, 50)), "AVIF")
    path.write_bytes(data)
    assert decode(path).getpixel((3, 3)) == pytest.approx((200, 100, 50), abs=3)
    path.write_bytes(data[:-40])
    with pytest.raises(Unreadable):
        measure(path)


@pytest.mark.parametrize("suffix", ["heic", "jpg"])  # telephones and transfers call them both
def test_heif_is_read_where_its_reader_is_installed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"00.{suffix}"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(4000))
    is_installed = importlib.util.find_spec("pillow_heif") is not None
    with pytest.raises(Unreadable, match="damaged" if is_installed else "heic") as caught:
        measure(path)
    assert is_installed or caught.value.transient  # it may be installed
    assert decode_module.register_heif() == ("HEIF" in decode_module._FORMATS)


def test_larger_images_than_asked_for_are_left_out_and_taken_in_again(tmp_path: Path) -> None:
    sizes = [(20, 20)] * 12 + [(100, 90)]
    root = put(tmp_path / "set", *(encoded(np.zeros(size, "u1")) for size in sizes))
    for _ in range(2):  # decoded, and remembered
        (left,) = build_index([root], max_pixels=8999).unreadable
        assert "--max-pixels" in left[1]
        assert "attack" not in left[1]
        assert len(build_index([root], max_pixels=9000)) == 13
    limited, whole = Data(roots=(str(root),), max_pixels=8999), Data(roots=(str(root),))
    assert limited.index(0).fingerprint != whole.index(0).fingerprint


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P", "I;16", "CMYK"])
def test_large_images_wait_for_memory_and_are_the_same(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Image.fromarray((ramp() * 255).astype("u1"))
    small = small.resize((400, 300), Image.Resampling.BICUBIC)
    deep = np.asarray(small).astype("u2") * 257
    data = encoded(deep if mode == "I;16" else small.convert(mode), "TIFF")
    paths = sorted(put(tmp_path / "set", *[data] * 6).iterdir())
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
        return reduce(*arguments)

    monkeypatch.setattr(decode_module, "_to_upright", noting)
    results: dict[int, torch.Tensor] = {}
    run_parallel(6, lambda k: results.__setitem__(k, squash(paths[k], 32, pixel_range)), threads=6)
    assert memory._reserved == 0
    assert max(at_once) <= 10**7 // 2
    for result in results.values():
        assert (result.float() - usual.float()).abs().mean() < (40 if mode == "1" else 3)
    assert len(results) == 6
    monkeypatch.setattr(parallel, "free_memory", lambda: 10**4)
    with pytest.raises(Unreadable, match="memory") as caught:
        squash(paths[0], 32, pixel_range)
    assert caught.value.transient


def test_evaluation_takes_the_limit_of_the_run_or_another(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a", "b"):
        put(root / name, *(encoded(np.zeros((20, 20 + k), "u1")) for k in range(12)))
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
    root = put(tmp_path / "set", *[encoded(np.zeros((20, 20), "u1"))] * 12)
    requests: list[Data] = []

    def index_of(data: Data, seed: int) -> Index:
        requests.append(data)
        return data.index(seed)

    out = ["--out", str(tmp_path / "run")]
    args = [*out, "--data", str(root), *["--steps", "1", "--precision", "fp32"], *words]
    args += ["--backbone", "test_resnet", "--size", "24", "--batch", "4"]
    stage = flags.stage_from(args, None, "cpu", index_of)
    assert requests[0].max_pixels == stage.data.max_pixels == most
    assert flags.stage_from(out, stage, "cpu", index_of).data == stage.data
    with pytest.raises(UserError, match="--max-pixels"):
        flags.stage_from([*args, "--max-pixels", "0"], None, "cpu", index_of)
