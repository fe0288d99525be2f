"""Errors of libraries that are told to the user."""

import pytest
import torch

from selftaught.errors import UserError, WorkerDied, describe_memory_error, find_dead_worker
from selftaught.ranges import check_seed


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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1"
                " GiB of which 1.1 GiB is free."
            ),
            "the memory of the GPU is full: 2.5 GiB more were asked for",
        ),
        (RuntimeError("CUDA error: out of memory"), "the memory of the GPU is full"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "the memory of the GPU is full",
        ),
        (MemoryError(), "the memory is full"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_memory_that_is_full(error: Exception, words: str | None) -> None:
    assert describe_memory_error(error) == words


def test_memory_that_torch_cannot_have() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    words = "the memory is full: 1.074e+09 GiB more were asked for"
    assert describe_memory_error(caught.value) == words


def test_a_seed_fits_torch() -> None:
    for seed in (0, -1, 2**63 - 1, -(2**63)):
        check_seed(seed)
        torch.Generator().manual_seed(seed)
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(UserError, match="--seed must be a number of 64 bits"):
            check_seed(seed)
