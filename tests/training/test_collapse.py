"""Measures of features against their definitions; the guard on recorded runs (more than 200 lines:
the recordings).
"""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.features.knn import KNN
from selftaught.features.metrics import balanced_accuracy, effective_count
from selftaught.features.protocol import Features
from selftaught.features.statistics import effective_rank, measure, measure_knn
from selftaught.training.collapse import CollapseDetector

# Recorded runs of ResNet-18 (unless it says otherwise) on photographs of 32 pixels: K with a chance
# level of ln(K), then "step std rank loss" of each observation. Batch 128 and ten steps of warm-up
# unless it says otherwise.
HEALTHY = {
    "MoCo, lr .06": (
        2049,
        (
            "0 0.343 46.2 - | 2 0.652 99 5.568 | 5 0.664 70 6.135 | 10 0.645 61.5 6.111 | 20 0.754"
            " 76.1 6.157 | 25 0.78 84.8 6.417 | 30 0.79 90.4 6.783 | 40 0.794 97.7 7.058 | 50 0.793"
            " 103.4 6.963 | 60 0.793 105.1 7.068 | 70 0.79 105.4 7.095 | 75 0.791 106.8 6.946 | 80"
            " 0.792 107.2 7.011 | 90 0.793 108.3 7.181 | 100 0.798 111.6 7.099 | 125 0.799 113.4"
            " 7.151 | 150 0.8 115.4 7.186 | 175 0.801 115.6 7.191"
        ),
    ),
    "SimCLR, lr .06": (
        255,
        (
            "0 0.343 46.2 - | 2 0.651 124.4 5.331 | 5 0.706 92.5 5.362 | 10 0.725 91.5 5.074 | 20"
            " 0.787 109.7 5.094 | 25 0.793 110.1 5.268 | 30 0.792 110.8 5.198 | 40 0.792 118.3"
            " 5.196 | 50 0.792 123.9 5.002 | 60 0.789 127.1 5.047 | 70 0.789 135 4.971 | 75 0.792"
            " 139.9 4.77 | 80 0.795 140.7 4.838 | 90 0.794 146.2 5.057 | 100 0.793 149.3 4.73 | 125"
            " 0.795 159.3 4.69 | 150 0.798 160.3 4.538"
        ),
    ),
    "BYOL, lr .1": (
        None,
        (
            "0 0.343 46.2 - | 2 0.639 123 2.004 | 5 0.674 103.7 1.435 | 10 0.75 96.8 0.929 | 20"
            " 0.793 109.7 1.001 | 25 0.797 107.6 0.999 | 30 0.797 107.1 1.047 | 40 0.794 107.4"
            " 1.068 | 50 0.795 107.9 0.974 | 60 0.792 109 0.992 | 70 0.795 110.8 0.976 | 75 0.795"
            " 111.2 0.92 | 80 0.794 109.9 0.996 | 90 0.795 114.1 1.041 | 100 0.796 111.9 0.993 |"
            " 125 0.796 115.2 0.974 | 150 0.796 116 0.995"
        ),
    ),
    "MoCo, AdamW, lr .001": (
        2049,
        (
            "0 0.343 46.2 - | 2 0.669 114.2 5.704 | 5 0.612 120.7 6.472 | 10 0.622 116.1 6.687 | 20"
            " 0.71 127.5 6.741 | 25 0.742 130.6 6.724 | 30 0.767 133 6.87 | 40 0.783 141.9 6.89 |"
            " 50 0.793 143.4 6.616 | 60 0.8 150 6.832 | 70 0.8 151.8 6.86 | 75 0.799 151.9 6.625 |"
            " 80 0.798 152.4 6.697 | 90 0.798 152.6 6.905 | 100 0.8 156.6 6.804 | 125 0.803 158.3"
            " 6.88 | 150 0.804 159.8 6.992"
        ),
    ),
    "supervised, lr .05": (
        10,
        (
            "0 0.343 46.2 - | 2 0.67 111.9 2.315 | 5 0.68 94.3 2.338 | 10 0.698 74.5 2.301 | 20"
            " 0.739 81.2 2.306 | 25 0.743 78.3 2.302 | 30 0.754 80.1 2.38 | 40 0.754 83.1 2.312 |"
            " 50 0.774 85.4 2.416 | 60 0.761 92.3 2.435 | 70 0.775 100.2 2.451 | 75 0.775 102.9"
            " 2.31 | 80 0.777 104.7 2.31 | 90 0.787 112 2.282 | 100 0.784 114 2.288 | 125 0.789 123"
            " 2.081 | 150 0.791 128.9 1.984 | 175 0.791 133.6 2.025 | 200 0.793 134.7 2.035"
        ),
    ),
    "MoCo, lr .06, no warm-up, batch 64": (
        1025,
        (
            "0 0.378 37.3 - | 1 0.453 17.9 4.969 | 2 0.472 15.7 5.253 | 3 0.523 19 5.238 | 4 0.553"
            " 21.1 5.476 | 5 0.572 23.3 5.498 | 6 0.594 25.2 5.682 | 7 0.614 26.9 5.811 | 9 0.651"
            " 30.8 5.902 | 12 0.694 36.8 6.013 | 15 0.729 43.3 6.124 | 18 0.754 48.5 6.245 | 21"
            " 0.768 52.6 6.418 | 24 0.779 56.1 6.409 | 27 0.785 58.4 6.462 | 30 0.788 59.9 6.398"
        ),
    ),
    "MoCo from pretrained EfficientNet-Lite, lr .03": (
        1025,
        (
            "0 0.601 184.4 - | 1 0.636 185.3 5.259 | 2 0.67 186.6 5.199 | 3 0.7 187 5.303 | 4 0.704"
            " 182.5 5.43 | 5 0.685 178.4 5.711 | 6 0.655 173.5 5.751 | 7 0.617 166.5 5.912 | 9"
            " 0.577 158.6 6.156 | 12 0.569 164.1 6.329 | 15 0.606 170.5 6.394 | 18 0.687 176.4"
            " 6.478 | 21 0.759 175.6 6.539 | 24 0.822 179.8 6.502 | 27 0.862 185.7 6.576 | 30 0.878"
            " 185.9 6.57"
        ),
    ),
    "MoCo on grey tiles, lr .06": (
        1025,
        (
            "0 0.307 28.8 - | 1 0.427 17.8 4.822 | 2 0.461 16.2 5.271 | 3 0.501 18.8 5.236 | 4"
            " 0.518 20.3 5.385 | 5 0.534 21.5 5.609 | 6 0.538 21.5 5.753 | 7 0.554 22.1 5.853 | 9"
            " 0.592 24.4 5.899 | 12 0.632 26.9 6.148 | 15 0.668 29.8 6.263 | 18 0.694 33.3 6.256 |"
            " 21 0.707 35.8 6.445 | 24 0.723 38.8 6.388 | 27 0.734 41.3 6.396 | 30 0.735 43.3 6.603"
        ),
    ),
}

