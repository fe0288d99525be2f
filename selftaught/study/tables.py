"""Results of a study: means over seeds as a table, and findings as sentences."""

import csv
import io
from collections.abc import Sequence
from statistics import mean
from typing import Any

from selftaught.features.protocol import TITLES

Rows = Sequence[dict[str, Any]]
GROUP = ("target", "base", "variant", "x", "protocol", "labels", "metric")


def by_seed(rows: Rows, order: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """One row for each point: the mean over seeds, and the lowest and highest seed.

    A single seed has its interval over the test images instead. order: that of the pairs
    (variant, x).
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in GROUP), []).append(row)

    def place(key: tuple[str, ...]) -> tuple[Any, ...]:
        target, base, variant, x, protocol, labels, metric = key
        way = order.index((variant, x)) if (variant, x) in order else len(order)
        return target, base, way, protocol, budget(labels), metric

    return [
        {
            **dict(zip(GROUP, key, strict=True)),
            "mean": mean(row["mean"] for row in of),
            **spread(of),
            "seeds": len(of),
        }
        for key, of in sorted(groups.items(), key=lambda item: place(item[0]))
    ]


def spread(seeds: Rows) -> dict[str, float]:
    """The lowest and highest of several seeds, or the interval of one."""
    if len(seeds) == 1:
        return {end: seeds[0][end] for end in ("low", "high")}
    means = [row["mean"] for row in seeds]
    return {"low": min(means), "high": max(means)}


def budget(labels: str) -> tuple[int, int]:
    """The sort key of a number of labels: first those a class, then those in all, then all."""
    kind, _, number = labels.rpartition(":")
    return (2, 0) if labels == "all" else (int(bool(kind)), int(number))


def labelled(labels: str) -> str:
    """A number of labels as text."""
    if labels == "all":
        return "all labels"
    if labels.startswith("total:"):
        return f"{labels.removeprefix('total:')} labels"
    return f"{labels} labels a class"


def as_csv(points: Rows) -> str:
    """The points as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=list(points[0]) if points else list(GROUP), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue()


def best(points: Rows, variant: str, **where: str) -> dict[str, Any] | None:
    """The best point of a variant."""
    return max(curve(points, variant, where), key=lambda p: p["mean"], default=None)


def findings(study: str, points: Rows) -> list[str]:
    """The numbers for the claims of the paper: one line for every target and base."""
    lines = []
    chains = {(p["target"], p["base"], p["protocol"], p["labels"], p["metric"]) for p in points}
    for target, base, protocol, labels, metric in sorted(
        chains, key=lambda c: (*c[:3], budget(c[3]))
    ):
        if metric == "auroc" and any(
            p["target"] == target and p["metric"] == "balanced_accuracy" for p in points
        ):
            continue
        where = {
            "target": target,
            "base": base,
            "protocol": protocol,
            "labels": labels,
            "metric": metric,
        }
        bests = {
            v: p
            for v in dict.fromkeys(p["variant"] for p in points)
            if (p := best(points, v, **where))
        }
        order = sorted(bests, key=lambda v: -bests[v]["mean"])
        unit = "AUROC" if metric == "auroc" else "balanced accuracy"
        scores = ", ".join(score(study, points, v, where) for v in order)
        text = (
            f"{target} from {base} ({TITLES.get(protocol, protocol)}, {labelled(labels)},"
            f" {unit}): {scores}."
        )
        if study == "separability" and "Target" in bests and "HPT" in bests:
            text += compare_steps(points, bests["Target"], where)
        lines.append(text)
    return lines


def curve(points: Rows, variant: str, where: dict[str, str]) -> Rows:
    """The points of a variant with these values."""
    return [
        p for p in points if p["variant"] == variant and all(p[k] == v for k, v in where.items())
    ]


def score(study: str, points: Rows, variant: str, where: dict[str, str]) -> str:
    """The best score of a variant as text; for augmentations and data, the first and the last."""
    of = curve(points, variant, where)
    if study in ("augmentations", "data") and len(of) > 1:
        ends = " to ".join(f"{100 * p['mean']:.1f} ({p['x']})" for p in (of[0], of[-1]))
        return f"{variant} {ends}"
    return f"{variant} {100 * max(p['mean'] for p in of):.1f}"


def compare_steps(points: Rows, target: dict[str, Any], where: dict[str, str]) -> str:
    """The steps after which HPT reaches the best score of Target, as a sentence."""
    steps = int(target["x"])
    scores = {int(p["x"]): p["mean"] for p in curve(points, "HPT", where)}
    reached = min((n for n, mean in scores.items() if mean >= target["mean"]), default=None)
    if reached is None:
        return f" HPT does not reach Target's best (of {steps:,} steps) in the steps tried."
    text = f" HPT is as good as Target's best ({steps:,} steps) after {reached:,}"
    if reached >= steps:
        return f"{text}: no sooner."
    times = f"{steps / reached:.0f}" if steps >= 10 * reached else f"{round(steps / reached, 1):g}"
    return f"{text}: {'at least ' if reached == min(scores) else ''}{times}x sooner."


def fallen(rows: Rows) -> list[str]:
    """A line for every cell whose training did not end as `done`."""
    names = dict.fromkeys(
        (r["target"], r["base"], r["variant"], r["x"], r["seed"], r["outcome"])
        for r in rows
        if r["outcome"] != "done"
    )
    return [
        f"{target} from {base}, {variant}{f' ({x})' if x else ''}, seed {seed}: {outcome} in"
        " training, and scored so."
        for target, base, variant, x, seed, outcome in names
    ]
