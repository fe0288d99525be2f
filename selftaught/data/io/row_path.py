"""The path of an image that is a row of a Parquet file: `<file>.parquet/<row>`."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from selftaught.data.io import filesystem

_ROW = re.compile(r"(.+\.parquet)/(\d+)", re.DOTALL)
_normalize = lru_cache(1024)(filesystem.normalize_location)


class RowAddress(NamedTuple):
    """The address of an image in a Parquet file: the file's location and the row."""

    shard: str
    row: int

    @classmethod
    def parse(cls, path: Path | str) -> RowAddress | None:
        """Return the row that a path names; None for the path of a file."""
        match = _ROW.fullmatch(os.fspath(path))
        return cls(_normalize(match[1]), int(match[2])) if match else None
