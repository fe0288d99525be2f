"""Measures of features against their definitions; the guard on recorded runs."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.features.knn import KNN
from selftaught.features.metrics import balanced_accuracy, effective_count
from selftaught.features.protocol import Features
from selftaught.features.statistics import effective_rank, measure, measure_knn
from selftaught.training.collapse import CollapseDetector

_, *PARTS = (Path(__file__).parent / "recorded_runs.txt").read_text().split("\n\n")
HEALTHY, COLLAPSED = ({r.split("; ")[0]: r for r in part.strip().split("\n")} for part in PARTS)


def observations(recorded: str) -> Iterator[dict[str, Any]]:
    _, k, rows = recorded.split("; ")
    level = None if k == "-" else math.log(int(k))  # 0: the loss of agreeing on a constant
    for row in rows.split(" | "):
        step, std, rank, loss = row.split()
        yield {
            "step": int(step),
            "features": {"std": float(std), "rank": float(rank)},
            "loss": None if loss == "-" else float(loss),
            "collapsed_loss": level,
        }


def run(guard: CollapseDetector, seen: Iterable[dict[str, Any]]) -> list[str]:
    """The warnings of a run that is stopped when the guard says so."""
    warnings = []
    for each in seen:
        warning = guard.observe(**each)
        warnings += [warning] if warning else []
        if guard.collapsed:
            break
    return warnings


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_healthy_runs_raise_no_alarm(name: str, every: int) -> None:
    seen = list(observations(HEALTHY[name]))
    assert run(CollapseDetector(), seen[::every]) == []
    alone = [{**each, "collapsed_loss": None} for each in seen]
    assert run(CollapseDetector(patience=1), alone) == []


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapse_is_called_early_with_its_cause_and_its_cure(name: str) -> None:
    guard = CollapseDetector()
    warnings = run(guard, observations(COLLAPSED[name]))
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
    text = [guard.observe(100 + i, {"std": 0.01, "rank": 1.0}) is not None for i in range(6)]
    assert text == [True, False, False, False, True, False]
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


def test_a_task_that_a_random_network_solves_is_not_learnt() -> None:
    guard = CollapseDetector()
    task = {"std": 0.4, "rank": 40.0, "pretext_chance": 0.5}
    guard.observe(0, {**task, "pretext": 0.62})
    assert not guard.is_solved({**task, "pretext": 0.62})
    assert guard.is_solved({**task, "pretext": 0.7})
    again = CollapseDetector()
    again.load_state_dict(guard.state_dict())
    assert not again.is_solved({**task, "pretext": 0.62})


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
        text = guard.observe(step, {"std": std, "rank": rank} | ({"knn": vote} if knn else {}))
        warnings += [text] if text else []
    assert guard.collapsed == stopped
    assert (
        any("kNN 55.1 %, 67.4 % at the start" in w and "--optimizer.lr" in w for w in warnings)
        == stopped
    )


def test_luck_on_few_images_is_no_solution() -> None:
    guard = CollapseDetector()
    assert guard.is_solved({"pretext": 0.3, "pretext_chance": 0.25})
    assert not guard.is_solved({"pretext": 0.3, "pretext_chance": 0.25, "pretext_error": 0.03})


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
    whole, resumed = CollapseDetector(), CollapseDetector()
    for each in observations((HEALTHY | COLLAPSED)[name]):
        state = json.loads(json.dumps(resumed.state_dict()))
        resumed = CollapseDetector()
        resumed.load_state_dict(state)
        assert resumed.observe(**each) == whole.observe(**each)
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
    result = measure(a, b)
    assert result["alignment"] == pytest.approx(float((x - y).norm(dim=1).pow(2).mean()), rel=1e-5)
    pairs = [
        math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(30) for j in range(i)
    ]
    assert result["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert measure(a, 3 * a)["alignment"] == pytest.approx(0, abs=1e-6)
    assert "alignment" not in measure(a)


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.eye(3)[labels] + 0.6 * torch.randn(count, 3, generator=rng), labels


def test_votes_are_those_of_knn() -> None:
    (bank, bank_labels), (vectors, labels) = labelled(90, 0), labelled(60, 1)
    result = measure_knn(vectors, labels, bank, bank_labels)
    values = KNN().score_features(Features(bank.double(), bank_labels), vectors.double()).values
    assert result["knn"] == pytest.approx(balanced_accuracy(labels, values))
    assert measure_knn(vectors * torch.nan, labels, bank, bank_labels) == {}
    several = F.one_hot(bank_labels, 3), F.one_hot(labels, 3)
    area = measure_knn(vectors, several[1], bank, several[0])["knn"]
    assert 0.5 < area < 1


def test_measures_of_features_that_are_not_finite_are_nan() -> None:
    result = measure(torch.tensor([[1.0, math.inf], [0.0, 1.0]]))
    assert math.isnan(result["std"])
    assert math.isnan(result["rank"])
