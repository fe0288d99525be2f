"""Does a run survive SLURM? A real one is started here, jobs are stopped in every way, and the
outcomes compared bit by bit.

    apt-get install slurm-wlm munge
    python -m benchmarks.slurm

Needs root and Debian's slurm-wlm, on a machine that is no node of a cluster: munged, slurmctld and
slurmd run for the length of the script, on ports and in a folder of their own, as a cluster of one
node. Takes some minutes; prints what it does, and exits with 1 when something does not hold. Over
200 lines: a cluster, and six ways to be stopped.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"
Found = TypeVar("Found")
PATIENCE = 300.0  # seconds that anything may take
BEGAN = time.monotonic()
FLAGS: dict[str, Any] = {
    "method": "moco-v2",
    "backbone": "test_resnet",
    "size": 32,
    "batch": 16,
    "precision": "fp32",
}
HERE = ("--device", "cpu", "--workers", "0")

CONF = """
ClusterName=selftaught
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
KillWait=20
MinJobAge=3600
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=common Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes={host} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""  # cred_expire is also how long a requeued job waits: 120 seconds where nothing is said


class Wrong(Exception):
    """Something does not hold."""


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def require(holds: bool, text: str) -> None:
    if not holds:
        raise Wrong(text)
    say(f"  ok: {text}")


def until(what: str, found: Callable[[], Found], patience: float = PATIENCE) -> Found:
    end = time.monotonic() + patience
    while not (value := found()):
        if time.monotonic() > end:
            raise Wrong(f"{what}: not within {patience:.0f} seconds")
        time.sleep(0.2)
    return value


