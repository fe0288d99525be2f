"""From an image to the bytes that a pack keeps: its short side brought down once, as JPEG, WebP or
PNG; and its mask.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from selftaught.data.decode import as_stored, shrunk
from selftaught.data.io.integrity import Unreadable
from selftaught.data.io.source import read_bytes
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError, require
from selftaught.text import printable

Format = Literal["jpeg", "webp", "png"]
QUALITY = 90
# modes whose values PNG keeps and the nearest neighbour leaves alone
_MASKS = ("1", "L", "P", "I;16", "RGB")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a pack holds its images."""

    # pixels of the short side, of which no image has more; None: as they are
    size: int | None = None
    format: Format = "jpeg"
    quality: int | None = None  # of jpeg and webp, 1 to 100; None: 90

    def __post_init__(self) -> None:
        require(self.size is None or self.size >= 8, "--size", "8 pixels or more", self.size or 0)
        if self.format == "png" and self.quality is not None:
            raise UserError("--quality does nothing for png, which keeps every pixel: leave it out")
        require(
            self.quality is None or 1 <= self.quality <= 100,
            "--quality",
            "1 to 100",
            self.quality or 0,
        )

    @property
    def options(self) -> dict[str, Any]:
        """What Pillow is told."""
        return {} if self.format == "png" else {"quality": self.quality or QUALITY}

    def pixels(self, height: int, width: int) -> float:
        """How many are left of an image."""
        shrink = 1.0 if self.size is None else min(self.size / min(height, width), 1.0)
        return height * width * shrink**2


class Encoded(NamedTuple):
    image: bytes
    height: int
    width: int
    mask: bytes | None


def encode(
    path: Path,
    encoding: Encoding,
    mask: Path | None = None,
    shape: tuple[int, int] | None = None,
    pixel_range: PixelRange | None = None,
) -> Encoded:
    """An image and its mask as a pack holds them; `shape` is the image's height and width now,
    `pixel_range` what brings values of more than 8 bits to 8. A file that needs no change, of the
    same format, upright and small enough, keeps its bytes. Raises UserError where the file has
    changed since it was indexed, or the mask does not fit.
    """
    try:
        image, plain = shrunk(path, encoding.size, pixel_range)
        same = plain is not None and plain.lower() == encoding.format
        data = (
            read_bytes(path) if same else _saved(image, encoding.format, path, **encoding.options)
        )
    except Unreadable as error:
        raise UserError(
            f"{printable(path)} cannot be read any more ({error}): run the same command again"
        ) from None
    return Encoded(
        data, image.height, image.width, None if mask is None else _mask(mask, shape, image.size)
    )


def _mask(mask: Path, shape: tuple[int, int] | None, size: tuple[int, int]) -> bytes:
    """As PNG: its values stay what they are."""
    try:
        image = as_stored(mask)
    except Unreadable as error:
        raise UserError(
            f"the mask {printable(mask)} cannot be read ({error}): repair or remove it"
        ) from None
    if shape is not None and (image.height, image.width) != shape:
        said = f"{image.width} x {image.height} pixels and its image {shape[1]} x {shape[0]}"
        raise UserError(f"the mask {printable(mask)} has {said}: they must be the same")
    if image.mode not in _MASKS:
        raise UserError(
            f"the mask {printable(mask)} is of mode {image.mode}: save it as PNG with one value a"
            " pixel"
        )
    if image.size == size and image.format == "PNG":
        return read_bytes(mask)
    return _saved(image.resize(size, Image.Resampling.NEAREST), "png", mask)


def _saved(image: Image.Image, format: str, path: Path, **options: Any) -> bytes:
    out = io.BytesIO()
    try:
        image.save(out, format, **options)
    except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels, JPEG at 65,535
        raise UserError(
            f"{printable(path)} cannot be written as {format} ({error}): choose another --format"
        ) from None
    return out.getvalue()
