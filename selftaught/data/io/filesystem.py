"""Local paths and URLs as locations: what lies at one, and its bytes.

URLs are read by fsspec, with credentials from the environment. Transient errors are retried.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selftaught.data.folder_names import is_hidden, plain_side
from selftaught.errors import UserError
from selftaught.text import printable

T = TypeVar("T")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # at least two letters: C:\ is a disk
_TRIES = 5
_PAUSE = 0.2  # seconds before the second try; doubled before each later one, 3 s in all
_MAX_DEPTH = 5  # levels of folders: a configuration, data, a split, and some around these
_MAX_FOLDERS = 64  # folders of one level that are listed on a server
_TIMEOUT = 30  # seconds without a byte over HTTP, after which a try fails
# what servers state of a file that changes with its content
_STAMP_KEYS = (
    *("ETag", "Content-MD5", "Last-Modified", "LastModified"),  # of HTTP and S3
    *("etag", "mtime", "created", "checksum"),  # of other file systems
)


def import_optional(module: str) -> Any:
    """Import a module of an optional library; raise UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        purpose = "Parquet files" if module.startswith("pyarrow") else "URLs"
        raise UserError(
            f"{purpose} need {error.name or module}: pip install 'selftaught[pack]'"
        ) from None


def is_url(location: str | Path) -> bool:
    """Whether a location is a URL, and no local path."""
    return _SCHEME.match(os.fspath(location)) is not None


def normalize_location(location: str | Path) -> str:
    """Return a location without a slash at its end, with `https:/host` of pathlib as
    `https://host`. A third slash goes, as pathlib drops it too.

    Raises UserError for a URL with a query or a password.
    """
    text = os.fspath(location)
    if not is_url(text):
        return str(Path(text).expanduser())
    if "?" in text or re.search(r"//[^/@]*@", text):
        raise UserError(
            f"{text.partition('?')[0].rpartition('@')[2]}: a URL with a query or a password would"
            " be written into the run: give credentials by the environment variables of fsspec"
        )
    text = _SCHEME.sub(r"\1://", text).rstrip("/")
    return "/" + text.removeprefix("file://").lstrip("/") if text.startswith("file://") else text


def join_location(location: str, name: str) -> str:
    """Return the location of `name` in a folder."""
    return f"{location.rstrip('/')}/{name}"


def location_name(location: str) -> str:
    """Return the last part of a location."""
    return re.split(r"[/\\]", location.rstrip("/\\"))[-1]


def stat_file(location: str) -> tuple[int, str]:
    """Return a file's size in bytes and a stamp that changes with the file.

    Raises FileNotFoundError, and UserError where a server states no size.
    """
    if not is_url(location):
        status = os.stat(location)
        return status.st_size, str(file_stamp(status))
    info: dict[str, Any] = _retry(location, lambda system, path: system.info(path))
    if info.get("size") is None:
        raise UserError(
            f"{location}: the server states no size, so that parts of the file cannot be read:"
            " copy it to this machine"
        )
    keys = [
        "ETag",
        "Content-MD5",
        "Last-Modified",
        "LastModified",
        "etag",
        "mtime",
        "created",
        "checksum",
    ]
    return int(info["size"]), " ".join(f"{name}={info[name]}" for name in keys if info.get(name))


def file_stamp(status: os.stat_result) -> int:
    """Return a number that changes whenever a local file changes.

    `cp -p`, `rsync -t` and `tar` preserve the modification time. The inode's change time is the
    system's own.
    """
    # the hash of integers is equal in every process
    return hash((status.st_mtime_ns, status.st_ctime_ns))


def fetch(location: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return the bytes [start, end) of a file, or all of them.

    Raises FileNotFoundError, and UserError where a server fails.
    """
    if not is_url(location):
        with open(location, "rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))

    def read_range(system: Any, path: str) -> bytes:
        data: bytes = system.cat_file(path, start=start, end=end)
        if start is not None and end is not None and len(data) != end - start:
            if len(data) > end - start:
                raise UserError(
                    f"{location}: the server sends the whole file instead of a part (no Range"
                    " requests): copy it to this machine"
                )
            raise ConnectionError(f"{len(data)} of {end - start} bytes arrived")
        return data

    return _retry(location, read_range)


def list_parquet(location: str) -> list[str]:
    """Return the Parquet files below a folder, sorted, as paths relative to it.

    Packs and hidden files are left out. On a server the search stops at the first level with files.
    Raises FileNotFoundError.
    """
    parquet_files: list[str] = []
    level = [""]
    for _ in range(_MAX_DEPTH):
        next_level: list[str] = []
        for folder in level:
            try:
                files, folders = _list_folder(
                    join_location(location, folder) if folder else location
                )
            except OSError:
                if not folder:
                    raise
                continue
            if folder and "pack.json" in files:
                continue
            prefix = f"{folder}/" if folder else ""
            parquet_files += [
                prefix + name for name in files if name.endswith(".parquet") and not is_hidden(name)
            ]
            next_level += [prefix + name for name in folders if not is_hidden(name)]
        if is_url(location) and (parquet_files or len(next_level) > _MAX_FOLDERS):
            break
        level = next_level
    return sorted(parquet_files)


def _list_folder(location: str) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder."""
    files: list[str] = []
    folders: list[str] = []
    if not is_url(location):
        with os.scandir(location) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
        return files, folders

    def list_entries(system: Any, path: str) -> list[dict[str, Any]]:
        system.invalidate_cache()
        return list(system.ls(path, detail=True))

    for info in _retry(location, list_entries):
        name = location_name(info["name"])
        # Some web servers do not mark folders: the name decides.
        is_folder = (
            info["type"] == "directory"
            or name in ("data", "default")
            or plain_side(name) is not None
        )
        (folders if is_folder else files).append(name)
    return files, folders


def _retry(location: str, request: Callable[[Any, str], T]) -> T:
    """Call `request` with the file system and the path of a location, up to `_TRIES` times."""
    for tries_left in reversed(range(_TRIES)):
        try:
            system, path = _open_system(location)
            return request(system, path)
        except UserError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            if isinstance(error, FileNotFoundError):
                if _is_missing(error):
                    raise
                if isinstance(error.__cause__, Exception):
                    error = error.__cause__
            if not tries_left or not _is_transient(error):
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                attempts = "" if tries_left else f" after {_TRIES} tries"
                raise UserError(
                    f"{printable(location)} cannot be read{attempts} ({reason}):"
                    " check the server and the credentials"
                ) from None
            time.sleep(_PAUSE * 2 ** (_TRIES - 1 - tries_left))
    raise AssertionError


def _is_missing(error: FileNotFoundError) -> bool:
    """Whether a file does not exist. fsspec raises this error for an unreachable server, too."""
    cause = error.__cause__
    return (
        cause is None
        or isinstance(cause, FileNotFoundError)
        or getattr(cause, "status", None) in (404, 410)
    )


def _is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = getattr(error, "status", None)  # HTTP status
    if isinstance(status, int) and status < 500 and status not in (408, 425, 429):
        return False
    return not isinstance(error, PermissionError | NotImplementedError | ImportError)


def _open_system(location: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it.

    fsspec caches one file system for each kind, and makes it anew in a forked process.
    """
    fsspec = import_optional("fsspec")
    options = {}
    if location.startswith(("http://", "https://")):
        aiohttp = import_optional("aiohttp")
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT, sock_read=_TIMEOUT)
        }
    try:
        system, path = fsspec.core.url_to_fs(location, **options)
    except (ImportError, ValueError) as error:  # an unknown kind, or a missing library
        raise UserError(f"{printable(location)}: {error}") from None
    return system, path
