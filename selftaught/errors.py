"""Exceptions for invalid input and failed files, each with a message of one line.

The command line prints the message of a UserError and exits with code 2.
"""

import errno
import math
import os
import re


class UserError(Exception):
    """Invalid input; the message states the problem and the remedy in one line."""


class FileError(UserError, OSError):
    """A file that cannot be written or read; the message states path, reason and remedy."""


_ELSEWHERE = "ask for the permission, or choose another place"
_PATH = "a part of this path is a file: move that away, or choose another place"
REMEDIES = {  # by errno
    errno.ENOSPC: "free some space on this disk, or choose another one",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose another disk",
    errno.EROFS: "choose another place, or mount this disk for writing",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EIO: "the disk or its connection fails: read the system's log, or choose another disk",
    errno.EISDIR: "a folder lies in its place: move that away",
    errno.ENOTEMPTY: "a folder lies in its place: move that away",
    errno.ENOTDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.ENOENT: "check whether it was moved or deleted meanwhile",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "raise the number of files that may be open",
    errno.ESTALE: "the network's disk has changed: mount it again",
    errno.ELOOP: "its links form a circle: correct them",
}


def write_error(path: str | os.PathLike[str], error: OSError) -> FileError:
    """The error of a file that could not be written, from the error of the system."""
    return FileError(f"{os.fspath(path)} cannot be written: {_why(error)}")


def read_error(path: str | os.PathLike[str], error: OSError) -> FileError:
    """The error of a file that could not be read, from the error of the system."""
    return FileError(f"{os.fspath(path)} cannot be read: {_why(error)}")


def damage_error(path: str | os.PathLike[str], reason: object, remedy: str) -> FileError:
    """The error of a file with invalid content; `reason` is cut to 160 characters."""
    detail = " ".join(str(reason).split())[:160].rstrip(".")
    return FileError(f"{os.fspath(path)} is damaged ({detail}): {remedy}")


def describe_error(error: OSError) -> str:
    """One line about an error of the system: its files, the reason and the remedy."""
    names = [name for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(
        os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in names
    )
    return f"{where}: {_why(error)}" if where else _why(error)


def _why(error: OSError) -> str:
    if error.strerror:
        reason = error.strerror.lower()
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "check the disk, or choose another place")
    return f"{reason}; {remedy}"


def describe_memory_error(error: BaseException) -> str | None:
    """What is said of an allocation that failed, on a GPU or not; None for any other error.

    torch raises its own class, or a RuntimeError that only its text tells from others.
    """
    text = str(error)
    failed = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    torchs = isinstance(error, RuntimeError) and any(words in text for words in failed)
    if not isinstance(error, MemoryError) and not torchs:
        return None
    device = " of the GPU" if re.search("CUDA|CUBLAS|CUDNN", text) else ""
    asked = re.search(r"ried to allocate ([\d.]+) (\w+)", text)
    if not asked:
        return f"the memory{device} is full"
    amount, unit = float(asked[1]), asked[2]
    if unit == "bytes":
        amount, unit = amount / 2**30, "GiB"
    return f"the memory{device} is full: {amount:,.4g} {unit} more were asked for"


def find_system_error(error: BaseException, until: BaseException | None = None) -> OSError | None:
    """Find the error of the system that caused `error`, or None.

    Libraries wrap such errors, or quote only their number. `until` is the exception that was being
    handled before; it and its causes are not searched.
    """
    at: BaseException | None = error
    while at is not None and at is not until:
        if isinstance(at, OSError) and not isinstance(at, UserError):
            return at
        if number := re.search(r"\(os error (\d+)\)", str(at)):  # of libraries in Rust
            return OSError(int(number[1]), os.strerror(int(number[1])))
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return None


def require(fine: bool, name: str, rule: str, value: float) -> None:
    """Raise UserError for a setting that is out of range (not `fine`) or not finite."""
    if not fine or not math.isfinite(value):
        raise UserError(f"{name} must be {rule}, and not {value:g}")


class WorkerDied(UserError):
    """A process that reads images was killed; the message states the remedy."""


def find_dead_worker(error: BaseException) -> WorkerDied | None:
    """Return an error for the user where a DataLoader lost a worker, else None.

    torch raises it from a signal handler, so it can come from any line of this process.
    """
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    return WorkerDied(
        "a process that reads images was killed, perhaps for want of memory: give fewer --workers"
    )


class Diverged(UserError):
    """The loss is no longer finite."""


class Collapsed(UserError):
    """The features of all images became nearly equal; the message states the measures."""


class Stopped(Exception):
    """A signal ended the run; its state is saved."""


def name_outcome(error: UserError) -> str:
    """The value of `outcome` in run.json for a run that ended with this error."""
    if isinstance(error, Collapsed):
        return "collapsed"
    return "diverged" if isinstance(error, Diverged) else "failed"
