"""A stopwatch for the training time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts the total seconds, and the seconds of each lap without its pauses."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Start a new lap now."""
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count the time inside in the total, and not in the lap."""
        start = time.perf_counter()
        yield
        duration = time.perf_counter() - start
        self.seconds += duration
        self.started += duration

    def lap(self) -> float:
        """End the lap and start the next one; return its seconds, always positive."""
        now = time.perf_counter()
        duration = max(now - self.started, 1e-9)
        self.seconds += duration
        self.started = now
        return duration
