"""From the command to the first step, for sets of few images and of very many; and how long their
index takes.

    python -m benchmarks.startup [--images 16 10000 1000000] --scratch scratch/

Writes sets of small JPEGs (once) into class folders, indexes each twice (the first time every file
is decoded to see that it is whole, the second time the index is remembered), and then runs
`selftaught pretrain`. Prints seconds of both, and from the start of the process to the end of its
first step; writes results/startup.json.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import write

CLASSES = 1000
INDEXED = """
import sys, time
from pathlib import Path
from selftaught.data.index import build
began = time.perf_counter()
index = build([Path(sys.argv[1])])
print(len(index), time.perf_counter() - began)
"""


def images(folder: Path, number: int) -> None:
    import numpy as np
    from PIL import Image

    if (folder / "whole").exists():
        return
    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        buffer = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    classes = min(CLASSES, max(2, number // 8))
    for c in range(classes):
        (folder / f"{c:04}").mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / f"{i % classes:04}" / f"{i:07}.jpg").write_bytes(files[i % 64])
    (folder / "whole").touch()
    time.sleep(3)  # a folder that has only just changed is not remembered


def indexed(data: Path, cache: Path) -> float:
    """Seconds that the index takes, in a process of its own."""
    words = [sys.executable, "-c", INDEXED, str(data)]
    done = subprocess.run(
        words,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout.split()[1])


def first_step(data: Path, cache: Path, out: Path) -> float:
    """Seconds until the journal holds a first step."""
    words = [
        sys.executable,
        "-m",
        "selftaught",
        "pretrain",
        "--data",
        str(data),
        "--out",
        str(out),
        "--steps",
        "1",
    ]
    words += [
        "--method",
        "moco-v2",
        "--backbone",
        "resnet18",
        "--size",
        "32",
        "--stem",
        "imagenet",
        "--batch",
        "4",
    ]
    began = time.perf_counter()
    running = subprocess.Popen(
        words, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, stderr=subprocess.PIPE
    )
    journal = out / "journal.jsonl"
    while running.poll() is None or journal.exists():
        lines = journal.read_text().splitlines() if journal.exists() else []
        if any(line.endswith("}") and json.loads(line)["step"] >= 1 for line in lines):
            break
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    _, output = running.communicate()
    if running.returncode:
        raise SystemExit(output.decode())
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="*", default=[16, 10_000, 1_000_000])
    parser.add_argument("--scratch", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    for number in args.images:
        folder = args.scratch / str(number)
        images(folder / "images", number)
        cache = folder / f"cache-{time.time_ns()}"  # no index is remembered
        row = {
            "first index": indexed(folder / "images", cache),
            "index again": indexed(folder / "images", cache),
        }
        row["first step"] = first_step(folder / "images", cache, folder / f"run-{time.time_ns()}")
        result[str(number)] = row
        print(
            f"{number:9,} images: "
            + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row.items()),
            flush=True,
        )
    write("startup", {"seconds": result})
