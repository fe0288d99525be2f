"""From a file to its pixels: every odd format as a person sees it, or a reason why there is nothing to see. (Over 200 lines
with its quick way for the usual JPEG.)
"""

from __future__ import annotations

import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from selftaught.data.damage import Unreadable, damage
from selftaught.data.store import read

try:
    from simplejpeg import decode_jpeg
except ImportError:  # of the extra "fast": the same values, by Pillow and more slowly
    decode_jpeg = None

# Never EPS and the like, whose readers start other programs. Pillow finds MPO by itself, as a kind of JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_CONVERTIBLE = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16")  # modes whose conversion cannot fail
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what turns the stored pixels upright


class _Strict:
    """Truncated files raise, even where another library of this process has told Pillow to fill them with grey.

    A counter under a lock, as Pillow's switch is one for all threads: the first in turns it off, the last out
    puts it back.
    """

    def __init__(self) -> None:
        self._before = False
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_strict = _Strict()
if hasattr(os, "register_at_fork"):  # a lock that another thread held at the fork would stay closed in the child
    os.register_at_fork(after_in_child=_strict.reset)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings about odd metadata off the terminal: what matters is a reason of `Unreadable`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        yield


def _load(data: bytes, at_least: int | None = None) -> Image.Image:
    """The first frame as stored, all its pixels decoded (of a JPEG perhaps fewer, down to the side `at_least`)."""
    try:
        with _strict:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if reason := damage(image.format, data):
                raise Unreadable(reason)
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # does something for a JPEG only
            image.load()
        return image
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"decompression bomb: {error}") from None
    except MemoryError:
        raise Unreadable("not enough memory to decode it", passing=True) from None
    except Exception as error:  # decoders of damaged files raise nearly everything
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unreadable(said if "truncated" in said.lower() else f"damaged: {said}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata beside whole pixels: shown as stored
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integers of 16 or 32 bits and floats to "L". The full range of the kind is kept, so that brightness
    stays comparable between the images of a set; only where the kind states no range is it guessed from the
    values (1, 255, 65535, own).
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0.0, neginf=0.0).clip(min=0.0)
    top = float(values.max())
    if image.mode.startswith("I;16"):
        full = 65535.0
    elif image.mode == "F" and top <= 1:
        full = 1.0
    else:
        full = next((limit for limit in (255.0, 65535.0) if top <= limit), top)
    return Image.fromarray(np.rint(values * (255.0 / full)).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    turn = _TRANSPOSE.get(_orientation(image))
    try:
        rgb = _rgb(image)
        return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise Unreadable("not enough memory to convert it", passing=True) from None
    except Exception as error:  # any conversion may fail in its own way
        raise Unreadable(f"mode {image.mode} cannot be shown as RGB: {error}") from None


def decode(path: Path | str) -> Image.Image:
    """The image as a person sees it: RGB, upright by its EXIF orientation, the first frame of several.

    16 bits are scaled to 8 over their full range, CMYK is converted, transparency is laid on white. Raises
    `Unreadable` with the reason: not an image, empty, truncated, a decompression bomb (Pillow's limit, 179
    million pixels), ...
    """
    return _upright(_load(read(path)))


def measure(path: Path | str) -> tuple[int, int]:
    """(height, width) as shown, from decoding the whole file; raises `Unreadable` wherever `decode` does.

    The usual JPEG is decoded at 1/8: all its bits are read, which is what finds damage, and most arithmetic is spared.
    """
    data = read(path)
    if quick := _plain_jpeg(data, at_least=1):
        return quick[1]
    image = _load(data)
    if image.mode not in _CONVERTIBLE:
        _upright(image)  # only to see that it can be done
    width, height = image.size
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def shrunk(path: Path | str, side: int | None) -> tuple[Image.Image, str | None]:
    """The image as `decode` gives it, its short side brought down to `side` (never up); and the format of its file, where
    that holds just this: one frame, RGB or grey, upright, no larger. Raises `Unreadable`.

    A JPEG is decoded at a fraction where that leaves twice the side or more; the rest is done by Lanczos' filter.
    """
    stored = _load(read(path), at_least=2 * side if side else None)
    image, plain = _upright(stored), stored.mode in ("RGB", "L") and "transparency" not in stored.info
    plain = plain and _orientation(stored) == 1 and getattr(stored, "n_frames", 1) == 1
    if side is None or min(image.size) <= side:
        return image, stored.format if plain else None
    width, height = (max(round(length * side / min(image.size)), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0), None


def as_stored(path: Path | str) -> Image.Image:
    """The values of a file as they stand, for a mask, where they name classes. Raises `Unreadable`."""
    return _load(read(path))


def pixels(path: Path | str, at_least: int) -> Tensor:
    """The image as `decode` shows it: uint8 [3, h, w], a colour after the other within each pixel. Raises `Unreadable`.

    A JPEG is decoded at 1/2, 1/4 or 1/8 (in the frequency domain, which is antialiased by nature) where that leaves a
    short side of `at_least` or more: half the time for 500x375 to 96 px, at a mean difference of 1.2 grey levels.
    """
    data = read(path)
    if quick := _plain_jpeg(data, at_least):
        return quick[0]
    return torch.from_numpy(np.array(_upright(_load(data, at_least)))).permute(2, 0, 1)


def _plain_jpeg(data: bytes, at_least: int) -> tuple[Tensor, tuple[int, int]] | None:
    """The usual JPEG by simplejpeg, and its whole (height, width): the values that Pillow gives, without its two copies
    (0.7 ms instead of 1.0 for 500x375, at half the size 0.5 instead of 0.7). None for whatever else, or what it refuses,
    so that Pillow may give its reason.
    """
    if decode_jpeg is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        header = Image.open(io.BytesIO(data), formats=("JPEG",))
        if header.mode not in ("RGB", "L") or _orientation(header) != 1 or damage("JPEG", data):
            return None
        width, height = header.size
        share = next((n for n in (8, 4, 2) if min(width, height) >= n * at_least), 1)  # as Pillow's draft
        least = {"min_width": -(-width // share), "min_height": -(-height // share)} if share > 1 else {}
        found = decode_jpeg(data, "RGB", **least, min_factor=1, strict=True)
    except Exception:
        return None
    return torch.from_numpy(found).permute(2, 0, 1), (height, width)


def squash(path: Path | str, canvas: int) -> Tensor:
    """The whole image resized to a square by an antialiased bicubic filter: uint8 [3, canvas, canvas]. As `pixels`."""
    image = pixels(path, math.ceil(1.5 * canvas))
    if image.shape[1:] != (canvas, canvas):
        image = torch.nn.functional.interpolate(image[None], (canvas, canvas), mode="bicubic", antialias=True)[0]
    return image.contiguous()