COLLAPSED = {
    "MoCo, lr 6": (
        2049,
        (
            "0 0.343 46.2 - | 2 0.212 9 4.919 | 5 0.181 4.3 4.455 | 10 0.127 7.7 6.159 | 20 0.537"
            " 14 7.34 | 25 0.504 18.1 7.504 | 30 0.525 13.9 7.524 | 40 0.27 6.1 7.518 | 50 0.199"
            " 3.9 7.436 | 60 0.129 3.2 7.402 | 70 0.165 3.8 7.28 | 75 0.247 5.2 7.25 | 80 0.256 5.2"
            " 7.433 | 90 0.395 8.2 7.392 | 100 0.413 9.1 7.395"
        ),
    ),
    "SimCLR, lr 6": (
        255,
        (
            "0 0.343 46.2 - | 2 0.368 23.8 5.377 | 5 0.316 12.6 5.415 | 10 0.054 2.8 5.141 | 20"
            " 0.368 14.6 4.883 | 25 0.447 15.2 4.841 | 30 0.59 26.7 4.998 | 40 0.413 21.1 4.999 |"
            " 50 0.342 15.1 4.724 | 60 0.377 20.1 4.648 | 70 0.473 27.6 4.381 | 75 0.505 30.3 4.495"
            " | 80 0.502 31.9 4.633 | 90 0.538 34.6 4.567"
        ),
    ),
    "SimCLR, lr 6, no warm-up": (
        255,
        (
            "0 0.343 46.2 - | 2 0.097 4.8 5.514 | 5 0.021 1.6 5.348 | 10 0.136 5.1 5.066 | 20 0.544"
            " 28.3 4.879 | 25 0.545 35.2 4.646 | 30 0.456 31.1 4.661 | 40 0.434 25 4.78 | 50 0.474"
            " 30.9 4.411 | 60 0.518 34.3 4.462"
        ),
    ),
    "BYOL, lr 10": (
        None,
        (
            "0 0.343 46.2 - | 2 0.405 21.1 1.106 | 5 0.39 13.1 1.016 | 10 0.569 18.9 1.166 | 20"
            " 0.666 19.4 1.283 | 25 0.594 23 1.012 | 30 0.544 11.4 0.819 | 40 0.305 6.2 0.665 | 50"
            " 0.221 4 0.594 | 60 0.173 3.1 0.606 | 70 0.31 4.5 0.529 | 75 0.37 5.1 0.521 | 80 0.393"
            " 5.1 0.581 | 90 0.417 5.4 0.625 | 100 0.425 5.4 0.594"
        ),
    ),
    "MoCo, AdamW, lr .1": (
        2049,
        (
            "0 0.343 46.2 - | 2 0.39 13.8 5.281 | 5 0.026 1.4 5.22 | 10 0.103 2.9 5.263 | 20 0.494"
            " 15.5 6.445 | 25 0.58 23.6 6.848 | 30 0.59 21.5 7.092 | 40 0.586 26.7 7.148 | 50 0.562"
            " 27.2 6.986 | 60 0.544 27.4 7.042 | 70 0.532 27.8 6.877 | 75 0.516 28.6 6.787 | 80"
            " 0.532 28.4 6.856 | 90 0.545 27.6 6.911 | 100 0.548 27.9 7.041"
        ),
    ),
    "MoCo from pretrained EfficientNet-Lite, lr 3": (
        1025,
        (
            "0 0.601 184.4 - | 1 0.12 55.3 5.259 | 2 0.151 78.5 4.291 | 3 0.187 93.1 4.297 | 4"
            " 0.163 85.2 4.542 | 5 0.149 80.3 4.856 | 6 0.16 88.2 5.157 | 7 0.172 93.9 5.417 | 9"
            " 0.196 104.3 5.811 | 12 0.245 114.1 6.239 | 15 0.231 105.3 6.542 | 18 0.275 108.6"
            " 6.772 | 21 0.418 136.4 6.886 | 24 0.613 154.4 6.916 | 27 0.327 109.4 6.925 | 30 0.138"
            " 48.3 6.927"
        ),
    ),
    "SimSiam without stop-gradient": (
        1,
        (
            "0 0.343 46.2 - | 2 0.65 122.3 1.17 | 5 0.702 101.3 0.4 | 10 0.753 91.1 0.023 | 20"
            " 0.793 105.7 0.005 | 25 0.794 105.6 0.004 | 30 0.794 105.8 0.003 | 40 0.79 104.8 0.002"
            " | 50 0.791 103.9 0.002 | 60 0.789 103.7 0.001 | 70 0.789 103 0.001 | 75 0.788 103.2"
            " 0.001 | 80 0.788 102.3 0.001 | 90 0.789 102.7 0.001 | 100 0.789 102.6 0.001"
        ),
    ),
}


