"""The cache: what was found out of images, remembered between one run and the next as far as the
disk lets it be.
"""

import os
from collections.abc import Callable
from pathlib import Path

from selftaught.errors import FileError
from selftaught.files import atomic

_failed: set[Path | None] = set()  # folders that could not be written, of which it was said


def default_cache() -> Path | None:
    """Its folder; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "selftaught"
    try:
        return Path.home() / ".cache" / "selftaught"
    except RuntimeError:
        return None


def remember(file: Path | None, write: Callable[[Path], object], notes: list[str]) -> None:
    """Write a file of the cache, as `atomic` does. Where that cannot be, the next run takes as long
    as this one, and a note says so: one for each folder that a process cannot write.
    """
    folder = file.parent if file is not None else None
    try:
        if file is not None:
            atomic(file, write)
            return
        reason = "there is no home for a cache; name a folder for it by XDG_CACHE_HOME"
    except FileError as error:
        reason = str(error)
    if folder not in _failed:
        _failed.add(folder)
        notes.append(f"nothing is remembered of these images: {reason}")
