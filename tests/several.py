"""Several processes in tests: spawned with a function, or by torchrun with a command."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    f"--nproc-per-node={WORLD}",
    "-m",
    "selftaught",
]


def spawned(task: Callable[..., Any], place: Path, *arguments: Any) -> list[Any]:
    """What `task(*arguments)` returns in each of two processes that have joined; files in between
    lie in `place`.
    """
    context = mp.spawn(_worker, (str(place), task, arguments), nprocs=WORLD, join=False)
    for process in context.processes:
        process.join(timeout=270)
        if process.is_alive():
            for other in context.processes:
                other.kill()
            pytest.fail("the processes hang")
    missing = [rank for rank in range(WORLD) if not (place / f"{rank}.pt").exists()]
    if missing:
        context.join(timeout=1)  # raises what the worker raised
        pytest.fail(f"process {missing} left no result")
    return load_results(place)


def load_results(place: Path) -> list[Any]:
    """What `spawned` wrote into `place`, a rank each."""
    return [torch.load(place / f"{rank}.pt") for rank in range(WORLD)]


def _worker(rank: int, place: str, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=WORLD
    )
    torch.save(task(*arguments), f"{place}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # spawned gloo workers can hang at interpreter exit


def begin(log: Path, *words: str) -> subprocess.Popen[bytes]:
    """`selftaught WORDS` in two processes; what they say goes to the end of `log`."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [*TORCHRUN, *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def together(log: Path, *words: str) -> str:
    """The same to its end, which must be a good one; returns what was said."""
    assert begin(log, *words).wait(timeout=300) == 0, log.read_text()
    return log.read_text()


def kill(running: subprocess.Popen[bytes], out: Path) -> None:
    """As kill -9 does, torchrun and its workers (which have sessions of their own, and `out` in
    their command).
    """
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    subprocess.run(["pkill", "-9", "-f", str(out)], check=False)
