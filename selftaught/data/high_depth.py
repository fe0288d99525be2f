"""Images of more than 8 bits a value: their numbers, of which Pillow itself would give the upper 8
bits or none.
"""

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
    limits,
    to_eight_bits,
    without_marks,
)

_NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER = {"L": "B", "B": "L"}
_COLOURS = ("RGB;16", "RGBX;16", "RGBA;16")  # of which Pillow keeps the upper bytes
_AT_ONCE = 1 << 22  # values that are converted at once


def prepare(image: Image.Image, low_bytes: bool = False) -> int:
    """Have an opened PNG or TIFF unpacked rightly when it is loaded; return the kind of its values.

    Pillow takes planes of 16 bits for planes of 8, and compressed big-endian numbers for what they
    are not after libtiff has turned their bytes. `low_bytes`: of colours of 16 bits the lower bytes
    are unpacked, and not the upper ones; of grey with alpha both, as R and G.
    """
    planes = (
        image.format == "TIFF"
        and tiff.tag(image, tiff.PLANES) == 2
        and tiff.tag(image, tiff.BITS) == 16
    )
    kind = _kind(image.mode)
    if image.mode == "L" and tiff.tag(image, tiff.FORMAT) == tiff.SIGNED:
        kind = INTEGERS
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        name, *_, args = tile
        raw: str = args if isinstance(args, str) else args[0]
        if planes and ";" not in raw:
            raw += ";16" + ("L" if image.tag_v2.prefix == b"II" else "B")  # type: ignore[attr-defined]
            kind = INTEGERS if image.mode in ("RGB", "RGBA") else kind
        elif raw.startswith(_COLOURS) or raw == "LA;16B":
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
            raw = "RGBA" if raw == "LA;16B" else raw[:-1] + _OTHER[raw[-1].replace("N", _NATIVE)]
        args = raw if isinstance(args, str) else (raw, *args[1:])
        tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:-1], args))
    image.tile = tiles  # type: ignore[attr-defined]
    return kind


def is_grey_with_alpha(image: Image.Image) -> bool:
    """Of a PNG of 16 bits that is opened: whether it holds no colours, which Pillow calls RGBA all
    the same.
    """
    return any(tile[-1] == "LA;16B" for tile in image.tile)  # type: ignore[attr-defined]


def _kind(mode: str) -> int:
    return (
        FLOATS
        if mode == "F"
        else INTEGERS
        if mode == "I" or mode.startswith("I;16")
        else EIGHT_BITS
    )


class Values:
    """The numbers of an image that is loaded. `low`: the same, prepared and loaded with the lower
    bytes of its colours; `grey`: which has them in G alone.
    """

    def __init__(self, image: Image.Image, low: Image.Image | None, grey: bool) -> None:
        self.image, self.low, self.grey = image, low, grey
        self.mark = tiff.nodata(image)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, floats [rows, width] or [rows, width, 3]) from top to bottom; NaN where there
        is no value.
        """
        width, height = self.image.size
        rows = max(_AT_ONCE // max(width, 1), 1)
        for top in range(0, height, rows):
            box = (0, top, width, min(top + rows, height)) if rows < height else None
            found = np.asarray(self.image.crop(box) if box else self.image)
            if self.low is not None:
                low = np.asarray(self.low.crop(box) if box else self.low)
                low = low[..., 1:2] if self.grey else low[..., :3]
                found = found[..., :3].astype(np.float32) * 256 + low
            elif self.image.mode == "I":
                found = (found.view(np.uint32) if tiff.is_unsigned(self.image) else found).astype(
                    np.float64
                )
            elif self.image.mode == "L":
                found = found.view(np.int8).astype(np.float32)
            else:
                found = found.astype(np.float32)
            if self.image.mode == "F":
                found = without_marks(found)
            if self.mark is not None:
                found = np.where(found == found.dtype.type(self.mark), np.nan, found)
            yield top, found

    def limits(self) -> Pair:
        """The values of the image, but for the last thousandth at each end; NaN, twice, where there
        are none.
        """
        # images that are large are not held as floats
        step = max(self.image.width * self.image.height // SAMPLE, 1)
        return limits(
            np.concatenate([block.reshape(-1)[::step].copy() for _, block in self.blocks()])
        )

    def shown(self, pair: Pair) -> Image.Image:
        """As L, RGB or RGBA."""
        width, height = self.image.size
        channels = () if self.low is None else (3,)
        made = np.empty((height, width, *channels), dtype=np.uint8)
        for top, block in self.blocks():
            made[top : top + len(block)] = to_eight_bits(block, pair)
        if (
            self.low is None
            and tiff.tag(self.image, tiff.PHOTOMETRIC) == 0
            and self.image.mode != "L"
        ):
            np.subtract(255, made, out=made)  # 0 is white
        image = Image.fromarray(made)
        if self.image.mode == "RGBA":
            image.putalpha(self.image.getchannel("A"))
        return image
