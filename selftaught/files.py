"""Atomic writes, JSON files and locks.

Every file of the package is written by `atomic`, or inside `convert_write_errors` where it grows
line by line.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from selftaught.errors import (
    FileError,
    UserError,
    damage_error,
    describe_error,
    find_system_error,
    read_error,
    write_error,
)

LOCK = "run.lock"  # in a run's folder; held by the process that trains the run

COPY_AGAIN = "copy it here again, or delete it"

# Errors of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)

# Part of the name of temporary files; it identifies this machine.
DRAFT = f".{zlib.crc32(socket.gethostname().encode()):08x}-"


# Writing


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Convert errors of the system, raised while `path` is written, to FileError."""
    before = sys.exception()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (cause := find_system_error(error, before)) is None:
            raise
        if _concerns_other_file(cause, path):
            raise FileError(describe_error(cause)) from error
        raise write_error(path, cause) from error


def _concerns_other_file(error: OSError, path: Path) -> bool:
    """Whether the error names a file other than `path`, such as a source that is being copied."""
    # The error of a copy names both files, so it does not tell which of them failed.
    if not isinstance(error.filename, str | bytes) or error.filename2 is not None:
        return False
    file = Path(os.fsdecode(error.filename))
    return not (path.is_relative_to(file) or DRAFT in file.name)


def atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Write `path` atomically: `write` fills a temporary file, which then replaces `path`.

    A crash leaves the old file. A device or a pipe is not replaced: it receives the bytes. Raises
    FileError where the disk is full or `path` is read-only.
    """
    with convert_write_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                draft = Path(folder, path.name)
                write(draft)
                with path.open("wb") as target, draft.open("rb") as source:
                    shutil.copyfileobj(source, target)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_stale_drafts(path.parent)
        with _draft(path) as draft:
            write(draft)
            with draft.open("rb") as f:
                os.fsync(f.fileno())
            with contextlib.suppress(PermissionError):  # some file systems have no modes
                draft.chmod(0o644)
            draft.replace(path)
    return path


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Create a temporary file beside `path`, with the same suffix.

    It stays locked while it is written, so that other processes do not delete it as stale.
    """
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}{DRAFT}", suffix=path.suffix
        )
        with contextlib.suppress(OSError):  # without locks, stale drafts are not deleted either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # another process deleted it before it was locked: try again
    draft = Path(name)
    file = os.fdopen(handle, "rb")
    _handles.add(file)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)
        _handles.discard(file)
        file.close()


def _delete_stale_drafts(folder: Path) -> None:
    """Delete the temporary files of processes of this machine that were killed.

    A draft with a second hard link is a whole file in place, and stays.
    """
    for draft in folder.glob(f".*{DRAFT}*"):
        with contextlib.suppress(OSError), draft.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle.fileno()).st_nlink == 1:
                draft.unlink()


def write_json(path: Path, value: Any) -> Path:
    """Write a value as JSON, atomically; raise FileError as `atomic` does."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text as UTF-8, atomically; raise FileError as `atomic` does."""
    return atomic(path, lambda draft: draft.write_text(text, encoding="utf-8"))


# Reading


def read_json(path: Path, kind: type, remedy: str = COPY_AGAIN) -> Any:
    """Read a JSON file whose top level is of type `kind`; raise FileError for any other."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, RecursionError) as error:
        raise damage_error(path, error if path.stat().st_size else "it is empty", remedy) from error
    if not isinstance(value, kind):
        raise damage_error(
            path, f"it holds no JSON {'object' if kind is dict else kind.__name__}", remedy
        )
    return value


# Locks

_handles: set[IO[Any]] = set()  # files whose locks this process holds
_lockless: set[Path] = set()  # folders without locks that were reported


def _release_locks() -> None:
    """Close all locked files in a forked worker, so that a lock ends with its own process."""
    for file in _handles:
        file.close()
    _handles.clear()


os.register_at_fork(after_in_child=_release_locks)


@contextmanager
def locked(
    file: Path,
    waiting: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Hold the lock `file`; wait while another process holds it.

    `waiting` is called once before a wait. `log` reports a disk without locks. The system
    releases the lock of a process that dies.
    """
    with _open_lock(file) as handle:
        if not _acquire(handle, file, log):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def hold_run(folder: Path, log: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a run's folder while it is trained; raise UserError if another process holds it."""
    file = folder / LOCK
    with _open_lock(file) as handle:
        for _ in range(20):  # `refuse_busy` of another process holds the lock for a moment
            if acquired := _acquire(handle, file, log):
                break
            time.sleep(0.05)
        if not acquired:
            raise _busy_error(folder)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with convert_write_errors(file):
            handle.truncate(0)
            handle.write(json.dumps(holder) + "\n")
            handle.flush()
        yield


def refuse_busy(folder: Path) -> None:
    """Raises UserError where another process trains the run in this folder."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError),
        (folder / LOCK).open("rb") as handle,
    ):
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy_error(folder) from None
        except OSError:  # the file system has no locks, so this cannot be checked
            return


def _busy_error(folder: Path) -> UserError:
    holder = {}
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    if not isinstance(holder, dict) or not {"pid", "host", "since"} <= holder.keys():
        return UserError(
            f"{folder} is being trained by another process: wait for its end, or choose another"
            " --out"
        )
    pid, host = holder["pid"], holder["host"]
    return UserError(
        f"{folder} is being trained by process {pid} on {host}, since {holder['since']}: wait for"
        f" its end, or stop it (kill {pid})"
    )


@contextmanager
def _open_lock(file: Path) -> Iterator[IO[str]]:
    with convert_write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a", encoding="utf-8")  # "w" would delete what the holder wrote
    _handles.add(handle)
    try:
        yield handle
    finally:
        _handles.discard(handle)
        handle.close()


def _acquire(handle: IO[str], file: Path, log: Callable[[str], None]) -> bool:
    """Acquire a lock if it is free. Without locks on the disk, log that once and return True."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(file, error) from error
        if file.parent not in _lockless:
            _lockless.add(file.parent)
            log(f"{file.parent} lies on a disk without locks: use it from one process at a time")
    return True
