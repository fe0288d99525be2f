"""Which pretext task is worth it, at which stage, against contrastive methods?

    python -m benchmarks.pretext --data imagenette128/ --out runs/pretext [--only jigsaw rotation]
                                 [--parts plain hexa] [--steps 4400] [--batch 128] [--docs]
                                 [--name pretext]

One budget for all: a ResNet-18 from random weights, 4,400 steps of 128 images, seed 1. On a GPU
that takes two minutes a method. `--steps 400 --batch 64` is the budget of benchmarks.methods. Views
have 48 pixels; those that are cut into tiles have 96 (of tiles with 22). MAE needs a ViT: ViT-Ti
with patches of 8, 64 pixels. Every stage is scored by kNN and by a linear probe
with all labels, and so is the best stage, which is chosen on training images. Each backbone is
compared with random weights of the same network, at images of the same size.

Runs and scores that are in --out are not made again. Several processes may share --out, each with
its own --only. Writes results/NAME.json, where rows of runs that --out lacks stay: each names its
machine. `--docs` writes the table into docs/methods/pretext.md and draws the figure.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import timm
from torch import nn

import selftaught as st
from benchmarks.common import (
    RESULTS,
    Row,
    find,
    make_once,
    mark,
    merge_earlier,
    training_seconds,
    write,
)
from benchmarks.methods import fill
from selftaught.cli.malloc import keep_freed
from selftaught.runs import folder as run_folder

METHODS = (
    "rotation",
    "context-prediction",
    "jigsaw",
    "colorization",
    "context-encoder",
    "denoising-autoencoder",
    "spotting-artifacts",
    "bigan",
    "bigbigan",
    "simmim",
    "mae",
    "pirl",
    "simclr",
)
BESIDE = ("pirl", "simclr")  # contrastive methods
SIZES = {"context-prediction": 96, "jigsaw": 96, "mae": 64}
HARD = {
    "rotation": ("adversarial", "cutmix"),
    "context-prediction": ("adversarial", "cutmix"),
    "jigsaw": ("adversarial", "cutmix"),
    "colorization": ("adversarial",),
    "context-encoder": ("adversarial", "cutmix"),
    "denoising-autoencoder": ("adversarial", "cutmix"),
    "simmim": ("adversarial", "cutmix"),
    "mae": ("adversarial", "cutmix"),
}
ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "figures" / "pretext-stages.png"


def vit_tiny_patch8() -> nn.Module:
    """A ViT-Ti for images of 64 pixels, with patches of 8: no name of timm has these."""
    module: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", patch_size=8, img_size=SIZES["mae"], num_classes=0
    )
    return module


def train(method: str, part: str, args: argparse.Namespace) -> Path:
    """Train a method, unless it is done; return the run's folder."""
    folder = Path(args.out) / f"{method}-{part}"
    share_features(folder)
    run = run_folder.read_run(folder) if run_folder.has_run(folder) else None
    if run is None or run.facts["outcome"] not in ("done", "collapsed"):
        st.pretrain(
            args.data,
            out=folder,
            resume=run is not None,
            method=method,
            backbone="benchmarks.pretext:vit_tiny_patch8" if method == "mae" else "resnet18",
            hard=HARD[method] if part == "hexa" else (),
            size=SIZES.get(method, 48),
            batch=args.batch,
            steps=args.steps,
            seed=1,
            workers=0,
            threads=1,
        )
    return folder


