"""Signals that ask a run to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGUSR1 is what SLURM sends ahead of the end of a job (sbatch --signal=USR1@120).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect what asks a run to stop instead of dying of it; a second Ctrl-C does as ever."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread can be asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if (
            number == signal.SIGINT
        ):  # alone: at a job's time limit SLURM sends SIGTERM twice, a few milliseconds apart
            signal.signal(number, before[number])

    before: dict[int, Any] = {n: signal.signal(n, note) for n in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
