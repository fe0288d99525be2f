"""The path of an image that is a row of a Parquet file: `<file>.parquet/<row>`."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from selftaught.data.io import filesystem

_ROW = re.compile(r"(.+\.parquet)/(\d+)", re.DOTALL)
_spell = lru_cache(1024)(filesystem.spelt)


class Place(NamedTuple):
    """A row of a Parquet file."""

    shard: str
    row: int

    @classmethod
    def of(cls, path: Path | str) -> Place | None:
        """The row that a path names; None: it names a file."""
        match = _ROW.fullmatch(os.fspath(path))
        return cls(_spell(match[1]), int(match[2])) if match else None
