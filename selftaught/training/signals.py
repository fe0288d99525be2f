"""Signals that stop a run."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SLURM sends SIGUSR1 before the end of a job (sbatch --signal=USR1@120).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect stop signals in a list instead of ending the process; a second Ctrl-C ends it."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # Not for SIGTERM: SLURM sends it twice at a job's time limit, a few milliseconds apart.
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    before: dict[int, Any] = {n: signal.signal(n, note) for n in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
