"""What a user can mend: one clear line, which the command line prints before it exits with 2."""

import errno
import math
import os
import re


class UserError(Exception):
    """Bad input, said in one line together with what to do about it."""


class FileError(UserError, OSError):
    """A file that cannot be written, or not be read: which one, why, and what to do about it."""


_ELSEWHERE = "ask for the permission, or choose another place"
_PATH = "a part of this path is a file: move that away, or choose another place"
# by the number that the system gives
REMEDIES = {
    errno.ENOSPC: "free some space on this disk, or choose another one",
    errno.EDQUOT: "free some of your quota, or choose another disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose another disk",
    errno.EROFS: "choose another place, or mount this disk for writing",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EIO: (
        "the disk or its connection fails: look into the system's log, or choose another one"
    ),
    errno.EISDIR: "a folder lies in its place: move that away",
    errno.ENOTEMPTY: "a folder lies in its place: move that away",
    errno.ENOTDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.ENOENT: "look whether it was moved or deleted meanwhile",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n)",
    errno.ENFILE: "raise the number of files that may be open",
    errno.ESTALE: "the network's disk has changed: mount it again",
    errno.ELOOP: "its links lead in a circle: mend them",
}


def write_error(path: str | os.PathLike[str], error: OSError) -> FileError:
    """What to say of a file that the system would not write."""
    return FileError(f"{os.fspath(path)} cannot be written: {_why(error)}")


def read_error(path: str | os.PathLike[str], error: OSError) -> FileError:
    """What to say of a file that the system would not read."""
    return FileError(f"{os.fspath(path)} cannot be read: {_why(error)}")


def damage_error(path: str | os.PathLike[str], reason: object, remedy: str) -> FileError:
    """What to say of a file whose content makes no sense."""
    said = " ".join(str(reason).split())[:160].rstrip(".")
    return FileError(f"{os.fspath(path)} is damaged ({said}): {remedy}")


def describe_error(error: OSError) -> str:
    """An error of the system that nothing else has put into words, in one line."""
    names = [name for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(
        os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in names
    )
    return f"{where}: {_why(error)}" if where else _why(error)


def _why(error: OSError) -> str:
    reason = (
        error.strerror.lower()
        if error.strerror
        else " ".join(str(error).split()) or type(error).__name__
    )
    remedy = REMEDIES.get(error.errno or 0, "look at the disk, or choose another place")
    return f"{reason}; {remedy}"


def find_system_error(error: BaseException, until: BaseException | None = None) -> OSError | None:
    """The error of the system that another stems from, if it does: libraries wrap it, or tell its
    number alone.

    `until`: what was being handled before, and says nothing of this one.
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
    """Refuse a setting that makes no sense, or is no number."""
    if not fine or not math.isfinite(value):
        raise UserError(f"{name} must be {rule}, and not {value:g}")


class Diverged(UserError):
    """The loss is no finite number any more."""


class Collapsed(UserError):
    """The features fell into one point; the run is stopped and says why."""


class Stopped(Exception):
    """A signal asked the run to end; it is saved."""


def outcome_of(error: UserError) -> str:
    """What a run that ended so says of itself."""
    return (
        "collapsed"
        if isinstance(error, Collapsed)
        else "diverged"
        if isinstance(error, Diverged)
        else "failed"
    )
