"""One thread a test process: small tensors gain nothing from more, and lose much on a busy
machine.
"""

import gc
from collections.abc import Iterator
from functools import partial

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect tests without looking for garbage; what they are made of is never garbage later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def quick_scores() -> Iterator[None]:
    """Score candidates by a probe of one penalty and few iterations.

    For tests in which it does not matter how good a score is.
    """
    from selftaught.features.linear import LinearProbe
    from selftaught.training import selection

    with pytest.MonkeyPatch.context() as patch:
        probe = partial(LinearProbe, penalties=(1000.0,), iterations=3)
        patch.setattr(selection, "LinearProbe", probe)
        yield
