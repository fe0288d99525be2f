"""Every method on one real data set under one budget: plain, with HEXA at equal steps, and beside lightly's defaults.

    python -m benchmarks.methods --data imagenette128/ --out runs/methods [--only byol barlow-twins] [--seeds 0 1]
                                 [--parts plain hexa peer] [--steps 400] [--size 48]

Runs whatever is not done yet, evaluates what is done (kNN and linear probe on the data's own test split, beside random
weights), prints a table and writes results/methods.json. `peer` is the method of the same name as lightly's example has
it (its transform, heads, loss and optimizer), on the same images, backbone, batch and steps: see benchmarks/peers.py.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import peers
from benchmarks.common import evaluated, kept, write
from selftaught import run
from selftaught.cli import main
from selftaught.methods import METHODS
from selftaught.recipe import find

HEXA = ("adversarial", "cutmix")
NAMES = [name for name, method in METHODS.items() if not method.needs_labels]


def train(name: str, part: str, asked: argparse.Namespace, seed: int) -> Path | None:
    """The run's folder, or the peer's backbone; None where there is no such run."""
    folder = Path(asked.out) / f"{name}-{part}-{seed}"
    hard = [h for h in HEXA if h not in METHODS[name].unfit] if part == "hexa" else []
    if part == "hexa" and not hard:
        return None
    if (folder / "backbone.safetensors").exists():
        return folder
    if part == "peer":
        if name not in peers.PEERS:
            return None
        peers.train(name, asked.data, folder, size=asked.size, batch=asked.batch, steps=asked.steps, seed=seed)
        return folder
    words = ["pretrain", "--out", str(folder), "--workers", "0"]
    if (folder / "run.json").exists():
        words += ["--resume"]
    else:
        words += ["--data", asked.data, "--method", name, "--backbone", "resnet18", "--size", str(asked.size)]
        words += ["--batch", str(asked.batch), "--steps", str(asked.steps), "--seed", str(seed), "--precision", "bf16"]
        words += ["--hard", *hard] if hard else []
    main(words)
    return folder if (folder / "backbone.safetensors").exists() else None


def evaluate(folder: Path, data: str, size: int) -> list[dict[str, Any]]:
    what = folder if (folder / "run.json").exists() else folder / "backbone.safetensors"
    return evaluated(what, "--data", data, "--size", str(size), "--labels", "20", "all", "--against", "random")


def collect(asked: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(Path(asked.out).iterdir()):
        if not (folder / "backbone.safetensors").exists():
            continue
        name, part, seed = folder.name.rsplit("-", 2)
        facts = run.read(folder).facts if (folder / "run.json").exists() else json.loads((folder / "peer.json").read_text())
        for row in kept(folder / "rows.json", evaluate, folder, asked.data, asked.size):
            which = "random" if row["backbone"] == "random" else part
            about = {"method": name, "part": which, "seed": int(seed), "outcome": facts.get("outcome", "done")}
            found.append(about | {k: row[k] for k in ("protocol", "labels", "metric", "mean", "low", "high")})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Per cent, means over seeds: random weights, plain, HEXA at equal steps, the peer."""
    rows = [r for r in rows if r["metric"] == "balanced_accuracy"]
    columns = [(p, b) for p in ("knn", "linear") for b in ("20", "all")]
    lines = [
        "| method | run | seeds | " + " | ".join(f"{p}, {b}" for p, b in columns) + " |",
        "| --- " * (3 + len(columns)) + "|",
    ]
    names = [("", "random"), *((name, part) for name in NAMES for part in ("plain", "hexa", "peer"))]
    for name, part in names:
        of = [r for r in rows if r["part"] == part and (part == "random" or r["method"] == name)]
        if not of:
            continue
        cells = []
        for protocol, budget in columns:
            values = [r["mean"] for r in of if r["protocol"] == protocol and r["labels"] == budget]
            cells.append(f"{100 * mean(values):.1f}" if values else "")
        lines.append(f"| {name} | {part} | {len({r['seed'] for r in of})} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--parts", nargs="*", default=["plain", "hexa", "peer"], choices=["plain", "hexa", "peer"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=128)
    asked = parser.parse_args()
    for seed in asked.seeds:
        for part in asked.parts:
            for name in asked.only:
                train(find(name, NAMES, "method"), part, asked, seed)
    rows = collect(asked)
    print(table(rows))
    budget = f"--steps {asked.steps} --size {asked.size} --batch {asked.batch}"
    command = f"python -m benchmarks.methods --data imagenette128/ --out runs/methods {budget}"
    write("methods", {"command": command, "rows": rows})
