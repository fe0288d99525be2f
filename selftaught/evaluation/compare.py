"""Comparison of backbones on the same label draws and test images, with paired intervals."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught.data.index.label_budget import Budget, draw, shortfall
from selftaught.errors import UserError
from selftaught.evaluation.bootstrap import Intervals, Outcomes, intervals
from selftaught.evaluation.results import GAP, Choice, Difference, Results, Row
from selftaught.features.metrics import auroc, balanced_accuracy, placements
from selftaught.features.protocol import (
    FeatureExtractor,
    Features,
    LabelledImages,
    Protocol,
    Scores,
    Subject,
    class_count,
)
from selftaught.ranges import check_seed


class NothingToScore(UserError):
    """No class can be learnt or scored with these labels."""


def evaluate(
    subjects: Sequence[Subject],
    train: LabelledImages,
    test: LabelledImages,
    protocols: Sequence[Protocol],
    *,
    labels: Sequence[str] = ("5", "20", "all", "total:1000"),
    draws: int = 5,
    seed: int = 0,
    resamples: int = 2000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Score each backbone on the same images by every protocol with every number of labels.

    The first backbone is compared with each other one. If all training images are used, there is
    one draw. The same seed gives the same results. The metric is balanced accuracy; for two classes
    also AUROC; for several classes an image AUROC only. Raises UserError if nothing can be scored.
    """
    check_seed(seed)
    _check_images(subjects, train, test)
    if draws < 1 or resamples < 1:
        raise UserError("the numbers of draws and resamples must be 1 or more")
    budgets = [Budget.parse(text) for text in labels]
    notes = _notes(train, test)
    supported = list(protocols)
    if reason := refusal(train.labels.cpu(), test.labels.cpu()):
        supported = [p for p in protocols if not p.learns and not train.multi_label]
        if not supported:
            raise NothingToScore(reason)
        notes.append(reason)
    rows: list[Row] = []
    differences: list[Difference] = []
    choices: list[Choice] = []
    steps = [0, len(subjects) * len(supported) * len(budgets) * draws]
    for protocol, budget in product(supported, budgets):
        subsets = [
            draw(train.labels, per_class=budget.per_class, total=budget.total, seed=seed + i)
            for i in range(draws)
        ]
        if len(subsets[0]) == len(train.labels):
            subsets = subsets[:1]
            steps[1] -= len(subjects) * (draws - 1)
        notes += _budget_notes(train, budget)
        measured: dict[str, list[dict[str, _Measured]]] = {}
        stages: dict[str, list[str]] = {}
        for subject in subjects:
            measured[subject.name], stages[subject.name] = [], []
            chosen: list[Mapping[str, float]] = []
            for subset in subsets:
                labelled = train.take(subset.to(train.labels.device))
                scores = protocol.score(subject, labelled, test.positions)
                measured[subject.name].append(_measure(train, test, scores))
                chosen += [dict(scores.chosen)] if scores.chosen else []
                stages[subject.name].append(scores.stage)
                steps[0] += 1
                if on_progress is not None:
                    on_progress(*steps)
            if chosen:
                about = {"protocol": protocol.name, "labels": str(budget)}
                choices.append(Choice(backbone=subject.name, **about, chosen=tuple(chosen)))
        for metric in measured[next(iter(measured))][0]:
            values = {name: [m[metric] for m in each] for name, each in measured.items()}
            condition = {
                "protocol": protocol.name,
                "labels": str(budget),
                "metric": metric,
                "layer": protocol.layer,
            }
            new_rows, new_differences = _compare(values, condition, resamples, seed)
            rows += [replace(r, stage=describe_stages(stages[r.backbone])) for r in new_rows]
            differences += new_differences
    return Results(
        rows=tuple(rows),
        differences=tuple(differences),
        notes=tuple(dict.fromkeys(notes)),
        choices=tuple(choices),
    )