def call(*words: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=2 * PATIENCE
        )
    except subprocess.TimeoutExpired as late:
        raise Wrong(str(late)) from late
    if done.returncode:
        raise Wrong(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


# --------------------------------------------------------------------------------------------------
# the cluster


def missing() -> str | None:
    """Why this cannot run here, if it cannot."""
    if os.geteuid() != 0:
        return "it needs root"
    absent = [
        name
        for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel")
        if not shutil.which(name)
    ]
    return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge" if absent else None


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """SLURM on this machine alone, without systemd; all of it is gone in the end."""
    folder.chmod(0o755)  # munged wants its socket to be reachable
    for place in ("state", "spool"):
        (folder / place).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    with contextlib.ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, ports=ports))
    os.environ["SLURM_CONF"] = str(conf)
    munge = [
        f"--{name}={folder}/munge.{name.partition('-')[0]}"
        for name in ("socket", "key-file", "pid-file", "seed-file")
    ]
    commands = (
        ["munged", "--foreground", *munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-c"],
    )
    daemons: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("w") as log:
                started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            daemons.append((command[0], started))
            if command[0] == "munged":  # the others end where there is none
                until("munged", (folder / "munge.socket").exists, 20)
        until("a node that is idle", lambda: idle(daemons), 60)
        say(f"{call('sinfo', '--version').strip()}: node {host} is idle")
        yield
    except Wrong:
        for name, _ in daemons:
            print(f"--- {name}.log ends with\n{(folder / f'{name}.log').read_text()[-1500:]}")
        raise
    finally:
        with contextlib.suppress(Wrong, OSError, subprocess.SubprocessError):
            if len(daemons) == len(commands):
                call("scancel", "--me")
                until("an end of all jobs", lambda: not call("squeue", "--noheader"), 40)
        for name, daemon in reversed(daemons):
            stop(name, daemon)


def idle(daemons: list[tuple[str, "subprocess.Popen[bytes]"]]) -> bool:
    for name, daemon in daemons:
        if daemon.poll() is not None:
            raise Wrong(f"{name} ended with {daemon.returncode}")
    args = subprocess.run(
        ["sinfo", "--noheader", "-o", "%T"], capture_output=True, text=True, check=False
    )
    return "idle" in args.stdout.split()


def stop(name: str, daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
        say(f"{name} had to be killed")


# --------------------------------------------------------------------------------------------------
# its jobs


def sbatch(*words: str, script: str = "selftaught") -> str:
    """Submit a command by a template of ours; returns the job's number."""
    # as sbatch takes them, in one word each
    flags = [word for word in words if word.startswith("-") and "=" in word]
    command = [word for word in words if word not in flags]
    job = call("sbatch", "--parsable", *flags, f"examples/slurm/{script}.sbatch", *command).strip()
    say(f"job {job}: {' '.join([*flags, *command])}")
    return job


def facts(job: str) -> dict[str, str]:
    shown = call("scontrol", "show", "job", "--oneliner", job)
    return dict(re.findall(r"(\S+?)=(\S*)", shown))


def restarts(job: str) -> int:
    return int(facts(job)["Restarts"])


def ends(job: str) -> None:
    """Wait for a job that must end well."""
    until(
        f"an end of job {job}",
        lambda: facts(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"),
    )
    state = facts(job)
    if state["JobState"] != "COMPLETED" or state["ExitCode"] != "0:0":
        raise Wrong(
            f"job {job} is {state['JobState']} with {state['ExitCode']}; it said:\n{output(job)}"
        )


def output(job: str) -> str:
    file = Path(facts(job)["StdOut"])
    return file.read_text() if file.exists() else ""


def stage(out: Path, name: str) -> Path | None:
    """The folder of a plan's stage, or a run's own."""
    if not (out / "plan.json").exists():
        return out if (out / "run.json").exists() else None
    return out / str(json.loads((out / "plan.json").read_text())["stages"][name]["folder"])


def step(out: Path, name: str = "") -> int:
    """How far it is; 0 before it begins, and once it is done."""
    folder = stage(out, name)
    journal = folder / "journal.jsonl" if folder else None
    if folder is None or journal is None or not journal.exists() or outcome(out, name) != "running":
        return 0
    lines = [line for line in journal.read_text().splitlines() if line.endswith("}")]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def outcome(out: Path, name: str = "") -> str:
    folder = stage(out, name)
    file = folder / "run.json" if folder else None
    return str(json.loads(file.read_text())["outcome"]) if file and file.exists() else ""


def selftaught(*words: str, before: tuple[str, ...] = ("selftaught",)) -> None:
    """A command without SLURM, to its end."""
    say(f"without SLURM: {' '.join([*before, *words])}")
    call(*before, *words)


def compare(out: Path, whole: Path, *names: str) -> None:
    for name in names or ("",):
        one, other = stage(out, name), stage(whole, name)
        assert one is not None
        assert other is not None
        a, b = load_file(one / "backbone.safetensors"), load_file(other / "backbone.safetensors")
        same = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        require(
            same and len(a) > 10,
            f"{name or 'its'} backbone is an uninterrupted run's, bit for bit: {len(a)} tensors",
        )


def went_on(job: str, *lengths: int) -> None:
    """Every stage began once, although the job was begun several times."""
    text = output(job)
    begun = [text.count(f"step 0 of {steps:,} ") for steps in lengths]
    # each process says so
    stops = dict.fromkeys(re.findall(r"stopped at step (\d+) of (\d+)", text))
    message = ", ".join(f"{at} of {of}" for at, of in stops) or "none"
    require(
        begun == [1] * len(lengths),
        f"every stage began once; stops at step {message}; {restarts(job)} restarts",
    )


def ends_as(job: str, plan: Path, out: Path, whole: Path) -> None:
    """A plan's job goes on to its end, which is that of the undisturbed one."""
    ends(job)
    went_on(job, *lengths(plan))
    compare(out, whole, "source", "target")


# --------------------------------------------------------------------------------------------------
# the ways


def begin_without_warning(plan: Path) -> str:
    say(
        "A. adapt, far too long for its time limit of a minute, and nothing warns of it (goes on"
        " meanwhile)"
    )
    return sbatch(
        "--time=1",
        "--signal=B:CONT@1",
        "--cpus-per-task=1",
        "adapt",
        "--plan",
        str(plan),
        "--out",
        "runs/a",
        *HERE,
    )


def end_without_warning(job: str) -> None:
    """SLURM sends SIGTERM, twice, and then kills; the job saves, goes back, goes on; a plain
    scancel ends it for good.
    """
    say("A. adapt, far too long for its time limit of a minute, continued")
    until("a requeue", lambda: restarts(job) > 0)
    out, text = Path("runs/a"), output(job)
    require("DUE TO TIME LIMIT" in text, "SLURM ended the job at its limit")
    saved = [int(n) for n in re.findall(r"stopped at step (\d+) of", text)]
    require(
        bool(saved),
        f"it saved nevertheless, at step {saved[0] if saved else None}, and went back into the"
        " queue",
    )
    call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    before = restarts(job)
    until(
        "training after the restart",
        lambda: facts(job)["JobState"] == "RUNNING" and step(out, "target") > saved[-1],
    )
    require(True, f"it went on, and is at step {step(out, 'target')}")
    call("scancel", job)
    until("its end", lambda: facts(job)["JobState"] == "CANCELLED")
    require(outcome(out, "target") == "stopped", "a plain scancel lets it save, too")
    time.sleep(10)
    state = facts(job)
    require(
        state["JobState"] == "CANCELLED" and int(state["Restarts"]) == before,
        "and ends it for good: ten seconds later it is not back in the queue",
    )


def two_processes(plan: Path) -> None:
    say(
        "B. adapt in two processes, stopped by `scancel --signal=USR1 --batch`; the uninterrupted"
        " one is by torchrun"
    )
    out, whole = Path("runs/b"), Path("runs/b-whole")
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2", "-m", "selftaught")
    selftaught("adapt", "--plan", str(plan), "--out", str(whole), *HERE, before=torchrun)
    job = sbatch(
        "--ntasks-per-node=2",
        "--cpus-per-task=1",
        "adapt",
        "--plan",
        str(plan),
        "--out",
        str(out),
        *HERE,
    )
    until("training in target", lambda: step(out, "target") >= 20)
    call("scancel", "--signal=USR1", "--batch", job)
    until("a requeue", lambda: restarts(job) == 1)
    require(outcome(out, "target") == "stopped", "target is saved and the job is back in the queue")
    ends_as(job, plan, out, whole)


def batch_signal(plan: Path) -> None:
    say("C. adapt, stopped in each of its two stages by `scancel --signal=USR1 --batch`")
    out, whole = Path("runs/c"), Path("runs/c-whole")
    selftaught("adapt", "--plan", str(plan), "--out", str(whole), *HERE)
    job = sbatch("--cpus-per-task=1", "adapt", "--plan", str(plan), "--out", str(out), *HERE)
    for number, name in enumerate(("source", "target"), 1):
        until(f"training in {name}", lambda name=name: step(out, name) >= 20)
        call("scancel", "--signal=USR1", "--batch", job)
        until("a requeue", lambda number=number: restarts(job) == number)
        require(
            outcome(out, name) == "stopped", f"{name} is saved and the job is back in the queue"
        )
    ends_as(job, plan, out, whole)


def warned_of_the_limit(plan: Path) -> None:
    say(
        "D. adapt, longer than its time limit of a minute, warned by SLURM itself"
        " (--signal=B:USR1@55)"
    )
    out, whole = Path("runs/d"), Path("runs/d-whole")
    selftaught("adapt", "--plan", str(plan), "--out", str(whole), *HERE)
    # SLURM looks at the limits twice a minute: some 5 to 35 seconds after each start.
    job = sbatch(
        "--time=1",
        "--signal=B:USR1@55",
        "--cpus-per-task=1",
        "adapt",
        "--plan",
        str(plan),
        "--out",
        str(out),
        *HERE,
    )
    until("a requeue", lambda: restarts(job) or facts(job)["JobState"] == "COMPLETED")
    require(restarts(job) > 0, "the warning came and the job went back into the queue")
    call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    ends_as(job, plan, out, whole)


def preempted() -> None:
    say(
        "E. pretrain in a partition that a more urgent job takes the node from; it goes on with the"
        " same flags and --resume"
    )
    flags = [
        "--data",
        "images/source",
        *(word for k, v in FLAGS.items() for word in (f"--{k}", str(v))),
        "--epochs",
        "200",
    ]
    out, whole = Path("runs/e"), Path("runs/e-whole")
    selftaught("pretrain", *flags, "--out", str(whole), *HERE)
    job = sbatch(
        "--partition=spare", "--cpus-per-task=4", "pretrain", *flags, "--out", str(out), *HERE
    )
    until("training", lambda: step(out) >= 20)
    urgent = call(
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--cpus-per-task=6",
        "--output=urgent.out",
        "--wrap=sleep 3",
    )
    say(f"job {urgent.strip()} wants 6 of 8 cores, at once")
    until("a requeue", lambda: restarts(job) == 1)
    require(outcome(out) == "stopped", "it is saved and the job is back in the queue")
    ends(urgent.strip())
    ends(job)
    steps = json.loads((out / "run.json").read_text())["config"]["steps"]
    went_on(job, steps)
    require(
        "--resume" in json.loads((out / "run.json").read_text())["command"],
        "--resume was added on the restart",
    )
    compare(out, whole)


def array(base: Path) -> None:
    say(
        "F. a study as an array of two, one of which is stopped: the one whose number is that of"
        " the whole array"
    )
    written = {
        "bases": {"ours": str(base)},
        "targets": {"target": {"data": "images/target"}},
        "settings": FLAGS,
        "steps": {"hpt": [50, 400], "target": [50, 400], "hpt_bn": [50], "refresh": 5},
        "seeds": [0],
    }
    Path("study.yaml").write_text(yaml.safe_dump(written))
    out, whole = Path("runs/f"), Path("runs/f-whole")
    study = ("study", "separability", "--plan", "study.yaml", "--out")
    selftaught(*study, str(whole), *HERE)
    job = sbatch("--array=1-2", "--cpus-per-task=1", *study[1:], str(out), *HERE, script="study")
    tasks = [f"{job}_{i}" for i in (1, 2)]
    until("both tasks", lambda: all(facts(task)["JobState"] == "RUNNING" for task in tasks))
    chosen, other = sorted(tasks, key=lambda task: facts(task)["JobId"] != job)
    require(facts(chosen)["JobId"] == job, f"task {chosen} has the array's own number, {job}")
    # A stop between two trainings, during an evaluation say, is as good; yet here it is to hit a
    # training.
    until(
        "a long training",
        lambda: re.search(r"\bstep (10|25|50|100|200) of 400 [^\n]*\n$", output(chosen)),
    )
    call("scancel", "--signal=USR1", "--batch", chosen)
    until("a requeue", lambda: restarts(chosen) == 1)
    for task in tasks:
        ends(task)
    require(
        "stopped; the same command goes on" in output(chosen),
        "it said that it stopped, went back and ended",
    )
    require(restarts(other) == 0, "the other task was left alone")
    selftaught(*study, str(out), "--shard", "0/2", *HERE)
    one, two = (json.loads((place / "separability.json").read_text()) for place in (out, whole))
    require(one["done"] == one["cells"] == two["done"], f"all {one['cells']} cells are done")
    require(
        bool(one["rows"]) and one["rows"] == two["rows"],
        f"its {len(one['rows'])} scores are those of the unsplit study",
    )


# --------------------------------------------------------------------------------------------------
# all of it


def images(root: Path, seed: int, classes: int = 3, each: int = 16) -> None:
    rng = np.random.default_rng(seed)
    for c in range(classes):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(each):
            noise = rng.normal(128, 20 + 20 * c, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(root / f"class {c}" / f"{i:02}.png")


def planned(name: str, source: int, target: int) -> Path:
    stages = {
        "source": {"data": "images/source", "steps": source},
        "target": {"data": "images/target", "after": "source", "steps": target, "keep": "last"},
    }
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump({"defaults": FLAGS, "stages": stages}))
    return file


def lengths(plan: Path) -> list[int]:
    return [s["steps"] for s in yaml.safe_load(plan.read_text())["stages"].values()]


def a_minute() -> int:
    """Steps that the uninterrupted run of C says to take about a minute."""
    folder = stage(Path("runs/c-whole"), "source")
    assert folder is not None
    last = json.loads((folder / "journal.jsonl").read_text().splitlines()[-1])
    return int(max(round(60 * last["step"] / last["seconds"] / 100), 3)) * 100


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder with runs and logs behind"
    )
    args = parser.parse_args()
    if reason := missing():
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 2

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # through every `finally`

    signal.signal(signal.SIGTERM, leave)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="selftaught-slurm-"))
    os.environ |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    work = folder / "work"
    # jobs are submitted from the folder that holds them
    shutil.copytree(EXAMPLES, work / "examples")
    os.chdir(work)
    for seed, name in enumerate(("source", "target")):
        images(Path("images") / name, seed)
    short = planned("short", 100, 200)
    try:
        with cluster(folder):
            meanwhile = begin_without_warning(planned("endless", 10, 100_000))
            two_processes(short)
            end_without_warning(meanwhile)
            batch_signal(short)
            warned_of_the_limit(planned("minute", 50, a_minute()))
            preempted()
            array(Path("runs/e-whole"))
        say("all of it holds")
    except Wrong as wrong:
        say(f"WRONG: {wrong}")
        return 1
    finally:
        os.chdir("/")
        if args.keep:
            say(f"runs and logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
