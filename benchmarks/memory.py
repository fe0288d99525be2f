"""The most memory that a training process holds, by size of view and batch.

    python -m benchmarks.memory [--sizes 32 64 96] [--batches 64 128 256] [--backbone resnet18]
    [--hard adversarial cutmix]

Each is a process of its own that makes three steps of MoCo-v2 on the demo's photo patches: resident
memory at its peak, and on a GPU what torch's allocator held. Prints MiB, writes
results/memory.json.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.common import photo_patches, write

CHILD = """
import sys, torch
from benchmarks.common import peak_memory
from selftaught.cli.main import main
main(sys.argv[1:])
print(peak_memory(), torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
"""


def peak(words: list[str]) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], check=True, capture_output=True, text=True
    )
    resident, on_gpu = done.stdout.splitlines()[-1].split()
    return int(resident), int(on_gpu)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 96])
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--hard", nargs="*", default=[])
    args = parser.parse_args()
    result: dict[str, Any] = {}
    with photo_patches() as (scratch, data):
        for size in args.sizes:
            for batch in args.batches:
                words = ["pretrain", "--data", str(data), "--out", str(scratch / f"{size}-{batch}")]
                words += ["--method", "moco-v2", "--backbone", args.backbone, "--size", str(size)]
                words += [
                    "--batch",
                    str(batch),
                    "--steps",
                    "3",
                    "--stem",
                    "imagenet",
                    "--precision",
                    "bf16",
                ]
                resident, on_gpu = peak([*words, "--hard", *args.hard] if args.hard else words)
                result[f"{size} px, batch {batch}"] = {
                    "resident_bytes": resident,
                    "gpu_bytes": on_gpu,
                }
                gpu = f", {on_gpu / 2**20:.0f} MiB on the GPU" if on_gpu else ""
                print(
                    f"{args.backbone}, {size} px, batch {batch}: {resident / 2**20:.0f} MiB{gpu}",
                    flush=True,
                )
    print(json.dumps({name: round(row["resident_bytes"] / 2**20) for name, row in result.items()}))
    write("memory", {"peak": result})
