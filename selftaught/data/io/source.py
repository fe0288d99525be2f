"""The bytes of an image, wherever it lies: a file, an address, or a row of a Parquet file."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from selftaught.data.io import filesystem, integrity

_ROW = re.compile(r"(.+\.parquet)/(\d+)", re.DOTALL)


_spell = lru_cache(1024)(filesystem.spelt)


class Place(NamedTuple):
    """A row of a Parquet file, whose path is `<file>.parquet/<row>`."""

    shard: str
    row: int

    @classmethod
    def of(cls, path: Path | str) -> Place | None:
        """The row that a path names; None: it names a file."""
        match = _ROW.fullmatch(os.fspath(path))
        return cls(_spell(match[1]), int(match[2])) if match else None


def read_bytes(path: Path | str, column: str | None = None) -> bytes:
    """All bytes of an image; of a row also those of another `column` of images ("mask").

    Raises `Unreadable` where there are none to be had, and UserError where a server fails.
    """
    place = Place.of(path)
    if place is None:
        return integrity.read(path)
    from selftaught.data.parquet import row_cache  # for those who have Parquet files

    return row_cache.read_row(place, column)
