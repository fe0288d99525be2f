"""Every method on one real data set under one budget: plain, with HEXA at equal steps and at equal
time, beside lightly's.

    python -m benchmarks.methods --data imagenette128/ --out runs/methods [--only byol barlow-twins]
    [--seeds 0 1]
                                 [--parts plain hexa long peer] [--steps 400] [--size 48] [--batch
                                 64] [--docs]

Trains what is not there yet, evaluates what is (kNN and linear probe on the data's own test split,
beside random weights and its counterpart), prints a table and writes results/methods.json. What
that file tells of runs under the same budget that are not in the folder stays: a table may come
from several machines. `long` is the plain method for as many steps as take its HEXA version's time.
`peer` is the method of the same name as lightly's example has it (its transform, heads, loss and
optimizer), on the same images, backbone, batch and steps: see benchmarks/peers.py. Several may work
on one folder, each on its own `--only`. `--docs` writes the tables into docs/benchmarks.md and
docs/methods/, between their marks, without lightly's rows: its rates were not chosen as ours were
(docs/benchmarks.md, "Other libraries").
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

import selftaught
from benchmarks import peers
from benchmarks.common import RESULTS, Row, machine, make_once, training_seconds, write
from selftaught.cli.main import main
from selftaught.cli.malloc import keep_freed
from selftaught.config.registry import find_name
from selftaught.methods import METHODS
from selftaught.runs import folder as run_folder

HEXA = ("adversarial", "cutmix")
# on images alone, with a ResNet; benchmarks.pretext has the methods that teach a middle stage
NAMES = [
    name
    for name, m in METHODS.items()
    if not (
        m.labels == "required"
        or hasattr(m.Config, "teacher")
        or m.masks_patches
        or m.recommended_stage is not None
    )
]
# what each is compared with, image by image
COUNTERPART = {"plain": None, "hexa": "plain", "long": "hexa", "peer": "plain"}
WORDS = {
    "plain": "",
    "hexa": "HEXA, equal steps",
    "long": "plain, in HEXA's time",
    "peer": "lightly's defaults",
}
COLUMNS = [(protocol, labels) for protocol in ("knn", "linear") for labels in ("20", "all")]
ROOT = Path(__file__).parents[1]


def place(args: argparse.Namespace, name: str, part: str, seed: int) -> Path:
    return Path(args.out) / f"{name}-{part}-{seed}"


def done(folder: Path) -> bool:
    """A collapse is an outcome; a run that a signal stopped goes on."""
    stopped = run_folder.has_run(folder) and run_folder.read_run(folder).facts["outcome"] not in (
        "done",
        "collapsed",
    )
    return (folder / "backbone.safetensors").exists() and not stopped


def train(name: str, part: str, args: argparse.Namespace, seed: int) -> None:
    """Nothing where it is done, or where there is no such run."""
    folder, steps = place(args, name, part, seed), args.steps
    hard = list(HEXA) if part == "hexa" and not METHODS[name].Config().two_player else []
    if (
        done(folder)
        or (part == "hexa" and not hard)
        or (part == "peer" and name not in peers.PEERS)
    ):
        return
    if part == "peer":
        peers.train(
            name, args.data, folder, size=args.size, batch=args.batch, steps=steps, seed=seed
        )
        return
    if part == "long":
        plain, hexa = (place(args, name, p, seed) for p in ("plain", "hexa"))
        if not (done(plain) and done(hexa)):
            print(f"{folder.name} waits for {plain.name} and {hexa.name}")
            return
        steps = round(steps * training_seconds(hexa) / training_seconds(plain))
    words = ["pretrain", "--out", str(folder), "--workers", "0"]
    if (folder / "run.json").exists():
        words += ["--resume"]
    else:
        words += [
            "--data",
            args.data,
            "--method",
            name,
            "--backbone",
            "resnet18",
            "--size",
            str(args.size),
        ]
        words += [
            "--batch",
            str(args.batch),
            "--steps",
            str(steps),
            "--seed",
            str(seed),
            "--precision",
            "bf16",
        ]
        words += ["--hard", *hard] if hard else []
    code = main(words)
    if not done(folder):
        raise SystemExit(code or 1)


def evaluate(folder: Path, other: Path | None, data: str, size: int) -> dict[str, list[Row]]:
    """The scores of the run and of random weights, and its differences to `other`."""
    what, against = (
        f if f is None or (f / "run.json").exists() else f / "backbone.safetensors"
        for f in (folder, other)
    )
    compared = ["random", *([str(against)] if against else [])]
    results = selftaught.evaluate(
        str(what), data, size=size, labels=("20", "all"), against=compared, workers=0
    ).results
    about = json.loads(results.to_json())
    first = about["rows"][0]["backbone"]
    return {
        "rows": [r for r in about["rows"] if r["backbone"] == first],
        "random": [r for r in about["rows"] if r["backbone"] == "random"],
        "differences": [d for d in about["differences"] if d["against"] == str(against)],
    }


def recorded(command: str) -> list[Row]:
    """The rows that results/methods.json has of this command."""
    file = RESULTS / "methods.json"
    about = json.loads(file.read_text()) if file.exists() else {}
    return about["rows"] if about.get("command") == command else []


def joined(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Both, in order; of the same run and score, the new. What had been compared with a run that is
    replaced is compared
    anew: by the intervals of both means, for the images that were paired are no longer at hand.
    """
    rows = {
        (r["method"], r["part"], r["seed"], r["protocol"], r["labels"]): r for r in [*old, *new]
    }
    for (method, part, *rest), row in rows.items():
        other = rows.get((method, COUNTERPART.get(part), *rest))
        if (
            other
            and "over" in row
            and row["over"].setdefault("than", other["mean"]) != other["mean"]
        ):
            mean = row["mean"] - other["mean"]
            below = math.hypot(row["mean"] - row["low"], other["high"] - other["mean"])
            above = math.hypot(row["high"] - row["mean"], other["mean"] - other["low"])
            row["over"] = {
                "mean": mean,
                "low": mean - below,
                "high": mean + above,
                "than": other["mean"],
            }
    return [rows[key] for key in sorted(rows)]


