"""What every test of abuse shares: a sandbox to run commands in, and what is promised of every
outcome.

All that these tests know of the package's modules is imported here.
"""

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import re
import resource
import shutil
import stat
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from selftaught.cli.main import main
from selftaught.data.io import filesystem
from selftaught.data.loading import images
from selftaught.training import checkpoint, loop

# A network of milliseconds; the rest keeps the timing of the machine out of the outcome.
SMALL = (
    "--backbone",
    "test_resnet",
    "--size",
    "32",
    "--batch",
    "8",
    "--precision",
    "fp32",
    "--workers",
    "0",
)
TRAIN = ("pretrain", "--data", "photos", "--out", "out", *SMALL, "--steps", "0")
EVALUATE = (
    "evaluate",
    "run",
    "--protocol",
    "knn",
    "--labels",
    "all",
    "--against",
    "random",
    "--workers",
    "0",
)

DONE, REFUSED, EITHER = "done", "refused", "done, or refused"
SECONDS = 60  # within which a command must have ended
# times that, on a machine that is slow or paused now and then
PATIENCE = float(os.environ.get("ABUSE_PATIENCE", "1"))

CACHE = "cache"  # the only place besides --out that a command may write to
_WRITES = ("--out", "--to")  # flags that name such a place
_MOST_READ = 4 << 20  # bytes of a file that are compared; of a longer one size and time are


# -------------------------------------------------------------------------------------------------
# outcomes


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it did to the files of its sandbox."""

    code: int
    out: str
    err: str
    seconds: float
    strays: tuple[str, ...] = ()  # written, changed or removed outside of --out and the cache
    lost: tuple[str, ...] = ()  # files that were there before in --out, and were changed or removed

    @property
    def message(self) -> str:
        """The line that says why a command was refused."""
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "")


def assert_no_harm(outcome: Outcome) -> None:
    """What is promised of every outcome, a good one or not."""
    text = outcome.out + outcome.err
    assert "Traceback (most recent call last)" not in text, text
    assert not re.search(r"\.py:\d+: \w*Warning", text), f"a library's warning is shown: {text}"
    assert not outcome.strays, f"written outside of --out and the cache: {outcome.strays}"
    assert "\x1b" not in text, "an escape sequence of a name or a file reached the terminal"


def assert_done(outcome: Outcome) -> None:
    assert outcome.code == 0, f"exit code {outcome.code}\n{outcome.err}"
    assert_no_harm(outcome)


def assert_one_line(outcome: Outcome) -> None:
    """Refused with exit code 2 and one line on standard error, behind which nothing is said."""
    assert_no_harm(outcome)
    assert outcome.code == 2, f"exit code {outcome.code} instead of 2\n{outcome.err}"
    lines = [line for line in outcome.err.splitlines() if line.startswith("selftaught:")]
    assert lines == [outcome.message], outcome.err
    assert len(outcome.message) < 1500, outcome.message


def assert_refused(outcome: Outcome, *words: str) -> None:
    """So; besides, every one of `words` stands in the line, and no file that was there before is
    another now.
    """
    assert_one_line(outcome)
    missing = [word for word in words if word.lower() not in outcome.message.lower()]
    assert not missing, f"{missing} not in: {outcome.message}"
    assert not outcome.lost, f"lost in --out: {outcome.lost}"


# --------------------------------------------------------------------------------------------------
# cases


def nothing(*_: Any) -> None:
    """No preparation, or no further check."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table: an input, what is promised, and how that is checked."""

    id: str
    what: str  # done, in plain English; stands on the page
    words: Sequence[str] = TRAIN  # the command
    promise: str = DONE
    names: Sequence[str] = ()  # what the refusing line names
    prepare: Callable[["Sandbox"], object] = nothing
    then: Callable[["Sandbox", Outcome], object] = nothing  # a further check
    right: str = ""  # the promise in plain English, where it is more than `promise`
    writes: Sequence[str] = ()  # places that the command may write to besides --out and the cache
    permissions: bool = False  # permission bits bind root too
    seconds: int = SECONDS


