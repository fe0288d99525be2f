"""Decodes image files to pixels: upright, in sRGB and 8 bits, or the reason why that fails."""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
except ImportError:  # of the extra "fast"; Pillow gives equal values more slowly
    decode_jpeg = None

# Without EPS and the like, whose readers start other programs. Pillow reads MPO as JPEG.
_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]
_HEIF = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
)
# modes whose conversion cannot fail
_CONVERTIBLE = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16")
# decoded and copied once
_BYTES_PER_PIXEL = {"1": 3, "L": 3, "P": 3, "I;16": 6, "I;16B": 6}
_MAX_BYTES_PER_PIXEL = 12  # of other modes
# EXIF orientation -> operation that makes the stored pixels upright
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
    """Enable HEIC and HEIF where `pillow_heif` is installed (the extra "heic"); return whether it
    is.
    """
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    _FORMATS.append("HEIF")
    return True


def _register_avif() -> None:
    """Enable AVIF where Pillow has its library, from version 11.3 on."""
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        return
    if AvifImagePlugin.SUPPORTED:
        _FORMATS.append("AVIF")


_register_avif()


class _GlobalSwitch(AbstractContextManager[None]):
    """A setting of the whole process. The first thread enters `change`, the last one leaves it."""

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self.reset()

    def reset(self) -> None:
        self._lock, self._users = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._entered = self._change()
                self._entered.__enter__()
            self._users += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._entered.__exit__(None, None, None)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Inside, Pillow raises for truncated files, and accepts large ones.

    The size is checked here. Other libraries set these switches, too.
    """
    previous = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = previous


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        yield


_strict, _quiet = _GlobalSwitch(_strict_pillow), _GlobalSwitch(_quiet_pillow)
_memory = MemoryBudget()
# a lock of another thread would stay locked in a forked child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_strict.reset)
    os.register_at_fork(after_in_child=_quiet.reset)


def quiet() -> AbstractContextManager[None]:
    """Suppress Pillow's warnings about odd metadata; `Unreadable` reports real damage."""
    return _quiet


class _LoadedImage(NamedTuple):
    """The first frame as stored, with all pixels decoded (of a JPEG perhaps fewer)."""

    image: Image.Image
    kind: int  # of values, as in `pixel_range`
    data: bytes

    @property
    def is_large(self) -> bool:
        return _decoded_bytes(self.image) > LARGE


def _read_values(loaded: _LoadedImage) -> high_depth.Values:
    """Return the numbers of an image of more than 8 bits.

    Colours of 16 bits are unpacked a second time for their lower bytes.
    """
    low, grey = None, False
    if loaded.image.mode in ("RGB", "RGBA"):
        with _strict:
            low = Image.open(io.BytesIO(loaded.data), formats=tuple(_FORMATS))
            grey = high_depth.is_grey_with_alpha(low)
            high_depth.set_raw_modes(low, low_bytes=True)
            low.load()
    return high_depth.Values(loaded.image, low, grey)


def _decoded_bytes(image: Image.Image) -> int:
    """Return the bytes that it takes to decode an image."""
    return image.width * image.height * _BYTES_PER_PIXEL.get(image.mode, _MAX_BYTES_PER_PIXEL)


@contextmanager
def _load(
    data: bytes, at_least: int | None = None, max_pixels: int | None = None
) -> Iterator[_LoadedImage]:
    """Decode an image when there is memory for it; a JPEG perhaps smaller, down to the side
    `at_least`.
    """
    with _as_unreadable(data):
        image = _open(data, max_pixels)
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # affects JPEG only
        kind = high_depth.set_raw_modes(image) if image.format in ("PNG", "TIFF") else EIGHT_BITS
    with _as_unreadable(data), _memory.reserve(_decoded_bytes(image)):
        with _strict:
            image.load()
        yield _LoadedImage(image, kind, data)


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
    """Raise `Unreadable` for an image of more than `max_pixels`."""
    if width * height > max_pixels:
        size = f"{width:,} x {height:,} pixels are more than {max_pixels:,}"
        raise Unreadable(f"{size}: raise --max-pixels to take it in", transient=True)


