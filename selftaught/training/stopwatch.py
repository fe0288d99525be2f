"""The seconds of a training, over all its restarts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts seconds in all, and seconds since the last entry without those of measurements."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens here counts in all, and not in the images a second."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self.seconds += spent
        self.started += spent

    def lap(self) -> float:
        """Seconds since the last lap; the next one begins."""
        now = time.perf_counter()
        passed = max(now - self.started, 1e-9)
        self.seconds += passed
        self.started = now
        return passed
