"""One thread a test process: small tensors gain nothing from more, and lose much on a busy
machine. Nothing waits for the disk, and runs draw no pictures unless a test asks for them: half of
a tiny training would go there.
"""

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

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


@pytest.fixture(scope="session", autouse=True)
def real_draw() -> Iterator[Callable[..., None]]:
    """The function that draws an album, which tests replace by one that does nothing."""
    from selftaught.visualize import snapshots

    with pytest.MonkeyPatch.context() as patch:
        real = snapshots.draw
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(snapshots, "draw", lambda *_: None)
        yield real


@pytest.fixture(scope="module")
def pictures(real_draw: Callable[..., Any]) -> Iterator[None]:
    """Runs draw their albums."""
    from selftaught.visualize import snapshots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "draw", real_draw)
        yield


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