def rows(cases: Sequence[Case]) -> list[Any]:
    """For pytest.mark.parametrize."""
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), sorted(i for i in ids if ids.count(i) > 1)
    return [
        pytest.param(case, id=case.id, marks=pytest.mark.timeout(PATIENCE * case.seconds))
        for case in cases
    ]


def carry_out(case: Case, sandbox: "Sandbox") -> Outcome:
    """Prepare the input, run the command and check what is promised."""
    case.prepare(sandbox)
    outcome = sandbox.run(*case.words, writes=case.writes, permissions=case.permissions)
    check(case, sandbox, outcome)
    return outcome


def check(case: Case, sandbox: "Sandbox", outcome: Outcome) -> None:
    refused = outcome.code != 0 if case.promise == EITHER else case.promise == REFUSED
    if refused:
        assert_refused(outcome, *case.names)
    else:
        assert_done(outcome)
    case.then(sandbox, outcome)


# -------------------------------------------------------------------------------------------------
# sandbox


@dataclass
class Sandbox:
    """A folder that is the working directory, the home and the place of temporary files; commands
    run inside of it.
    """

    path: Path
    report: dict[str, Any] = field(default_factory=dict)  # what the page tells of the case

    def run(self, *words: str, writes: Sequence[str] = (), permissions: bool = False) -> Outcome:
        """`selftaught WORDS` in this process. `permissions`: their bits bind root too."""
        before = snapshot(self.path)
        out, err = io.StringIO(), io.StringIO()
        began = time.perf_counter()
        bound = obeying_permissions() if permissions else contextlib.nullcontext()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings_shown(),
            bound,
        ):
            code = run_main(list(words))
        seconds = time.perf_counter() - began
        outcome = self.compare(
            before, words, writes, Outcome(code, out.getvalue(), err.getvalue(), seconds)
        )
        self.note(outcome)
        return outcome

    def compare(
        self, before: dict[str, str], words: Sequence[str], writes: Sequence[str], outcome: Outcome
    ) -> Outcome:
        """The same with what became of the files since `before`."""
        after = snapshot(self.path)
        changed = {
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        }
        places = [os.path.normpath(p) for p in (*named_places(words), *writes)]
        allowed = [
            os.path.relpath(p, self.path) if os.path.isabs(p) else p for p in (CACHE, *places)
        ]

        def inside(name: str) -> bool:
            return any(
                name == place or name.startswith(f"{place}/") or place.startswith(f"{name}/")
                for place in allowed
            )

        strays = tuple(sorted(name for name in changed if not inside(name)))
        mine = [name for name in changed if inside(name) and name.partition("/")[0] != CACHE]
        # a lock file holds nothing, and goes when its process lets go of it
        lost = tuple(sorted(n for n in mine if n in before and not n.endswith(".lock")))
        return Outcome(outcome.code, outcome.out, outcome.err, outcome.seconds, strays, lost)

    def note(self, outcome: Outcome) -> None:
        """Remember for the page how the first refused command of a case ended."""
        if outcome.code and "said" not in self.report:
            self.report["said"] = outcome.message.replace(f"{self.path}/", "")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, content: str | bytes) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file


