"""Intervals by simulation: they hold the truth where test images are few, and call noise better or
worse one time in 20.
"""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, rankdata

from selftaught.evaluation.bootstrap import PAIRED, Intervals, Outcomes, intervals

Array = NDArray[np.float64]
RESAMPLES = 400


def limits(
    values: Array,
    groups: Array,
    paired: bool = False,
    points: Array | None = None,
    sides: int = 1,
    resamples: int = RESAMPLES,
) -> Intervals:
    """Of trials [T, M] or [T, M, Q], each a score of its own."""
    values = values.reshape(*values.shape[:2], -1).astype(np.float64)
    outcomes = Outcomes(
        values=values, groups=groups.reshape(values.shape[1], -1).astype(np.int64), sides=sides
    )
    points = outcomes.scores[:, None] if points is None else points
    return intervals(outcomes, points, np.full(len(values), paired), seed=0, resamples=resamples)


def told_apart(found: Intervals) -> float:
    return float(((found.low > 0) | (found.high < 0)).mean())


def at_most(rate: float, trials: int) -> float:
    """What so many trials find of a rate at most, nearly always."""
    return rate + 3.5 * np.sqrt(rate * (1 - rate) / trials)


def trials_of(images: int) -> int:
    return 400 if images <= 100 else 150


def placed(truth: NDArray[np.bool_], scores: Array) -> Array:
    """The placements [T, M] of trials of scores [T, M]."""
    shares, ranks = np.empty_like(scores), rankdata(scores, axis=1)
    for side, sign in ((truth, 1), (~truth, -1)):
        found = (ranks[:, side] - rankdata(scores[:, side], axis=1)) / (~side).sum()
        shares[:, side] = found if sign == 1 else 1 - found
    return shares


BALANCED = [(n,) * classes for classes, n in product((2, 3, 10), (1, 2, 3, 5, 20, 100))]
UNBALANCED = [
    (100, 1),
    (1000, 10),
    (20, 3),
    (50, 5, 1),
    (30, 30, 30, 1, 1, 1),
    (100, 50, 20, 10, 5, 2, 1),
]


@pytest.mark.parametrize("counts", [*BALANCED, *UNBALANCED], ids=str)
def test_the_interval_of_a_balanced_accuracy_holds_the_truth(counts: tuple[int, ...]) -> None:
    """Whether classes are equally hard or not; .5 is chance of two classes, 1.0 is never wrong."""
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(len(counts)), counts)
    trials = trials_of(len(groups))
    for accuracy in (1 / len(counts), 0.5, 0.9, 0.99, 1.0):
        for spread in (0.0, 0.8):
            of_class = accuracy + spread * min(accuracy, 1 - accuracy) * np.linspace(
                -1, 1, len(counts)
            )
            found = limits(rng.random((trials, len(groups))) < of_class[groups], groups)
            missed = (found.low > of_class.mean() + 1e-9) | (found.high < of_class.mean() - 1e-9)
            assert missed.mean() <= at_most(0.06, trials), (accuracy, spread)


@pytest.mark.parametrize("counts", BALANCED[::2], ids=str)
def test_so_it_does_with_five_draws_of_the_labels(counts: tuple[int, ...]) -> None:
    rng, groups = np.random.default_rng(2), np.repeat(np.arange(len(counts)), counts)
    trials = trials_of(len(groups))
    for accuracy, between in product((0.5, 0.9), (0.0, 0.03, 0.1)):
        ability = (accuracy + between * rng.standard_normal((trials, 1, 5))).clip(0, 1)
        right = rng.random((trials, len(groups), 1)) < ability  # an image is as hard in every draw
        found = limits(right.mean(2), groups, points=right.mean(1))
        missed = (found.low > accuracy) | (found.high < accuracy)
        assert missed.mean() <= at_most(0.06, trials), (accuracy, between)


@pytest.mark.parametrize("counts", [*BALANCED, *UNBALANCED], ids=str)
def test_equal_models_are_called_better_or_worse_one_time_in_twenty(
    counts: tuple[int, ...],
) -> None:
    rng, groups = np.random.default_rng(3), np.repeat(np.arange(len(counts)), counts)
    trials = trials_of(len(groups))
    shape = (trials, len(groups))
    for accuracy, alike in (
        (0.5, 0.0),
        (0.5, 0.6),
        (0.7, 0.95),
        (0.9, 0.0),
        (0.9, 0.6),
        (0.99, 0.6),
    ):
        hard, own = rng.random(shape), rng.random((2, *shape))
        one, other = np.where(rng.random(shape) < alike, hard, own) < accuracy
        found = limits(one * 1.0 - other, groups, paired=True)
        assert told_apart(found) <= at_most(0.05, trials), (accuracy, alike)
    for accuracy in (0.5, 0.9):
        ability = (accuracy + 0.05 * rng.standard_normal((2, trials, 1, 5))).clip(0, 1)
        gap = np.subtract(*((own[..., None] < ability) * 1.0))
        interval = limits(gap.mean(2), groups, paired=True, points=gap.mean(1))
        assert told_apart(interval) <= at_most(0.05, trials), accuracy


