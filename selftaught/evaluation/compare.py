"""Several backbones on the same draws of labels and the same test images: results with intervals,
differences paired. Over 200 lines with what cannot be scored.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from selftaught.data.index.label_budget import Budget, draw, shortfall
from selftaught.errors import UserError
from selftaught.evaluation.bootstrap import Intervals, Outcomes, intervals
from selftaught.evaluation.results import GAP, Difference, Results, Row
from selftaught.features.metrics import auroc, balanced_accuracy, placements
from selftaught.features.protocol import Features, Protocol, Scores, class_count


class NothingToScore(UserError):
    """The labels leave nothing to learn, or nothing to score."""


def evaluate(
    backbones: Mapping[str, tuple[Features, Features]],
    protocols: Sequence[Protocol],
    *,
    labels: Sequence[str] = ("5", "20", "all", "total:1000"),
    draws: int = 5,
    seed: int = 0,
    resamples: int = 2000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Scores each backbone's (training, test) features by every protocol with every number of
    labels.

    All backbones must describe the same images in the same order. The first backbone is compared
    with each other one. Where every image of the training set is used there is nothing to draw:
    draws = 1. The same seed gives the same results. Balanced accuracy; AUROC besides for two
    classes, and alone for several classes an image. Raises UserError where nothing can be scored.
    """
    train, test = _same_images(backbones)
    if draws < 1 or resamples < 1:
        raise UserError("an evaluation needs at least one draw and one resample")
    budgets = [Budget.parse(text) for text in labels]
    notes = _notes(train, test)
    able = list(protocols)
    if reason := refusal(train.labels.cpu(), test.labels.cpu()):
        able = [p for p in protocols if not p.learns and not train.multi_label]
        if not able:
            raise NothingToScore(reason)
        notes.append(reason)
    rows: list[Row] = []
    differences: list[Difference] = []
    steps = [0, len(backbones) * len(able) * len(budgets) * draws]
    for protocol, budget in product(able, budgets):
        chosen = [
            draw(train.labels, per_class=budget.per_class, total=budget.total, seed=seed + i)
            for i in range(draws)
        ]
        if len(chosen[0]) == len(train.labels):
            chosen = chosen[:1]
            steps[1] -= len(backbones) * (draws - 1)
        notes += _budget_notes(train, budget)
        measured: dict[str, list[dict[str, _Measured]]] = {}
        for name, (own_train, own_test) in backbones.items():
            measured[name] = []
            for positions in chosen:
                scores = protocol.of(name).score(
                    own_train.take(positions.to(own_train.labels.device)), own_test.vectors
                )
                measured[name].append(_measure(train, test, scores))
                steps[0] += 1
                if on_progress is not None:
                    on_progress(*steps)
        for metric in measured[next(iter(measured))][0]:
            found = {name: [m[metric] for m in each] for name, each in measured.items()}
            words = {"protocol": protocol.name, "labels": str(budget), "metric": metric}
            new_rows, new_differences = _compare(found, words, resamples, seed)
            rows += new_rows
            differences += new_differences
    return Results(
        rows=tuple(rows), differences=tuple(differences), notes=tuple(dict.fromkeys(notes))
    )


def _same_images(backbones: Mapping[str, tuple[Features, Features]]) -> tuple[Features, Features]:
    """The first backbone's features; UserError unless all have its labels."""
    if not backbones:
        raise UserError("there is no backbone to evaluate")
    first, *others = backbones.values()
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            if not torch.equal(ours.labels.cpu(), theirs.labels.cpu()):
                raise UserError(
                    "backbones can only be compared on the same images in the same order"
                )
    if first[0].multi_label != first[1].multi_label:
        raise UserError("training and test images must both have one class, or both several")
    return first[0], first[1]


@dataclass(frozen=True, eq=False)
class _Measured:
    """One metric of one set of scores, and what each of M test images adds to it."""

    value: float
    outcomes: Tensor  # [M, Q]
    groups: Tensor  # [M, Q]
    sides: int


def _measure(train: Features, test: Features, scores: Scores) -> dict[str, _Measured]:
    """The metrics of one set of scores."""
    labels, values = test.labels.cpu(), scores.values.cpu()
    if test.multi_label:
        scored = _scored(train.labels.cpu(), labels)
        labels, values = labels[:, scored], values[:, scored]
        return {"auroc": _Measured(auroc(labels, values)[0], *placements(labels, values), sides=2)}
    right = (values.argmax(1) == labels)[:, None]
    measured = {
        "balanced_accuracy": _Measured(
            balanced_accuracy(labels, values), right, labels[:, None], sides=1
        )
    }
    if class_count(train.labels) == 2 and set(labels.unique().tolist()) == {0, 1}:
        measured["auroc"] = _Measured(
            auroc(labels, values)[0], *placements(labels, values), sides=2
        )
    return measured


