"""Errors of libraries that are told to the user."""

import pytest

from selftaught.errors import WorkerDied, find_dead_worker


@pytest.mark.parametrize(
    ("error", "is_dead"),
    [
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), True),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), True),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("DataLoader worker"), False),
    ],
)
def test_a_worker_that_was_killed_is_told_with_the_remedy(error: Exception, is_dead: bool) -> None:
    died = find_dead_worker(error)
    assert isinstance(died, WorkerDied) == is_dead
    assert died is None or "--workers" in str(died)
