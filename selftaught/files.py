"""Files that are whole or not there: checkpoints and everything else a run writes; and locks, which
processes hold.

Every file that the package writes goes through `atomic`, or through `writing` where it grows line
by line: what the system refuses becomes one line there, with the file and a remedy. Over 200 lines
with the locks.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
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

LOCK = "run.lock"  # in a run's folder: held by the process that trains it


_COPY = "copy it here again, or delete it"


# what disks without locks answer
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


# in the names of files that a process of this machine writes
DRAFT = f".{zlib.crc32(socket.gethostname().encode()):08x}-"


# Writing


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong on the disk while `path` is written is told of it, as a FileError."""
    before = sys.exception()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (cause := find_system_error(error, before)) is None:
            raise
        raise (
            FileError(describe_error(cause))
            if _of_another(cause, path)
            else write_error(path, cause)
        ) from error


def _of_another(error: OSError, path: Path) -> bool:
    """Whether it is another file that the system complains of: one that `path` is made from."""
    if (
        not isinstance(error.filename, str | bytes) or error.filename2 is not None
    ):  # a copy names both, whichever it was
        return False
    named = Path(os.fsdecode(error.filename))
    return not (path.is_relative_to(named) or DRAFT in named.name)


def atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then put it in its place: a crash leaves the old one.

    Raises FileError where the disk is full, or `path` may not be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _draft(path) as draft:
            write(draft)
            with draft.open("rb") as f:
                os.fsync(f.fileno())
            with contextlib.suppress(PermissionError):  # some disks know no modes
                draft.chmod(0o644)
            draft.replace(path)
    return path


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A new file beside `path`, of the same suffix and locked, so that others see that its writer
    lives.
    """
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}{DRAFT}", suffix=path.suffix
        )
        with contextlib.suppress(OSError):  # without locks nobody sweeps either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # somebody was quicker, and took it for that of a dead process
    draft = Path(name)
    file = os.fdopen(handle, "rb")
    _handles.add(file)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)
        _handles.discard(file)
        file.close()


def _sweep(folder: Path) -> None:
    """Delete the drafts of processes of this machine that were killed, but for second names of
    whole files.
    """
    for draft in folder.glob(f".*{DRAFT}*"):
        with contextlib.suppress(OSError), draft.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle.fileno()).st_nlink == 1:
                draft.unlink()


def write_json(path: Path, value: Any) -> Path:
    return write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    return atomic(path, lambda draft: draft.write_text(text, encoding="utf-8"))


# Reading


def read_json(path: Path, kind: type, remedy: str = _COPY) -> Any:
    """What a JSON file says, which must be of a `kind`. Raises FileError where it is not there, or
    makes no sense.
    """
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


_told: set[Path] = set()  # folders without locks, of which it was said


def _forget_locks() -> None:
    """A worker that was forked must not go on holding what its dead parent held."""
    for file in _handles:
        file.close()
    _handles.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextmanager
def locked(
    file: Path,
    waiting: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Hold the lock `file`, after waiting for whoever holds it; a process that dies lets go of
    it.
    """
    with _opened(file) as handle:
        if not _take(handle, file, say):
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def hold_run(folder: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a run's folder while it is trained. Raises UserError at once where another process
    does.
    """
    file = folder / LOCK
    with _opened(file) as handle:
        for _ in range(20):  # whoever only looks lets go at once
            if taken := _take(handle, file, say):
                break
            time.sleep(0.05)
        if not taken:
            raise _busy(folder)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        with writing(file):
            handle.truncate(0)
            handle.write(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
                + "\n"
            )
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
            raise _busy(folder) from None
        except OSError:  # without locks nothing can be known
            return


def _busy(folder: Path) -> UserError:
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
def _opened(file: Path) -> Iterator[IO[str]]:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a", encoding="utf-8")  # not "w": what its holder wrote stays
    _handles.add(handle)
    try:
        yield handle
    finally:
        _handles.discard(handle)
        handle.close()


def _take(handle: IO[str], file: Path, say: Callable[[str], None]) -> bool:
    """Take a lock if nobody has it. Where the disk has no locks, say so once and go on without."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise write_error(file, error) from error
        if file.parent not in _told:
            _told.add(file.parent)
            say(f"{file.parent} lies on a disk without locks: let one process at a time work in it")
    return True
