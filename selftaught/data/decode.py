"""From a file to its pixels: every odd format as a person sees it, or a reason why there is nothing
to see. (Over 200 lines with its quick way for the usual JPEG.)
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from selftaught.data import color_profile, high_depth, tiff
from selftaught.data.io.integrity import MAX_PIXELS, Unreadable, find_damage
from selftaught.data.io.parallel import LARGE, MemoryBudget
from selftaught.data.io.source import read_bytes
from selftaught.data.pixel_range import EIGHT_BITS, PixelRange

try:
    from simplejpeg import decode_jpeg
except ImportError:  # of the extra "fast": the same values, by Pillow and more slowly
    decode_jpeg = None

# Never EPS and the like, whose readers start other programs. Pillow finds MPO by itself, as a kind
# of JPEG.
_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]
_HEIF = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
)
# modes whose conversion cannot fail
_CONVERTIBLE = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16")
# a pixel, decoded and copied once; of other modes:
_BYTES = {"1": 3, "L": 3, "P": 3, "I;16": 6, "I;16B": 6}
_MOST_BYTES = 12
# EXIF orientation -> what turns the stored pixels upright
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def register_heif() -> bool:
    """Have HEIC and HEIF files read, if `pillow_heif` is installed (the extra "heic"); return
    whether it is.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    _FORMATS.append("HEIF")
    return True


def _register_avif() -> None:
    """Pillow reads AVIF from version 11.3 on, where it was built with the library for it."""
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        return
    if AvifImagePlugin.SUPPORTED:
        _FORMATS.append("AVIF")


_register_avif()


class _Strict:
    """Truncated files raise, even where another library of this process has told Pillow to fill
    them with grey; and large ones are not taken for attacks, as they are measured here.

    A counter under a lock, as Pillow's switches are for all threads: the first in sets them, the
    last out puts them back.
    """

    def __init__(self) -> None:
        self._before: tuple[bool, int | None] = (False, None)
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._before


_strict = _Strict()
_memory = MemoryBudget()
if hasattr(
    os, "register_at_fork"
):  # a lock that another thread held at the fork would stay closed in the child
    os.register_at_fork(after_in_child=_strict.reset)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings about odd metadata off the terminal: what matters is a reason of
    `Unreadable`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        yield


class _Loaded(NamedTuple):
    """The first frame as stored, all its pixels decoded (of a JPEG perhaps fewer)."""

    image: Image.Image
    kind: int  # of its values, as in `pixel_range`
    data: bytes

    @property
    def is_large(self) -> bool:
        return _size(self.image) > LARGE


def _values(loaded: _Loaded) -> high_depth.Values:
    """The numbers of an image of more than 8 bits; colours of 16 bits are unpacked once more for
    their lower bytes.
    """
    low, grey = None, False
    if loaded.image.mode in ("RGB", "RGBA"):
        with _strict:
            low = Image.open(io.BytesIO(loaded.data), formats=tuple(_FORMATS))
            grey = high_depth.is_grey_with_alpha(low)
            high_depth.prepare(low, low_bytes=True)
            low.load()
    return high_depth.Values(loaded.image, low, grey)


def _size(image: Image.Image) -> int:
    """The bytes that it takes to decode an image."""
    return image.width * image.height * _BYTES.get(image.mode, _MOST_BYTES)


@contextmanager
def _loaded(
    data: bytes, at_least: int | None = None, max_pixels: int | None = None
) -> Iterator[_Loaded]:
    """An image, decoded when there is memory for it; of a JPEG perhaps fewer pixels, down to the
    side `at_least`.
    """
    with _reasons(data):
        image = _open(data, max_pixels)
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does something for a JPEG only
        kind = high_depth.prepare(image) if image.format in ("PNG", "TIFF") else EIGHT_BITS
    with _reasons(data), _memory.reserve(_size(image)):
        with _strict:
            image.load()
        yield _Loaded(image, kind, data)


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    if data[4:12] in _HEIF and not register_heif():
        raise Unreadable(
            "HEIC, which needs pillow-heif: pip install 'selftaught[heic]'", transient=True
        )
    with _strict:
        image = Image.open(io.BytesIO(data), formats=tuple(_FORMATS))
    if max_pixels is not None:
        refuse_larger(*image.size, max_pixels)
    if reason := find_damage(image.format, data):
        raise Unreadable(reason)
    return image