@pytest.mark.parametrize(
    "counts", [(1, 1), (3, 3), (5, 5), (1, 100), (5, 100), (20, 20), (100, 100)], ids=str
)
def test_so_it_is_with_an_auroc(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
    trials = 200
    for area in (0.5, 0.7, 0.9, 0.99):
        apart = np.sqrt(2) * norm.ppf(area) * labels.numpy()
        shared = np.sqrt(0.6) * rng.standard_normal((trials, len(labels)))
        noise = np.sqrt(0.4) * rng.standard_normal((2, *shared.shape))
        both = [placed(labels.numpy() == 1, apart + shared + one) for one in noise]
        groups = labels.numpy()
        found = limits(both[0], groups, sides=2)
        assert ((found.low > area) | (found.high < area)).mean() <= at_most(0.06, trials), area
        assert told_apart(limits(both[0] - both[1], groups, paired=True, sides=2)) <= at_most(
            0.05, trials
        ), area


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 5, 10, 20), (1, 39)], ids=str)
def test_and_with_several_classes_an_image(counts: tuple[int, ...]) -> None:
    rng, trials = np.random.default_rng(5), 150
    labels = torch.zeros(40, len(counts), dtype=torch.long)
    for column, count in enumerate(counts):
        labels[rng.permutation(40)[:count], column] = 1
    for area in (0.5, 0.8, 0.99):
        apart = np.sqrt(2) * norm.ppf(area) * labels.numpy()
        noise = rng.standard_normal((2, trials, *labels.shape))
        scores = apart + noise
        both = [
            np.stack(
                [placed(labels.numpy()[:, q] == 1, one[:, :, q]) for q in range(len(counts))],
                axis=2,
            )
            for one in scores
        ]
        groups = labels.numpy() + 2 * np.arange(len(counts))
        found = limits(both[0], groups, sides=2)
        assert ((found.low > area) | (found.high < area)).mean() <= at_most(0.06, trials), area
        assert told_apart(limits(both[0] - both[1], groups, paired=True, sides=2)) <= at_most(
            0.05, trials
        ), area


@pytest.mark.parametrize("counts", [*BALANCED, *UNBALANCED], ids=str)
@pytest.mark.parametrize("draws", [1, 5])
def test_no_interval_is_a_point(counts: tuple[int, ...], draws: int) -> None:
    """All right, all wrong, one class alone guessed; two that say the same."""
    groups = np.repeat(np.arange(len(counts)), counts)
    values = np.stack([np.ones(len(groups)), np.zeros(len(groups)), groups == 0])
    scores = np.asarray([1.0, 0.0, 1 / len(counts)])
    found = limits(values, groups, points=np.repeat(scores[:, None], draws, 1))
    assert (found.low <= scores).all()
    assert (found.high >= scores).all()
    assert ((found.high - found.low) > 0.5 / len(groups)).all()
    same = limits(0 * values, groups, paired=True)
    assert (same.low < 0).all()
    assert (same.high > 0).all()


@pytest.mark.parametrize("counts", [(100,) * 2, (100,) * 10, (300,) * 3, (1000, 200)], ids=str)
@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.85])
def test_of_many_images_it_is_the_plain_bootstraps(
    counts: tuple[int, ...], accuracy: float
) -> None:
    rng, groups = np.random.default_rng(6), np.repeat(np.arange(len(counts)), counts)
    of_class = accuracy + 0.5 * (1 - accuracy) * np.linspace(-1, 1, len(counts))
    hard, own = rng.random((5, len(groups))), rng.random((2, 5, len(groups)))
    one, other = (np.where(rng.random(hard.shape) < 0.6, hard, own) < of_class[groups]) * 1.0
    for paired, values in ((False, one), (True, one - other)):
        plain = np.stack(
            [
                values[:, groups == c][:, rng.integers(0, n, (2000, n))].mean(2)
                for c, n in enumerate(counts)
            ]
        ).mean(0)
        low, high = np.quantile(plain, [0.025, 0.975], axis=1)
        found = limits(values, groups, paired=paired, resamples=2000)
        assert ((found.high - found.low) / (high - low)).mean() == pytest.approx(1, abs=0.1)
        assert abs((found.high + found.low - high - low) / (high - low)).mean() < 0.2


@pytest.mark.parametrize("images", [2, 5, 6, 10, 40])
def test_of_one_group_it_lies_between_mid_p_and_clopper_pearson(images: int) -> None:
    right = np.tril(np.ones((images + 1, images)), -1)  # 0 right, 1 right, ...
    found = limits(right, np.zeros(images), resamples=4000)
    for number, low, high in zip(range(images + 1), found.low, found.high, strict=True):
        exact = binomtest(number, images).proportion_ci(0.95, "exact")
        narrower = binomtest(number, images).proportion_ci(0.90, "exact")
        assert exact.low - 0.03 <= low <= narrower.low + 0.03
        assert narrower.high - 0.03 <= high <= exact.high + 0.03


@pytest.mark.parametrize("wins", [3, 4, 5, 6, 8])
def test_of_differences_of_one_group_it_is_mcnemars_mid_p(wins: int) -> None:
    """Whatever the number of images that both say the same of: it takes five won and none lost."""
    values = np.zeros((1, 60))
    values[:, :wins] = 1
    mid_p = 2 * PAIRED * 0.5**wins
    assert (limits(values, np.zeros(60), paired=True).low[0] > 0) == (mid_p < 0.05)


def test_scores_are_resampled_alike_whatever_stands_beside_them() -> None:
    values = np.random.default_rng(7).random((4, 30))
    together, alone = limits(values, np.arange(30) % 3), limits(values[1:2], np.arange(30) % 3)
    assert (together.low[1], together.high[1]) == pytest.approx((alone.low[0], alone.high[0]))
    outcomes = Outcomes(values=values[..., None], groups=np.arange(30)[:, None] % 3)
    paired = np.zeros(4, dtype=bool)
    whole, parts = (
        intervals(outcomes, values[:, :1], paired, seed=0, block=b) for b in (2**22, 30 * 7)
    )
    assert whole.low == pytest.approx(parts.low, abs=0.05)
