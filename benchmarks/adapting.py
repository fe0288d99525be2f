"""`selftaught adapt` with its defaults: is it above the start, and never below it?

    python -m benchmarks.adapting --weights efficientnet_lite0.pth --out runs/adapting --docs \\
        fashion/ flowers32/ pacs128/cartoon

Each folder of labelled images is a target. `adapt --init WEIGHTS --target FOLDER` is followed by
`evaluate --against init --labels 20 all`. Differences have paired 95 % intervals over the held-out
images. What is in --out is not done again. Writes results/adapting.json; --docs also writes the
table of docs/hpt.md.

Other methods or lengths than the default ones, for example from a ViT-Ti that was trained here;
these go to results/adapting_methods.json, or another --name, and --docs is refused:

    selftaught pretrain --data imagenette128/ --method mae --size 64 --steps 400 --batch 64 \\
        --backbone benchmarks.pretext:vit_tiny_patch8 --out runs/vit
    python -m benchmarks.adapting rsscn7/ --weights runs/vit --out runs/adapting_vit \\
        --backbone benchmarks.pretext:vit_tiny_patch8 --methods simclr dino ibot dinov2 --steps 100
"""

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import selftaught as st
from benchmarks.common import Row, find, make_once, mark, training_seconds, write
from benchmarks.methods import fill
from selftaught.cli.main import main
from selftaught.runs import folder as run_folder

ROOT = Path(__file__).parents[1]
SCORES = [(protocol, labels) for protocol in ("knn", "linear") for labels in ("20", "all")]
TITLES = {"knn": "kNN", "linear": "probe"}


def adapt(target: Path, method: str | None, place: Path, args: argparse.Namespace) -> Row:
    """Adapt the weights to one target, and score them beside the start."""
    words = ["--init", str(args.weights), "--backbone", args.backbone, "--out", str(place)]
    words += ["--method", method] if method else []
    for name in ("steps", "size", "batch"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    if main(["adapt", *words, "--target", str(target), "--threads", args.threads]):
        raise SystemExit(f"{target}: adapting failed")
    evaluation = st.evaluate(place, target, labels=("20", "all"), against=("init",))
    scores = json.loads(evaluation.results.to_json())
    run = run_folder.read_run(place)
    choice = run.facts["choice"]
    names = ("protocol", "labels", "metric", "mean", "low", "high")
    return {
        "target": target.name,
        **({"method": method} if method else {}),
        "size": run.stage.size,
        "steps": run.stage.steps,
        "batch": run.stage.batch,
        "training_minutes": round(training_seconds(run.folder) / 60, 1),
        "kept": 0 if choice["worse"] else choice["share"],
        "scores": [
            {"of": "start" if r["backbone"] == "init" else "adapt", **{n: r[n] for n in names}}
            for r in scores["rows"]
        ],
        "gains": [{name: d[name] for name in names} for d in scores["differences"]],
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Balanced accuracy at the start and after adapting, and the interval of the gain."""
    titles = [f"{TITLES[p]}, {'all' if n == 'all' else f'{n} a class'}" for p, n in SCORES]
    named = ["method", "minutes"] if "method" in rows[0] else []
    titles = ["target", *named, "steps", "kept", *titles]
    text = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for row in rows:
        cells = []
        for protocol, labels in SCORES:
            where = {"protocol": protocol, "labels": labels, "metric": "balanced_accuracy"}
            start, end = (find(row["scores"], of=of, **where) for of in ("start", "adapt"))
            gain = find(row["gains"], **where)
            cell = f"{100 * start['mean']:.1f} → {100 * end['mean']:.1f}{mark(gain)}"
            if gain:
                cell += f" ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
            cells.append(cell.replace("-", "−"))
        kept = {0: "the start", 1: "the end"}.get(row["kept"], f"{row['kept']:g} of the way")
        facts = [row["method"], row["training_minutes"]] if named else []
        cells = [row["target"], *facts, row["steps"], kept, *cells]
        text.append(f"| {' | '.join(map(str, cells))} |")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--methods", nargs="+", help="in place of the default one")
    parser.add_argument("--steps", type=int, help="in place of the default length")
    parser.add_argument("--size", type=int, help="in place of the default one")
    parser.add_argument("--batch", type=int, help="in place of the default one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--name", default="adapting_methods", help="of the file in results/")
    parser.add_argument("--docs", action="store_true")
    args = parser.parse_args()
    default = not (args.methods or args.steps or args.size or args.batch)
    if args.docs and not default:
        parser.error("--docs writes the table of the defaults: give no method and no setting")
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for target, method in product(args.targets, args.methods or [None]):
        name = f"{target.name}-{method}" if method else target.name
        file = args.out / f"{name}.json"
        results.append(make_once(file, adapt, target, method, args.out / name, args))
        print("\n".join(table(results[-1:])), flush=True)
    write("adapting" if default else args.name, {"rows": results})
    if args.docs:
        fill(ROOT / "docs" / "hpt.md", table(results), "adapting")
