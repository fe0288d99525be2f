"""Two machines, as network namespaces with addresses of their own: they train as one does, and
survive a loss.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import argv
from tests.pictures import folder
from tests.several import together

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(540),
    pytest.mark.skipif(
        shutil.which("ip") is None
        or os.geteuid() != 0
        or subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0,
        reason="needs root and network namespaces",
    ),
]
STEPS = 200


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces, joined by a cable."""
    names = [f"selftaught{os.getpid()}{end}" for end in "ab"]
    for name in names:
        ip(f"netns add {name}")
    try:
        ip(f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
        for number, name in enumerate(names, 1):
            ip(f"-n {name} address add 10.77.0.{number}/24 dev cable")
            ip(f"-n {name} link set cable up")
            ip(f"-n {name} link set lo up")
        yield names
    finally:
        for name in names:
            kill(name)
            ip(f"netns delete {name}")


def words(data: Path, out: Path, steps: int) -> list[str]:
    network = argv("--backbone resnet10t --size 32 --stem imagenet --precision fp32")
    command_line = (
        f"pretrain --data {data} --out {out} --batch 8 --steps {steps} --save-every 1 --resume"
    )
    return argv(command_line, *network)


def node(host: str, nodes: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """One machine's torchrun; the first machine is where they meet."""
    first = host.endswith("a")
    torchrun = [sys.executable, *argv(f"-m torch.distributed.run --nnodes {nodes}")]
    torchrun += argv("--nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id test")
    torchrun += argv(f"--rdzv-endpoint 10.77.0.1:29500 --rdzv-conf is_host={int(first)}")
    torchrun += ["--local-addr", "10.77.0.1" if first else "10.77.0.2"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *torchrun, "-m", "selftaught", *command],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable", "TP_SOCKET_IFNAME": "cable"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def steps_done(out: Path) -> int:
    file = out / "journal.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def kill(host: str) -> None:
    """Everything that runs there, at once: torchrun puts its workers into sessions of their own."""
    result = subprocess.run(
        ["ip", "netns", "pids", host], check=True, capture_output=True, text=True
    ).stdout.split()
    for process in result:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def test_two_machines_train_as_two_processes_of_one_do(tmp_path: Path, hosts: list[str]) -> None:
    data = folder(tmp_path / "images")
    logs = [tmp_path / f"{host}.log" for host in hosts]
    both = [
        node(host, "2", words(data, tmp_path / "two", 6), log)
        for host, log in zip(hosts, logs, strict=True)
    ]
    for running, log in zip(both, logs, strict=True):
        assert running.wait(240) == 0, log.read_text()
    together(tmp_path / "one.log", *words(data, tmp_path / "one", 6))
    actual, expected = (
        load_file(tmp_path / name / "backbone.safetensors") for name in ("two", "one")
    )
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_a_machine_survives_the_loss_of_the_other(tmp_path: Path, hosts: list[str]) -> None:
    """It meets again alone, goes on from the last checkpoint with the whole batch, and ends the
    run.
    """
    data, out = folder(tmp_path / "images"), tmp_path / "run"
    logs = [tmp_path / f"{host}.log" for host in hosts]
    first, _ = [
        node(host, "1:2", words(data, out, STEPS), log)
        for host, log in zip(hosts, logs, strict=True)
    ]
    deadline = time.monotonic() + 240
    while steps_done(out) < 4 or not (out / "checkpoints" / "last.pt").exists():
        assert first.poll() is None, logs[0].read_text()
        assert time.monotonic() < deadline, logs[0].read_text()
        time.sleep(0.05)
    kill(hosts[1])
    at = steps_done(out)
    assert first.wait(280) == 0, logs[0].read_text()
    assert at < STEPS, "the other was lost too late to be missed"
    assert steps_done(out) == STEPS
    assert json.loads((out / "run.json").read_text())["outcome"] == "done"
    entries = [
        json.loads(line)["step"] for line in (out / "journal.jsonl").read_text().splitlines()
    ]
    assert entries == sorted(set(entries))
