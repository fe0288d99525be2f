"""The directories of a TIFF file: the number of pages, and kinds that Pillow does not support."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

WIDTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES, FORMAT, SUBFILE, NODATA = (
    256,
    258,
    259,
    262,
    277,
    284,
    339,
    254,
    42113,
)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # of FORMAT
_MAX_PAGES = 100_000  # limit of the count

# Kinds that Pillow can unpack, but does not accept in a TIFF: floats of 64 bits (numpy's default),
# and big-endian integers of 32 bits, or of 16 where 0 is white. (Byte order, photometric
# interpretation, format, bits) -> (mode, raw mode).
for (_order, _white, _format, _bits), _modes in {
    (b"II", 1, FLOAT, 64): ("F", "F;64F"),
    (b"MM", 1, FLOAT, 64): ("F", "F;64BF"),
    (b"MM", 1, UNSIGNED, 32): ("I", "I;32B"),
    (b"MM", 0, UNSIGNED, 16): ("I;16B", "I;16B"),
}.items():
    TiffImagePlugin.OPEN_INFO.setdefault((_order, _white, (_format,), 1, (_bits,), ()), _modes)


def read_directories(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """Iterate over the directories, each a page or a smaller copy; ends at damage."""
    file = io.BytesIO(data)
    head = file.read(16 if data[2:3] == b"\x2b" or data[3:4] == b"\x2b" else 8)
    try:
        directory = ImageFileDirectory_v2(head)
        offsets: set[int] = set()
        while directory.next and directory.next not in offsets and len(offsets) < _MAX_PAGES:
            offsets.add(directory.next)
            file.seek(directory.next)
            directory.load(file)
            yield directory
    except Exception:  # damage is left to the decoder
        return


def count_pages(data: bytes) -> int:
    """Return the number of pages, without smaller copies and masks."""
    return sum(not int(directory.get(SUBFILE, 0)) & 5 for directory in read_directories(data))


def describe_unknown(data: bytes) -> str | None:
    """Return what a TIFF holds that Pillow cannot identify; None for no TIFF or a damaged one."""
    directory = (
        next(read_directories(data), None)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        else None
    )
    if directory is None or WIDTH not in directory:
        return None
    bits = directory.get(BITS, (1,))
    bits = max(bits) if isinstance(bits, tuple) else bits
    value_format = directory.get(FORMAT, (UNSIGNED,))
    value_format = value_format[0] if isinstance(value_format, tuple) else value_format
    kind = {SIGNED: "signed ", FLOAT: "floating-point "}.get(value_format, "")
    return (
        f"a TIFF of {directory.get(SAMPLES, 1)} x {bits} {kind}bits a pixel is not read: "
        "save it as grey or RGB of 8 or 16 bits, or as grey floats of 32 bits"
    )


def read_tag(image: Image.Image, number: int) -> Any:
    """Return the first value of a tag of the current page; None without it, or without a TIFF."""
    value = getattr(image, "tag_v2", {}).get(number)
    return (value[0] if value else None) if isinstance(value, tuple) else value


def is_unsigned(image: Image.Image) -> bool:
    """Whether numbers of 32 bits are unsigned; Pillow stores them as signed."""
    return read_tag(image, BITS) == 32 and read_tag(image, FORMAT) in (None, UNSIGNED)


def read_nodata(image: Image.Image) -> float | None:
    """Return GDAL's value for "no data"; None without it."""
    try:
        return float(str(read_tag(image, NODATA)).strip("\0 "))
    except ValueError:
        return None