def collect(args: argparse.Namespace) -> list[Row]:
    """One row for each run and each way of scoring it; `over` is what it gains over its
    counterpart.
    """
    result, cpu = [], machine()["cpu"]
    for folder in sorted(Path(args.out).iterdir()):
        if not done(folder):
            continue
        name, part, number = folder.name.rsplit("-", 2)
        seed, counterpart = int(number), COUNTERPART[part]
        other = place(args, name, counterpart, seed) if counterpart else None
        if other and not done(other):
            print(f"{folder.name} is left out: {other.name} is not done")
            continue
        ours = (folder / "run.json").exists()
        facts = (
            run_folder.read_run(folder).facts | {"steps": run_folder.read_run(folder).stage.steps}
            if ours
            else peers.facts(folder)
        )
        seconds = training_seconds(folder) if ours else facts["seconds"]
        judged = make_once(folder / "judged.json", evaluate, folder, other, args.data, args.size)
        about = {
            "method": name,
            "seed": seed,
            "steps": facts["steps"],
            "seconds": round(seconds),
            "cpu": cpu,
        }
        about["outcome"] = facts["outcome"]
        over = {(d["protocol"], d["labels"], d["metric"]): d for d in judged["differences"]}
        for which, key in ((part, "rows"), ("random", "random")):
            for row in judged[key]:
                scored = {
                    k: row[k] for k in ("protocol", "labels", "metric", "mean", "low", "high")
                }
                gain = (
                    over.get((row["protocol"], row["labels"], row["metric"]))
                    if which == part
                    else None
                )
                more = {"over": {k: gain[k] for k in ("mean", "low", "high")}} if gain else {}
                result.append({**about, "part": which, **scored, **more})
    return [r for r in result if r["metric"] == "balanced_accuracy"]


def chosen(rows: Sequence[Row], **where: Any) -> list[Row]:
    """The rows with these values."""
    return [r for r in rows if all(r[k] == v for k, v in where.items())]


def average(rows: Sequence[Row], **where: Any) -> float | None:
    """Over seeds, in per cent: random weights of one seed are the same ones, however many runs were
    set beside them.
    """
    of = chosen(rows, **where)
    return (
        100
        * mean(mean(r["mean"] for r in chosen(of, seed=seed)) for seed in {r["seed"] for r in of})
        if of
        else None
    )


def with_interval(points: float, low: float, high: float) -> str:
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f})"


