"""Encodes images for a pack: the short side limited, as JPEG, WebP or PNG; and their masks."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from selftaught.data.decode import load_stored, quiet, shrink
from selftaught.data.io.integrity import Unreadable
from selftaught.data.io.source import read_bytes
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError, require
from selftaught.text import printable

Format = Literal["jpeg", "webp", "png"]
QUALITY = 90
# modes whose values are unchanged by PNG and nearest-neighbour resizing
_MASK_MODES = ("1", "L", "P", "I;16", "RGB")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The size and format of images in a pack."""

    # largest short side in pixels; None: no limit
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
        """Arguments for Pillow."""
        return {} if self.format == "png" else {"quality": self.quality or QUALITY}

    def pixels(self, height: int, width: int) -> float:
        """Return the number of pixels that an image has in the pack."""
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
    """Encode an image and its mask for a pack.

    shape: height and width of the image now. pixel_range: scale to 8 bits of images with more. A
    file of this format, upright and small enough, keeps its bytes. Raises UserError where the file
    changed since it was indexed, or where the mask does not fit.
    """
    try:
        with quiet():
            image, file_format = shrink(path, encoding.size, pixel_range)
        unchanged = file_format is not None and file_format.lower() == encoding.format
        data = (
            read_bytes(path)
            if unchanged
            else _encode_image(image, encoding.format, path, **encoding.options)
        )
    except Unreadable as error:
        raise UserError(
            f"{printable(path)} cannot be read any more ({error}): run the same command again"
        ) from None
    return Encoded(
        data,
        image.height,
        image.width,
        None if mask is None else _encode_mask(mask, shape, image.size),
    )


def _encode_mask(mask: Path, shape: tuple[int, int] | None, size: tuple[int, int]) -> bytes:
    """Return the mask as PNG, with its values unchanged."""
    try:
        image = load_stored(mask)
    except Unreadable as error:
        raise UserError(
            f"the mask {printable(mask)} cannot be read ({error}): repair or remove it"
        ) from None
    if shape is not None and (image.height, image.width) != shape:
        sizes = f"{image.width} x {image.height} pixels and its image {shape[1]} x {shape[0]}"
        raise UserError(f"the mask {printable(mask)} has {sizes}: they must be the same")
    if image.mode not in _MASK_MODES:
        raise UserError(
            f"the mask {printable(mask)} is of mode {image.mode}: save it as PNG with one value a"
            " pixel"
        )
    if image.size == size and image.format == "PNG":
        return read_bytes(mask)
    return _encode_image(image.resize(size, Image.Resampling.NEAREST), "png", mask)


def _encode_image(image: Image.Image, format: str, path: Path, **options: Any) -> bytes:
    out = io.BytesIO()
    try:
        image.save(out, format, **options)
    except (OSError, ValueError) as error:  # WebP has at most 16,383 pixels a side, JPEG 65,535
        raise UserError(
            f"{printable(path)} cannot be written as {format} ({error}): choose another --format"
        ) from None
    return out.getvalue()