def share_features(folder: Path) -> None:
    """Let all runs keep features in one folder: those of equal random weights are computed once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "features").mkdir(exist_ok=True)
    if not (folder / "features").exists():
        (folder / "features").symlink_to("../features", target_is_directory=True)


def score(folder: Path, method: str, data: str) -> list[Row]:
    """The scores at every stage and at the best one, and those of random weights."""
    rows: list[Row] = []
    for layers in ("all", "best"):
        evaluation = st.evaluate(
            folder,
            data,
            labels=("all",),
            against=("random",),
            layers=layers,
            size=SIZES.get(method, 48),
            workers=0,
        )
        content = json.loads(evaluation.results.to_json())
        for row in [*content["rows"], *content["differences"]]:
            if row["metric"] == "balanced_accuracy":
                names = ("protocol", "mean", "low", "high")
                subject = "over random" if "against" in row else "run"
                subject = "random" if row.get("backbone") == "random" else subject
                place = {"layers": layers, "layer": row.get("layer", "last")}
                result = {name: row[name] for name in names}
                rows.append({"of": subject, **place, "stage": row.get("stage", ""), **result})
    return rows


def collect(args: argparse.Namespace) -> list[Row]:
    """One row for each run: its scores and its answers to the task on held-out images."""
    rows = []
    for method in METHODS:
        for part in ("plain", "hexa"):
            folder = Path(args.out) / f"{method}-{part}"
            file = folder / "stages.json"
            if not file.exists():
                continue
            run = run_folder.read_run(folder)
            names = ("outcome", "pretext", "pretext_error", "pretext_chance", "recommended_stage")
            facts = {name: run.facts.get(name) for name in names}
            about = {"method": method, "part": part, "size": run.stage.size}
            seconds = round(training_seconds(folder))
            scores = json.loads(file.read_text())
            rows.append({**about, "seconds": seconds, **facts, "scores": scores})
    return rows


def cell(row: Row, protocol: str, layers: str, layer: str) -> str:
    """A score in %, with a mark where the interval of the gain over random weights excludes 0."""
    where = {"protocol": protocol, "layers": layers, "layer": layer}
    own, gain = (find(row["scores"], of=of, **where) for of in ("run", "over random"))
    return f"{100 * own['mean']:.1f}{mark(gain)}" if own else ""


def table(rows: Sequence[Row]) -> list[str]:
    """The table in Markdown."""
    columns = "answers (chance)", "final", "best stage", "chosen stage", "random's best"
    text = [f"| | minutes | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for row in rows:
        name = f"[`{row['method']}`]({row['method']}.md)"
        name += ", HEXA" if row["part"] == "hexa" else ""
        name += "" if row["outcome"] == "done" else f" ({row['outcome']})"
        answers = ""
        if row["pretext"] is not None:
            chance = row["pretext_chance"]
            answers = f"{100 * row['pretext']:.1f}"
            if row.get("pretext_error") is not None:
                answers += f" ± {196 * row['pretext_error']:.1f}"
            answers += "" if chance is None else f" ({100 * chance:.1f})"
        final, best = (
            " / ".join(cell(row, protocol, *place) for protocol in ("knn", "linear"))
            for place in (("all", "last"), ("best", "best"))
        )
        best_rows = [
            find(row["scores"], of=of, layers="best", protocol=p)
            for of in ("run", "random")
            for p in ("knn", "linear")
        ]
        stages = " / ".join(r["stage"] if r else "" for r in best_rows[:2])
        random = " / ".join(f"{100 * r['mean']:.1f}" if r else "" for r in best_rows[2:])
        cells = [name, f"{row['seconds'] / 60:.1f}", answers, final, best, stages, random]
        text.append(f"| {' | '.join(cells)} |")
    return text


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the linear probe's score by stage, a line a method: ResNet-18 alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain = [row for row in rows if row["part"] == "plain" and row["method"] != "mae"]
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    colours = pyplot.get_cmap("tab10").colors
    curves = [(row, "run", row["method"]) for row in plain]
    by_size = {row["size"]: row for row in plain}
    curves += [(by_size[n], "random", f"random weights, {n} px") for n in sorted(by_size)]
    for number, (row, of, label) in enumerate(curves):
        scores = [
            s
            for s in row["scores"]
            if s["of"] == of and s["layers"] == "all" and s["protocol"] == "linear"
        ]
        scores.sort(key=lambda s: (s["layer"] == "last", s["layer"]))
        values = [100 * s["mean"] for s in scores]
        style = "--" if of == "random" else ":" if row["method"] in BESIDE else "-"
        colour = colours[number % len(colours)]
        if of == "random":
            colour = "black" if row["size"] == min(by_size) else "grey"
        axes.plot(range(len(values)), values, style, color=colour, marker="o", label=label)
        axes.set_xticks(range(len(values)), [s["layer"] for s in scores])
    axes.set_ylabel("linear probe, balanced accuracy in %")
    axes.set_xlabel("stage of a ResNet-18; last: the final features")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--parts", nargs="*", default=["plain"], choices=["plain", "hexa"])
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--name", default="pretext", help="of the file in results/")
    args = parser.parse_args()
    command = (
        f"python -m benchmarks.pretext --data {Path(args.data).name}/ --out runs/pretext"
        f" --steps {args.steps} --batch {args.batch}"
    )
    earlier = RESULTS / f"{args.name}.json"
    if earlier.exists() and json.loads(earlier.read_text())["command"] != command:
        raise SystemExit(
            f"{earlier} holds runs of other images or another length: give another --name"
        )
    keep_freed()  # as the command line does
    for part in args.parts:
        for method in args.only:
            if part == "plain" or method in HARD:
                folder = train(method, part, args)
                make_once(folder / "stages.json", score, folder, method, args.data)
    results = merge_earlier(args.name, collect(args), ("method", "part"))
    results.sort(key=lambda row: (METHODS.index(row["method"]), row["part"] == "hexa"))
    print("\n".join(table(results)))
    write(args.name, {"command": command, "rows": results})
    if args.docs:
        fill(ROOT / "docs" / "methods" / "pretext.md", table(results), "pretext")
        draw(results, FIGURE)
