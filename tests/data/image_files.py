"""Image files for tests of data, as bytes and on disk; indices and batches compared."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selftaught.data.index.build import Index
from selftaught.data.loading.loader import Raw


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG whose header states what `rows` need not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits with 2, 3 or 4 channels, which Pillow reads but does not write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {2: 4, 3: 2, 4: 6}[channels], rows)


def tiff(values: np.ndarray, order: str = "<", compressed: bool = False, **tags: int) -> bytes:
    """A TIFF of one page: [h, w], [h, w, 3] or, in planes, [3, h, w]; `t262=0` sets tag 262."""
    planes = values.ndim == 3 and values.shape[0] == 3
    height, width = values.shape[1:] if planes else values.shape[:2]
    n = 3 if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order))
    parts = [part.tobytes() for part in (data if planes else [data])]
    parts = [zlib.compress(part) for part in parts] if compressed else parts
    parts = [part + bytes(len(part) % 2) for part in parts]
    entries = {256: [width], 257: [height], 258: [values.itemsize * 8] * n, 277: [n]}
    entries |= {259: [8 if compressed else 1], 262: [2 if n == 3 else 1], 278: [height]}
    entries |= {273: [8 + sum(map(len, parts[:k])) for k in range(len(parts))]}
    entries |= {279: [*map(len, parts)], 284: [2 if planes else 1]}
    entries |= {339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * n}
    entries |= {int(tag[1:]): [value] for tag, value in tags.items()}
    body = b"".join(parts)
    directory, more, at = b"", b"", 8 + len(body)
    after = at + 2 + 12 * len(entries) + 4
    for key, cells in sorted(entries.items()):
        short = key in (258, 259, 262, 277, 284, 339)
        packed = struct.pack(f"{order}{len(cells)}{'H' if short else 'I'}", *cells)
        if len(packed) > 4:
            packed, more = struct.pack(order + "I", after + len(more)), more + packed
        head = struct.pack(order + "HHI", key, 3 if short else 4, len(cells))
        directory += head + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + body + struct.pack(order + "H", len(entries)) + directory + bytes(4) + more


def put(root: Path, *names: str, size: tuple[int, int] = (6, 4)) -> None:
    """PNG images of any name, and empty files where the suffix is that of no image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in ("", *Image.registered_extensions()):
            Image.new("RGB", size, (8 * len(name) % 256, 50, 100)).save(path, "PNG")
        else:
            path.touch()


def same_index(one: Index, other: Index) -> bool:
    plain = ("paths", "split", "classes", "unreadable", "fingerprint", "notes")
    tensors = [n for n in ("sizes", "test", "labels") if getattr(one, n) is not None]
    return all(getattr(one, n) == getattr(other, n) for n in plain) and all(
        torch.equal(getattr(one, n), getattr(other, n)) for n in tensors
    )


def same_batches(one: list[Raw], other: list[Raw]) -> bool:
    fields = ("pixels", "aspect", "index", "label")
    return len(one) == len(other) and all(
        torch.equal(getattr(a, f), getattr(b, f))
        for a, b in zip(one, other, strict=True)
        for f in fields
    )
