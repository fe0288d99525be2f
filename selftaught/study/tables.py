"""What came out of a study: means over seeds as a table, and what they say in words."""

import csv
import io
from collections.abc import Sequence
from statistics import mean
from typing import Any

Rows = Sequence[dict[str, Any]]
GROUP = ("target", "base", "variant", "x", "protocol", "labels", "metric")


def by_seed(rows: Rows, order: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """One row for each point: the mean over seeds, the lowest and the highest seed. `order` is that of (variant, x)."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in GROUP), []).append(row["mean"])

    def place(key: tuple[str, ...]) -> tuple[str, str, int, tuple[str, ...]]:
        way = (key[2], key[3])
        return key[0], key[1], order.index(way) if way in order else len(order), key[4:]

    return [
        {**dict(zip(GROUP, key, strict=True)), "mean": mean(v), "low": min(v), "high": max(v), "seeds": len(v)}
        for key, v in sorted(groups.items(), key=lambda item: place(item[0]))
    ]


def as_csv(points: Rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(points[0]) if points else list(GROUP), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return text.getvalue()


def best(points: Rows, variant: str, **where: str) -> dict[str, Any] | None:
    """The best point of a variant."""
    found = [p for p in points if p["variant"] == variant and all(p[k] == v for k, v in where.items())]
    return max(found, key=lambda p: p["mean"], default=None)


def findings(study: str, points: Rows) -> list[str]:
    """The article's claims, held against these numbers: one line for every target and base."""
    said = []
    chains = sorted({(p["target"], p["base"], p["protocol"], p["labels"], p["metric"]) for p in points})
    for target, base, protocol, labels, metric in chains:
        if metric == "auroc" and any(p["target"] == target and p["metric"] == "balanced_accuracy" for p in points):
            continue
        where = {"target": target, "base": base, "protocol": protocol, "labels": labels, "metric": metric}
        found = {v: best(points, v, **where) for v in ("Base", "Target", "HPT", "HPT-BN", "B", "B+S", "B+T", "B+S+T")}
        known = {v: p for v, p in found.items() if p}
        if not known:
            continue
        order = sorted(known, key=lambda v: -known[v]["mean"])
        scores = ", ".join(f"{v} {100 * known[v]['mean']:.1f}" for v in order)
        text = f"{target} from {base}, {protocol} with {labels} labels: {scores}."
        if study == "separability" and "Target" in known and "HPT" in known:
            text += sooner(points, known["Target"], where)
        said.append(text)
    return said


def sooner(points: Rows, target: dict[str, Any], where: dict[str, str]) -> str:
    """After how many steps HPT is as good as Target at its best."""
    curve = [p for p in points if p["variant"] == "HPT" and all(p[k] == v for k, v in where.items())]
    reached = min((int(p["x"]) for p in curve if p["mean"] >= target["mean"]), default=None)
    if reached is None:
        return f" HPT does not reach Target's best (of {target['x']} steps) in the steps tried."
    return (
        f" HPT is as good as Target's best ({target['x']} steps) after {reached}: {int(target['x']) / reached:.0f}x sooner."
    )
