"""Decoding: every odd format gives the picture a person sees, and every damaged file a reason."""

import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from selftaught.data import decode as decode_module
from selftaught.data.decode import decode, measure, pixels, squash
from selftaught.data.io.integrity import Unreadable, find_damage
from selftaught.data.io.parallel import run_parallel
from selftaught.data.io.paths import Paths
from selftaught.data.loading import images as images_module
from selftaught.data.loading.images import Images, default_canvas, statistics
from selftaught.errors import UserError


def picture(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth picture without symmetry, so that lossy formats stay close and every turn of it
    differs.
    """
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(rgb: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    head = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(rgb: np.ndarray) -> bytes:
    """A TIFF of three 16-bit channels, uncompressed, which Pillow reads but does not write."""
    height, width, _ = rgb.shape
    depths = 8 + 2 + 10 * 12 + 4  # where the three depths stand, after header and directory
    tags = [
        (256, width),
        (257, height),
        (258, depths),
        (259, 1),
        (262, 2),
        (273, depths + 6),
        (277, 3),
    ]
    tags += [(278, height), (279, rgb.size * 2), (284, 1)]
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in tags:
        out += struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
    return out + struct.pack("<IHHH", 0, 16, 16, 16) + rgb.astype("<u2").tobytes()


def far(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures in grey levels; their sizes must agree."""
    assert a.size == b.size
    return float(
        np.abs(np.asarray(a).astype(float) - np.asarray(b.convert("RGB")).astype(float)).mean()
    )


FORMATS = {
    "jpg": ("JPEG", {"quality": 95}),
    "progressive.jpg": ("JPEG", {"quality": 95, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 95}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "gif": ("GIF", {}),
    "mpo": ("MPO", {"quality": 95}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_picture_back(tmp_path: Path, name: str) -> None:
    kind, options = FORMATS[name]
    path = write_file(tmp_path, name, encoded(picture(), kind, **options))
    assert decode(path).mode == "RGB"
    assert far(decode(path), picture()) < (8 if name == "gif" else 3)  # its 256 colours
    assert measure(path)[:2] == (32, 48)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused_and_never_grey(
    tmp_path: Path, name: str, share: float
) -> None:
    kind, options = FORMATS[name]
    data = encoded(picture(160, 120), kind, **options)
    path = write_file(tmp_path, name, data[: int(len(data) * share)])
    for read in (decode, measure, lambda path: squash(path, 16)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(Unreadable):
                read(path)


@pytest.mark.parametrize(
    "name", ["jpg", "progressive.jpg", "png", "webp", "lossless.webp", "lzw.tif", "gif"]
)
def test_a_download_that_reserved_its_space_and_broke_off_is_refused(
    tmp_path: Path, name: str
) -> None:
    kind, options = FORMATS[name]
    data = encoded(picture(320, 240), kind, **options)
    half = len(data) // 2
    with pytest.raises(Unreadable):
        measure(write_file(tmp_path, name, data[:half] + bytes(len(data) - half)))


def test_a_thumbnail_s_end_marker_does_not_vouch_for_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x927C] = encoded(picture(8, 8), "JPEG")  # any JPEG within the EXIF block
    data = encoded(picture(160, 120), "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") == 2
    assert measure(write_file(tmp_path, "whole.jpg", data))[:2] == (120, 160)
    half = len(data) * 3 // 4
    with pytest.raises(Unreadable, match="truncated"):
        measure(write_file(tmp_path, "cut.jpg", data[:half] + bytes(len(data) - half)))


@pytest.mark.parametrize("name", ["jpg", "png"])
def test_strict_even_where_another_library_made_pillow_lenient(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    kind, options = FORMATS[name]
    data = encoded(picture(160, 120), kind, **options)
    path = write_file(tmp_path, name, data[: len(data) // 2])
    with pytest.raises(Unreadable):
        decode(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # and left as the other library wants it


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"not an image at all", "not an image"),
        ("eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        ("archive.png", b"PK\3\4" + bytes(60), "not an image"),
    ],
)
def test_what_is_no_image_has_a_reason(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = write_file(tmp_path, name, data)
    with pytest.raises(Unreadable, match=reason) as caught:
        decode(path)
    assert str(path) not in str(caught.value)
    assert not caught.value.transient


def test_what_cannot_be_opened_may_be_gone_next_time(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "folder.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.jpg")
    for name in ("folder.jpg", "broken.jpg", "missing.jpg"):
        with pytest.raises(Unreadable) as caught:
            decode(tmp_path / name)
        assert caught.value.transient


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a matter of Unix")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(Unreadable):
        decode(tmp_path / "pipe.jpg")


def header_alone(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("width", "height", "most"), [(20_000, 20_000, 300_000_000), (90, 90, 8000)]
)
def test_a_larger_image_than_asked_for_is_left_out_with_the_flag(
    tmp_path: Path, width: int, height: int, most: int
) -> None:
    path = write_file(tmp_path, "large.png", header_alone(width, height))
    with pytest.raises(Unreadable, match="--max-pixels") as caught:
        measure(path, most)
    assert caught.value.transient  # with a higher limit it may be taken
    assert "attack" not in str(caught.value)
    if width == 90:
        with pytest.raises(
            Unreadable, match=r"^(?!.*max-pixels)"
        ):  # then its bytes are looked at, which are few
            measure(path, 10**9)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_whole_range(tmp_path: Path, kind: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / f"grey.{kind.lower()}"
    Image.fromarray(values).save(path)
    assert Image.open(path).mode == "I;16"
    grey = np.asarray(decode(path))[..., 0]
    assert np.abs(grey - values / 257).max() <= 0.5  # 65535 is 255, rounded and not cut off
    assert measure(path)[:2] == (256, 256)


@pytest.mark.parametrize("top", [255, 65535, 2**31 - 1])
def test_32_bit_integers_by_the_range_that_they_use(tmp_path: Path, top: int) -> None:
    Image.fromarray(np.array([[0, top // 2, top]], dtype=np.int32)).save(tmp_path / "i.tif")
    assert Image.open(tmp_path / "i.tif").mode == "I"
    assert np.asarray(decode(tmp_path / "i.tif"))[0, :, 0] == pytest.approx([0, 127.5, 255], abs=1)


def test_floats(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1, -3, np.nan]], dtype=np.float32)).save(tmp_path / "f.tif")
    assert np.asarray(decode(tmp_path / "f.tif"))[0, :, 1].tolist() == [0, 128, 255, 0, 0]


@pytest.mark.parametrize("make", [png16, tiff16])
def test_16_bit_colour(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = write_file(tmp_path, "rgb16", make(np.tile([65535, 32768, 257], (3, 4, 1))))
    assert decode(path).getpixel((0, 0)) == (255, 128, 1)
    assert measure(path)[:2] == (3, 4)


def test_cmyk(tmp_path: Path) -> None:
    path = write_file(tmp_path, "cmyk.jpg", encoded(picture().convert("CMYK"), "JPEG", quality=95))
    assert far(decode(path), picture()) < 4


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    clear, half = Image.new("RGBA", (4, 3), (9, 9, 9, 0)), Image.new("RGBA", (4, 3), (0, 0, 0, 128))
    palette = Image.new("RGB", (4, 3), (200, 10, 10)).quantize()
    clear_colour = palette.getpixel((0, 0))
    cases = {
        "rgba.png": (encoded(clear, "PNG"), 255),
        "half.webp": (encoded(half, "WEBP", lossless=True), 127),
        "la.png": (encoded(Image.new("LA", (4, 3), (9, 0)), "PNG"), 255),
        "palette.png": (encoded(palette, "PNG", transparency=clear_colour), 255),
        "bytes.png": (encoded(palette, "PNG", transparency=bytes(256)), 255),
        "key.png": (
            encoded(Image.new("RGB", (4, 3), (9, 9, 9)), "PNG", transparency=(9, 9, 9)),
            255,
        ),
        "gif.gif": (encoded(palette, "GIF", transparency=clear_colour), 255),
    }
    for name, (data, value) in cases.items():
        path = write_file(tmp_path, name, data)
        assert decode(path).getpixel((1, 1)) == pytest.approx((value,) * 3, abs=1), name
        assert measure(path)[:2] == (3, 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several(tmp_path: Path, kind: str) -> None:
    others = [picture(seed=seed) for seed in (1, 2)]
    path = write_file(
        tmp_path, "several", encoded(picture(), kind, save_all=True, append_images=others)
    )
    assert far(decode(path), picture()) < 8


def test_one_pixel(tmp_path: Path) -> None:
    path = write_file(tmp_path, "one.png", encoded(Image.new("1", (1, 1), 1), "PNG"))
    assert measure(path)[:2] == (1, 1)
    assert squash(path, 8).tolist() == np.full((3, 8, 8), 255).tolist()
    assert squash(write_file(tmp_path, "line.png", encoded(picture(1, 500), "PNG")), 8).shape == (
        3,
        8,
        8,
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    path = write_file(tmp_path, "turned", encoded(picture(), kind, exif=exif, **options))
    upright = ImageOps.exif_transpose(Image.open(path))
    assert far(decode(path), upright) == 0
    assert measure(path)[:2] == upright.size[::-1] == ((48, 32) if orientation > 4 else (32, 48))


def test_a_nonsense_orientation_or_broken_exif_is_shown_as_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert measure(write_file(tmp_path, "a.jpg", encoded(picture(), "JPEG", exif=exif)))[:2] == (
        32,
        48,
    )
    broken = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measure(write_file(tmp_path, "b.jpg", broken))[:2] == (32, 48)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_damage_anywhere_gives_a_picture_or_a_reason(
    tmp_path_factory, name: str, data: st.DataObject
) -> None:  # type: ignore[no-untyped-def]
    kind, options = FORMATS[name]
    good = bytearray(encoded(picture(), kind, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = write_file(tmp_path_factory.getbasetemp(), "fuzz", bytes(good))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            size = measure(path)[:2]
        except Unreadable:
            with pytest.raises(Unreadable, match=r"."):
                decode(path)
        else:
            assert decode(path).size == size[::-1]


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.data())
def test_the_quick_decoder_passes_no_jpeg_that_pillow_refuses(
    tmp_path_factory: pytest.TempPathFactory, progressive: bool, data: st.DataObject
) -> None:
    good = bytearray(encoded(picture(150, 110), "JPEG", quality=90, progressive=progressive))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del good[data.draw(st.integers(1, len(good) - 1)) :]
    path = write_file(tmp_path_factory.getbasetemp(), "fuzz.jpg", bytes(good))

    def outcome() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return measure(path)
            except Unreadable as reason:
                return str(reason)

    quick = outcome()
    with pytest.MonkeyPatch.context() as without:
        without.setattr(decode_module, "decode_jpeg", None)
        assert quick == outcome()


def test_a_scaled_decode_stays_close_to_the_full_one(tmp_path: Path) -> None:
    path = write_file(tmp_path, "large.jpg", encoded(picture(800, 600), "JPEG", quality=95))
    full = picture(800, 600).resize((64, 64), Image.Resampling.BICUBIC)
    squashed = Image.fromarray(squash(path, 64).permute(1, 2, 0).numpy())
    assert far(squashed, full) < 2


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("at_least", [1, 60, 10**4])
def test_pixels_are_those_of_decode(tmp_path: Path, kind: str, turned: int, at_least: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    path = write_file(
        tmp_path, "a.jpg", encoded(picture(150, 110).convert(kind), "JPEG", quality=90, exif=exif)
    )
    made, whole = pixels(path, at_least), decode(path)
    short = min(made.shape[1:])
    assert short >= min(at_least, 110)
    if short == 110:
        assert np.array_equal(made.permute(1, 2, 0).numpy(), np.asarray(whole))
    assert (made.shape[2] > made.shape[1]) == (whole.width > whole.height)


@pytest.mark.parametrize("at_least", [1, 29, 30, 54, 55, 56, 111, 10**4])
@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}, {"quality": 30}],
    ids=str,
)
def test_the_quick_decoder_gives_pillow_s_values(
    kind: str,
    options: dict[str, Any],
    at_least: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = write_file(
        tmp_path, "a.jpg", encoded(picture(151, 111).convert(kind), "JPEG", **options)
    )
    quick, by = pixels(path, at_least), decode_module.decode_jpeg
    assert by is not None  # it is there, and did it
    with monkeypatch.context() as without:
        without.setattr(decode_module, "_load", lambda *_: pytest.fail("by Pillow"))
        pixels(path, at_least)
    monkeypatch.setattr(decode_module, "decode_jpeg", None)
    assert torch.equal(quick, pixels(path, at_least))


def test_an_image_of_the_canvas_s_size_is_not_resampled(tmp_path: Path) -> None:
    path = write_file(tmp_path, "exact.png", encoded(picture(32, 32), "PNG"))
    assert np.array_equal(squash(path, 32).numpy(), np.asarray(picture(32, 32)).transpose(2, 0, 1))


def a_set(folder: Path, n: int, canvas: int = 8, in_memory: bool | None = None) -> Images:
    paths = [
        write_file(folder, f"{i}.png", encoded(picture(6 + i, 9, seed=i), "PNG")) for i in range(n)
    ]
    return Images(paths, torch.tensor([[9, 6 + i] for i in range(n)]), canvas, in_memory)


def test_held_and_read_images_are_the_same(tmp_path: Path) -> None:
    held, read = a_set(tmp_path, 5, in_memory=True), a_set(tmp_path, 5, in_memory=False)
    assert held.in_memory
    assert not read.in_memory
    assert len(held) == 5
    assert held[-1].dtype == torch.uint8
    assert held[-1].shape == (3, 8, 8)
    assert all(torch.equal(held[i], read[i]) for i in range(-5, 5))
    assert held.aspect.tolist() == pytest.approx([(6 + i) / 9 for i in range(5)])
    positions, slots = torch.tensor([4, 2, 0]), torch.tensor([2, 2, 0])
    for images in (held, read):
        pixels, sources = images.read(positions, slots)
        assert sources.tolist() == [0, 0, 4]
        assert torch.equal(pixels, torch.stack([held[0], held[0], held[4]]))
        with pytest.raises(IndexError):
            images[5]


def test_they_are_held_when_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 5 * 3 * 8 * 8
    for free, processes, in_memory in (
        (4 * needed, 1, True),
        (4 * needed - 4, 1, False),
        (4 * needed, 2, False),
    ):
        monkeypatch.setattr(images_module, "free_memory", lambda free=free: free)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert a_set(tmp_path, 5).in_memory is in_memory
    monkeypatch.undo()
    assert 2**20 < images_module.free_memory() < 2**50


def test_what_was_lost_is_replaced_by_the_next_and_noted(tmp_path: Path) -> None:
    whole = a_set(tmp_path, 5, in_memory=True)
    for in_memory in (True, False):
        images = a_set(tmp_path, 5, in_memory=False)
        (tmp_path / "1.png").unlink()
        (tmp_path / "2.png").write_bytes(b"")
        images = Images(images.paths, torch.tensor([[9, 6 + i] for i in range(5)]), 8, in_memory)
        assert torch.equal(images[1], whole[3])
        pixels, sources = images.read(torch.tensor([0, 1, 4]))
        assert sources.tolist() == [0, 4, 4]  # 3 is not among the positions asked for
        assert torch.equal(pixels[1], whole[4])
        assert images.read(torch.tensor([0, 4, 2]))[1].tolist() == [0, 4, 0]  # round the end
        lost = [(str(tmp_path / "1.png"), "no such file"), (str(tmp_path / "2.png"), "empty file")]
        assert images.lost == lost


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_strict_set_has_no_stand_ins(tmp_path: Path, in_memory: bool) -> None:
    """An evaluation would score a stand-in by the label of the image that is gone."""
    images = a_set(tmp_path, 5, in_memory=False)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png"):
        Images(images.paths, torch.ones(5, 2), 8, in_memory, strict=True).read(torch.tensor([0, 1]))


def test_all_lost_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = a_set(tmp_path, 3, in_memory=False)
    for path in images.paths:
        path.unlink()
    with pytest.raises(UserError, match="no image can be read any more"):
        images[1]
    with pytest.raises(UserError, match="none of the 3 images"):
        Images(images.paths, torch.ones(3, 2), 8, True)
    monkeypatch.setattr(images_module, "_GIVE_UP", 2)
    images = Images(images.paths, torch.ones(3, 2), 8, False)
    with pytest.raises(UserError, match="2 lost"):
        images.read(torch.arange(3), threads=1)


def test_progress_of_filling(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    images = a_set(tmp_path, 4, in_memory=False)
    Images(
        images.paths,
        torch.ones(4, 2),
        8,
        True,
        on_progress=lambda done, n: progress.append((done, n)),
    )
    assert progress[-1] == (4, 4)
    assert sorted(progress) == progress


def test_in_parallel_does_each_once_and_stops_at_the_first_failure() -> None:
    counts = [0] * 500
    main = threading.get_ident()
    callers: set[int] = set()

    def count(i: int) -> None:
        counts[i] += 1

    run_parallel(
        500, count, threads=4, on_progress=lambda done, n: callers.add(threading.get_ident())
    )
    assert counts == [1] * 500
    assert callers == {main}
    run_parallel(0, count)

    def fail(i: int) -> None:
        if i == 3:
            raise ValueError("three")
        count(i)

    for threads in (1, 3):
        with pytest.raises(ValueError, match="three"):
            run_parallel(500, fail, threads=threads)
    assert sum(counts) < 1000


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
)
def test_paths_are_a_sequence_of_paths(names: list[str]) -> None:
    paths = Paths(names)
    assert list(paths) == [Path(name) for name in names]
    assert paths == tuple(Path(name) for name in names) == pickle.loads(pickle.dumps(paths))
    assert paths[1:3] == tuple(Path(name) for name in names[1:3])
    assert [paths[-i - 1] for i in range(len(names))] == [Path(name) for name in reversed(names)]
    assert paths != (*paths, Path("more"))


def test_paths_that_are_no_utf8() -> None:
    assert Paths([os.fsdecode(b"caf\xe9/\xff.jpg")])[0] == Path(os.fsdecode(b"caf\xe9/\xff.jpg"))


def test_default_canvas() -> None:
    def side(height: int, width: int, size: int) -> int:
        return default_canvas(torch.tensor([[height, width]] * 3), size)

    assert side(600, 400, 64) == 128  # twice the view
    assert side(101, 400, 64) == 102  # no more than the images have, rounded up to even
    assert side(32, 32, 64) == 64  # never less than the view
    assert default_canvas(torch.tensor([[10, 10], [100, 200], [500, 90]]), 64) == 90


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    images = a_set(tmp_path, 70, in_memory=False)
    positions = torch.arange(0, 70, 1)
    pixels = torch.stack([images[i] for i in range(70)]).double() / 255
    mean, std = statistics(images, positions)
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-9)
    few, _ = statistics(images, positions, limit=2)
    assert few == pytest.approx(pixels[[0, 69]].mean((0, 2, 3)).tolist(), abs=1e-12)
    black = Image.new("RGB", (9, 9))
    flat = Images([write_file(tmp_path, "b.png", encoded(black, "PNG"))], torch.tensor([[9, 9]]), 8)
    assert statistics(flat, torch.tensor([0])) == ((0, 0, 0), (1 / 255,) * 3)


def test_warnings_of_pillow_stay_away_while_another_thread_ends() -> None:
    """Filters are global: the first thread that ended brought the warnings of the others back."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with decode_module.quiet():
            other = threading.Thread(target=lambda: decode_module.quiet().__enter__())
            other.start()
            other.join()
            decode_module.quiet().__exit__(None, None, None)
            warnings.warn_explicit("odd metadata", UserWarning, "x.py", 1, module="PIL.TiffImage")
        warnings.warn_explicit("after", UserWarning, "x.py", 1, module="PIL.TiffImage")
    assert [str(w.message) for w in caught] == ["after"]


@pytest.mark.parametrize(("rows", "is_damaged"), [(1, True), (39, True), (40, False)])
def test_a_png_with_fewer_rows_than_it_states_is_damaged(rows: int, is_damaged: bool) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 400, 40, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * 400))))
    data = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    assert (find_damage("PNG", data) is not None) == is_damaged