Observation = tuple[int, dict[str, float], float | None]


def observations(recording: str) -> list[Observation]:
    rows = [row.split() for row in recording.split("|")]
    return [
        (int(step), {"std": float(std), "rank": float(rank)}, None if loss == "-" else float(loss))
        for step, std, rank, loss in rows
    ]


def chance(k: int | None) -> float | None:
    return None if k is None else math.log(k)  # ln(1) = 0: the loss of agreeing on a constant


def run(guard: CollapseDetector, recording: str, k: int | None) -> list[str]:
    """The warnings of a run that is stopped when the guard says so."""
    warnings = []
    for step, features, loss in observations(recording):
        warning = guard.observe(step, features, loss=loss, collapsed_loss=chance(k))
        warnings += [warning] if warning else []
        if guard.collapsed:
            break
    return warnings


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_healthy_runs_raise_no_alarm(name: str, every: int) -> None:
    k, recording = HEALTHY[name]
    rows = recording.split("|")
    assert run(CollapseDetector(), "|".join(rows[::every]), k) == []
    assert run(CollapseDetector(patience=1), recording, None) == []


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapse_is_called_early_with_its_cause_and_its_cure(name: str) -> None:
    k, recording = COLLAPSED[name]
    guard = CollapseDetector()
    warnings = run(guard, recording, k)
    assert guard.collapsed, warnings
    assert int(warnings[0].split(":")[0].removeprefix("step ")) <= 30
    assert int(warnings[-1].split(":")[0].removeprefix("step ")) <= 100
    assert "collapsing (1 of 3" in warnings[0]
    assert "have collapsed (3 of 3" in warnings[-1]
    assert "Likely cause" in warnings[-1]
    assert "--optimizer.lr" in warnings[-1]


