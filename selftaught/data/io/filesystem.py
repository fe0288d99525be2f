"""Locations: paths of this machine and URLs alike, what lies there, and its bytes.

Everything but a path goes through fsspec, whose file systems take their credentials from the
environment. Errors that may pass are met by trying again; then the user is told in one line.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selftaught.data.index.folder_names import is_hidden, plain_side
from selftaught.errors import UserError
from selftaught.text import printable

T = TypeVar("T")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # two letters at least: C:\ is a disk
_TRIES = 5
_PAUSE = 0.2  # seconds before the second try, then twice as long each time: 3 s in all
# levels of folders that are searched for Parquet files: a configuration, data, a split, and some
# around these
_DEPTH = 5
_MOST_FOLDERS = 64  # that a server is asked for
_TIMEOUT = 30  # seconds without a byte over HTTP, after which a try has failed


def needed(module: str) -> Any:
    """The module of an optional library, or the line that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = "Parquet files" if module.startswith("pyarrow") else "URLs"
        raise UserError(
            f"{what} need {error.name or module}: pip install 'selftaught[pack]'"
        ) from None


def is_url(location: str | Path) -> bool:
    return _SCHEME.match(os.fspath(location)) is not None


def spelt(location: str | Path) -> str:
    """One spelling of a location: no slash at its end, and what pathlib makes of a URL
    (https:/host) mended.
    """
    text = os.fspath(location)
    if not is_url(text):
        return str(Path(text).expanduser())
    if "?" in text or re.search(r"//[^/@]*@", text):
        raise UserError(
            f"{text.partition('?')[0].rpartition('@')[2]}: a URL with a query or a password would"
            " be written into the run: give credentials by the environment, as fsspec reads them"
        )
    text = _SCHEME.sub(r"\1://", text).rstrip("/")
    return "/" + text.removeprefix("file://").lstrip("/") if text.startswith("file://") else text


def within(location: str, name: str) -> str:
    return f"{location.rstrip('/')}/{name}"


def base(location: str) -> str:
    """The last part of a location."""
    return re.split(r"[/\\]", location.rstrip("/\\"))[-1]


def facts(location: str) -> tuple[int, str]:
    """The size of a file in bytes, and a stamp that changes when the file does. Raises
    FileNotFoundError.
    """
    if not is_url(location):
        status = os.stat(location)
        return status.st_size, str(stamp(status))
    info: dict[str, Any] = _patiently(location, lambda system, path: system.info(path))
    if info.get("size") is None:
        raise UserError(
            f"{location}: the server does not say how large it is, so that parts of it cannot be"
            " read"
        )
    marks = (
        "ETag",
        "Content-MD5",
        "Last-Modified",
        "LastModified",
        "etag",
        "mtime",
        "created",
        "checksum",
    )
    return int(info["size"]), " ".join(f"{name}={info[name]}" for name in marks if info.get(name))


def stamp(status: os.stat_result) -> int:
    """A number that changes whenever a file of this machine does. The time of its last change can
    be set, and is kept by `cp -p`, `rsync -t` and `tar`; that of its inode is the system's own.
    """
    # of numbers it is the same in every process
    return hash((status.st_mtime_ns, status.st_ctime_ns))


def fetch(location: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of a file, or all of them. Raises FileNotFoundError, and UserError
    where a server fails.
    """
    if not is_url(location):
        with open(location, "rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))

    def part(system: Any, path: str) -> bytes:
        data: bytes = system.cat_file(path, start=start, end=end)
        if start is not None and end is not None and len(data) != end - start:
            if len(data) > end - start:
                raise UserError(
                    f"{location}: the server sends the whole file instead of a part (it knows no"
                    " Range requests)"
                )
            raise ConnectionError(f"{len(data)} of {end - start} bytes arrived")
        return data

    return _patiently(location, part)


def listed(location: str) -> list[str]:
    """The Parquet files below a folder, sorted, as paths from it. Packs and what is hidden are
    passed over. A server is not searched deeper than where the first are. Raises FileNotFoundError.
    """
    found: list[str] = []
    level = [""]
    for _ in range(_DEPTH):
        deeper: list[str] = []
        for below in level:
            try:
                files, folders = _entries(within(location, below) if below else location)
            except OSError:
                if not below:
                    raise
                continue
            if below and "pack.json" in files:
                continue
            at = f"{below}/" if below else ""
            found += [
                at + name for name in files if name.endswith(".parquet") and not is_hidden(name)
            ]
            deeper += [at + name for name in folders if not is_hidden(name)]
        if is_url(location) and (found or len(deeper) > _MOST_FOLDERS):
            break
        level = deeper
    return sorted(found)


def _entries(location: str) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders in a folder."""
    files: list[str] = []
    folders: list[str] = []
    if not is_url(location):
        with os.scandir(location) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
        return files, folders

    def names(system: Any, path: str) -> list[dict[str, Any]]:
        system.invalidate_cache()
        return list(system.ls(path, detail=True))

    for found in _patiently(location, names):
        name = base(found["name"])
        # Some web servers do not tell a folder from a file: then its name has to.
        folder = (
            found["type"] == "directory"
            or name in ("data", "default")
            or plain_side(name) is not None
        )
        (folders if folder else files).append(name)
    return files, folders


def _patiently(location: str, ask: Callable[[Any, str], T]) -> T:
    for left in reversed(range(_TRIES)):
        try:
            system, path = _system(location)
            return ask(system, path)
        except UserError:
            raise
        except Exception as error:  # every file system fails in its own way
            if isinstance(error, FileNotFoundError):
                if _gone(error):
                    raise
                error = error.__cause__  # type: ignore[assignment]
            if not left or not _may_pass(error):
                said = " ".join(str(error).split())[:200] or type(error).__name__
                often = "" if left else f" after {_TRIES} tries"
                raise UserError(
                    f"{printable(location)} cannot be read{often} ({said}): is the server there,"
                    " and are the credentials right?"
                ) from None
            time.sleep(_PAUSE * 2 ** (_TRIES - 1 - left))
    raise AssertionError


def _gone(error: FileNotFoundError) -> bool:
    """Whether a file is not there; fsspec says so, too, when a server could not be asked."""
    cause = error.__cause__
    return (
        cause is None
        or isinstance(cause, FileNotFoundError)
        or getattr(cause, "status", None) in (404, 410)
    )


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)  # of HTTP
    known = isinstance(status, int) and status < 500 and status not in (408, 425, 429)
    return not known and not isinstance(error, PermissionError | NotImplementedError | ImportError)


def _system(location: str) -> tuple[Any, str]:
    """The file system of a URL (fsspec keeps one for each kind, anew in a forked process), and the
    path in it.
    """
    fsspec = needed("fsspec")
    options = {}
    if location.startswith(("http://", "https://")):
        aiohttp = needed("aiohttp")
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT, sock_read=_TIMEOUT)
        }
    try:
        system, path = fsspec.core.url_to_fs(location, **options)
    except (
        ImportError,
        ValueError,
    ) as error:  # a kind that it does not know, or one whose library is missing
        raise UserError(f"{printable(location)}: {error}") from None
    return system, path
