"""A file that gives no whole image: why it cannot be read, or what its bytes betray before any
decoder sees them.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

MAX_PIXELS = 500_000_000  # of an image, unless more are asked for: 2 GB once decoded
_MAX_BYTES = 2**31  # a larger file is no training image, and would be read into memory whole


class Unreadable(ValueError):
    """A file that gives no whole image. `str()` is the reason in a few words, without the path.

    `passing`: the reason lies in the disk or the machine, not in the file's bytes, and may be gone
    next time.
    """

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def why(error: OSError) -> str:
    """What the system says, in its own words without numbers and paths."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror or str(error) or type(error).__name__).lower()


def read(path: Path | str) -> bytes:
    """All bytes of a file; raises `Unreadable` where there are none to be had."""
    try:
        with open(path, "rb", opener=_open_now) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise Unreadable(f"larger than {_MAX_BYTES >> 30} GiB")
            data = file.read()
    except OSError as error:
        raise Unreadable(why(error), passing=True) from None
    if not data:
        raise Unreadable("empty file")
    return data


def _open_now(path: str, flags: int) -> int:
    # a named pipe called a.jpg must not wait for a writer
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def damage(format: str | None, data: bytes) -> str | None:
    """What is wrong with a file whose tail is missing or zeros, where the decoder would quietly
    show grey or noise.

    (A download that reserved its space and was then broken off leaves such a tail.) None: nothing
    seen.
    """
    if format in ("JPEG", "MPO") and not _jpeg_ends(data):
        return "truncated: the JPEG has no end marker"
    if format == "PNG":
        return _png_damage(data)
    if format == "WEBP" and data.endswith(bytes(64)):
        return "truncated: it ends in zeros"
    return None


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end-of-image marker follows the start of the scan.

    Within the coded pixels a 0xFF is always followed by 0x00 or a restart marker, so 0xFFD9 is
    nothing else there; the thumbnail in the EXIF block, which has an end marker of its own, is
    skipped with its block.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", at) >= 0  # from the end, where it is
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return True  # an odd header: the decoder's own verdict counts


def _png_damage(data: bytes) -> str | None:
    """Checks the sums of the chunks that pixels depend on, which Pillow skips for speed (1 ms for 1
    MB).
    """
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            said = struct.unpack_from(">I", data, end - 4)[0]
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != said:
                return f"damaged: wrong checksum of a PNG {kind.decode()} chunk"
        if kind == b"IEND":
            return None
        at = end
    return "truncated: the PNG has no end chunk"