def test_a_run_that_recovers_is_warned_of_and_not_stopped() -> None:
    guard = CollapseDetector()
    features = {"std": 0.4, "rank": 40.0}
    guard.observe(0, features)
    for step in range(100, 1000, 100):
        sick = step % 300 != 0
        warning = guard.observe(step, {"std": 0.1, "rank": 4.0} if sick else features)
        assert (warning is not None) == (step % 300 == 100)
        assert not guard.collapsed


def test_patience_counts_observations_in_a_row() -> None:
    guard = CollapseDetector(patience=5)
    guard.observe(0, {"std": 0.4, "rank": 40.0})
    said = [guard.observe(100 + i, {"std": 0.01, "rank": 1.0}) is not None for i in range(6)]
    assert said == [True, False, False, False, True, False]
    assert guard.collapsed


def test_features_that_are_not_finite_are_a_collapse_at_once() -> None:
    guard = CollapseDetector()
    guard.observe(0, {"std": 0.4, "rank": 40.0})
    warning = guard.observe(5, measure(torch.full((4, 3), torch.nan)))
    assert guard.collapsed
    assert warning is not None
    assert "not finite" in warning
    assert guard.observe(6, measure(torch.full((4, 3), torch.inf))) is None
    assert guard.collapsed


def test_a_loss_at_its_chance_level_lowers_the_bar_and_alone_says_nothing() -> None:
    level = math.log(4097)
    for rank, alarm in ((30.0, True), (39.0, False)):
        guard = CollapseDetector()
        guard.observe(0, {"std": 0.4, "rank": 40.0})
        warning = guard.observe(100, {"std": 0.4, "rank": rank}, loss=8.30, collapsed_loss=level)
        assert (warning is not None) == alarm
        if warning:
            assert "chance level 8.32" in warning
    guard = CollapseDetector()
    guard.observe(0, {"std": 0.4, "rank": 40.0})
    assert guard.observe(100, {"std": 0.4, "rank": 30.0}, loss=7.2, collapsed_loss=level) is None


def test_a_task_that_is_solved_is_no_collapse() -> None:
    guard = CollapseDetector(voters=1000)
    low = {"std": 0.4, "rank": 8.0, "knn": 0.2, "pretext_chance": 0.125}
    assert guard.observe(0, {**low, "rank": 40.0, "knn": 0.3, "pretext": 0.12}) is None
    for step, accuracy in ((100, 0.15), (200, 0.3)):
        assert guard.observe(step, {**low, "pretext": accuracy}) is None
    warnings = [guard.observe(300 + i, {**low, "pretext": 0.13}) for i in range(3)]
    assert [warning is not None for warning in warnings] == [True, False, True]
    assert guard.collapsed
    guard = CollapseDetector()  # without a known chance nothing is solved
    guard.observe(0, {"std": 0.4, "rank": 40.0, "pretext": 0.1})
    assert guard.observe(100, {"std": 0.4, "rank": 8.0, "pretext": 0.9}) is not None


def test_classes_that_form_are_no_collapse() -> None:
    """In supervised training features gather in as many points as there are classes."""
    guard = CollapseDetector(patience=1)
    guard.observe(0, {"std": 0.3, "rank": 46.0, "knn": 0.25})
    assert guard.observe(500, {"std": 0.8, "rank": 9.0, "knn": 0.9}) is None
    assert guard.observe(600, {"std": 0.8, "rank": 9.0, "knn": 0.25}) is not None
    assert guard.observe(700, {"std": 0.8, "rank": 46.0, "knn": 0.9}) is None
    assert guard.observe(800, {"std": 0.05, "rank": 9.0, "knn": 0.9}) is not None


