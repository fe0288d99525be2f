"""The cache folder of a user: results about images that later runs read again."""

import os
from collections.abc import Callable
from pathlib import Path

from selftaught.errors import FileError
from selftaught.files import atomic

_unwritable: set[Path | None] = set()  # folders that a note names already


def default_cache_folder() -> Path | None:
    """Return the folder `selftaught` in the user's cache; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "selftaught"
    try:
        return Path.home() / ".cache" / "selftaught"
    except RuntimeError:
        return None


def write_cache_file(file: Path | None, write: Callable[[Path], object], notes: list[str]) -> None:
    """Write one file of the cache by `atomic`.

    A failure to write becomes a note, one per folder and process. The next run then repeats the
    work.
    """
    folder = file.parent if file is not None else None
    try:
        if file is not None:
            atomic(file, write)
            return
        reason = "this user has no home folder; set XDG_CACHE_HOME to a folder"
    except FileError as error:
        reason = str(error)
    if folder not in _unwritable:
        _unwritable.add(folder)
        notes.append(f"results about these images are not cached: {reason}")
