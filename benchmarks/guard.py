"""Does the guard leave healthy runs alone, and stop those that collapse? Every method, and some at
rates far too high.

    python -m benchmarks.guard --out runs/guard [--steps 60] [--only moco-v2 byol] [--factors 1 100]
    [--name guard]

Trains on the demo's photo patches (ResNet-10-t, 32 px or more, batch 64; a ViT-Ti where patches are
masked): each method in its own recipe, which must end without a warning; and in the same recipe at
100 times its rate, which must be stopped with the reason, unless it recovers while the rate falls
(try more steps). Prints a table with kNN before and after, and writes all runs of --out into
results/NAME.json. What is done already is not done again.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from benchmarks.common import make_once, write
from selftaught.cli import flags
from selftaught.config.stage import shared_index
from selftaught.data import demo_images
from selftaught.errors import Collapsed
from selftaught.loggers import jsonl
from selftaught.methods import METHODS
from selftaught.runs import folder as run_folder
from selftaught.training.runtime import Runtime
from selftaught.training.trainer import train

FACTOR = 100
COMMON = (
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
)

NEED_TEACHER = {"distillation", "feature-distillation"}
# 32 pixels leave one place of a map, and tiles of few pixels
SIZES = {
    "colorization": "64",
    "context-encoder": "64",
    "context-prediction": "96",
    "denoising-autoencoder": "64",
    "densecl": "64",
    "jigsaw": "96",
    "spotting-artifacts": "64",
}


def one(
    method: str, factor: float, data: Path, folder: Path, steps: int, seed: int
) -> dict[str, Any]:
    words = [
        "--out",
        str(folder),
        "--data",
        str(data),
        "--method",
        method,
        "--steps",
        str(steps),
        "--seed",
        str(seed),
        *COMMON,
    ]
    if METHODS[method].masks_patches:
        words += ["--backbone", "vit_tiny_patch16_224", "--size", "64"]
    if method in SIZES:
        words += ["--size", SIZES[method]]
    stage = flags.stage_from(words, None, "cpu", shared_index)
    if factor != 1:
        rate = stage.optimizer.lr * factor
        stage = flags.stage_from([*words, "--optimizer.lr", str(rate)], None, "cpu", shared_index)
    text: list[str] = []
    messages, package = logging.Handler(), logging.getLogger("selftaught")
    messages.setLevel(logging.WARNING)
    messages.emit = lambda record: text.append(record.getMessage())
    package.addHandler(messages)
    try:
        train(stage, folder, Runtime(workers=0))
    except Collapsed as collapsed:
        text.append(str(collapsed))
    finally:
        package.removeHandler(messages)
    entries = [e["features"] for e in jsonl.read_journal(folder / "journal.jsonl") if e["features"]]
    return {
        "method": method,
        "factor": factor,
        "seed": seed,
        "outcome": run_folder.read_run(folder).facts["outcome"],
        "step": jsonl.read_journal(folder / "journal.jsonl")[-1]["step"],
        "warnings": [t for t in text if "is not learnt" not in t],  # sixty steps are few
        "knn": [entries[0].get("knn"), entries[-1].get("knn")],
        "rank": [entries[0].get("rank"), entries[-1].get("rank")],
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'':28} {'lr x':>6} {'outcome':>10} {'step':>5} {'warnings':>8} {'kNN %':>14}"
        f" {'rank':>12}"
    ]
    for r in results:
        (a, b), (p, q) = r["knn"], r["rank"]
        lines.append(
            f"{r['method']:28} {r['factor']:6g} {r['outcome']:>10} {r['step']:5}"
            f" {len(r['warnings']):8} {100 * (a or 0):5.1f} -> {100 * (b or 0):5.1f} {p or 0:5.1f}"
            f" -> {q or 0:5.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="*", default=[name for name, m in METHODS.items() if m.labels != "required"]
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--factors", type=float, nargs="*", default=[1, FACTOR])
    parser.add_argument("--name", default="guard")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    args = parser.parse_args()
    images = args.out / "images"
    if not images.exists():
        demo_images.write(images, seed=0)
    results = []
    for factor in args.factors:
        for name in args.only:
            for seed in args.seeds:
                file = args.out / f"{name}-x{factor:g}-{seed}" / "guard.json"
                results.append(
                    make_once(file, one, name, factor, images, file.parent, args.steps, seed)
                )
                print(table(results[-1:]).splitlines()[1], flush=True)
    print(table(results))
    # Several calls may share --out, each with its own methods and seeds.
    done = [json.loads(file.read_text()) for file in sorted(args.out.glob("*/guard.json"))]
    factors = " ".join(f"{factor:g}" for factor in args.factors)
    command = f"python -m benchmarks.guard --out runs/{args.name} --steps {args.steps}"
    command += f" --factors {factors} --name {args.name}"
    write(args.name, {"command": command, "runs": done})
