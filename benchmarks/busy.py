"""Training beside a busy program, and alone: with the threads that are chosen by default, with one,
and with all.

    python -m benchmarks.busy [--size 64] [--batch 128] [--steps 40] [--rounds 3] [--busy 1] [--load
    spin|train] [--quick]

Each case is a process of its own, `selftaught pretrain` on the demo's photo patches, and takes its
turn in every round: first on the machine as it is, then beside `--busy` programs that each use a
core (a loop, or a training with one thread). Speeds are the median over steps after the first
fifth. Prints ratios [least, most] of speeds in the same round. Two have
aims: beside a busy program the default is at least .9 of one thread, and alone at least .95 of all
threads. Needs two cores or more, and a machine that is otherwise quiet. Writes results/busy.json;
`--quick`, one short round, writes nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import format_ratio, photo_patches, spread, write
from selftaught.data.io.parallel import count_cores

AIMS = {"busy: default by one thread": 0.9, "alone: default by all threads": 0.95}
LOADS = {
    "spin": "while True: pass",
    "train": (
        """
import timm, torch
torch.set_num_threads(1)
network, images = timm.create_model("resnet18"), torch.rand(16, 3, 64, 64)
while True: network(images).mean().backward()
"""
    ),
}
FEW = 4  # images of each folder that --quick keeps
Run = dict[str, float]


def trained(data: Path, out: Path, words: list[str], threads: str) -> Run:
    """By the command line, as a user runs it; no variable of the environment decides on threads."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    command = [
        sys.executable,
        "-m",
        "selftaught",
        "pretrain",
        "--data",
        str(data),
        "--out",
        str(out),
        *words,
    ]
    subprocess.run(
        [*command, "--threads", threads], check=True, capture_output=True, env=environment
    )
    entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    speeds = [e["images_per_s"] for e in entries if e["images_per_s"]]
    used = json.loads((out / "run.json").read_text())["threads"]
    return {"images_per_s": median(speeds[len(speeds) // 5 :]), "threads": used}


@contextmanager
def busy(programs: int, load: str) -> Iterator[None]:
    """So many programs that do not stop by themselves."""
    started = [subprocess.Popen([sys.executable, "-c", LOADS[load]]) for _ in range(programs)]
    try:
        if started:
            time.sleep(1 if load == "spin" else 10)  # until they are at work
        yield
    finally:
        for program in started:
            program.kill()
            program.wait()


def ratio(runs: dict[str, list[Run]], case: str, reference: str) -> dict[str, float]:
    pairs = zip(runs[case], runs[reference], strict=True)
    return spread([a["images_per_s"] / b["images_per_s"] for a, b in pairs])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--load", choices=list(LOADS), default="spin")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if count_cores() < 2:
        raise SystemExit("one core: there is nothing to choose")
    if args.quick:
        args.size, args.batch, args.steps, args.rounds, args.backbone = (
            32,
            32,
            5,
            1,
            "test_resnet",
        )
    words = [
        "--method",
        "moco-v2",
        "--backbone",
        args.backbone,
        "--stem",
        "imagenet",
        "--size",
        str(args.size),
    ]
    words += ["--batch", str(args.batch), "--steps", str(args.steps)]
    cases = {"default": "auto", "one thread": "1", "all threads": str(count_cores())}
    runs: dict[str, list[Run]] = {}
    with photo_patches() as (scratch, data):
        for folder in [data, *data.rglob("*/")] if args.quick else []:
            for file in sorted(f for f in folder.iterdir() if f.is_file())[FEW:]:
                file.unlink()
        for number in range(args.rounds):
            for place, programs in (("alone", 0), ("busy", args.busy)):
                with busy(programs, args.load):
                    for name, threads in cases.items():
                        out = scratch / f"{place}-{threads}-{number}"
                        run = trained(data, out, words, threads)
                        runs.setdefault(f"{place}: {name}", []).append(run)
                        print(number, place, name, f"{run['images_per_s']:.0f}", flush=True)
    result: dict[str, Any] = {}
    for name, done in runs.items():
        result[name] = {
            "images_per_s": spread([run["images_per_s"] for run in done]),
            "threads": sorted({int(run["threads"]) for run in done}),
        }
        print(
            f"{name:20} {format_ratio(result[name]['images_per_s'])} images/s, threads"
            f" {result[name]['threads']}"
        )
    ratios = {}
    for title in (*AIMS, "busy: all threads by one thread", "alone: one thread by all threads"):
        place, pair = title.split(": ")
        case, reference = pair.split(" by ")
        ratios[title] = ratio(runs, f"{place}: {case}", f"{place}: {reference}")
        aim = f" (aim: {AIMS[title]})" if title in AIMS else ""
        print(f"{title:34} {format_ratio(ratios[title])}{aim}")
    if not args.quick:
        settings = {
            name: getattr(args, name)
            for name in ("size", "batch", "steps", "rounds", "busy", "load", "backbone")
        }
        write("busy", {"settings": settings, "runs": result, "ratios": ratios, "aims": AIMS})
