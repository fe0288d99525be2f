"""What does a pack gain, and does it cost accuracy? A folder of JPEGs, its packs, and a pack over
HTTP.

    python -m benchmarks.pack --data imagenette128/ --out runs/pack [--steps 100] [--only speed
    accuracy]

Speed: images a second from where they lie to canvases of 64 pixels, in the shuffled order of an
epoch, by one process and one thread: warm (in the page cache) and cold (dropped from it before each
round), the kinds in turn, medians of the rounds. Shuffling: how much images of one class clump in
batches, against a perfect shuffle (1), in a store larger than the cache. Accuracy: the same short
trainings (MoCo-v2, ResNet-10-t, 32 px) from the folder, from a pack that is resized and written as
JPEG anew, and from that pack in the order of a store that is too large for the cache; kNN with all
labels. Writes results/pack.json; trainings that are done are not done again.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import make_once, write
from selftaught.cli import flags
from selftaught.config.stage import shared_index
from selftaught.data.index.build import Index, build_index
from selftaught.data.loading import sampler
from selftaught.data.loading.images import Images
from selftaught.data.loading.loader import Batches
from selftaught.data.pack.encode import Encoding
from selftaught.data.pack.write import pack
from selftaught.data.parquet import row_cache, row_groups
from selftaught.data.parquet.row_groups import Groups
from selftaught.evaluation.evaluate import evaluate_run
from selftaught.features.knn import KNN
from selftaught.training.runtime import Runtime
from selftaught.training.trainer import train

CANVAS, BATCH = 64, 64
SERVER = """
import sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None)
"""


@contextmanager
def served(folder: Path, port: int) -> Iterator[str]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(port)])
    try:
        time.sleep(3)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def drop(index: Index, place: str) -> None:
    """What the page cache holds of a set."""
    files = (
        [str(p) for p in index.paths]
        if index.groups is None
        else [str(p) for p in Path(place).glob("*.parquet")]
    )
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def once(index: Index, number: int) -> float:
    """Images a second of one epoch."""
    row_cache._cache.reset()  # every round fetches anew
    images = Images(
        index.paths,
        index.sizes,
        CANVAS,
        False,
        groups=index.groups,
        pixel_range=index.pixel_range,
        threads=1,
    )
    batches = Batches(images, index.train, None, batch=BATCH, seed=0)
    began, seen = time.perf_counter(), 0
    for raw in batches.epoch(number):
        seen += len(raw.pixels)
    return seen / (time.perf_counter() - began)


def speed(data: Path, packs: dict[str, Path], rounds: int, port: int) -> dict[str, Any]:
    place = next(iter(packs.values()))
    with served(place.parent, port) as url:
        sets = {
            "folder": str(data),
            **{name: str(p) for name, p in packs.items()},
            "pack over HTTP": f"{url}/{place.name}",
        }
        indices = {name: build_index([where]) for name, where in sets.items()}
        actual: dict[str, Any] = {
            "warm": {name: [] for name in sets},
            "cold": {name: [] for name in sets},
        }
        for number in range(rounds + 1):
            for state in ("cold", "warm"):
                for name, index in indices.items():
                    if state == "cold":
                        drop(
                            indices["pack"] if "HTTP" in name else index,
                            str(place) if "HTTP" in name else sets[name],
                        )
                    rate = once(index, number)
                    if number:  # the first round warms everything up
                        actual[state][name].append(rate)
    for state, rates in actual.items():
        median = {name: statistics.median(values) for name, values in rates.items()}
        pairs = {name: zip(values, rates["folder"], strict=True) for name, values in rates.items()}
        ratios = {name: statistics.median(a / b for a, b in pair) for name, pair in pairs.items()}
        actual[state] = {
            name: {"images_per_s": median[name], "of_folder": ratios[name]} for name in rates
        }
        print(
            state,
            {name: f"{median[name]:,.0f}/s x{ratios[name]:.2f}" for name in rates},
            flush=True,
        )
    return actual


def shuffling() -> dict[str, float]:
    """400,000 images of 16 kB in groups of 64, 100 classes, batches of 256."""
    n, classes, batch = 400_000, 100, 256
    of = torch.arange(n) // 64
    rng = torch.Generator().manual_seed(0)
    windowed = sampler.epoch(n, batch, 0, 0, Groups(of, torch.bincount(of) * 16_000))
    orders = {
        "in windows": windowed,
        "perfect": torch.randperm(n, generator=rng)[: windowed.numel()].view(-1, batch),
    }
    by_class = torch.arange(n) * classes // n
    labels = {
        "a pack": by_class[torch.randperm(n, generator=rng)],
        "a store sorted by class": by_class,
    }

    def clumping(said: torch.Tensor, steps: torch.Tensor) -> float:
        counts = torch.stack(
            [torch.bincount(said[step], minlength=classes) for step in steps]
        ).double()
        return float(counts.var(0, unbiased=False).mean() / (batch / classes * (1 - 1 / classes)))

    return {
        f"{kind}, {how}": clumping(said, steps)
        for kind, said in labels.items()
        for how, steps in orders.items()
    }


def one(name: str, place: Path, folder: Path, steps: int, seed: int) -> dict[str, Any]:
    words = [
        "--out",
        str(folder),
        "--data",
        str(place),
        "--method",
        "moco-v2",
        "--backbone",
        "resnet10t",
        "--stem",
        "imagenet",
        "--size",
        "32",
        "--batch",
        "64",
        "--precision",
        "fp32",
        "--steps",
        str(steps),
        "--seed",
        str(seed),
    ]
    train(flags.stage_from(words, None, "cpu", shared_index), folder, Runtime(workers=0))
    judged = evaluate_run(
        folder, protocols=[KNN()], labels=["all"], against=[] if seed else ["random"], workers=0
    )
    knn = {Path(r["backbone"]).name: [r["mean"], r["low"], r["high"]] for r in judged.rows}
    return {"data": name, "seed": seed, "knn": knn}


def accuracy(
    data: Path, packed: Path, out: Path, steps: int, seeds: list[int]
) -> list[dict[str, Any]]:
    kinds = {"folder": data, "pack, resized": packed, "pack, resized, in windows": packed}
    results, before = [], (row_groups.CACHE, row_groups.WINDOW)
    size = sum(file.stat().st_size for file in packed.glob("train-*.parquet"))
    for seed in seeds:
        for name, place in kinds.items():
            row_groups.CACHE, row_groups.WINDOW = (
                (size // 4, size // 8) if "windows" in name else before
            )
            folder = out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            results.append(make_once(folder / "pack.json", one, name, place, folder, steps, seed))
            print(results[-1], flush=True)
    row_groups.CACHE, row_groups.WINDOW = before
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--only", nargs="*", default=["speed", "shuffling", "accuracy"])
    args = parser.parse_args()
    packs = {"pack": args.out / "as-is.pack", "pack, resized": args.out / "resized.pack"}
    for place, encoding in zip(packs.values(), (Encoding(), Encoding(size=CANVAS)), strict=True):
        pack([args.data], place, encoding)
    command = (
        f"python -m benchmarks.pack --data {args.data.name}/ --out runs/pack --steps {args.steps}"
    )
    result: dict[str, Any] = {"command": command, "images": len(build_index([args.data]))}
    if "speed" in args.only:
        result["speed"] = speed(args.data, packs, args.rounds, args.port)
    if "shuffling" in args.only:
        result["clumping"] = shuffling()
        print(result["clumping"], flush=True)
    if "accuracy" in args.only:
        result["accuracy"] = accuracy(
            args.data, packs["pack, resized"], args.out, args.steps, args.seeds
        )
    print(write("pack", result))
