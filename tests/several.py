"""Several processes in tests: with a function, with a command, or by torchrun with a command.

They are forked from a server that has imported all, as imports take longer than what is tested.
"""

import multiprocessing
import os
import signal
import socket
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
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.abuse.preload"])
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
    context = mp.start_processes(
        _worker,
        (str(place), dict(os.environ), task, arguments),
        nprocs=WORLD,
        join=False,
        start_method="forkserver",
    )
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


def _worker(
    rank: int,
    place: str,
    environment: dict[str, str],
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)  # the server's is that of its start
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=WORLD
    )
    torch.save(task(*arguments), f"{place}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # spawned gloo workers can hang at interpreter exit


def begin(log: Path, *words: str) -> subprocess.Popen[bytes]:
    """`selftaught WORDS` in two processes; what they say goes to the end of `log`."""
    with log.open("ab") as text:
        return subprocess.Popen(
            [*TORCHRUN, *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=text,
            stderr=text,
            start_new_session=True,
        )


def together(log: Path, *words: str) -> str:
    """The same to its end, which must be a good one; returns what was said."""
    assert begin(log, *words).wait(timeout=300) == 0, log.read_text()
    return log.read_text()


def run_command(log: Path, *words: str) -> list[int]:
    """The exit codes of `selftaught WORDS` in two forked processes, which are started as torchrun
    does; what they say goes to the end of `log`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": WORLD, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = []
    for rank in range(WORLD):
        own = {k: str(v) for k, v in {**group, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(
            _CONTEXT.Process(target=_command, args=(str(log), {**os.environ, **own}, words))
        )
        processes[-1].start()
    for process in processes:
        process.join(timeout=270)
        if process.exitcode is None:
            for other in processes:
                other.kill()
            pytest.fail(f"the processes hang: {log.read_text()}")
    return [process.exitcode or 0 for process in processes]


def _command(log: str, environment: dict[str, str], words: tuple[str, ...]) -> None:
    from selftaught.cli.main import main
    from selftaught.visualize import snapshots

    snapshots.draw = lambda *_: None  # as in all tests
    os.environ.update(environment)
    with open(log, "ab", buffering=0) as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)
    code = main(list(words))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # gloo workers can hang at interpreter exit


def kill(running: subprocess.Popen[bytes], out: Path) -> None:
    """As kill -9 does, torchrun and its workers (which have sessions of their own, and `out` in
    their command).
    """
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    subprocess.run(["pkill", "-9", "-f", str(out)], check=False)
