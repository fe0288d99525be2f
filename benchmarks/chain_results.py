"""The table and the figure of `benchmarks.chains`: is adapting at or above Base and Target?

    python -m benchmarks.chain_results runs/chains

Reads the chains that are done. Those that the folder lacks keep their earlier results; each names
its commit. Writes results/chains.json, the tables of docs/hpt.md, and the figure of all chains.
Scores are means over the seeds of a chain. So are the ends of intervals: such an interval is as
wide as that of one seed. A mark is that of the paired 95 % interval of `adapt` minus the base as it
came: ▲ above 0, ▼ below 0.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.chains import CHAINS, results
from benchmarks.common import Row, find, mark, merge_earlier, write
from benchmarks.methods import fill

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "figures" / "hpt-chains.png"
SUBJECTS = ("base", "Base", "Target", "HPT", "HPT-BN", "adapt")
SCORES = [(protocol, labels) for labels in ("20", "all") for protocol in ("knn", "linear")]
TITLES = {"knn": "kNN", "linear": "linear probe"}
LABELS = {"20": "20 labels a class", "all": "all labels"}


def read(folder: Path) -> list[Row]:
    """One row for each chain that is done: its scores, and the gains of `adapt` over others."""
    rows = []
    for chain in results(folder):
        scores = [r for r in chain["rows"] if r["metric"] == "balanced_accuracy"]
        gains = [r for r in chain["differences"] if r["metric"] == "balanced_accuracy"]
        names = ("protocol", "labels", "mean", "low", "high")
        row = {name: chain[name] for name in ("base", "target", "seed", "seconds")}
        row["steps"] = max(c["step"] for c in chain["facts"]["adapt"]["candidates"])
        row["kept"] = describe_choice(chain["facts"]["adapt"]["choice"])
        row["scores"] = [{"of": r["backbone"], **{n: r[n] for n in names}} for r in scores]
        row["gains"] = [{"over": r["against"], **{n: r[n] for n in names}} for r in gains]
        if row["kept"] == "start":  # equal weights are not compared
            same = {"over": "base", "mean": 0.0, "low": 0.0, "high": 0.0}
            row["gains"] += [{**same, "protocol": p, "labels": n} for p, n in SCORES]
        rows.append(row)
    return rows


def position(row: Row) -> tuple[int, int]:
    """The key to sort rows by: the order of CHAINS, then the seed."""
    order = [(base, target) for base, targets in CHAINS.items() for target in targets]
    return order.index((row["base"], row["target"])), row["seed"]


def average(rows: Sequence[Row]) -> list[Row]:
    """One row for each chain: the means over its seeds, of the ends of intervals too."""
    chains: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        chains.setdefault((row["base"], row["target"]), []).append(row)
    result = []
    for (base, target), seeds in chains.items():
        kept = dict.fromkeys(row["kept"] for row in seeds)
        steps = dict.fromkeys(str(row["steps"]) for row in seeds)
        row = {"base": base, "target": target, "kept": ", ".join(kept), "steps": ", ".join(steps)}
        row["scores"] = average_values([r for each in seeds for r in each["scores"]])
        row["gains"] = average_values([r for each in seeds for r in each["gains"]])
        result.append(row)
    return result


def average_values(rows: Sequence[Row]) -> list[Row]:
    """The mean of `mean`, `low` and `high` of the rows that are equal in all else."""
    numbers = ("mean", "low", "high")
    groups: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        about = tuple(sorted((name, row[name]) for name in row.keys() - set(numbers)))
        groups.setdefault(about, []).append(row)
    return [
        {**dict(about), **{n: statistics.mean(row[n] for row in group) for n in numbers}}
        for about, group in groups.items()
    ]


def describe_choice(choice: Row) -> str:
    if choice["kept"] == 0:
        return "start"
    return "end" if choice["share"] == 1 else f"{choice['share']:g}"


def cell(row: Row, subject: str, labels: str) -> str:
    parts = []
    for protocol in TITLES:
        where = {"protocol": protocol, "labels": labels}
        score = find(row["scores"], of=subject, **where)
        gain = find(row["gains"], over="base", **where) if subject == "adapt" else None
        parts.append(f"{100 * score['mean']:.1f}{mark(gain)}" if score else "")
    return " / ".join(parts)


def table(rows: Sequence[Row], labels: str) -> list[str]:
    """The scores with these labels, in Markdown: kNN / linear probe."""
    titles = "base as it came", "Base", "Target", "HPT", "HPT-BN", "adapt"
    text = [f"| chain, {LABELS[labels]} | steps | {' | '.join(titles)} | kept |"]
    text.append("| --- " * (len(titles) + 3) + "|")
    for row in rows:
        name = f"{row['target']} from {row['base']}"
        scores = [cell(row, subject, labels) for subject in SUBJECTS]
        cells = [name, row["steps"], *scores, row["kept"]]
        text.append(f"| {' | '.join(cells)} |")
    return text


def count(rows: Sequence[Row]) -> list[str]:
    """In how many chains `adapt` is not below another, and in how many it is above; its mean gain,
    with the 95 % interval by Student's t over chains.
    """
    titles = [f"{TITLES[protocol]}, {LABELS[labels]}" for protocol, labels in SCORES]
    text = [f"| `adapt` beside | {' | '.join(titles)} |"]
    text.append("| --- " * (len(SCORES) + 1) + "|")
    for other in SUBJECTS[:-1]:
        cells = [other if other != "base" else "base as it came"]
        for protocol, labels in SCORES:
            gains = [find(r["gains"], over=other, protocol=protocol, labels=labels) for r in rows]
            there = [g for g in gains if g is not None]
            above = sum(g["low"] > 0 for g in there)
            level = sum(g["high"] >= 0 for g in there)
            cell_text = f"{level} of {len(there)}, {above} above"
            if len(there) > 1:
                low, mean, high = (100 * x for x in mean_interval([g["mean"] for g in there]))
                cell_text += f"; {mean:+.1f} ({low:+.1f} to {high:+.1f})"
            cells.append(cell_text.replace("-", "−") if there else "")
        text.append(f"| {' | '.join(cells)} |")
    return text


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean between the ends of its 95 % interval."""
    middle = statistics.mean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = error * float(stats.t.ppf(0.975, len(values) - 1))
    return middle - half, middle, middle + half


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the gain over the base of every chain, with its interval: one panel a score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(SCORES), figsize=(11, 1.2 + 0.27 * len(rows)), sharey=True, layout="constrained"
    )
    colours = dict(zip(CHAINS, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    for axes, (protocol, labels) in zip(panels, SCORES, strict=True):
        for place, row in enumerate(rows):
            gain = find(row["gains"], over="base", protocol=protocol, labels=labels)
            if gain is None:
                continue
            mean, low, high = (100 * gain[n] for n in ("mean", "low", "high"))
            colour = colours[row["base"]]
            axes.plot([low, high], [place, place], color=colour)
            axes.plot(mean, place, "o", color=colour)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(f"{TITLES[protocol]},\n{LABELS[labels]}", fontsize=10)
        axes.set_xlabel("points over the base")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [f"{r['target']} from {r['base']}" for r in rows])
    panels[0].invert_yaxis()
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    rows = merge_earlier("chains", read(Path(sys.argv[1])), ("base", "target", "seed"))
    rows.sort(key=position)
    write("chains", {"rows": rows})
    chains = average(rows)
    text = [*count(chains), "", *table(chains, "all"), "", *table(chains, "20")]
    print("\n".join(text))
    fill(ROOT / "docs" / "hpt.md", text, "chains")
    draw(chains, FIGURE)