def _compare(
    found: Mapping[str, Sequence[_Measured]], words: Mapping[str, str], resamples: int, seed: int
) -> tuple[list[Row], list[Difference]]:
    """Rows of all backbones, and what the first one has more than each other one; found: name ->
    one a draw.
    """
    names, (one, *_) = list(found), next(iter(found.values()))
    points = np.asarray([[m.value for m in each] for each in found.values()])
    values = np.stack(
        [sum(m.outcomes.double().numpy() for m in each) / len(each) for each in found.values()]
    )
    values, points = (np.concatenate([x, x[:1] - x[1:]]) for x in (values, points))
    outcomes = Outcomes(values=values, groups=one.groups.numpy(), sides=one.sides)
    paired = np.arange(len(values)) >= len(names)
    limits = intervals(outcomes, points, paired, seed=seed, resamples=resamples)
    means, draws, images = points.mean(1).tolist(), points.shape[1], len(one.outcomes)
    ends = list(zip(means, limits.low.tolist(), limits.high.tolist(), strict=True))
    rows = [
        Row(backbone=name, **words, mean=mean, low=low, high=high, draws=draws)
        for name, (mean, low, high) in zip(names, ends, strict=False)
    ]
    differences = [
        Difference(
            backbone=names[0], against=name, **words, mean=mean, low=low, high=high, needed=needed
        )
        for name, (mean, low, high), needed in zip(
            names[1:], ends[len(names) :], _needed(images, limits)[len(names) :], strict=True
        )
    ]
    return rows, differences


def _needed(images: int, limits: Intervals) -> list[int]:
    """How many test images it takes to tell a difference of GAP, to two digits, where there are
    fewer; else 0.
    """
    needed = [images * (half / GAP) ** 2 for half in limits.half.tolist()]
    digits = [10 ** max(math.floor(math.log10(max(n, 1))) - 1, 0) for n in needed]
    return [math.ceil(n / d) * d if n > images else 0 for n, d in zip(needed, digits, strict=True)]


def refusal(train: Tensor, test: Tensor) -> str | None:
    """Why these labels ([N] or [N, C]) leave nothing to learn, or nothing to score, if so."""
    if train.ndim == 2:
        if not bool(_both(train).any()):
            return (
                f"all {len(train)} training images have the same labels: nothing can be learnt,"
                " give images with others"
            )
        if not len(_scored(train, test)):
            return (
                "nothing can be scored: no class of the training images has test images with it and"
                " others without it"
            )
        return None
    if len(train.unique()) == 1:
        return (
            f"all {len(train)} labelled training images are of one class: nothing can be learnt to"
            " tell classes apart, and no score would mean anything; give training images of two"
            " classes or more"
        )
    if not bool(torch.isin(test, train).any()):
        return "nothing can be scored: no class of the training images has test images"
    return None


def _scored(train: Tensor, test: Tensor) -> Tensor:
    """Of several classes an image those that can be learnt and scored: with and without images on
    both sides.
    """
    return (_both(train) & _both(test)).nonzero()[:, 0]


def _both(labels: Tensor) -> Tensor:
    """[C]: whether there are images with the class, and such without it."""
    return (labels > 0).any(0) & ~(labels > 0).all(0)


def _notes(train: Features, test: Features) -> list[str]:
    """What a reader should know about the labelled images."""
    notes = []
    if len(test.labels) < 100:
        notes.append(f"only {len(test.labels)} test images: intervals are wide")
    if test.multi_label:
        for features, which in ((test, "test"), (train, "training")):
            labels = features.labels.cpu()
            if skipped := int((~_both(labels)).sum()):
                notes.append(
                    f"{skipped} of {labels.shape[1]} classes are not in AUROC: no {which} image has"
                    " them, or all do"
                )
    else:
        if len(test.labels.unique()) == 1:
            notes.append("all test images are of one class: the score is the share of these alone")
        unseen = set(test.labels.unique().tolist()) - set(train.labels.unique().tolist())
        if unseen:
            notes.append(
                f"{len(unseen)} classes have test images but no training images: those count as"
                " errors"
            )
    return notes


def _budget_notes(train: Features, budget: Budget) -> list[str]:
    labels = train.labels.cpu()
    if budget.per_class is not None and (few := shortfall(labels, budget.per_class)):
        return [
            f"{few} classes have fewer than {budget.per_class} training images: all of those were"
            " taken"
        ]
    if budget.total is not None and budget.total >= len(labels):
        return [f"there are only {len(labels)} training images: {budget} is the same as all"]
    return []
