"""Checks of an image file's bytes before it is decoded."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

MAX_PIXELS = 500_000_000  # default limit of an image: 2 GB once decoded
_MAX_BYTES = 2**31  # limit of a file, as it is read into memory whole


class Unreadable(ValueError):
    """A file that gives no whole image. `str()` is a short reason without the path.

    `transient`: the reason lies in the disk or the machine, and may be absent next time.
    """

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


def describe_error(error: OSError) -> str:
    """Return the system's message in lower case, without numbers and paths."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror or str(error) or type(error).__name__).lower()


def read_file(path: Path | str) -> bytes:
    """Return all bytes of a file; raise `Unreadable` where that fails."""
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise Unreadable(f"larger than {_MAX_BYTES >> 30} GiB")
            data = file.read()
    except OSError as error:
        raise Unreadable(describe_error(error), transient=True) from None
    if not data:
        raise Unreadable("empty file")
    return data


def _open_nonblocking(path: str, flags: int) -> int:
    # a named pipe called a.jpg would wait for a writer
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def find_damage(format: str | None, data: bytes) -> str | None:
    """Return what is wrong with a file whose tail is missing or zeros; None: nothing.

    Decoders show grey or noise for such a file. A broken download with reserved space leaves one.
    """
    if format in ("JPEG", "MPO") and not _has_jpeg_end(data):
        return "truncated: the JPEG has no end marker"
    if format == "PNG":
        return _find_png_damage(data)
    if format == "WEBP" and data.endswith(bytes(64)):
        return "truncated: it ends in zeros"
    return None


def _has_jpeg_end(data: bytes) -> bool:
    """Whether an end-of-image marker follows the start of the scan.

    Within coded pixels 0xFF is followed by 0x00 or a restart marker, so 0xFFD9 ends the image.
    The EXIF block is skipped, as its thumbnail has an end marker of its own.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", at) >= 0
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return True  # an unusual header: the decoder decides


def _find_png_damage(data: bytes) -> str | None:
    """Check the checksums of the chunks that hold pixels, which Pillow skips (1 ms for 1 MB)."""
    at, pixels = 8, []
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            checksum = struct.unpack_from(">I", data, end - 4)[0]
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != checksum:
                return f"damaged: wrong checksum of a PNG {kind.decode()} chunk"
        if kind == b"IDAT":
            pixels.append(memoryview(data)[at + 8 : end - 4])
        if kind == b"IEND":
            return None if _has_png_rows(data, pixels) else "damaged: the PNG lacks rows of pixels"
        at = end
    return "truncated: the PNG has no end chunk"


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's kinds of colour
_SUSPICIOUS = 0.02  # share of the unpacked size; photographs have 0.2 and more


def _has_png_rows(data: bytes, pixels: list[memoryview]) -> bool:
    """Whether few bytes of pixels unpack to all rows; Pillow shows missing ones as black.

    Usual files are not unpacked, as that takes as long as decoding them.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    size = height * (1 + -(-width * _CHANNELS.get(colour, 1) * depth // 8))
    if interlaced or sum(map(len, pixels)) > _SUSPICIOUS * size:
        return True
    unpacked, stream = 0, zlib.decompressobj()
    try:
        for part in pixels:
            unpacked += len(stream.decompress(part, size + 1))
    except zlib.error:  # the decoder says what is wrong
        return True
    return unpacked >= size
