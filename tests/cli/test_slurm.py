"""Jobs under SLURM: what the template decides, among stand-ins for SLURM's commands; and with a
real SLURM (slow).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks import slurm
from selftaught.cli.main import main
from selftaught.runs import folder as run_folder
from selftaught.training import signals, trainer
from selftaught.training.signals import STOPPING
from tests.commands import argv
from tests.fixtures import Patch
from tests.pictures import folder
from tests.stopping import stopped_at

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "slurm" / "selftaught.sbatch"
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the template needs bash 4.4 or newer, as SLURM's nodes have it"
)

STAND_INS = {
    "selftaught": (
        """
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS | $*" >> called
case $END in
stops) trap 'sleep 0.2; echo "stopped at step 3 of 9: the same command goes on with it" >&2; exit 0' USR1 ;;
late) trap 'sleep 0.2; echo done; exit 0' USR1 ;;
fails) echo "selftaught: no images" >&2; exit 2 ;;
"by itself") echo "stopped; the same command goes on with it" >&2; exit 0 ;;
esac
echo > ready
for _ in $(seq 200); do [ "$END" = done ] && exit 0; sleep 0.05; done
"""
    ),
    "srun": (
        'while [ "${1#--}" != "$1" ]; do shift; done; export SLURM_PROCID=0 SLURM_LOCALID=0'
        ' SLURM_NTASKS=1; exec "$@"'
    ),
    "scontrol": (
        """
