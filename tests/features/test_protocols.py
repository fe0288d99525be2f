"""kNN against plain loops and scikit-learn; the linear probe against its objective."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from selftaught.errors import UserError
from selftaught.features.knn import KNN, find_largest, nearest
from selftaught.features.lbfgs import minimise
from selftaught.features.linear import LinearProbe, _Problem, stratified_folds
from selftaught.features.protocol import Features, Protocol
from tests.formulas import Rows, cosine

protocols = pytest.mark.parametrize("protocol", [KNN(), LinearProbe()])


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(
    count: int, classes: int = 4, dimensions: int = 12, spread: float = 1.5, seed: int = 0
) -> Features:
    """Overlapping classes with very unequal variances, as features have."""
    labels = torch.arange(count) % classes
    vectors = numbers(classes, dimensions, seed=99)[labels]
    vectors = vectors + spread * numbers(count, dimensions, seed=seed)
    return Features(vectors * torch.logspace(0, -1.5, dimensions), labels)


def several(count: int, classes: int = 5, dimensions: int = 16, seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, dimensions, generator=rng)
    noise = torch.randn(count, classes, generator=rng)
    scores = vectors @ numbers(dimensions, classes, seed=7) + noise
    return Features(vectors, (scores > 1).to(torch.uint8))


def knn_in_loops(train: Features, test: Tensor, neighbours: int, temperature: float) -> Rows:
    rows = []
    for query in test.tolist():
        pairs = zip(train.vectors.tolist(), train.labels.tolist(), strict=True)
        similar = sorted(((cosine(query, vector), label) for vector, label in pairs), reverse=True)
        votes = [0.0] * (int(train.labels.max()) + 1)
        for alike, label in similar[:neighbours]:
            votes[label] += math.exp(alike / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return rows


@pytest.mark.parametrize(
    ("neighbours", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (1000, 0.1)]
)
def test_knn_is_the_formula(neighbours: int, temperature: float) -> None:
    train, test = blobs(60), blobs(15, seed=1).vectors
    knn = KNN(neighbours=neighbours, temperature=temperature)
    expected = torch.tensor(knn_in_loops(train, test, neighbours, temperature))
    values = knn.score_features(train, test).values
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 25), st.integers(1, 40), st.integers(1, 70))
def test_blocks_change_nothing(
    bank: int, neighbours: int, query_block: int, bank_block: int
) -> None:
    vectors, queries = numbers(bank, 8, seed=bank), numbers(30, 8, seed=1)
    whole = nearest(queries, vectors, neighbours)
    parts = nearest(queries, vectors, neighbours, query_block=query_block, bank_block=bank_block)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_the_largest_by_groups_are_the_largest(
    columns: int, k: int, width: int, equal: bool
) -> None:
    scores, k = numbers(7, columns, seed=columns), min(k, columns)
    scores = scores.round() if equal else scores
    result, at = find_largest(scores, k, width=width)
    assert torch.equal(result, scores.topk(k, dim=1).values)
    assert torch.equal(scores.gather(1, at), result)
    assert all(len(set(row)) == len(row) for row in at.tolist())


def test_knn_of_several_classes_is_the_share_of_neighbours_that_have_each() -> None:
    train, test = several(80), several(9, seed=1)
    values = KNN(neighbours=5, temperature=0.2).score_features(train, test.vectors).values
    cosine, at = nearest(test.vectors, train.vectors, 5)
    weight = (cosine / 0.2).exp()
    for row in range(9):
        share = (weight[row, :, None] * train.labels[at[row]]).sum(0) / weight[row].sum()
        torch.testing.assert_close(values[row], share)


def test_knn_survives_a_temperature_that_would_overflow() -> None:
    values = KNN(temperature=0.001).score_features(blobs(60), blobs(15, seed=1).vectors).values
    torch.testing.assert_close(values.sum(1), torch.ones(15))


def test_lbfgs_solves_each_problem_of_a_batch() -> None:
    root, target = numbers(6, 20, 20, seed=0).double(), numbers(6, 20, seed=1).double()
    scale = torch.logspace(-1, 2, 6, dtype=torch.float64)[:, None, None]
    matrix = root @ root.mT + scale * torch.eye(20)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        slope = (matrix[which] @ x[..., None]).squeeze(2)
        return 0.5 * (x * slope).sum(1) - (x * target[which]).sum(1), slope - target[which]

    result = minimise(objective, torch.zeros(6, 20, dtype=torch.float64), tolerance=1e-9)
    torch.testing.assert_close(result, torch.linalg.solve(matrix, target), rtol=1e-5, atol=1e-6)


def standardise(train: Features, vectors: Tensor) -> Tensor:
    x = train.vectors.double()
    return (vectors.double() - x.mean(0)) / x.std(0, correction=0)


def peer_logits(
    train: Features, labels: Tensor, penalty: float, vectors: Tensor
) -> tuple[Any, Tensor]:
    """scikit-learn's regression, and its logits."""
    peer = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10000)
    peer.fit(standardise(train, train.vectors).numpy(), labels.numpy())
    return peer, torch.from_numpy(peer.decision_function(standardise(train, vectors).numpy()))