# CPC at 100 times its rate on photo patches (ResNet-10-t, 32 px): std and rank recover, and nothing
# is learnt.
HARMED = [
    (0, 0.224, 13.41, 0.674),
    (10, 0.118, 2.27, 0.49),
    (25, 0.652, 5.7, 0.542),
    (50, 0.631, 12.6, 0.551),
    (60, 0.65, 13.2, 0.52),
    (70, 0.65, 13.2, 0.52),
]


@pytest.mark.parametrize(
    ("voters", "knn", "stopped"),
    [(500, True, True), (0, True, False), (20, True, False), (500, False, False)],
)
def test_features_that_become_worse_than_random_ones_are_called_so(
    voters: int, knn: bool, stopped: bool
) -> None:
    guard, warnings = CollapseDetector(voters=voters), []
    for step, std, rank, vote in HARMED:
        said = guard.observe(step, {"std": std, "rank": rank} | ({"knn": vote} if knn else {}))
        warnings += [said] if said else []
    assert guard.collapsed == stopped
    assert (
        any("kNN 55.1 %, 67.4 % at the start" in w and "--optimizer.lr" in w for w in warnings)
        == stopped
    )


@pytest.mark.parametrize("voters", [1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("start", [1.0, 0.9, 0.5])
def test_few_votes_are_no_collapse(voters: int, start: float) -> None:
    """However few are right later, as long as fewer than ten were lost; the features are
    healthy.
    """
    guard = CollapseDetector(voters=voters)
    for step, knn in ((0, start), *((25 + 5 * i, max(start - 9 / voters, 0)) for i in range(5))):
        assert guard.observe(step, {"std": 0.4, "rank": 20.0, "knn": knn}) is None
    assert not guard.collapsed


@pytest.mark.parametrize(("start", "now"), [(1.0, 0.8), (0.95, 0.8), (0.674, 0.54), (0.5, 0.38)])
def test_many_votes_that_are_lost_are_one(start: float, now: float) -> None:
    guard = CollapseDetector(voters=256)
    for step, knn in ((0, start), (25, now), (30, now), (35, now)):
        guard.observe(step, {"std": 0.4, "rank": 20.0, "knn": knn})
    assert guard.collapsed


def test_chance_alone_stops_hardly_any_run() -> None:
    """The same share of right votes before and later, counted three times: voters of every number,
    few and many.
    """
    rng = torch.Generator().manual_seed(0)
    for voters in (3, 10, 30, 100, 300):
        stopped = 0
        for share in (0.5, 0.8, 0.95, 1.0):
            for _ in range(100):
                right = (torch.rand(4, voters, generator=rng) < share).double().mean(1).tolist()
                guard = CollapseDetector(voters=voters, patience=1)
                for step, knn in zip((0, 25, 30, 35), right, strict=True):
                    guard.observe(step, {"std": 0.4, "rank": 20.0, "knn": knn})
                stopped += guard.bad > 0
        assert stopped <= 8  # of 400, at a patience of one


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (torch.arange(100) % 4, 100),
        (torch.tensor([0] * 99 + [3]), 4 / (1 + 1 / 99)),  # half of the score hangs on one image
        (torch.tensor([5]), 1),
        (torch.arange(2).repeat(50)[:, None], 25),  # an AUROC of fifty and fifty
        (
            torch.tensor([[1, 0]] + [[0, 0]] * 99),
            1 / (1 + 1 / 99),
        ),  # one positive; a class that no image has
        (torch.zeros(3, 2, dtype=torch.long), 0),
    ],
)
def test_votes_count_as_much_as_their_rarest_class_lets_them(labels: Tensor, count: float) -> None:
    assert effective_count(labels) == pytest.approx(count)


def test_votes_of_one_class_say_nothing() -> None:
    (bank, bank_labels), (vectors, labels) = labelled(90, 0), labelled(60, 1)
    assert measure_knn(vectors, labels, bank, torch.zeros_like(bank_labels)) == {}
    assert measure_knn(vectors, torch.zeros_like(labels), bank, bank_labels) == {}
    assert measure_knn(vectors, torch.ones(60, 2), bank, torch.ones(90, 2)) == {}