echo "$*" >> asked
case $1 in hostnames) ;; show) if [ "$2" = hostnames ]; then echo one; echo two; else echo "JobId=7 $STATE"; fi ;; esac
"""
    ),
}


class Job:
    """The template in a folder of its own, among stand-ins."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "bin").mkdir()
        for name, script in STAND_INS.items():
            file = place / "bin" / name
            file.write_text(f"#!/bin/bash\n{script}")
            file.chmod(0o755)

    def run(
        self,
        *words: str,
        end: str = "done",
        send: signal.Signals | None = None,
        state: str = "JobState=RUNNING Reason=None",
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMP_"))}
        env |= {"PATH": f"{self.place / 'bin'}:{env['PATH']}", "END": end, "STATE": state}
        env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one,two", "SLURM_CPUS_PER_TASK": "3"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = ["bash", str(TEMPLATE), *words]
        process = subprocess.Popen(command, cwd=self.place, env=env | more, text=True, **pipes)
        try:
            for _ in range(400):
                if send is None or (self.place / "ready").exists():
                    break
                time.sleep(0.05)
            if send is not None:
                process.send_signal(send)  # to the script alone, as B: says
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def lines(self, name: str) -> list[str]:
        return (self.place / name).read_text().splitlines()

    def requeued(self) -> list[str]:
        requests = self.lines("asked")
        return [line.removeprefix("requeue ") for line in requests if line.startswith("requeue")]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@linux
def test_a_job_that_ends_is_not_requeued(job: Job) -> None:
    done = job.run("adapt", "--plan", "a plan.yaml", "--out", "runs/x")
    assert done.returncode == 0
    assert job.requeued() == []
    assert job.lines("called") == ["0 0 1 one 10007 3 | adapt --plan a plan.yaml --out runs/x"]
    failed = job.run("adapt", end="fails")
    assert failed.returncode == 2
    assert "selftaught: no images" in failed.stderr
    assert job.requeued() == []


@linux
@pytest.mark.parametrize("send", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_was_stopped_is_requeued(job: Job, send: signal.Signals) -> None:
    done = job.run("adapt", "--out", "runs/x", end="stops", send=send)
    assert done.returncode == 0
    assert "stopped at step 3 of 9" in done.stderr
    assert job.requeued() == ["7"]


@linux
def test_a_job_that_stopped_of_a_signal_to_its_steps_is_requeued(job: Job) -> None:
    job.run("study", end="by itself")
    assert job.requeued() == ["7"]


@linux
def test_a_signal_before_there_is_anything_to_save_requeues(job: Job) -> None:
    job.run("adapt", end="dies", send=signal.SIGUSR1)
    assert job.requeued() == ["7"]


@linux
def test_a_job_that_was_done_before_it_could_be_stopped_is_not_requeued(job: Job) -> None:
    assert job.run("adapt", end="late", send=signal.SIGUSR1).returncode == 0
    assert job.requeued() == []


@linux
@pytest.mark.parametrize(
    ("state", "back"),
    [("JobState=COMPLETING Reason=TimeLimit", ["7"]), ("JobState=COMPLETING Reason=None", [])],
)
def test_a_cancelled_job_stays_away(job: Job, state: str, back: list[str]) -> None:
    job.run("adapt", end="stops", send=signal.SIGTERM, state=state)
    assert job.requeued() == back


@linux
def test_a_task_of_an_array_requeues_itself_alone(job: Job) -> None:
    job.run(
        "study", end="stops", send=signal.SIGUSR1, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3"
    )
    assert job.requeued() == ["7_3"]


@linux
def test_pretrain_goes_on_once_it_was_restarted_and_there_is_a_run(job: Job) -> None:
    def words(*arguments: str, **more: str) -> str:
        job.run(*arguments, **more)
        return job.lines("called")[-1].partition(" | ")[2]

    arguments = ("pretrain", "--data", "a", "b", "--out", "runs/x")
    assert words(*arguments) == words(*arguments, SLURM_RESTART_COUNT="1") == " ".join(arguments)
    (job.place / "runs" / "x").mkdir(parents=True)
    (job.place / "runs" / "x" / "run.json").touch()
    assert words(*arguments) == " ".join(arguments)  # somebody's: refused, as ever
    assert words(*arguments, SLURM_RESTART_COUNT="1") == " ".join([*arguments, "--resume"])
    assert (
        words("pretrain", "--out=runs/x", SLURM_RESTART_COUNT="1")
        == "pretrain --out=runs/x --resume"
    )
    assert words(*arguments, "--resume", SLURM_RESTART_COUNT="1") == " ".join(
        [*arguments, "--resume"]
    )
    assert words("adapt", "--out", "runs/x", SLURM_RESTART_COUNT="1") == "adapt --out runs/x"


@linux
def test_a_study_is_split_by_the_array(job: Job) -> None:
    shutil.copytree(ROOT / "examples", job.place / "examples")
    more = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    path = f"{job.place / 'bin'}:{os.environ['PATH']}"
    more |= {"SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "one", "END": "done", "PATH": path}
    command = argv("bash examples/slurm/study.sbatch data --out y")
    subprocess.run(command, cwd=job.place, env=os.environ | more, check=True, timeout=60)
    assert job.lines("called")[-1].endswith("| study data --out y --shard 3/8")


# -------------------------------------------------------------------------------------------------
# what Python does


def test_slurm_sends_sigterm_twice_and_neither_kills() -> None:
    def dies(number: int, frame: FrameType | None) -> None:
        raise RuntimeError(f"died of {number}")

    before = {number: signal.signal(number, dies) for number in STOPPING}
    try:
        with signals.signals() as received:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1):
                signal.raise_signal(number)
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(RuntimeError):  # a second Ctrl-C
                signal.raise_signal(signal.SIGINT)
        assert len(received) == 5
        assert all(signal.getsignal(number) is dies for number in STOPPING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_several_processes_look_for_signals_at_the_last_step_too(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """They look at every eighth step; one that came after the last of these was lost, and a plan's
    next stage began.
    """
    monkeypatch.setattr(trainer, "world_size", lambda: 2)
    words = argv(f"pretrain --data {folder(tmp_path / 'images')} --out {tmp_path}/run --device cpu")
    words += argv("--backbone test_resnet --size 32 --batch 8 --steps 11 --precision fp32")
    words += ["--workers", "0"]
    with stopped_at(10, by=signal.SIGUSR1) as numbers:
        assert main(words) == 0
        assert run_folder.read_run(tmp_path / "run").facts["outcome"] == "stopped"
        assert main([*words, "--resume"]) == 0
    assert run_folder.read_run(tmp_path / "run").facts["outcome"] == "done"
    assert len(numbers) == 11


# --------------------------------------------------------------------------------------------------
# a real SLURM


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(slurm.missing() is not None, reason=f"no SLURM to try: {slurm.missing()}")
def test_with_a_real_slurm() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.slurm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=2900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
