"""Several backbones on the same draws of labels and the same test images: results with intervals, differences
paired.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from selftaught.errors import UserError
from selftaught.evaluation.draws import Budget, draw, shortfall
from selftaught.evaluation.intervals import interval, resample_counts
from selftaught.evaluation.metrics import (
    auroc,
    balanced_accuracy,
    resampled_auroc,
    resampled_balanced_accuracy,
)
from selftaught.evaluation.protocol import Features, Protocol, Scores, class_count
from selftaught.evaluation.results import Difference, Results, Row

Table = NDArray[np.float64]


def evaluate(
    backbones: Mapping[str, tuple[Features, Features]],
    protocols: Sequence[Protocol],
    *,
    labels: Sequence[str] = ("5", "20", "all", "total:1000"),
    draws: int = 5,
    seed: int = 0,
    resamples: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Scores each backbone's (training, test) features by every protocol with every number of labels.

    All backbones must describe the same images in the same order. The first backbone is compared with each
    other one. Where every image of the training set is used there is nothing to draw: draws = 1. The same
    seed gives the same results. Balanced accuracy; AUROC besides for two classes, and alone for several
    classes an image.
    """
    train, test = _same_images(backbones)
    if draws < 1 or resamples < 1:
        raise UserError("an evaluation needs at least one draw and one resample")
    budgets = [Budget.parse(text) for text in labels]
    rows: list[Row] = []
    differences: list[Difference] = []
    notes = _notes(train, test)
    steps = [0, len(backbones) * len(protocols) * len(budgets) * draws]
    for protocol, budget in product(protocols, budgets):
        chosen = [draw(train.labels, per_class=budget.per_class, total=budget.total, seed=seed + i) for i in range(draws)]
        if len(chosen[0]) == len(train.labels):
            chosen = chosen[:1]
            steps[1] -= len(backbones) * (draws - 1)
        notes += _budget_notes(train, budget)
        points: dict[str, list[dict[str, float]]] = {}
        outcomes: dict[str, list[torch.Tensor]] = {}
        for name, (own_train, own_test) in backbones.items():
            points[name], outcomes[name] = [], []
            for positions in chosen:
                scores = protocol.of(name).score(own_train.take(positions.to(own_train.labels.device)), own_test.vectors)
                measured, outcome = _measure(train, test, scores)
                points[name].append(measured)
                outcomes[name].append(outcome)
                steps[0] += 1
                if on_progress is not None:
                    on_progress(*steps)
        resampled = _resample(test, outcomes, list(points[next(iter(points))][0]), resamples, seed)
        for metric, tables in resampled.items():
            own = {name: np.asarray([p[metric] for p in found]) for name, found in points.items()}
            words = {"protocol": protocol.name, "labels": str(budget), "metric": metric}
            for name, table in tables.items():
                low, high = np.clip(interval(table, own[name], seed), 0, 1).tolist()
                mean = float(own[name].mean())
                rows.append(Row(backbone=name, **words, mean=mean, low=low, high=high, draws=len(chosen)))
            first, *others = tables
            for other in others:
                gap = own[first] - own[other]
                low, high = np.clip(interval(tables[first] - tables[other], gap, seed), -1, 1).tolist()
                mean = float(gap.mean())
                differences.append(Difference(backbone=first, against=other, **words, mean=mean, low=low, high=high))
    return Results(rows=tuple(rows), differences=tuple(differences), notes=tuple(dict.fromkeys(notes)))


def _same_images(backbones: Mapping[str, tuple[Features, Features]]) -> tuple[Features, Features]:
    """The first backbone's features; UserError unless all have its labels."""
    if not backbones:
        raise UserError("there is no backbone to evaluate")
    first, *others = backbones.values()
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            if not torch.equal(ours.labels.cpu(), theirs.labels.cpu()):
                raise UserError("backbones can only be compared on the same images in the same order")
    if first[0].multi_label != first[1].multi_label:
        raise UserError("training and test images must both have one class, or both several")
    return first[0], first[1]


def _measure(train: Features, test: Features, scores: Scores) -> tuple[dict[str, float], torch.Tensor]:
    """The metrics of one set of scores, and what a resampling of the images needs of it: [M], [M, 2] or [M,
    C].
    """
    labels, values = test.labels.cpu(), scores.values.cpu()
    if test.multi_label:
        return _only_finite({"auroc": auroc(labels, values)[0]}), values
    measured = {"balanced_accuracy": balanced_accuracy(labels, values)}
    if class_count(train.labels) == 2 and set(labels.unique().tolist()) == {0, 1}:
        return measured | {"auroc": auroc(labels, values)[0]}, values
    return measured, values.argmax(1)  # not all of [M, C]: with 1000 classes that is gigabytes


def _only_finite(measured: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if np.isfinite(value)}


def _resample(
    test: Features,
    outcomes: Mapping[str, Sequence[torch.Tensor]],
    metrics: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Table]]:
    """metric -> backbone -> values [R, D] of every draw on the same resamples of the test images."""
    labels = test.labels.cpu()
    parts: dict[str, list[Table]] = {metric: [] for metric in metrics}
    everything = [outcome for found in outcomes.values() for outcome in found]
    guesses = [o if o.ndim == 1 else o.argmax(1) for o in everything]
    for counts in resample_counts(labels, resamples, seed):
        if "balanced_accuracy" in metrics:
            correct = torch.stack([guess == labels for guess in guesses], dim=1)
            parts["balanced_accuracy"].append(resampled_balanced_accuracy(labels, correct, counts))
        if "auroc" in metrics:
            parts["auroc"].append(np.stack([resampled_auroc(labels, o, counts) for o in everything], axis=1))
    draws = len(everything) // len(outcomes)
    tables = {metric: np.concatenate(blocks).reshape(resamples, -1, draws) for metric, blocks in parts.items()}
    return {metric: {name: table[:, i] for i, name in enumerate(outcomes)} for metric, table in tables.items()}


def _notes(train: Features, test: Features) -> list[str]:
    """What a reader should know about the labelled images."""
    notes = []
    if len(test.labels) < 100:
        notes.append(f"only {len(test.labels)} test images: intervals are rough")
    if test.multi_label:
        values = test.labels.cpu() > 0
        skipped = int((~values.any(0) | values.all(0)).sum())
        if skipped:
            notes.append(f"{skipped} of {values.shape[1]} classes are not in AUROC: no test image has them, or all do")
    else:
        unseen = set(test.labels.unique().tolist()) - set(train.labels.unique().tolist())
        if unseen:
            notes.append(f"{len(unseen)} classes have test images but no training images: those count as errors")
    return notes


def _budget_notes(train: Features, budget: Budget) -> list[str]:
    labels = train.labels.cpu()
    if budget.per_class is not None and (few := shortfall(labels, budget.per_class)):
        return [f"{few} classes have fewer than {budget.per_class} training images: all of those were taken"]
    if budget.total is not None and budget.total >= len(labels):
        return [f"there are only {len(labels)} training images: {budget} is the same as all"]
    return []