def evaluate_features(
    backbones: Mapping[str, tuple[Features, Features]],
    protocols: Sequence[Protocol],
    *,
    labels: Sequence[str] = ("5", "20", "all", "total:1000"),
    draws: int = 5,
    seed: int = 0,
    resamples: int = 2000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """As `evaluate`, of features that exist already: (training, test) features by backbone's name.

    All backbones must have the same labels in the same order. Protocols may only read features.
    Raises UserError where labels differ.
    """
    sides = list(backbones.values())
    for side, other in product((0, 1), sides[1:]):
        if not torch.equal(sides[0][side].labels, other[side].labels):
            raise UserError("all backbones need features of the same images, in the same order")
    if not sides:
        raise UserError("there is no backbone to evaluate")
    train, test = sides[0]
    count = len(train.labels)
    return evaluate(
        [_feature_subject(name, *features) for name, features in backbones.items()],
        LabelledImages(torch.arange(count), train.labels),
        LabelledImages(count + torch.arange(len(test.labels)), test.labels),
        protocols,
        labels=labels,
        draws=draws,
        seed=seed,
        resamples=resamples,
        on_progress=on_progress,
    )


def _feature_subject(name: str, train: Features, test: Features) -> Subject:
    """A subject with these features of the images 0..N-1 and N..N+M-1."""
    vectors = torch.cat([train.vectors, test.vectors])
    absent: Any = None  # protocols of features read neither network nor images
    return Subject(
        name=name,
        backbone=absent,
        images=absent,
        size=0,
        device="cpu",
        precision="fp32",
        features=FeatureExtractor(vectors.__getitem__, torch.arange(len(vectors))),
    )


def score_protocol(
    protocol: Protocol,
    subjects: Sequence[Subject],
    train: LabelledImages,
    test: LabelledImages,
    *,
    labels: Sequence[str],
    draws: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Score the backbones that a protocol supports.

    A protocol that does not learn uses no labels: its rows have the labels "own".
    """
    supported = [subject for subject in subjects if protocol.supports(subject)]
    if protocol.learns:
        return evaluate(
            supported,
            train,
            test,
            [protocol],
            labels=labels,
            draws=draws,
            seed=seed,
            on_progress=on_progress,
        )
    results = evaluate(
        supported, test, test, [protocol], labels=["all"], seed=seed, on_progress=on_progress
    )
    return replace(
        results,
        rows=tuple(replace(row, labels="own") for row in results.rows),
        differences=tuple(replace(difference, labels="own") for difference in results.differences),
    )


def _check_images(subjects: Sequence[Subject], train: LabelledImages, test: LabelledImages) -> None:
    """Raise UserError if there is nothing to evaluate, or if labels are of two kinds."""
    if not subjects:
        raise UserError("there is no backbone to evaluate")
    for side in (train, test):
        if not len(side.positions):
            raise UserError(
                "no image to evaluate on: give labelled data with images on both sides of the split"
            )
        if side.labels.min() < 0:
            raise UserError(
                f"{int((side.labels < 0).sum())} images have no label: evaluate on labelled images"
                " only"
            )
    if train.multi_label != test.multi_label:
        raise UserError("training and test images must both have one class, or both several")


@dataclass(frozen=True, eq=False)
class _Measured:
    """One metric of one set of scores, and the outcomes of M test images."""

    value: float
    outcomes: Tensor  # [M, Q]
    groups: Tensor  # [M, Q]
    sides: int


def _measure(train: LabelledImages, test: LabelledImages, scores: Scores) -> dict[str, _Measured]:
    """Compute the metrics of one set of scores, by name."""
    labels, values = test.labels.cpu(), scores.values.cpu()
    if test.multi_label:
        scored = _list_scored_classes(train.labels.cpu(), labels)
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
    measured: Mapping[str, Sequence[_Measured]],
    condition: Mapping[str, str],
    resamples: int,
    seed: int,
) -> tuple[list[Row], list[Difference]]:
    """Rows of all backbones, and the differences of the first one to each other one.

    measured: for each backbone's name, one value for each draw.
    """
    names, (one, *_) = list(measured), next(iter(measured.values()))
    points = np.asarray([[m.value for m in each] for each in measured.values()])
    values = np.stack(
        [sum(m.outcomes.double().numpy() for m in each) / len(each) for each in measured.values()]
    )
    values, points = (np.concatenate([x, x[:1] - x[1:]]) for x in (values, points))
    outcomes = Outcomes(values=values, groups=one.groups.numpy(), sides=one.sides)
    paired = np.arange(len(values)) >= len(names)
    limits = intervals(outcomes, points, paired, seed=seed, resamples=resamples)
    means, draws, images = points.mean(1).tolist(), points.shape[1], len(one.outcomes)
    ends = list(zip(means, limits.low.tolist(), limits.high.tolist(), strict=True))
    rows = [
        Row(backbone=name, **condition, mean=mean, low=low, high=high, draws=draws)
        for name, (mean, low, high) in zip(names, ends, strict=False)
    ]
    differences = [
        Difference(
            backbone=names[0],
            against=name,
            **condition,
            mean=mean,
            low=low,
            high=high,
            needed=needed,
        )
        for name, (mean, low, high), needed in zip(
            names[1:], ends[len(names) :], _count_needed(images, limits)[len(names) :], strict=True
        )
    ]
    return rows, differences


def _count_needed(images: int, limits: Intervals) -> list[int]:
    """Number of test images that a difference of GAP requires, to two digits; 0 if reached."""
    needed = [images * (half / GAP) ** 2 for half in limits.half.tolist()]
    digits = [10 ** max(math.floor(math.log10(max(n, 1))) - 1, 0) for n in needed]
    return [math.ceil(n / d) * d if n > images else 0 for n, d in zip(needed, digits, strict=True)]


def describe_stages(stages: Sequence[str]) -> str:
    """The stages that several draws chose, as text: layer3, or layer3 4x, layer4 1x."""
    counts = Counter(stages).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{stage} {count}x" for stage, count in counts)


def refusal(train: Tensor, test: Tensor) -> str | None:
    """Why nothing can be learnt or scored with these labels ([N] or [N, C]); else None."""
    if train.ndim == 2:
        if not bool(_both(train).any()):
            return (
                f"all {len(train)} training images have the same labels: nothing can be learnt,"
                " give images with other labels"
            )
        if not len(_list_scored_classes(train, test)):
            return (
                "nothing can be scored: no class of the training images has test images with it and"
                " others without it"
            )
        return None
    if len(train.unique()) == 1:
        return (
            f"all {len(train)} labelled training images are of one class: nothing can be learnt;"
            " give training images of two classes or more"
        )
    if not bool(torch.isin(test, train).any()):
        return "nothing can be scored: no class of the training images has test images"
    return None


def _list_scored_classes(train: Tensor, test: Tensor) -> Tensor:
    """The classes that can be learnt and scored, of labels [N, C]: indices.

    They have positive and negative images on both sides of the split.
    """
    return (_both(train) & _both(test)).nonzero()[:, 0]


def _both(labels: Tensor) -> Tensor:
    """[C]: whether a class has positive and negative images."""
    return (labels > 0).any(0) & ~(labels > 0).all(0)


def _notes(train: LabelledImages, test: LabelledImages) -> list[str]:
    """Remarks on the labelled images for the reader of the results."""
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


def _budget_notes(train: LabelledImages, budget: Budget) -> list[str]:
    """Remarks on a number of labels that the training images do not reach."""
    labels = train.labels.cpu()
    if budget.per_class is not None and (few := shortfall(labels, budget.per_class)):
        return [
            f"{few} classes have fewer than {budget.per_class} training images: all of those were"
            " taken"
        ]
    if budget.total is not None and budget.total >= len(labels):
        return [f"there are only {len(labels)} training images: {budget} is the same as all"]
    return []