@pytest.mark.parametrize("count", [24, 400], ids=["fewer images than dimensions", "more"])
@pytest.mark.parametrize("penalty", [0.1, 3.0, 300.0])
def test_probe_minimises_sklearns_objective(count: int, penalty: float) -> None:
    train, test = blobs(count, dimensions=30), blobs(50, dimensions=30, seed=1).vectors
    x, y = standardise(train, train.vectors), train.labels
    peer, expected = peer_logits(train, y, penalty, test)

    def objective(weight: Tensor, bias: Tensor) -> float:
        loss = F.cross_entropy(x @ weight.T + bias, y, reduction="sum")
        return float(loss + 0.5 * penalty * weight.square().sum())

    problem = _Problem(train, 300)
    ours = problem.fit(penalty, torch.tensor([-1]))[0]
    least = objective(torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_))
    assert objective(ours[:, :-1] @ problem.basis.T, ours[:, -1]) == pytest.approx(least, rel=1e-4)
    if penalty >= 1:  # below, the data are all but separable and the optimum is flat
        values = LinearProbe(penalties=(penalty,)).score_features(train, test).values.double()
        # sklearn's logits are centred, ours free
        values, expected = (v - v.mean(1, keepdim=True) for v in (values, expected))
        torch.testing.assert_close(values, expected, rtol=2e-3, atol=2e-3)


def test_probe_of_several_classes_is_one_regression_a_class() -> None:
    train, test = several(300), several(40, seed=1).vectors
    values = LinearProbe(penalties=(2.0,)).score_features(train, test).values
    for own, labels in zip(values.T, train.labels.T, strict=True):
        expected = peer_logits(train, labels, 2.0, test)[1]
        torch.testing.assert_close(own.double(), expected, rtol=2e-3, atol=2e-3)


def test_long_banks_are_standardised_block_by_block() -> None:
    train, test = blobs(3000, dimensions=30), blobs(50, dimensions=30, seed=1)
    eager, lazy = _Problem(train, 300), _Problem(train, 300)
    lazy.projected = None
    values = [p.predict(test.vectors, p.fit(1.0, torch.tensor([-1]))[0]) for p in (eager, lazy)]
    torch.testing.assert_close(*values)
    assert sum(len(x) for _, x in lazy.blocks(10**9)) == 3000


def test_single_precision_is_enough() -> None:
    train, test = blobs(400, dimensions=30), blobs(50, dimensions=30, seed=1)
    double = LinearProbe(penalties=(1.0,)).score_features(train, test.vectors).values
    problem = _Problem(train, 300)
    problem.dtype = torch.float32
    for name in ("mean", "scale", "basis", "spectrum", "projected"):
        setattr(problem, name, getattr(problem, name).float())
    single = problem.predict(test.vectors, problem.fit(1.0, torch.tensor([-1]))[0])
    torch.testing.assert_close(single, double, rtol=1e-2, atol=1e-2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(2, 6), st.integers(0, 9))
def test_folds_are_stratified(classes: list[int], folds: int, seed: int) -> None:
    labels = torch.tensor(classes)
    fold = stratified_folds(labels, folds, seed)
    sizes = torch.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for c in labels.unique():
        inside = torch.bincount(fold[labels == c], minlength=folds)
        assert inside.max() - inside.min() <= 1
    assert torch.equal(fold, stratified_folds(labels, folds, seed))


def test_choice_is_the_smallest_kept_out_loss() -> None:
    train, losses = blobs(60, dimensions=30, spread=3.0), {}
    linear = LinearProbe(penalties=(1.0, 100.0, 10.0))
    fold = stratified_folds(train.labels, 5, 0)
    x = standardise(train, train.vectors)  # as the probe does: by all training images
    for penalty in linear.penalties:
        losses[penalty] = 0.0
        for k in range(5):
            peer = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10000)
            peer.fit(x[fold != k].numpy(), train.labels[fold != k].numpy())
            logs = torch.from_numpy(peer.predict_log_proba(x[fold == k].numpy()))
            losses[penalty] -= float(logs.gather(1, train.labels[fold == k, None]).sum())
    chosen = linear.score_features(train, train.vectors).chosen["penalty"]
    assert chosen == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("count", [40, 2500], ids=["cross-validation", "one part kept out"])
@protocols
def test_test_images_choose_nothing(protocol: Protocol, count: int) -> None:
    """The score of a test image depends on neither other test images nor on test labels."""
    train, test = blobs(count), blobs(30, seed=1).vectors
    shifted = torch.cat([test[:1], 1000 + 100 * test[1:]])
    together, *others = (protocol.score_features(train, x) for x in (test, test[:1], shifted))
    for scores in others:
        assert scores.chosen == together.chosen
        torch.testing.assert_close(scores.values[:1], together.values[:1])


def test_one_image_a_class_uses_the_fallback() -> None:
    scores = LinearProbe(fallback=42.0).score_features(blobs(4), blobs(9).vectors)
    assert scores.chosen == {"penalty": 42.0}


def test_a_penalty_chosen_on_some_images_is_fitted_to_all() -> None:
    train, test = blobs(600), blobs(50, seed=1)
    linear = LinearProbe(choose_on=200, cross_validate=100)
    scores = linear.score_features(train, test.vectors)
    again = LinearProbe(penalties=(scores.chosen["penalty"],)).score_features(train, test.vectors)
    torch.testing.assert_close(scores.values, again.values, rtol=1e-3, atol=1e-3)


@protocols
def test_constant_features_are_scored_and_not_refused(protocol: Protocol) -> None:
    train = Features(torch.ones(20, 6), torch.arange(20) % 2)
    assert torch.isfinite(protocol.score_features(train, torch.ones(5, 6)).values).all()


@pytest.mark.parametrize(
    ("vectors", "labels", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.long), "differ"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "no image"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), "1 images have no label"),
        (torch.full((3, 2), torch.nan), torch.tensor([0, 1, 1]), "not finite"),
    ],
)
def test_features_that_cannot_be_evaluated_are_refused(
    vectors: Tensor, labels: Tensor, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Features(vectors, labels)
