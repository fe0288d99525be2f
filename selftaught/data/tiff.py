"""The directories of a TIFF file: how many pages it has, and of what kind one is that Pillow does
not know.
"""

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
_MOST = 100_000  # pages that are counted

# What Pillow can unpack and does not expect in a TIFF: floats of 64 bits (numpy's by default), and
# big-endian whole numbers of 32 bits, or of 16 where 0 is white. (Order of bytes, photometric
# interpretation, format, bits) -> (mode, raw mode).
for (_order, _white, _format, _bits), _modes in {
    (b"II", 1, FLOAT, 64): ("F", "F;64F"),
    (b"MM", 1, FLOAT, 64): ("F", "F;64BF"),
    (b"MM", 1, UNSIGNED, 32): ("I", "I;32B"),
    (b"MM", 0, UNSIGNED, 16): ("I;16B", "I;16B"),
}.items():
    TiffImagePlugin.OPEN_INFO.setdefault((_order, _white, (_format,), 1, (_bits,), ()), _modes)


def directories(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """The file's directories, a page or a smaller copy of one each. Ends quietly where the file is
    damaged.
    """
    file = io.BytesIO(data)
    head = file.read(16 if data[2:3] == b"\x2b" or data[3:4] == b"\x2b" else 8)
    try:
        directory = ImageFileDirectory_v2(head)
        seen: set[int] = set()
        while directory.next and directory.next not in seen and len(seen) < _MOST:
            seen.add(directory.next)
            file.seek(directory.next)
            directory.load(file)
            yield directory
    except Exception:  # the decoder's own verdict counts
        return


def pages(data: bytes) -> int:
    """How many there are, without smaller copies and masks of another."""
    return sum(not int(directory.get(SUBFILE, 0)) & 5 for directory in directories(data))


def strange_kind(data: bytes) -> str | None:
    """What a TIFF holds that Pillow cannot identify; None: it is none, or damaged."""
    directory = (
        next(directories(data), None)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        else None
    )
    if directory is None or WIDTH not in directory:
        return None
    bits = directory.get(BITS, (1,))
    bits = max(bits) if isinstance(bits, tuple) else bits
    form = directory.get(FORMAT, (UNSIGNED,))
    form = form[0] if isinstance(form, tuple) else form
    what = {SIGNED: "signed ", FLOAT: "floating-point "}.get(form, "")
    return (
        f"a TIFF of {directory.get(SAMPLES, 1)} x {bits} {what}bits a pixel is not read: "
        "save it as grey or RGB of 8 or 16 bits, or as grey floats of 32 bits"
    )


def tag(image: Image.Image, number: int) -> Any:
    """The first value of a tag of the page at hand, or None, also where the image is no TIFF."""
    found = getattr(image, "tag_v2", {}).get(number)
    return (found[0] if found else None) if isinstance(found, tuple) else found


def is_unsigned(image: Image.Image) -> bool:
    """Whether the numbers of 32 bits are, which Pillow holds as signed ones."""
    return tag(image, BITS) == 32 and tag(image, FORMAT) in (None, UNSIGNED)


def nodata(image: Image.Image) -> float | None:
    """The value that GDAL has noted as a mark of "no data"."""
    try:
        return float(str(tag(image, NODATA)).strip("\0 "))
    except ValueError:
        return None