@contextmanager
def _as_unreadable(data: bytes) -> Iterator[None]:
    """Turn the exceptions of decoders into `Unreadable`."""
    try:
        yield
    except Unreadable:
        raise
    except UnidentifiedImageError:
        reason = tiff.describe_unknown(data) or "not an image, or its header is damaged"
        raise Unreadable(reason) from None
    except MemoryError:
        raise Unreadable("not enough memory to decode it", transient=True) from None
    except Exception as error:  # decoders of damaged files raise many types
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(
            message if "truncated" in message.lower() else f"damaged: {message}"
        ) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata beside whole pixels: as stored
        return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale integers of 16 or 32 bits and floats to "L", without a pixel range of the set.

    White is the largest value of the type; without one, the next of 1, 255 and 65535, or the
    maximum.
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


def _to_rgb(
    loaded: _LoadedImage, pixel_range: PixelRange | None, at_least: int | None
) -> Image.Image:
    """Return the image in sRGB, over white; a large one perhaps smaller, down to the side
    `at_least`.
    """
    image, profile = loaded.image, loaded.image.info.get("icc_profile")
    pair = pixel_range.pair_for(loaded.kind) if pixel_range is not None else None
    if pair is not None:
        image = _read_values(loaded).to_image(pair)
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if image.mode in ("1", "La"):
        image = image.convert("L" if image.mode == "1" else "LA")
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode not in ("RGB", "RGBA", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    if loaded.is_large and at_least is not None and pixel_range is not None:
        image = image.reduce(max(min(image.size) // at_least, 1))
    if image.mode == "LAB" or (profile and pixel_range is not None):
        transform = color_profile.make_srgb_transform(profile, image.mode)
        image = image if transform is None else transform.apply(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_upright(
    loaded: _LoadedImage, pixel_range: PixelRange | None, at_least: int | None = None
) -> Image.Image:
    turn = _TRANSPOSE.get(_orientation(loaded.image))
    try:
        rgb = _to_rgb(loaded, pixel_range, at_least)
        return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise Unreadable("not enough memory to convert it", transient=True) from None
    except Exception as error:  # conversions raise many types
        raise Unreadable(f"mode {loaded.image.mode} cannot be shown as RGB: {error}") from None


def decode(path: Path | str, pixel_range: PixelRange | None = None) -> Image.Image:
    """Return the first frame of an image in RGB, upright by its EXIF orientation.

    Values of more than 8 bits are scaled by `pixel_range`; None: see `PixelRange`. CMYK and other
    colour profiles are converted to sRGB, transparency is laid on white. Raises `Unreadable` with
    the reason: not an image, empty, truncated, ...
    """
    with _load(read_bytes(path)) as loaded:
        return _to_upright(loaded, pixel_range)


class Measurement(NamedTuple):
    """The result of one decoding: height and width after EXIF orientation, and columns of
    `pixel_range`.
    """

    height: int
    width: int
    kind: int = EIGHT_BITS
    low: float = 0.0
    high: float = 0.0
    pages: int = 0  # or frames, where there are several


def measure(path: Path | str, max_pixels: int = MAX_PIXELS) -> Measurement:
    """Decode the whole file and return its measurements.

    Raises `Unreadable` wherever `decode` does, and for larger images. The usual JPEG is decoded at
    1/8: all its bits are read, so damage is found, with little arithmetic.
    """
    data = read_bytes(path)
    if plain := _decode_plain_jpeg(data, 1, max_pixels=max_pixels):
        header = plain[1]
        return Measurement(header.height, header.width, pages=_count_pages(header, data))
    with _load(data, max_pixels=max_pixels) as loaded:
        image, kind = loaded.image, loaded.kind
        low, high = (0.0, 0.0) if kind == EIGHT_BITS else _read_values(loaded).limits()
        if kind == EIGHT_BITS and image.mode not in _CONVERTIBLE:
            _to_upright(loaded, None)  # raises where the mode cannot be converted
        width, height = image.size if _orientation(image) not in (5, 6, 7, 8) else image.size[::-1]
        return Measurement(height, width, kind, low, high, _count_pages(image, data))


def is_unusual(data: bytes) -> bool:
    """Whether the header shows more to measure than height and width; False for a damaged one."""
    if data.startswith(b"\xff\xd8"):
        return False
    with contextlib.suppress(Unreadable), _as_unreadable(data):
        image = _open(data, None)
        deep = image.format in ("PNG", "TIFF") and high_depth.set_raw_modes(image) != EIGHT_BITS
        return deep or bool(getattr(image, "is_animated", False))
    return False


def _count_pages(image: Image.Image, data: bytes) -> int:
    """Return the number of pages or frames of a file, 0 for one; previews do not count."""
    try:
        if not getattr(image, "is_animated", False):
            return 0
        if image.format == "TIFF":
            n = tiff.count_pages(data)
        elif image.format == "MPO":
            # pyrefly: ignore[missing-attribute]
            entries = image.mpinfo[0xB002]
            n = sum(
                not str(entry["Attribute"]["MPType"]).startswith("Large Thumbnail")
                for entry in entries
            )
        else:
            n = int(getattr(image, "n_frames", 1))
    except Exception:  # damage after the first page, the only one that is used
        return 0
    return n if n > 1 else 0


def shrink(
    path: Path | str, side: int | None, pixel_range: PixelRange | None = None
) -> tuple[Image.Image, str | None]:
    """Return the image as `decode`, its short side reduced to `side` (never enlarged), and a
    format.

    The format is that of the file where the file holds exactly this image: one frame, RGB or grey
    of 8 bits, upright, no larger. Else it is None. A JPEG is decoded at a fraction that leaves
    twice the side or more; Lanczos' filter does the rest. Raises `Unreadable`.
    """
    at_least = 2 * side if side else None
    with _load(read_bytes(path), at_least) as loaded:
        stored = loaded.image
        image = _to_upright(loaded, pixel_range, at_least)
        is_plain = (
            stored.mode in ("RGB", "L")
            and not loaded.kind
            and "transparency" not in stored.info
            and _orientation(stored) == 1
            and getattr(stored, "n_frames", 1) == 1
        )
        if side is None or min(image.size) <= side:
            return image, stored.format if is_plain else None
        width, height = (max(round(length * side / min(image.size)), 1) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0), None


def load_stored(path: Path | str) -> Image.Image:
    """Return the values of a file as stored, for a mask of class numbers. Raises `Unreadable`."""
    with _load(read_bytes(path)) as loaded:
        return loaded.image


def pixels(path: Path | str, at_least: int, pixel_range: PixelRange | None = None) -> Tensor:
    """Return the image as `decode`: uint8 [3, h, w], channels last in memory. Raises `Unreadable`.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves a short side of `at_least` or more. This
    works in the frequency domain, and so is antialiased. For 500x375 to 96 px it halves the time,
    at a mean difference of 1.2 grey levels. Other images above `parallel.LARGE` are averaged over
    squares of pixels.
    """
    data = read_bytes(path)
    if plain := _decode_plain_jpeg(data, at_least, pixel_range is not None):
        return plain[0]
    with _load(data, at_least) as loaded:
        return torch.from_numpy(np.array(_to_upright(loaded, pixel_range, at_least))).permute(
            2, 0, 1
        )


def _decode_plain_jpeg(
    data: bytes, at_least: int, with_profile: bool = False, max_pixels: int | None = None
) -> tuple[Tensor, Image.Image] | None:
    """Decode the usual JPEG by simplejpeg; return it and its header, or None to use Pillow.

    The values are those of Pillow, without its two copies: 0.7 ms instead of 1.0 for 500x375, at
    half the size 0.5 instead of 0.7. with_profile: None for an image with a colour profile to
    convert, too.
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
        if profile and color_profile.make_srgb_transform(profile, header.mode):
            return None
        width, height = header.size
        if max_pixels is not None:
            refuse_larger(width, height, max_pixels)
        # as Pillow's `draft`
        share = next((n for n in (8, 4, 2) if min(width, height) >= n * at_least), 1)
        minimum = (
            {"min_width": -(-width // share), "min_height": -(-height // share)}
            if share > 1
            else {}
        )
        with _memory.reserve(_decoded_bytes(header) // share**2):
            array = decode_jpeg(data, "RGB", **minimum, min_factor=1, strict=True)
    except Exception:
        return None
    return torch.from_numpy(array).permute(2, 0, 1), header


def centre_square(image: Tensor) -> Tensor:
    """Crop the largest square in the middle of an image [3, H, W]."""
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def squash(
    path: Path | str, canvas: int, pixel_range: PixelRange | None = None, square: bool = False
) -> Tensor:
    """Resize the whole image to a square by an antialiased bicubic filter: uint8 [3, canvas,
    canvas].

    square: resize its centre square instead. Raises `Unreadable`.
    """
    image = pixels(path, math.ceil(1.5 * canvas), pixel_range)
    image = centre_square(image) if square else image
    if image.shape[1:] != (canvas, canvas):
        image = torch.nn.functional.interpolate(
            image[None], (canvas, canvas), mode="bicubic", antialias=True
        )[0]
    return image.contiguous()
