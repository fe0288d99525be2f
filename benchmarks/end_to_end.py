"""Training from a folder of images, all in all: ours beside lightly's example, in turns.

    python -m benchmarks.end_to_end --data imagenette128/ [--size 96] [--batch 128] [--steps 12]
    [--rounds 3]

Each turn is a process of its own: `selftaught pretrain --method moco-v2`, and lightly's MoCo
example (its transform, heads, loss and optimizer, a DataLoader with a worker a core), with the same
backbone, images, batch and steps, at float32 and at bfloat16 with channels_last. Speeds are of
source images, after the first two steps. `as shipped` is ours as it comes beside lightly's as it
comes (float32). Prints medians and ratios [least, most], writes results/end_to_end.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import format_ratio, spread, write
from selftaught.data.io.parallel import count_cores

SKIP = 2  # steps that are not counted
Run = dict[str, float]


def ours(data: str, size: int, batch: int, steps: int, precision: str) -> Run:
    """By the command line, as a user runs it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [
            "pretrain",
            "--data",
            data,
            "--out",
            str(out),
            "--method",
            "moco-v2",
            "--backbone",
            "resnet18",
        ]
        words += [
            "--size",
            str(size),
            "--batch",
            str(batch),
            "--steps",
            str(steps),
            "--precision",
            precision,
        ]
        subprocess.run(
            [sys.executable, "-m", "selftaught", *words], check=True, capture_output=True
        )
        entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()][
            1 + SKIP :
        ]
    seconds = sum(batch / e["images_per_s"] for e in entries)
    waited = sum(e["wait"] * batch / e["images_per_s"] for e in entries)
    return {"images_per_s": len(entries) * batch / seconds, "wait": waited / seconds}


def peer(data: str, size: int, batch: int, steps: int, precision: str) -> Run:
    """In a process of its own, as ours."""
    words = [
        "--peer",
        precision,
        "--data",
        data,
        "--size",
        str(size),
        "--batch",
        str(batch),
        "--steps",
        str(steps),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    result: Run = json.loads(done.stdout.splitlines()[-1])
    return result


def train_peer(data: str, size: int, batch: int, steps: int, precision: str) -> Run:
    from torchvision.models import resnet18

    from benchmarks.peers import Pictures, moco
    from selftaught.data.index.build import build_index

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    network = resnet18()
    network.fc = torch.nn.Identity()
    product = moco(network, size)
    modules = product.modules.to(device).to(memory_format=layout)
    optimizer = product.optimizer(p for p in modules.parameters() if p.requires_grad)
    index = build_index([Path(data)])
    pictures = Pictures([index.paths[i] for i in index.train.tolist()], product.transform)
    loader = torch.utils.data.DataLoader(
        pictures, batch, shuffle=True, drop_last=True, num_workers=count_cores()
    )
    step, waited, began = 0, 0.0, 0.0
    last = time.perf_counter()
    while step < steps:
        for views in loader:
            arrived = time.perf_counter()
            views = [view.to(device, memory_format=layout) for view in views]
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = product.loss(views, step / steps)
            loss.float().backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            waited += arrived - last if step >= SKIP else 0
            last, step = time.perf_counter(), step + 1
            if step == SKIP:
                began = last
            if step == steps:
                break
    seconds = last - began
    return {"images_per_s": (steps - SKIP) * batch / seconds, "wait": waited / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", choices=["fp32", "bf16"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    what = (args.data, args.size, args.batch, args.steps)
    if args.peer:
        print(json.dumps(train_peer(*what, args.peer)))
        sys.exit()
    runs: dict[str, list[Run]] = {}
    for _ in range(args.rounds):  # in turns: what disturbs the machine disturbs all alike
        for precision in ("bf16", "fp32"):
            runs.setdefault(f"selftaught {precision}", []).append(ours(*what, precision))
            runs.setdefault(f"lightly {precision}", []).append(peer(*what, precision))
    result: dict[str, Any] = {
        name: {
            quantity: spread([run[quantity] for run in done])
            for quantity in ("images_per_s", "wait")
        }
        for name, done in runs.items()
    }
    for name, values in result.items():
        print(
            f"{name:18} {format_ratio(values['images_per_s'])} images/s, waiting for data"
            f" {100 * values['wait']['median']:.1f} %"
        )
    compared = {}
    for title, one, other in (
        ("bf16", "selftaught bf16", "lightly bf16"),
        ("fp32", "selftaught fp32", "lightly fp32"),
        ("as shipped", "selftaught bf16", "lightly fp32"),
    ):
        pairs = zip(runs[one], runs[other], strict=True)
        compared[title] = spread([a["images_per_s"] / b["images_per_s"] for a, b in pairs])
        print(f"{title:12} {format_ratio(compared[title])} times lightly")
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    write("end_to_end", {"omp_num_threads": threads, "runs": result, "times_lightly": compared})
