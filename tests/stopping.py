"""A signal to this very process in the middle of a training step."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from selftaught.training import loop


@contextlib.contextmanager
def stopped_at(*steps: int, by: signal.Signals = signal.SIGTERM) -> Iterator[list[int]]:
    """`by` is raised in these of the steps that are made inside, counted from 1; grows by an entry
    a step.
    """
    real, numbers = loop.backward, list[int]()

    def interrupted(*args: Any) -> Any:
        numbers.append(len(numbers) + 1)
        if numbers[-1] in steps:
            signal.raise_signal(by)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "backward", interrupted)
        yield numbers
