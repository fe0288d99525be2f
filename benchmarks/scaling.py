"""Images a second of one process and of several on this machine, and the hours that large sets
would take, on paper.

    python -m benchmarks.scaling [--processes 1 2] [--size 64] [--batch 128] [--steps 20]

Trains MoCo-v2 on the demo's photo patches by torchrun, the same batch shared out among the
processes (each has one thread on a CPU). The efficiency is the speed by that of one process and
their number. Then, from the measured speed and the pieces in results/ (views, step, startup), what
ImageNet and a billion images would take, and what would be the bottleneck. Writes
results/scaling.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import RESULTS, photo_patches, write
from selftaught.data.io.parallel import count_cores

SETS = {"ImageNet, 200 epochs": 200 * 1_281_167, "a billion images, once": 10**9}


def speed(data: Path, out: Path, processes: int, size: int, batch: int, steps: int) -> float:
    """Source images a second, of all processes: the median over steps after the first tenth."""
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    words += [
        "-m",
        "selftaught",
        "pretrain",
        "--data",
        str(data),
        "--out",
        str(out),
        "--method",
        "moco-v2",
    ]
    words += [
        "--backbone",
        "resnet18",
        "--size",
        str(size),
        "--batch",
        str(batch),
        "--steps",
        str(steps),
    ]
    words += ["--stem", "imagenet"]
    threads = {} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, capture_output=True, env=os.environ | threads)
    entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return median(e["images_per_s"] for e in entries[1 + steps // 10 :] if e["images_per_s"])


def on_paper(images_per_s: float, processes: int) -> list[str]:
    """What the measured pieces say of runs that nobody can make here."""
    lines = []
    for name, shown in SETS.items():
        hours = shown / images_per_s / 3600
        lines.append(
            f"{name}: {hours:,.0f} hours at this size in {processes} process(es), an n-th in n"
            " times as many"
        )
    views = RESULTS / "views.json"
    if views.exists():
        per_core = json.loads(views.read_text())["results"]["224 px from JPEG"]["selftaught"][
            "images_per_s"
        ]
        lines.append(
            f"views: {per_core:,.0f} images/s and core at 224 px from JPEG: a GPU that trains 2,500"
            f" images/s wants {2500 / per_core:.0f} cores, or its views on the GPU (then"
            f" {2500 / (3 * per_core):.0f} for decoding alone)"
        )
    gradient = 25.6e6 * 4
    lines.append(
        f"gradients: ResNet-50 sends {2 * gradient / 1e6:,.0f} MB a step and process in a ring; at"
        f" 10 GB/s that is {2e3 * gradient / 10e9:.0f} ms, hidden behind a backward pass of 100 ms"
        " or more"
    )
    lines.append(
        "k-means of 10^9 x 128 floats is 512 GB of memory: DeepCluster-v2 saturates first, and"
        " wants a sample of it"
    )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--processes",
        type=int,
        nargs="*",
        default=[1, torch.cuda.device_count() or min(2, count_cores())],
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    with photo_patches() as (scratch, data):
        for n in args.processes:
            result[str(n)] = speed(data, scratch / f"run-{n}", n, args.size, args.batch, args.steps)
            efficiency = result[str(n)] / result[str(args.processes[0])] / n * args.processes[0]
            print(
                f"{n} process(es): {result[str(n)]:.0f} images/s, efficiency {efficiency:.2f}",
                flush=True,
            )
    paper = on_paper(max(result.values()), args.processes[-1])
    print("\n".join(paper))
    write("scaling", {"images_per_s": result, "on_paper": paper})
