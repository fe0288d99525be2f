"""Decoding: every odd format gives the picture a person sees, and every damaged file a reason."""

import os
import pickle
import threading
import warnings
from collections.abc import Callable
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
from tests.data.image_files import encoded, png, png16, tiff


def picture(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth picture without symmetry, so that lossy formats stay close and every turn of it
    differs.
    """
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_file(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def far(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of two pictures in grey levels; their sizes must agree."""
    assert a.size == b.size
    one, other = (np.asarray(image.convert("RGB")).astype(float) for image in (a, b))
    return float(np.abs(one - other).mean())


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused_and_never_grey(tmp_path: Path, name: str) -> None:
    kind, options = FORMATS[name]
    data = encoded(picture(160, 120), kind, **options)
    for share in (0.3, 0.6, 0.9):
        path = write_file(tmp_path, name, data[: int(len(data) * share)])
        for read in (decode, measure, lambda path: squash(path, 16)):
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
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"PK\3\4" + bytes(60), "not an image"),
    ],
)
def test_what_is_no_image_has_a_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write_file(tmp_path, "a.jpg", data)
    with pytest.raises(Unreadable, match=reason) as caught:
        decode(path)
    assert str(path) not in str(caught.value)
    assert not caught.value.transient


def test_what_cannot_be_opened_may_be_gone_next_time_and_a_named_pipe_does_not_hang(
    tmp_path: Path,
) -> None:
    os.mkdir(tmp_path / "folder.jpg")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.jpg")
    for name in ("folder.jpg", "broken.jpg", "missing.jpg"):
        with pytest.raises(Unreadable) as caught:
            decode(tmp_path / name)
        assert caught.value.transient
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(Unreadable):
            decode(tmp_path / "pipe.jpg")


@pytest.mark.parametrize(("side", "most"), [(20_000, 300_000_000), (90, 8000)])
def test_a_larger_image_than_asked_for_is_left_out_with_the_flag(
    tmp_path: Path, side: int, most: int
) -> None:
    path = write_file(tmp_path, "large.png", png(side, side, 1, 0, bytes(99)))
    with pytest.raises(Unreadable, match="--max-pixels") as caught:
        measure(path, most)
    assert caught.value.transient  # with a higher limit it may be taken
    assert "attack" not in str(caught.value)
    if side == 90:  # then its bytes are looked at, which are few
        with pytest.raises(Unreadable, match=r"^(?!.*max-pixels)"):
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