def test_samples_too_small_to_judge_raise_no_alarm() -> None:
    guard = CollapseDetector(patience=1)
    for step in range(0, 200, 20):
        assert guard.observe(step, measure(torch.randn(1, 8))) is None


@pytest.mark.parametrize("name", [*HEALTHY, *COLLAPSED])
def test_a_resumed_guard_goes_on_exactly(name: str) -> None:
    k, recording = (HEALTHY | COLLAPSED)[name]
    whole, resumed = CollapseDetector(), CollapseDetector()
    for step, features, loss in observations(recording):
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = CollapseDetector()
        resumed.load_state_dict(state)
        expected = whole.observe(step, features, loss=loss, collapsed_loss=chance(k))
        assert resumed.observe(step, features, loss=loss, collapsed_loss=chance(k)) == expected
        assert resumed.collapsed == whole.collapsed
    assert resumed.state_dict() == whole.state_dict()


# Measures


@pytest.mark.parametrize("rank", [1, 2, 7, 16])
def test_rank_of_matrices_of_known_rank(rank: int) -> None:
    rng = torch.Generator().manual_seed(0)
    rows, _ = torch.linalg.qr(torch.randn(64, rank, generator=rng, dtype=torch.float64))
    columns, _ = torch.linalg.qr(torch.randn(16, rank, generator=rng, dtype=torch.float64))
    assert effective_rank(5 * rows @ columns.T) == pytest.approx(rank)  # equal singular values


def test_rank_weighs_singular_values_by_their_entropy() -> None:
    singular = torch.tensor([4.0, 2.0, 1.0, 1.0])
    share = singular / singular.sum()
    assert effective_rank(singular.diag()) == pytest.approx(
        float((-share * share.log()).sum().exp())
    )
    assert effective_rank(torch.zeros(5, 3)) == 0.0


def test_std_is_one_on_the_sphere_and_zero_in_a_point() -> None:
    rng = torch.Generator().manual_seed(0)
    assert measure(torch.randn(4000, 32, generator=rng))["std"] == pytest.approx(1, abs=0.02)
    point = measure(torch.ones(50, 32) * torch.rand(50, 1, generator=rng).add(0.5))
    assert point["std"] == pytest.approx(0, abs=1e-6)
    assert point["rank"] == pytest.approx(1)
    dead = measure(torch.zeros(50, 32))  # all units silent: no direction at all
    assert (dead["std"], dead["rank"]) == (0.0, 0.0)


def test_alignment_and_uniformity_are_the_papers() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 8, generator=rng), torch.randn(30, 8, generator=rng)
    x, y = F.normalize(a, dim=1), F.normalize(b, dim=1)
    found = measure(a, b)
    assert found["alignment"] == pytest.approx(float((x - y).norm(dim=1).pow(2).mean()), rel=1e-5)
    pairs = [
        math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(30) for j in range(i)
    ]
    assert found["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert measure(a, 3 * a)["alignment"] == pytest.approx(0, abs=1e-6)
    assert "alignment" not in measure(a)


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.eye(3)[labels] + 0.6 * torch.randn(count, 3, generator=rng), labels


def test_votes_are_those_of_knn() -> None:
    (bank, bank_labels), (vectors, labels) = labelled(90, 0), labelled(60, 1)
    found = measure_knn(vectors, labels, bank, bank_labels)
    values = KNN().score_features(Features(bank.double(), bank_labels), vectors.double()).values
    assert found["knn"] == pytest.approx(balanced_accuracy(labels, values))
    assert measure_knn(vectors * torch.nan, labels, bank, bank_labels) == {}
    several = F.one_hot(bank_labels, 3), F.one_hot(labels, 3)
    area = measure_knn(vectors, several[1], bank, several[0])["knn"]
    assert 0.5 < area < 1


def test_measures_of_features_that_are_not_finite_are_nan() -> None:
    found = measure(torch.tensor([[1.0, math.inf], [0.0, 1.0]]))
    assert math.isnan(found["std"])
    assert math.isnan(found["rank"])