def refuse_larger(width: int, height: int, max_pixels: int) -> None:
    """Raises `Unreadable` for an image that is larger than asked for."""
    if width * height > max_pixels:
        size = f"{width:,} x {height:,} pixels are more than {max_pixels:,}"
        raise Unreadable(f"{size}: raise --max-pixels to take it in", transient=True)


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """What decoders raise, as a reason."""
    try:
        yield
    except Unreadable:
        raise
    except UnidentifiedImageError:
        reason = tiff.strange_kind(data) or "not an image, or its header is damaged"
        raise Unreadable(reason) from None
    except MemoryError:
        raise Unreadable("not enough memory to decode it", transient=True) from None
    except Exception as error:  # decoders of damaged files raise nearly everything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(said if "truncated" in said.lower() else f"damaged: {said}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata beside whole pixels: shown as stored
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integers of 16 or 32 bits and floats to "L", where no range of the set is known: by the full
    range of the kind, or where that states none by the image's own values (1, 255, 65535, its
    largest).
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0).clip(
        min=0.0
    )
    top = float(values.max())
    if image.mode.startswith("I;16"):
        full = 65535.0
    elif image.mode == "F" and top <= 1:
        full = 1.0
    else:
        full = next((limit for limit in (255.0, 65535.0) if top <= limit), top)
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))


