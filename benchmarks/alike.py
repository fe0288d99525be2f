"""What is made fast must not learn less: trainings that differ in one such thing alone, and what
their features are worth.

    python -m benchmarks.alike --data imagenette128/ --out runs/alike [--steps 300] [--seeds 0 1]
    [--only ...]

MoCo-v2 with a ResNet-10-T; kNN and linear probe with all labels on the data's own test split, of
each kind for every seed. Prints and writes results/alike.json; what is done is not done again.
Folders and packs are compared in benchmarks.pack.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

from benchmarks.common import evaluate_rows, make_once, write
from selftaught.cli.main import main

# bytes of memory that seem to be free: images are held there, or read anew in every epoch
HELD, ANEW = (2**60, 0)
KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "as it is": (HELD, ()),
    "reference views": (HELD, ("--views", "reference")),
    "images read anew": (ANEW, ()),
    "float32": (HELD, ("--precision", "fp32")),
    "compiled": (HELD, ("--compile",)),
}
SCORE = ("protocol", "mean", "low", "high")


def one(
    kind: str, data: str, folder: Path, steps: int, size: int, seed: int
) -> list[dict[str, Any]]:
    memory, more = KINDS[kind]
    words = [
        "pretrain",
        "--data",
        data,
        "--out",
        str(folder / "run"),
        "--method",
        "moco-v2",
        "--backbone",
        "resnet10t",
    ]
    words += ["--size", str(size), "--batch", "128", "--steps", str(steps), "--seed", str(seed)]
    words += ["--workers", "0", "--stem", "imagenet"]
    precision = () if "--precision" in more else ("--precision", "bf16")
    with mock.patch("selftaught.data.loading.images.free_memory", return_value=memory):
        main([*words, *precision, *more])
    rows = evaluate_rows(folder / "run", "--labels", "all", "--workers", "0")
    return [
        {
            "kind": "random" if row["backbone"] == "random" else kind,
            "seed": seed,
            **{k: row[k] for k in SCORE},
        }
        for row in rows
        if row["metric"] == "balanced_accuracy"
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args()
    result: list[dict[str, Any]] = []
    for seed in args.seeds:
        for kind in args.only:
            folder = args.out / f"{kind.replace(' ', '-')}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            result += make_once(
                folder / "rows.json", one, kind, args.data, folder, args.steps, args.size, seed
            )
    for kind in ("random", *args.only):
        for protocol in ("knn", "linear"):
            scores = [
                100 * r["mean"] for r in result if r["kind"] == kind and r["protocol"] == protocol
            ]
            print(
                f"{kind:18} {protocol:6} {mean(scores):5.1f} %"
                f" ({', '.join(f'{s:.1f}' for s in scores)})"
            )
    write("alike", {"rows": result})