def run_main(words: list[str]) -> int:
    """The exit code that a shell would see; a traceback is printed as Python does."""
    try:
        return main(words)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Warnings of libraries go to standard error, as they do in a shell."""

    def show(
        message: Any, category: Any, filename: str, number: int, file: Any = None, line: Any = None
    ) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, number, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = show
        yield


def named_places(words: Sequence[str]) -> list[str]:
    places = []
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _WRITES and equals:
            places.append(value)
        elif word in _WRITES and i + 1 < len(words):
            places.append(words[i + 1])
    return places


def snapshot(root: Path) -> dict[str, str]:
    """Everything below a folder: path -> kind and content. Pipes and devices are not opened."""
    result = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            result[os.path.relpath(path, root)] = _state(path)
    return result


def _state(path: str) -> str:
    try:
        status = os.lstat(path)
    except OSError as error:  # a path that is too long for the system
        return f"error {error.errno}"
    if stat.S_ISLNK(status.st_mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode):
        if status.st_size > _MOST_READ:
            return f"file of {status.st_size} at {status.st_mtime_ns}"
        return f"file {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
    return (
        f"kind {stat.S_IFMT(status.st_mode)}"
        f" {status.st_rdev if stat.S_ISCHR(status.st_mode) else ''}"
    )


@contextlib.contextmanager
def inside(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox in `path`: nothing of the user's own home is read or written."""
    path = path.resolve()
    for name in ("home", "tmp", CACHE):
        (path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(path)
    for name, value in environment(path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(path / "tmp"))
    yield Sandbox(path)


def environment(path: Path) -> dict[str, str]:
    return {
        "HOME": str(path / "home"),
        "TMPDIR": str(path / "tmp"),
        "XDG_CACHE_HOME": str(path / CACHE),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }


# --------------------------------------------------------------------------------------------------
# inputs


def picture(size: tuple[int, int] = (40, 40), seed: int = 0) -> Image.Image:
    """Noise, (width, height)."""
    width, height = size
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype="u1")
    )


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 40), **options: Any) -> bytes:
    out = io.BytesIO()
    picture(size).save(out, kind, **options)
    return out.getvalue()


def photos(root: Path, names: Sequence[str] = (), each: int = 8, size: int = 40) -> Path:
    """`each` images in every folder of `names`, or 16 in none; those of one folder have a colour of
    their own.
    """
    rng = np.random.default_rng(0)
    for c, name in enumerate(names or [""]):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(each if names else 16):
            pixels = rng.integers(0, 90, (size, size, 3)) + np.array(
                [80 * (c % 3), 160 - 80 * (c % 3), 80]
            )
            Image.fromarray(pixels.clip(0, 255).astype("u1")).save(root / name / f"{k:03}.png")
    return root


def two_classes(sandbox: Sandbox) -> None:
    photos(sandbox / "photos", ("a", "b"))


def facts(sandbox: Sandbox, out: str = "out") -> dict[str, Any]:
    """run.json's `data`."""
    data: dict[str, Any] = json.loads((sandbox / out / "run.json").read_text())["data"]
    return data


def network(name: str = "test_resnet") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = timm.create_model(name, num_classes=0).state_dict()
    return state


def learnt(folder: Path) -> dict[str, bytes]:
    """The weights of a run, or of all stages of a plan, exactly."""
    files = sorted(folder.rglob("backbone.safetensors"))
    assert files, f"no backbone in {folder}"
    return {
        f"{n}/{key}": value.numpy().tobytes()
        for n, file in enumerate(files)
        for key, value in load_file(file).items()
    }


# ----------------------------------------------------------------------------------- a machine that
# is unkind


@contextlib.contextmanager
def obeying_permissions() -> Iterator[None]:
    """Permission bits bind this thread, and those that it starts, though it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A write past `size` bytes of a file fails, as on a disk that is full (with another number of
    the error).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_disk(after: int) -> Iterator[list[str]]:
    """From the (after + 1)-th file on that is put in its place, the disk is full."""
    real, put = os.fsync, list[str]()

    def fsync(handle: int) -> None:
        put.append(str(handle))
        if len(put) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield put


@contextlib.contextmanager
def at_step(number: int, event: Callable[[], object]) -> Iterator[None]:
    """`event()` happens in the `number`-th training step that is made inside."""
    real, numbers = loop.backward, list[int]()

    def interrupted(*args: Any) -> Any:
        numbers.append(len(numbers) + 1)
        if numbers[-1] == number:
            event()
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "backward", interrupted)
        yield


def read_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory to hold images in: they are read when they are needed."""
    monkeypatch.setattr(images, "free_memory", lambda: 0)


def wait_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails is asked again after milliseconds."""
    monkeypatch.setattr(filesystem, "_PAUSE", 0.001)


def copied(of: Path, to: Path) -> Path:
    return Path(shutil.copytree(of, to))


def is_readable_checkpoint(file: Path) -> bool:
    return bool(checkpoint.load_checkpoint(file))