def _rgb(loaded: _Loaded, pixel_range: PixelRange | None, at_least: int | None) -> Image.Image:
    """In sRGB, over white; of a large image perhaps fewer pixels, down to the side `at_least`."""
    image, profile = loaded.image, loaded.image.info.get("icc_profile")
    pair = pixel_range.of(loaded.kind) if pixel_range is not None else None
    if pair is not None:
        image = _values(loaded).shown(pair)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("1", "La"):
        image = image.convert("L" if image.mode == "1" else "LA")
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "RGBA", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    if loaded.is_large and at_least is not None and pixel_range is not None:
        image = image.reduce(max(min(image.size) // at_least, 1))
    if image.mode == "LAB" or (profile and pixel_range is not None):
        transform = color_profile.to_srgb(profile, image.mode)
        image = image if transform is None else transform.apply(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(
    loaded: _Loaded, pixel_range: PixelRange | None, at_least: int | None = None
) -> Image.Image:
    turn = _TRANSPOSE.get(_orientation(loaded.image))
    try:
        rgb = _rgb(loaded, pixel_range, at_least)
        return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise Unreadable("not enough memory to convert it", transient=True) from None
    except Exception as error:  # any conversion may fail in its own way
        raise Unreadable(f"mode {loaded.image.mode} cannot be shown as RGB: {error}") from None


def decode(path: Path | str, pixel_range: PixelRange | None = None) -> Image.Image:
    """The image as a person sees it: RGB, upright by its EXIF orientation, the first frame of
    several.

    More than 8 bits are brought to 8 by the range of the set, CMYK and colours of other profiles
    are converted to sRGB, transparency is laid on white. Without a range, see `PixelRange`. Raises
    `Unreadable` with the reason: not an image, empty, truncated, ...
    """
    with _loaded(read_bytes(path)) as loaded:
        return _upright(loaded, pixel_range)


class Measurement(NamedTuple):
    """What is measured of a file, once: its height and width as shown, and the columns of
    `pixel_range`.
    """

    height: int
    width: int
    kind: int = EIGHT_BITS
    low: float = 0.0
    high: float = 0.0
    pages: int = 0  # or frames, where there are several


def measure(path: Path | str, max_pixels: int = MAX_PIXELS) -> Measurement:
    """What the whole file holds, from decoding it; raises `Unreadable` wherever `decode` does, and
    for larger images.

    The usual JPEG is decoded at 1/8: all its bits are read, which is what finds damage, and most
    arithmetic is spared.
    """
    data = read_bytes(path)
    if quick := _plain_jpeg(data, 1, max_pixels=max_pixels):
        header = quick[1]
        return Measurement(header.height, header.width, pages=_pages(header, data))
    with _loaded(data, max_pixels=max_pixels) as loaded:
        image, kind = loaded.image, loaded.kind
        low, high = (0.0, 0.0) if kind == EIGHT_BITS else _values(loaded).limits()
        if kind == EIGHT_BITS and image.mode not in _CONVERTIBLE:
            _upright(loaded, None)  # only to see that it can be done
        width, height = image.size if _orientation(image) not in (5, 6, 7, 8) else image.size[::-1]
        return Measurement(height, width, kind, low, high, _pages(image, data))


def is_unusual(data: bytes) -> bool:
    """Whether the header alone says that there is more to measure than height and width. False
    where it is damaged.
    """
    if data.startswith(b"\xff\xd8"):
        return False
    with contextlib.suppress(Unreadable), _reasons(data):
        image = _open(data, None)
        deep = image.format in ("PNG", "TIFF") and high_depth.prepare(image) != EIGHT_BITS
        return deep or bool(getattr(image, "is_animated", False))
    return False


def _pages(image: Image.Image, data: bytes) -> int:
    """How many pages or frames a file has, 0 where only one. Smaller copies of the first, for
    previews, are none.
    """
    try:
        if not getattr(image, "is_animated", False):
            return 0
        if image.format == "TIFF":
            n = tiff.pages(data)
        elif image.format == "MPO":
            entries = image.mpinfo[0xB002]  # type: ignore[attr-defined]
            n = sum(
                not str(entry["Attribute"]["MPType"]).startswith("Large Thumbnail")
                for entry in entries
            )
        else:
            n = int(getattr(image, "n_frames", 1))
    except Exception:  # damage behind the first page, which is all that is used
        return 0
    return n if n > 1 else 0


def shrunk(
    path: Path | str, side: int | None, pixel_range: PixelRange | None = None
) -> tuple[Image.Image, str | None]:
    """The image as `decode` gives it, its short side brought down to `side` (never up); and the
    format of its file, where that holds just this: one frame, RGB or grey of 8 bits, upright, no
    larger. Raises `Unreadable`.

    A JPEG is decoded at a fraction where that leaves twice the side or more; the rest is done by
    Lanczos' filter.
    """
    at_least = 2 * side if side else None
    with _loaded(read_bytes(path), at_least) as loaded:
        stored = loaded.image
        image, plain = (
            _upright(loaded, pixel_range, at_least),
            stored.mode in ("RGB", "L") and not loaded.kind,
        )
        plain = plain and "transparency" not in stored.info and _orientation(stored) == 1
        plain = plain and getattr(stored, "n_frames", 1) == 1
        if side is None or min(image.size) <= side:
            return image, stored.format if plain else None
        width, height = (max(round(length * side / min(image.size)), 1) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0), None


def as_stored(path: Path | str) -> Image.Image:
    """The values of a file as they stand, for a mask, where they name classes. Raises
    `Unreadable`.
    """
    with _loaded(read_bytes(path)) as loaded:
        return loaded.image


def pixels(path: Path | str, at_least: int, pixel_range: PixelRange | None = None) -> Tensor:
    """The image as `decode` shows it: uint8 [3, h, w], a colour after the other within each pixel.
    Raises `Unreadable`.

    A JPEG is decoded at 1/2, 1/4 or 1/8 (in the frequency domain, which is antialiased by nature)
    where that leaves a short side of `at_least` or more: half the time for 500x375 to 96 px, at a
    mean difference of 1.2 grey levels. Of other very large images (see `machine.LARGE`) squares of
    pixels are averaged likewise.
    """
    data = read_bytes(path)
    if quick := _plain_jpeg(data, at_least, pixel_range is not None):
        return quick[0]
    with _loaded(data, at_least) as loaded:
        return torch.from_numpy(np.array(_upright(loaded, pixel_range, at_least))).permute(2, 0, 1)


def _plain_jpeg(
    data: bytes, at_least: int, with_profile: bool = False, max_pixels: int | None = None
) -> tuple[Tensor, Image.Image] | None:
    """The usual JPEG by simplejpeg, and its header: the values that Pillow gives, without its two
    copies (0.7 ms instead of 1.0 for 500x375, at half the size 0.5 instead of 0.7). None for
    whatever else, or what it refuses, so that Pillow may give its reason; `with_profile`, also for
    what is to be converted to sRGB.
    """
    if decode_jpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        with _strict:
            header = Image.open(io.BytesIO(data), formats=("JPEG",))
        if (
            header.mode not in ("RGB", "L")
            or _orientation(header) != 1
            or find_damage("JPEG", data)
        ):
            return None
        profile = header.info.get("icc_profile") if with_profile else None
        if profile and color_profile.to_srgb(profile, header.mode):
            return None
        width, height = header.size
        if max_pixels is not None:
            refuse_larger(width, height, max_pixels)
        # as Pillow's draft
        share = next((n for n in (8, 4, 2) if min(width, height) >= n * at_least), 1)
        least = (
            {"min_width": -(-width // share), "min_height": -(-height // share)}
            if share > 1
            else {}
        )
        with _memory.reserve(_size(header) // share**2):
            found = decode_jpeg(data, "RGB", **least, min_factor=1, strict=True)
    except Exception:
        return None
    return torch.from_numpy(found).permute(2, 0, 1), header


def squash(path: Path | str, canvas: int, pixel_range: PixelRange | None = None) -> Tensor:
    """The whole image resized to a square by an antialiased bicubic filter: uint8 [3, canvas,
    canvas]. As `pixels`.
    """
    image = pixels(path, math.ceil(1.5 * canvas), pixel_range)
    if image.shape[1:] != (canvas, canvas):
        image = torch.nn.functional.interpolate(
            image[None], (canvas, canvas), mode="bicubic", antialias=True
        )[0]
    return image.contiguous()