def test_32_bit_integers_by_the_range_that_they_use_and_floats(tmp_path: Path) -> None:
    def grey(values: list[float], kind: type) -> list[int]:
        Image.fromarray(np.array([values], dtype=kind)).save(tmp_path / "i.tif")
        return np.asarray(decode(tmp_path / "i.tif"))[0, :, 1].tolist()

    for top in (255, 65535, 2**31 - 1):
        assert grey([0, top // 2, top], np.int32) == pytest.approx([0, 127.5, 255], abs=1)
    assert grey([0, 0.5, 1, -3, np.nan], np.float32) == [0, 128, 255, 0, 0]


@pytest.mark.parametrize("make", [png16, tiff])
def test_16_bit_colour(tmp_path: Path, make: Callable[[np.ndarray], bytes]) -> None:
    values = np.tile(np.array([65535, 32768, 257], "u2"), (5, 4, 1))
    path = write_file(tmp_path, "rgb16", make(values))
    assert decode(path).getpixel((0, 0)) == (255, 128, 1)
    assert measure(path)[:2] == (5, 4)


def test_cmyk(tmp_path: Path) -> None:
    path = write_file(tmp_path, "cmyk.jpg", encoded(picture().convert("CMYK"), "JPEG", quality=95))
    assert far(decode(path), picture()) < 4


CLEAR, HALF = Image.new("RGBA", (4, 3), (9, 9, 9, 0)), Image.new("RGBA", (4, 3), (0, 0, 0, 128))
PALETTE = Image.new("RGB", (4, 3), (200, 10, 10)).quantize()
KEY = PALETTE.getpixel((0, 0))


@pytest.mark.parametrize(
    ("image", "kind", "options", "value"),
    [
        (CLEAR, "PNG", {}, 255),
        (HALF, "WEBP", {"lossless": True}, 127),
        (Image.new("LA", (4, 3), (9, 0)), "PNG", {}, 255),
        (PALETTE, "PNG", {"transparency": KEY}, 255),
        (PALETTE, "PNG", {"transparency": bytes(256)}, 255),
        (Image.new("RGB", (4, 3), (9, 9, 9)), "PNG", {"transparency": (9, 9, 9)}, 255),
        (PALETTE, "GIF", {"transparency": KEY}, 255),
    ],
)
def test_transparency_is_laid_on_white(
    tmp_path: Path, image: Image.Image, kind: str, options: dict[str, object], value: int
) -> None:
    path = write_file(tmp_path, "clear", encoded(image, kind, **options))
    assert decode(path).getpixel((1, 1)) == pytest.approx((value,) * 3, abs=1)
    assert measure(path)[:2] == (3, 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several(tmp_path: Path, kind: str) -> None:
    others = [picture(seed=seed) for seed in (1, 2)]
    data = encoded(picture(), kind, save_all=True, append_images=others)
    assert far(decode(write_file(tmp_path, "several", data)), picture()) < 8


def test_one_pixel(tmp_path: Path) -> None:
    path = write_file(tmp_path, "one.png", encoded(Image.new("1", (1, 1), 1)))
    assert measure(path)[:2] == (1, 1)
    assert squash(path, 8).tolist() == np.full((3, 8, 8), 255).tolist()
    line = write_file(tmp_path, "line.png", encoded(picture(1, 500)))
    assert squash(line, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(picture(), kind, exif=turned(orientation), **options)
    path = write_file(tmp_path, "turned", data)
    upright = ImageOps.exif_transpose(Image.open(path))
    assert far(decode(path), upright) == 0
    assert measure(path)[:2] == upright.size[::-1] == ((48, 32) if orientation > 4 else (32, 48))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif", [turned(77), b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_nonsense_orientation_or_broken_exif_is_shown_as_stored(
    tmp_path: Path, exif: Image.Exif | bytes
) -> None:
    data = encoded(picture(), "JPEG", exif=exif)
    assert measure(write_file(tmp_path, "a.jpg", data))[:2] == (32, 48)


def damaged(good: bytes, data: st.DataObject, most: int) -> bytes:
    harmed = bytearray(good)
    for _ in range(data.draw(st.integers(1, most))):
        harmed[data.draw(st.integers(0, len(harmed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(harmed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_damage_anywhere_gives_a_picture_or_a_reason(
    place: Path, name: str, data: st.DataObject
) -> None:
    kind, options = FORMATS[name]
    path = write_file(place, "fuzz", damaged(encoded(picture(), kind, **options), data, 4))
    try:
        size = measure(path)[:2]
    except Unreadable:
        with pytest.raises(Unreadable, match=r"."):
            decode(path)
    else:
        assert decode(path).size == size[::-1]


JPEGS = [encoded(picture(150, 110), "JPEG", quality=90, progressive=p) for p in (False, True)]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(JPEGS), st.data())
def test_the_quick_decoder_passes_no_jpeg_that_pillow_refuses(
    place: Path, good: bytes, data: st.DataObject
) -> None:
    content = damaged(good, data, 3)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(1, len(content) - 1))]
    path = write_file(place, "fuzz.jpg", content)

    def outcome() -> object:
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
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_are_those_of_decode(tmp_path: Path, kind: str, orientation: int) -> None:
    image, exif = picture(150, 110).convert(kind), turned(orientation)
    path = write_file(tmp_path, "a.jpg", encoded(image, "JPEG", quality=90, exif=exif))
    whole = decode(path)
    for at_least in (1, 60, 10**4):
        pixel_values = pixels(path, at_least)
        short = min(pixel_values.shape[1:])
        assert short >= min(at_least, 110)
        if short == 110:
            assert np.array_equal(pixel_values.permute(1, 2, 0).numpy(), np.asarray(whole))
        assert (pixel_values.shape[2] > pixel_values.shape[1]) == (whole.width > whole.height)


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}, {"quality": 30}],
    ids=str,
)
def test_the_quick_decoder_gives_pillow_s_values(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = picture(151, 111).convert(kind)
    path = write_file(tmp_path, "a.jpg", encoded(image, "JPEG", **options))
    sides = (1, 29, 30, 54, 55, 56, 111, 10**4)
    assert decode_module.decode_jpeg is not None  # it is there, and does it
    with monkeypatch.context() as without:
        without.setattr(decode_module, "_load", lambda *_: pytest.fail("by Pillow"))
        quick = [pixels(path, side) for side in sides]
    monkeypatch.setattr(decode_module, "decode_jpeg", None)
    for side, pixel_values in zip(sides, quick, strict=True):
        assert torch.equal(pixel_values, pixels(path, side)), side


def test_an_image_of_the_canvas_s_size_is_not_resampled(tmp_path: Path) -> None:
    path = write_file(tmp_path, "exact.png", encoded(picture(32, 32)))
    assert np.array_equal(squash(path, 32).numpy(), np.asarray(picture(32, 32)).transpose(2, 0, 1))


def a_set(folder: Path, n: int, canvas: int = 8, in_memory: bool | None = None) -> Images:
    data = [encoded(picture(6 + i, 9, seed=i)) for i in range(n)]
    paths = [write_file(folder, f"{i}.png", content) for i, content in enumerate(data)]
    return Images(paths, torch.tensor([[9, 6 + i] for i in range(n)]), canvas, in_memory)


def test_held_and_read_images_are_the_same(tmp_path: Path) -> None:
    held, read = a_set(tmp_path, 5, in_memory=True), a_set(tmp_path, 5, in_memory=False)
    assert (held.in_memory, read.in_memory, len(held)) == (True, False, 5)
    assert (held[-1].dtype, held[-1].shape) == (torch.uint8, (3, 8, 8))
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
    paths, note = a_set(tmp_path, 4, in_memory=False).paths, lambda *done: progress.append(done)
    Images(paths, torch.ones(4, 2), 8, True, on_progress=note)
    assert progress[-1] == (4, 4)
    assert sorted(progress) == progress


def test_in_parallel_does_each_once_and_stops_at_the_first_failure() -> None:
    counts = [0] * 500
    main = threading.get_ident()
    callers: set[int] = set()

    def count(i: int) -> None:
        counts[i] += 1

    run_parallel(500, count, threads=4, on_progress=lambda *_: callers.add(threading.get_ident()))
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


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(NAMES, max_size=8))
def test_paths_are_a_sequence_of_paths(names: list[str]) -> None:
    paths, expected = Paths(names), tuple(Path(name) for name in names)
    assert tuple(paths) == expected
    assert paths == expected == pickle.loads(pickle.dumps(paths))
    assert paths[1:3] == expected[1:3]
    assert tuple(paths[-i - 1] for i in range(len(names))) == expected[::-1]
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
    black = write_file(tmp_path, "b.png", encoded(Image.new("RGB", (9, 9))))
    flat = Images([black], torch.tensor([[9, 9]]), 8)
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
    data = png(400, 40, 8, 2, bytes(rows * (1 + 3 * 400)))
    assert (find_damage("PNG", data) is not None) == is_damaged


def test_fill_bytes_and_markers_without_a_length_hide_no_end_of_a_jpeg() -> None:
    data = JPEGS[0][:2] + b"\xff\xff\xff\x01" + JPEGS[0][2:]
    assert find_damage("JPEG", data) is None
    assert find_damage("JPEG", data[:-2]) is not None
