"""Commands in processes of their own, to be stopped and killed. They are forked from a server that
has imported all.
"""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.abuse.harness import PATIENCE, Outcome, Sandbox, environment, run_main, snapshot

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.abuse.preload"])

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


class Running:
    """A command under way; what it says goes to a file outside of its sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        words: Sequence[str],
        task: Callable[..., int] | None = None,
        *more: object,
    ) -> None:
        self.sandbox, self.words = sandbox, tuple(words)
        self.before = snapshot(sandbox.path)
        self.log = sandbox.path.with_name(
            f"{sandbox.path.name}.{len(self.words)}.{time.monotonic_ns()}.log"
        )
        self.began = time.perf_counter()
        self.process: BaseProcess = _CONTEXT.Process(
            target=_child,
            args=(str(sandbox.path), str(self.log), task or _command, self.words, *more),
        )
        self.process.start()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def signal(self, number: int) -> None:
        if self.process.pid is not None and not self.ended:
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120, writes: Sequence[str] = ()) -> Outcome:
        """How it ended; -9 after kill -9. It is killed if that takes longer than `seconds`."""
        self.process.join(PATIENCE * seconds)
        hangs = not self.ended
        if hangs:
            self.process.kill()
            self.process.join()
        assert not hangs, f"it hangs: {' '.join(self.words)}\n{self.said}"
        outcome = Outcome(
            self.process.exitcode or 0, "", self.said, time.perf_counter() - self.began
        )
        return self.sandbox.compare(self.before, self.words, writes, outcome)

    def wait_for(self, file: Path, seconds: float = 60) -> None:
        """Until a file is there and holds something."""
        until = time.monotonic() + PATIENCE * seconds
        while not (file.exists() and file.stat().st_size):
            assert not self.ended, f"ended too soon\n{self.said}"
            assert time.monotonic() < until, f"no {file} after {seconds} s\n{self.said}"
            time.sleep(0.01)


def start(sandbox: Sandbox, *words: str) -> Running:
    return Running(sandbox, words)


def _child(
    place: str, log: str, task: Callable[..., int], words: Sequence[str], *more: object
) -> None:
    os.chdir(place)
    os.environ.update(environment(Path(place)))
    with open(log, "ab", buffering=0) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.exit(task(list(words), *more))


def _command(words: list[str]) -> int:
    return run_main(words)


# --------------------------------------------------------------------------------------------------
# a small disk


def on_small_disk(words: list[str], place: str, kilobytes: int) -> int:
    """The command with a disk of its own at `place`, then once more with a larger one; both exit
    codes as a number.

    Needs the right to mount. The disk is gone when the process ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) != 0:
        return 99
    os.makedirs(place, exist_ok=True)
    for mount in (
        ["--make-rprivate", "/"],
        ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place],
    ):
        if subprocess.run(["mount", *mount], check=False).returncode:
            return 99
    first = run_main(words)
    print("=== more room", file=sys.stderr, flush=True)
    subprocess.run(["mount", "-o", "remount,size=256m", place], check=True)
    again = (
        [*words, "--resume"]
        if words[0] == "pretrain" and os.path.exists(f"{place}/out/run.json")
        else words
    )
    return 10 * first + run_main(again)


def can_mount() -> bool:
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(words, check=False, capture_output=True).returncode == 0
    except OSError:
        return False