def lines(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Per cent, means over seeds, in Markdown; in the last column what the linear probe with all
    labels gains over the counterpart, with the 95 % interval of each seed.
    """
    heads = [
        f"{'kNN' if p == 'knn' else p}, {'all' if b == 'all' else b + ' a class'}"
        for p, b in COLUMNS
    ]
    text = [
        f"| | seeds | steps | minutes | {' | '.join(heads)} | over its counterpart |",
        "| --- " * (5 + len(COLUMNS)) + "|",
    ]
    for name, part in [("", "random"), *((name, part) for name in names for part in COUNTERPART)]:
        of = chosen(rows, part=part) if part == "random" else chosen(rows, part=part, method=name)
        if not of:
            continue
        scores = [average(of, protocol=p, labels=b) for p, b in COLUMNS]
        if part == "random":
            label, seeds, steps, minutes = "random weights", "", "", ""
        else:
            label = ", ".join(w for w in (f"`{name}`", WORDS[part]) if w)
            label += "".join(sorted({f" ({r['outcome']})" for r in of if r["outcome"] != "done"}))
            seeds, steps = str(len({r["seed"] for r in of})), f"{mean(r['steps'] for r in of):.0f}"
            minutes = f"{mean(r['seconds'] for r in of) / 60:.1f}"
        cells = [f"{s:.1f}" if s is not None else "" for s in scores]
        text.append(
            f"| {' | '.join([label, seeds, steps, minutes, *cells, gained(of, 'linear')])} |"
        )
    return text


def setting(args: argparse.Namespace, command: str, rows: Sequence[Row]) -> str:
    machines = " and ".join(sorted({r["cpu"] for r in rows}))
    return (
        f"{Path(args.data).name}, ResNet-18 from scratch, {args.size} px, {args.steps} steps of"
        f" {args.batch} images (minutes on one core of {machines}, undisturbed); balanced accuracy"
        " in % of frozen features on the test images; means over seeds where there are several."
        f" `{command}`"
    )


def told(rows: Sequence[Row], protocol: str) -> str:
    """A mean over seeds in per cent, and whether it is above or below its counterpart's by
    intervals of every seed.
    """
    of = chosen(rows, protocol=protocol, labels="all")
    over = [r["over"] for r in of if "over" in r]
    mark = (
        " ▲"
        if over and all(o["low"] > 0 for o in over)
        else " ▼"
        if over and all(o["high"] < 0 for o in over)
        else ""
    )
    return f"{average(of):.1f}{mark}" if of else ""


def overview(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """A line for each method, kNN / linear probe with all labels; of parts that were not run there
    is no column.
    """
    parts = [part for part in COUNTERPART if any(r["part"] == part for r in rows)]
    text = [
        f"| | minutes | {' | '.join(WORDS[part] or 'plain' for part in parts)} |",
        "| --- " * (2 + len(parts)) + "|",
    ]

    def scores(of: Sequence[Row]) -> str:
        return " / ".join(told(of, protocol) for protocol in ("knn", "linear")) if of else ""

    text.append(
        f"| random weights | | {scores(chosen(rows, part='random'))} |" + " |" * (len(parts) - 1)
    )
    for name in names:
        mine = [r for r in rows if r["method"] == name and r["part"] != "random"]
        if mine:
            minutes = mean([r["seconds"] for r in chosen(mine, part="plain")] or [0]) / 60
            cells = [scores(chosen(mine, part=part)) for part in parts]
            text.append(f"| [`{name}`](methods/{name}.md) | {minutes:.1f} | {' | '.join(cells)} |")
    return text


def helped(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Methods that HEXA makes better, worse, or neither that can be told, at equal steps (linear
    probe, all labels).
    """
    result: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
    for name in NAMES:
        gains = [
            r["over"]
            for r in chosen(rows, method=name, part="hexa", protocol="linear", labels="all")
        ]
        if gains:
            better, worse = all(g["low"] > 0 for g in gains), all(g["high"] < 0 for g in gains)
            result["better" if better else "worse" if worse else "level"].append(name)
    return result


def gained(rows: Sequence[Row], protocol: str) -> str:
    """What runs gain over their counterparts in points, with the 95 % interval of each seed."""
    gains = [r["over"] for r in chosen(rows, protocol=protocol, labels="all") if "over" in r]
    return ", ".join(with_interval(*(100 * g[k] for k in ("mean", "low", "high"))) for g in gains)


def across(rows: Sequence[Row], protocol: str) -> tuple[float, float, float]:
    """What HEXA gains in points as a mean over methods, with the 95 % interval of that mean:
    methods vary, and seeds.
    """
    of = chosen(rows, part="hexa", protocol=protocol, labels="all")
    gains = [
        100 * mean(r["over"]["mean"] for r in chosen(of, method=name))
        for name in {r["method"] for r in of}
    ]
    half = stats.t.ppf(0.975, len(gains) - 1) * stdev(gains) / math.sqrt(len(gains))
    return mean(gains), mean(gains) - half, mean(gains) + half


def between_seeds(rows: Sequence[Row], protocol: str) -> tuple[int, float]:
    """Of how many methods there are plain runs of several seeds, and by how many points two differ
    (standard deviation).
    """
    of = chosen(rows, part="plain", protocol=protocol, labels="all")
    scores = [
        [100 * r["mean"] for r in chosen(of, method=name)] for name in {r["method"] for r in of}
    ]
    several = [s for s in scores if len(s) > 1]
    return len(several), math.sqrt(2 * mean(stdev(s) ** 2 for s in several))


def on_top(rows: Sequence[Row]) -> list[str]:
    """What HEXA adds to each method at equal steps, and what plain training in its time, where that
    was run, has over it.
    """
    result = helped(rows)
    names = [name for which in result.values() for name in which]
    counts = ", ".join(f"{which} for {len(of)}" for which, of in result.items())
    heads = ["", "minutes", "HEXA's minutes", "kNN: HEXA over plain", "linear: HEXA over plain"]
    longer = any(r["part"] == "long" for r in rows)
    heads += ["linear: plain in HEXA's time over HEXA"] if longer else []
    knn, linear = (with_interval(*across(rows, protocol)) for protocol in ("knn", "linear"))
    twice, deviation = between_seeds(rows, "linear")
    text = [
        (
            f"Of {len(names)} methods, by the linear probe at equal steps, HEXA is {counts}"
            f" (better, worse: by every seed's interval). The mean gain over methods is {knn}"
            f" points by kNN and {linear} by the linear probe (95 % intervals). The table's"
            " intervals hold the chance that lies in the test images. That of a training's seed"
            f" comes on top: two plain runs of one method differ by {deviation:.1f} points (linear,"
            f" standard deviation over {twice} methods)."
        ),
        "",
        f"| {' | '.join(heads)} |",
        "| --- " * len(heads) + "|",
    ]
    for name in names:
        of = {part: chosen(rows, method=name, part=part) for part in COUNTERPART}
        seeds = {r["seed"] for r in of["hexa"]}  # each on one machine
        minutes = [
            f"{mean(r['seconds'] for r in of[p] if r['seed'] in seeds) / 60:.1f}"
            for p in ("plain", "hexa")
        ]
        gains = [gained(of["hexa"], "knn"), gained(of["hexa"], "linear")]
        gains += [gained(of["long"], "linear")] if longer else []
        text.append(f"| {' | '.join([f'[`{name}`]({name}.md)', *minutes, *gains])} |")
    return text


def fill(file: Path, text: Sequence[str], benchmark: str = "methods") -> None:
    """Put lines between the marks of a benchmark in a Markdown file."""
    begin, end = f"<!-- benchmarks.{benchmark} -->", "<!-- end -->"
    before, mark, rest = file.read_text().partition(begin)
    if not mark:
        raise SystemExit(f"{file} has no mark {begin}")
    file.write_text("\n".join([before + mark, *text, end]) + rest.partition(end)[2])


def write_docs(args: argparse.Namespace, command: str, rows: Sequence[Row]) -> None:
    """The tables of the documentation, from rows that were measured before."""
    rows = [r for r in rows if r["part"] != "peer"]
    docs = ROOT / "docs"
    fill(docs / "benchmarks.md", [setting(args, command, rows), "", *overview(rows, NAMES)])
    hexa = setting(args, command, chosen(rows, part="hexa"))
    fill(docs / "methods" / "hexa.md", [hexa, "", *on_top(rows)])
    for name in NAMES:
        if of := chosen(rows, method=name):
            table = [setting(args, command, of), "", *lines(rows, [name])]
            fill(docs / "methods" / f"{name}.md", table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument(
        "--parts", nargs="*", default=["plain", "hexa", "peer"], choices=list(COUNTERPART)
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--train-only", action="store_true", help="leave evaluating to another")
    parser.add_argument("--docs", action="store_true")
    args = parser.parse_args()
    keep_freed()  # as the command line does
    for seed in args.seeds:
        for part in args.parts:
            for name in args.only:
                train(find_name(name, NAMES, "method"), part, args, seed)
    if args.train_only:
        raise SystemExit
    budget = f"--steps {args.steps} --size {args.size} --batch {args.batch}"
    command = (
        f"python -m benchmarks.methods --data {Path(args.data).name}/ --out runs/methods {budget}"
    )
    rows = joined(recorded(command), collect(args))
    print("\n".join(lines(rows, NAMES)))
    print({which: len(names) for which, names in helped(rows).items()}, helped(rows))
    write("methods", {"command": command, "rows": rows})
    if args.docs:
        write_docs(args, command, rows)
