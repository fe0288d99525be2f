"""A process that keeps what it frees."""

import os
import subprocess
import sys

import pytest

from selftaught.cli.malloc import keep_freed

PROGRAM = """
import resource
import torch
from selftaught.cli.malloc import keep_freed

if {keep}:
    assert keep_freed()
pages = []
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 23)  # 32 MiB, from where on all are mapped
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(pages[30:]))
"""


def faults(keep: bool) -> int:
    """Pages that the kernel brings in for buffers that the process has had before. (Some more are
    needed until it has found places for them that fit.)
    """
    plain = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    words = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(words, env=plain, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="of glibc"
)
def test_what_is_freed_is_there_for_the_next_step() -> None:
    before = faults(keep=False)
    if before < 3000:
        pytest.skip("huge pages: there is nothing to save")
    assert faults(keep=True) < before / 10


def test_what_the_user_has_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed()
