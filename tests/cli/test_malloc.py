"""A process that keeps what it frees."""

import os
import subprocess
import sys

import pytest

from selftaught.cli.malloc import keep_freed
from tests.fixtures import Patch

FOREIGN = ("MALLOC_", "GLIBC_", "LD_PRELOAD")
# Prints the pages that the kernel brings in for buffers that the process has had before, first as
# it is and then with what is freed kept. (More are needed until it has found places that fit.)
PROGRAM = """
import resource
import torch
from selftaught.cli.malloc import keep_freed

def faults():
    pages = []
    for _ in range(40):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 23)  # 32 MiB, from where on all are mapped
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sum(pages[20:])

plain = faults()
assert keep_freed()
print(plain, faults())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="of glibc"
)
def test_what_is_freed_is_there_for_the_next_step() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    plain, kept = map(int, done.stdout.split())
    if plain < 2000:
        pytest.skip("huge pages: there is nothing to save")
    assert kept < plain / 10


def test_what_the_user_has_set_up_is_left_alone(monkeypatch: Patch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed()
