"""The values of images with more than 8 bits, of which Pillow gives the upper 8 bits or none."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image

from selftaught.data import tiff
from selftaught.data.pixel_range import (
    EIGHT_BITS,
    FLOATS,
    INTEGERS,
    SAMPLE,
    Pair,
    mask_no_data,
    measure_limits,
    to_eight_bits,
)

_NATIVE = "L" if sys.byteorder == "little" else "B"
_SWAPPED = {"L": "B", "B": "L"}
_COLOUR_MODES = ("RGB;16", "RGBX;16", "RGBA;16")  # Pillow loads the upper bytes of these
_BLOCK = 1 << 22  # values that are converted together


def set_raw_modes(image: Image.Image, low_bytes: bool = False) -> int:
    """Set the raw modes of an opened PNG or TIFF, so that it loads correctly; return the kind of
    values.

    Pillow reads planes of 16 bits as planes of 8. It also misreads compressed big-endian numbers,
    whose bytes libtiff has swapped. low_bytes: unpack the lower bytes of 16-bit colours instead of
    the upper ones; of grey with alpha both, as R and G.
    """
    planes = (
        image.format == "TIFF"
        and tiff.read_tag(image, tiff.PLANES) == 2
        and tiff.read_tag(image, tiff.BITS) == 16
    )
    kind = _value_kind(image.mode)
    if image.mode == "L" and tiff.read_tag(image, tiff.FORMAT) == tiff.SIGNED:
        kind = INTEGERS
    tiles = []
    # pyrefly: ignore[missing-attribute]
    for tile in image.tile:
        name, *_, args = tile
        raw: str = args if isinstance(args, str) else args[0]
        if planes and ";" not in raw:
            # pyrefly: ignore[missing-attribute]
            raw += ";16" + ("L" if image.tag_v2.prefix == b"II" else "B")
            kind = INTEGERS if image.mode in ("RGB", "RGBA") else kind
        elif raw.startswith(_COLOUR_MODES) or raw == "LA;16B":
            kind = INTEGERS
        if name == "libtiff":
            raw = {
                "F;32BF": "F;32NF",
                "F;64BF": "F;64NF",
                "I;16BS": "I;16NS",
                "I;32BS": "I;32NS",
                "I;32B": "I;32N",
            }.get(raw, raw)
        if low_bytes:
            raw = "RGBA" if raw == "LA;16B" else raw[:-1] + _SWAPPED[raw[-1].replace("N", _NATIVE)]
        args = raw if isinstance(args, str) else (raw, *args[1:])
        tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:-1], args))
    # pyrefly: ignore[missing-attribute]
    image.tile = tiles
    return kind


def is_grey_with_alpha(image: Image.Image) -> bool:
    """Whether an opened PNG of 16 bits holds grey with alpha, which Pillow opens as RGBA."""
    # pyrefly: ignore[missing-attribute]
    return any(tile[-1] == "LA;16B" for tile in image.tile)


def _value_kind(mode: str) -> int:
    return (
        FLOATS
        if mode == "F"
        else INTEGERS
        if mode == "I" or mode.startswith("I;16")
        else EIGHT_BITS
    )


class Values:
    """The values of a loaded image.

    low: the same image, loaded with the lower bytes of its colours. grey: they are in G alone.
    """

    def __init__(self, image: Image.Image, low: Image.Image | None, grey: bool) -> None:
        self.image, self.low, self.grey = image, low, grey
        self.mark = tiff.read_nodata(image)

    def iterate_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over (first row, floats [rows, width] or [rows, width, 3]), top to bottom; NaN:
        no value.
        """
        width, height = self.image.size
        rows = max(_BLOCK // max(width, 1), 1)
        for top in range(0, height, rows):
            box = (0, top, width, min(top + rows, height)) if rows < height else None
            values = np.asarray(self.image.crop(box) if box else self.image)
            if self.low is not None:
                low = np.asarray(self.low.crop(box) if box else self.low)
                low = low[..., 1:2] if self.grey else low[..., :3]
                values = values[..., :3].astype(np.float32) * 256 + low
            elif self.image.mode == "I":
                values = (
                    values.view(np.uint32) if tiff.is_unsigned(self.image) else values
                ).astype(np.float64)
            elif self.image.mode == "L":
                values = values.view(np.int8).astype(np.float32)
            else:
                values = values.astype(np.float32)
            if self.image.mode == "F":
                values = mask_no_data(values)
            if self.mark is not None:
                values = np.where(values == values.dtype.type(self.mark), np.nan, values)
            yield top, values

    def limits(self) -> Pair:
        """Return the range of the values without a thousandth at each end; NaN, twice, without
        values.
        """
        # a sample, as all values as floats would take too much memory
        step = max(self.image.width * self.image.height // SAMPLE, 1)
        return measure_limits(
            np.concatenate([block.reshape(-1)[::step].copy() for _, block in self.iterate_blocks()])
        )

    def to_image(self, pair: Pair) -> Image.Image:
        """Return the image in mode L, RGB or RGBA, scaled by a pair of black and white."""
        width, height = self.image.size
        channels = () if self.low is None else (3,)
        pixels = np.empty((height, width, *channels), dtype=np.uint8)
        for top, block in self.iterate_blocks():
            pixels[top : top + len(block)] = to_eight_bits(block, pair)
        if (
            self.low is None
            and tiff.read_tag(self.image, tiff.PHOTOMETRIC) == 0
            and self.image.mode != "L"
        ):
            np.subtract(255, pixels, out=pixels)  # 0 is white
        image = Image.fromarray(pixels)
        if self.image.mode == "RGBA":
            image.putalpha(self.image.getchannel("A"))
        return image
