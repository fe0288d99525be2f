"""A process that keeps what it frees."""

import os
import subprocess
import sys

import pytest

from selftaught.memory import keep_freed

PROGRAM = """
import resource
import torch
from selftaught.memory import keep_freed

if {keep}:
    assert keep_freed()
pages = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(pages[1:]))
"""


def faults(keep: bool) -> int:
    """Pages that the kernel brings in for a buffer that the process has had before."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    words = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(words, env=plain, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="of glibc")
def test_what_is_freed_is_there_for_the_next_step() -> None:
    if faults(keep=False) < 100:
        pytest.skip("huge pages: there is nothing to save")
    assert faults(keep=True) < 10


def test_what_the_user_has_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed()
