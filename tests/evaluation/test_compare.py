"""Draws, metrics, intervals, results and their words; features in order, kept on disk."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn

from selftaught.data.index.label_budget import Budget, draw
from selftaught.errors import UserError
from selftaught.evaluation.compare import evaluate, evaluate_features
from selftaught.evaluation.results import Difference, Results, Row, to_fields, verdict
from selftaught.features.extract import extract, load_or_make
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.metrics import auroc, balanced_accuracy, placements
from selftaught.features.protocol import (
    FeatureExtractor,
    FeatureProtocol,
    Features,
    LabelledImages,
    Protocol,
    Scores,
)
from tests.commands import argv

one_class = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(torch.tensor)
several_classes = st.integers(1, 5).flatmap(
    lambda c: st.lists(
        st.lists(st.integers(0, 1), min_size=c, max_size=c), min_size=1, max_size=40
    ).map(torch.tensor)
)


# Draws


@settings(deadline=None)
@given(one_class, st.integers(1, 12), st.integers(0, 5))
def test_a_draw_by_class_takes_that_many_or_all_there_are(
    labels: Tensor, number: int, seed: int
) -> None:
    chosen = draw(labels, per_class=number, seed=seed)
    assert torch.equal(chosen, chosen.unique())
    for c in labels.unique():
        assert (labels[chosen] == c).sum() == min(number, int((labels == c).sum()))
    assert torch.equal(chosen, draw(labels, per_class=number, seed=seed))
    larger = draw(labels, per_class=number + 3, seed=seed)
    assert set(chosen.tolist()) <= set(larger.tolist())


@settings(deadline=None)
@given(one_class, st.integers(1, 70), st.integers(0, 5))
def test_a_draw_in_all_has_every_class(labels: Tensor, total: int, seed: int) -> None:
    classes = labels.unique()
    if total < min(len(classes), len(labels)):
        with pytest.raises(UserError, match="do not reach every class"):
            draw(labels, total=total, seed=seed)
        return
    chosen = draw(labels, total=total, seed=seed)
    assert len(chosen) == len(chosen.unique()) == min(total, len(labels))
    assert torch.equal(labels[chosen].unique(), classes)
    assert set(chosen.tolist()) <= set(draw(labels, total=total + 3, seed=seed).tolist())


@settings(deadline=None, max_examples=200)
@given(several_classes, st.integers(1, 5), st.integers(0, 5))
def test_draws_of_several_classes_an_image_reach_every_class(
    labels: Tensor, number: int, seed: int
) -> None:
    there = labels.sum(0)
    chosen = draw(labels, per_class=number, seed=seed)
    assert torch.equal(chosen, chosen.unique())
    assert (labels[chosen].sum(0) >= there.clamp(max=number)).all()
    assert len(chosen) <= int(there.clamp(max=number).sum())
    least = int((there > 0).sum())
    total = min(least + number, len(labels) - 1)
    if total < max(least, 1):
        return
    chosen = draw(labels, total=total, seed=seed)
    assert len(chosen) == total
    assert torch.equal(labels[chosen].sum(0) > 0, there > 0)


def test_draws_differ_by_seed_and_all_is_all() -> None:
    labels = torch.arange(200) % 4
    assert not torch.equal(draw(labels, per_class=5, seed=0), draw(labels, per_class=5, seed=1))
    assert torch.equal(draw(labels, seed=0), torch.arange(200))


def test_a_draw_in_all_keeps_the_shares_of_the_classes() -> None:
    labels = (torch.arange(4000) % 10 == 0).long()
    shares = [float(labels[draw(labels, total=1000, seed=s)].double().mean()) for s in range(20)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("text", ["5", "all", "total:1000"])
def test_budgets_are_read_and_written(text: str) -> None:
    assert str(Budget.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "five", "total:", "total", ":5", "-1", "0", "total:0", "1.5", "most:5"]
)
def test_budgets_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        Budget.parse(text)


# Metrics


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(2, 60), st.integers(0, 1000))
def test_balanced_accuracy_is_sklearns(classes: int, count: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=rng)
    values = torch.rand(count, classes, generator=rng)
    values[torch.arange(count), labels] += 0.5
    guesses = values.argmax(1)
    assume(set(guesses.tolist()) <= set(labels.tolist()))  # sklearn warns otherwise
    assert balanced_accuracy(labels, values) == pytest.approx(
        balanced_accuracy_score(labels, guesses)
    )


def test_a_class_that_the_scores_do_not_know_counts_as_an_error() -> None:
    assert balanced_accuracy(torch.tensor([0, 1, 2]), torch.eye(3)[:, :2]) == pytest.approx(2 / 3)


def test_auroc_is_sklearns_and_skips_what_has_none() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (80,), generator=rng)
    values = torch.randn(80, 2, generator=rng)
    probability = values.softmax(1)[:, 1]
    assert auroc(labels, values) == (pytest.approx(roc_auc_score(labels, probability)), 0)
    many = torch.randint(2, (80, 4), generator=rng)
    many[:, 2], many[:, 3] = 0, 1
    scores = torch.randn(80, 4, generator=rng)
    expected = np.mean([roc_auc_score(many[:, c], scores[:, c]) for c in range(2)])
    assert auroc(many, scores) == (pytest.approx(expected), 2)
    assert np.isnan(auroc(many[:, 2:], scores[:, 2:])[0])


@pytest.mark.parametrize("several", [False, True])
def test_an_auroc_is_the_mean_of_the_placements_of_either_side(several: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (40, 3) if several else (40,), generator=rng)
    values = (torch.randn(40, 3 if several else 2, generator=rng) * 3).round()  # with ties
    shares, sides = placements(labels, values)
    for side in (0, 1):
        means = [
            float(shares[sides[:, q] == 2 * q + side, q].mean()) for q in range(shares.shape[1])
        ]
        assert np.mean(means) == pytest.approx(auroc(labels, values)[0])


# Comparisons


def features(
    quality: float, classes: int = 4, count: int = 240, seed: int = 0
) -> tuple[Features, Features]:
    """Features of the same images by a backbone of some quality (0 = noise)."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    signal = torch.randn(classes, 8, generator=torch.Generator().manual_seed(5))[labels]
    vectors = quality * signal + torch.randn(count, 8, generator=rng)
    half = count // 2
    return Features(vectors[:half], labels[:half]), Features(vectors[half:], labels[half:])


def test_rows_have_exactly_the_agreed_keys_and_survive_json() -> None:
    backbones = {"ours": features(1.0), "random": features(0.2, seed=1)}
    results = evaluate_features(
        backbones, [KNN(), LinearProbe()], labels=("2", "all", "total:30"), draws=3, resamples=50
    )
    assert len(results.rows) == 2 * 2 * 3
    for row in results.rows:
        assert list(to_fields(row)) == argv("backbone protocol labels metric mean low high draws")
        assert 0 <= row.low <= row.mean <= row.high <= 1
        assert row.draws == (1 if row.labels == "all" else 3)
        assert row.metric == "balanced_accuracy"
    assert {row.labels for row in results.rows} == {"2", "all", "total:30"}
    assert {(d.backbone, d.against) for d in results.differences} == {("ours", "random")}
    # kNN chooses nothing; the probe its penalty, for every draw
    assert {(c.backbone, c.protocol, c.labels, len(c.chosen)) for c in results.choices} == {
        (name, "linear", labels, 1 if labels == "all" else 3)
        for name in backbones
        for labels in ("2", "all", "total:30")
    }
    assert all(each.keys() == {"penalty"} for c in results.choices for each in c.chosen)
    rows = {(r.backbone, r.protocol, r.labels): r.mean for r in results.rows}
    for d in results.differences:
        gap = rows["ours", d.protocol, d.labels] - rows["random", d.protocol, d.labels]
        assert d.mean == pytest.approx(gap)
    assert Results.from_json(results.to_json()) == results
    assert results == evaluate_features(
        backbones, [KNN(), LinearProbe()], labels=("2", "all", "total:30"), draws=3, resamples=50
    )


def test_a_backbone_is_not_distinguishable_from_itself_and_pairing_sees_small_differences() -> None:
    train, test = features(0.7, count=800)
    slightly = test.vectors.clone()
    # forty of four hundred test images spoilt: less than the intervals of either alone
    slightly[:40] = 0
    spoilt = (train, Features(slightly, test.labels))
    backbones = {"ours": (train, test), "same": (train, test), "spoilt": spoilt}
    results = evaluate_features(backbones, [KNN()], labels=("20",), draws=5, resamples=300)
    same, spoilt = results.differences
    assert same.mean == 0
    assert -0.02 < same.low < 0 < same.high < 0.02  # four hundred test images do not say more
    assert not same.worse
    assert not same.better
    assert spoilt.better
    ours, _, other = results.rows
    assert ours.low < other.high  # unpaired, the two could not be told apart


def test_two_classes_have_an_auroc_too_and_several_only_that() -> None:
    few = {"draws": 2, "resamples": 30}
    both = [KNN(), LinearProbe()]
    two = evaluate_features({"a": features(1.0, classes=2)}, both, labels=("5",), **few)
    assert [row.metric for row in two.rows] == ["balanced_accuracy", "auroc"] * 2
    train, test = features(1.0, classes=4)

    def multi(x: Features) -> Features:
        return Features(
            x.vectors,
            torch.stack([x.labels == 0, x.labels < 2, x.labels == 3], dim=1).to(torch.uint8),
        )

    many = evaluate_features({"a": (multi(train), multi(test))}, both, labels=("5", "all"), **few)
    assert [row.metric for row in many.rows] == ["auroc"] * 4
    assert all(
        row.low <= row.mean <= row.high and row.mean > 0.6 for row in (*two.rows, *many.rows)
    )


def test_notes_say_what_a_reader_should_know() -> None:
    train, test = features(1.0, count=100)
    scarce = train.take(
        torch.cat([torch.arange(20), torch.arange(20, 50)[train.labels[20:50] != 3]])
    )
    results = evaluate_features(
        {"a": (scarce, test)}, [KNN()], labels=("8", "total:900"), draws=2, resamples=20
    )
    assert any("only 50 test images" in note for note in results.notes)
    assert any("1 classes have fewer than 8" in note for note in results.notes)
    assert any("total:900 is the same as all" in note for note in results.notes)
    assert results.rows[1].draws == 1
    unseen = evaluate_features(
        {"a": (train.take(torch.arange(50)[train.labels != 3]), test)}, [KNN()], labels=("all",)
    )
    assert any("1 classes have test images but no training images" in note for note in unseen.notes)


@pytest.mark.parametrize("a_class", [1, 2, 3])
def test_noise_on_few_test_images_is_not_called_better_and_the_verdict_says_how_many_it_takes(
    a_class: int,
) -> None:
    rng, called, needed = torch.Generator().manual_seed(0), 0, []
    train, test = torch.arange(3).repeat(10), torch.arange(3).repeat(a_class)
    for _ in range(20):
        one, other = (
            tuple(Features(torch.randn(len(x), 8, generator=rng), x) for x in (train, test))
            for _ in range(2)
        )
        results = evaluate_features(
            {"one": one, "other": other}, [KNN()], labels=("2", "all"), draws=3, resamples=200
        )
        called += sum(d.better or d.worse for d in results.differences)
        assert all(d.low < d.high for d in (*results.differences, *results.rows))
        needed += [d.needed for d in results.differences]
        if not any(d.better or d.worse for d in results.differences):
            assert "too few test images to tell" in verdict(results)
    assert called <= 3  # of 40
    assert all(n > 3 * len(test) for n in needed)
    assert Results.from_json(results.to_json()) == results


def test_enough_test_images_need_no_more() -> None:
    backbones = {"a": features(1.0, count=1600), "b": features(1.0, count=1600, seed=1)}
    results = evaluate_features(backbones, [KNN()], labels=("all",))
    assert [d.needed for d in results.differences] == [0]
    assert "too few" not in verdict(results)


@pytest.mark.parametrize("protocol", [KNN(), LinearProbe()])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        (torch.zeros(8, dtype=torch.long), torch.arange(2).repeat(4)),  # one class, the first
        (torch.ones(8, dtype=torch.long), torch.arange(2).repeat(4)),  # another one
        (
            torch.zeros(8, dtype=torch.long),
            torch.zeros(8, dtype=torch.long),
        ),  # and the test images, too
        (torch.arange(2).repeat(4), torch.full((8,), 2)),  # no class of the test images was learnt
        (
            torch.ones(8, 2, dtype=torch.long),
            torch.eye(2, dtype=torch.long).repeat(4, 1),
        ),  # each image has both
        (
            torch.tensor([[1, 0]] * 8),
            torch.eye(2, dtype=torch.long).repeat(4, 1),
        ),  # one of two, always the same
        (
            torch.eye(2, dtype=torch.long).repeat(4, 1),
            torch.zeros(8, 2, dtype=torch.long),
        ),  # no test image has any
    ],
)
def test_what_cannot_be_learnt_or_scored_has_no_score(
    protocol: Protocol, train: Tensor, test: Tensor
) -> None:
    vectors = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError):
        evaluate_features(
            {"a": (Features(vectors, train), Features(vectors, test))}, [protocol], labels=("all",)
        )


class Given(FeatureProtocol):
    """The features are the scores: nothing is learnt."""

    name = "given"
    learns = False

    def describe(self) -> str:
        return ""

    def score_features(self, train: Features, test: Tensor) -> Scores:
        return Scores(test)


def test_a_classifier_is_scored_where_nothing_can_be_learnt_and_the_others_are_left_out() -> None:
    vectors = torch.eye(2).repeat(4, 1)
    train, test = (
        Features(vectors, torch.zeros(8, dtype=torch.long)),
        Features(vectors, torch.arange(2).repeat(4)),
    )
    results = evaluate_features({"a": (train, test)}, [KNN(), Given()], labels=("all",))
    assert {(row.protocol, row.mean) for row in results.rows} == {("given", 1.0)}
    assert any("of one class" in note for note in results.notes)


def test_a_class_that_no_training_image_has_is_left_out_of_aurocs() -> None:
    labels = torch.stack([torch.arange(40) % 2, (torch.arange(40) % 4) // 2], 1)
    vectors = labels + 0.1 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    lacking = labels.clone()
    lacking[:, 1] = 0
    backbones = {"a": (Features(vectors, lacking), Features(vectors, labels))}
    results = evaluate_features(backbones, [KNN(), LinearProbe()], labels=("all",))
    assert [row.mean for row in results.rows] == pytest.approx([1, 1])
    assert any(
        "1 of 2 classes are not in AUROC: no training image" in note for note in results.notes
    )


def test_protocols_never_see_test_labels() -> None:
    train, test = features(1.0)

    class Spy(KNN):
        def score_features(self, train: Features, test: Tensor) -> Scores:
            assert isinstance(test, Tensor)
            seen.append(test)
            return super().score_features(train, test)

    seen: list[Tensor] = []
    evaluate_features({"a": (train, test)}, [Spy()], labels=("5",), draws=2, resamples=20)
    assert all(torch.equal(vectors, test.vectors) for vectors in seen)
    assert len(seen) == 2


def test_no_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="no backbone"):
        evaluate([], *2 * [LabelledImages(torch.arange(2), torch.arange(2))], [KNN()])


def test_features_are_extracted_once_and_must_be_finite() -> None:
    calls: list[Tensor] = []

    def extract_rows(positions: Tensor) -> Tensor:
        calls.append(positions)
        return positions[:, None].float()

    sets = torch.tensor([7, 2]), torch.tensor([5])
    features_of = FeatureExtractor(extract_rows, *sets)
    for positions in (torch.tensor([5, 7]), torch.tensor([2, 2, 5])):
        assert torch.equal(features_of(positions)[:, 0], positions.float())
    assert [c.tolist() for c in calls] == [[7, 2], [5]]
    with pytest.raises(UserError, match="not finite"):
        FeatureExtractor(lambda p: torch.full((len(p), 2), torch.nan), *sets)(sets[0])


def test_progress_reaches_its_end() -> None:
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"labels": ("2", "all"), "draws": 3, "resamples": 10}
    options["on_progress"] = lambda done, of: seen.append((done, of))
    evaluate_features({"a": features(1.0), "b": features(0.5)}, [KNN()], **options)
    assert seen[-1] == (8, 8)


# Words


def difference(
    against: str, mean: float, low: float, high: float, labels: str = "5", protocol: str = "linear"
) -> Difference:
    of: dict[str, Any] = {"backbone": "runs/b", "metric": "balanced_accuracy"}
    of |= {"against": against, "protocol": protocol, "labels": labels}
    return Difference(**of, mean=mean, low=low, high=high)


def words(*differences: Difference) -> str:
    return verdict(Results(rows=(), differences=differences))


def test_verdict_of_better_and_same() -> None:
    text = words(difference("random", 0.121, 0.098, 0.142), difference("init", 0.01, -0.02, 0.04))
    assert (
        text
        == "+12.1 points over random initialisation with 5 labels a class (95 % interval +9.8 to"
        " +14.2). Not distinguishable from the starting weights."
    )


def test_verdict_says_worse_first() -> None:
    text = words(
        difference("random", 0.121, 0.098, 0.142),
        difference("random", 0.2, 0.1, 0.3, labels="all", protocol="knn"),
        difference("init", 0.03, 0.01, 0.05),
        difference("init", -0.04, -0.06, -0.02, labels="total:1000"),
    )
    assert (
        text
        == "Worse than the starting weights: -4.0 points with 1000 labels in all (95 % interval"
        " -6.0 to -2.0). Better than random initialisation: +12.1 points with 5 labels a class"
        " by the linear probe (95 % interval +9.8 to +14.2); +20.0 points with all labels by kNN"
        " (95 % interval +10.0 to +30.0). +3.0 points over the starting weights with 5 labels a"
        " class (95 % interval +1.0 to +5.0)."
    )


def test_verdict_of_weights_that_are_the_same() -> None:
    better = difference("random", 0.121, 0.098, 0.142)
    text = verdict(Results(rows=(), differences=(better,)), same={"init": "", "runs/c": ", but"})
    assert text.startswith(
        "These are the starting weights. Runs/c has the same weights, but. +12.1 points over random"
    )
    assert "one backbone" not in verdict(Results(rows=()), same={"init": ""})


def test_verdict_names_the_conditions_that_cannot_be_told_apart() -> None:
    text = words(
        difference("other", 0.02, -0.01, 0.05), difference("other", 0.02, 0.01, 0.05, labels="1")
    )
    assert text.endswith("Not distinguishable from other with 5 labels a class.")
    assert "+2.0 points over other with 1 label a class" in text
    assert "one backbone" in words()


def test_verdict_of_auroc_only_where_there_is_no_accuracy() -> None:
    accuracy = difference("random", 0.1, 0.05, 0.15)
    area = Difference(
        **{**asdict(accuracy), "metric": "auroc", "mean": 0.5, "low": 0.4, "high": 0.6}
    )
    assert "+50.0" not in words(accuracy, area)
    assert "+50.0 points of AUROC" in words(area)


def test_a_row_that_is_not_a_number_cannot_be_written() -> None:
    of: dict[str, Any] = {"backbone": "a", "protocol": "knn", "labels": "5", "metric": "auroc"}
    row = Row(**of, mean=float("nan"), low=0.0, high=1.0, draws=5)
    with pytest.raises(ValueError, match="not JSON compliant"):
        Results(rows=(row,)).to_json()
    empty = {"rows": [], "differences": [], "notes": [], "choices": []}
    assert json.loads(Results(rows=()).to_json()) == empty


# Features


class Canvases:
    """Images whose pixels tell which they are."""

    def __init__(self, count: int) -> None:
        self.aspect = torch.ones(count)

    def __len__(self) -> int:
        return len(self.aspect)

    def __getitem__(self, index: int, /) -> Tensor:
        return torch.full((3, 8, 8), index, dtype=torch.uint8)


class Tiny(nn.Module):
    features = 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Dropout(0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.frozen(self.norm(pixels)).mean((2, 3))
        return torch.cat([x, x[:, :1]], dim=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_features_come_in_order_in_evaluation_mode(workers: int) -> None:
    pytest.importorskip("selftaught.views.augment")
    backbone = Tiny().train()
    backbone.frozen.eval()
    statistics = backbone.norm.running_mean
    assert statistics is not None
    before, seen = statistics.clone(), []
    positions = torch.tensor([9, 0, 200, 3, 3])
    options: dict[str, Any] = {"size": 4, "batch": 2, "workers": workers}
    options["on_progress"] = lambda done, of: seen.append((done, of))
    vectors = extract(backbone, Canvases(250), positions, **options)
    expected = (positions / 255 / (1 + 1e-5) ** 0.5)[:, None].expand(5, 4)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(statistics, before)
    assert backbone.training
    assert backbone.norm.training
    assert not backbone.frozen.training
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad


def test_features_of_no_images_are_an_empty_table() -> None:
    pytest.importorskip("selftaught.views.augment")
    assert extract(Tiny(), Canvases(3), torch.tensor([], dtype=torch.long), size=4).shape == (0, 4)


def test_bf16_gives_single_precision_features() -> None:
    pytest.importorskip("selftaught.views.augment")
    network = nn.Sequential(Tiny(), nn.Linear(4, 3))
    vectors = extract(network, Canvases(3), torch.arange(3), size=4, precision="bf16")
    assert vectors.dtype == torch.float32


def test_features_are_made_once_for_a_key(tmp_path: Path) -> None:
    computations: list[int] = []

    def make() -> Tensor:
        computations.append(1)
        return torch.arange(6.0).reshape(2, 3).T

    folder = tmp_path / "not yet there"
    for _ in range(3):
        assert torch.equal(
            load_or_make(folder, "weights A, data B", make), torch.arange(6.0).reshape(2, 3).T
        )
    assert len(computations) == 1
    load_or_make(folder, "weights A, data C", make)
    assert len(computations) == 2
    for file in folder.iterdir():
        file.write_bytes(b"torn")
    load_or_make(folder, "weights A, data B", make)
    assert len(computations) == 3
    load_or_make(folder, "weights A, data B", make, count=3)
    assert len(computations) == 3
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"] * 2


@pytest.mark.parametrize(
    "harm", ["a folder", "flipped", "another shape", "another key", "unwritable"]
)
def test_features_that_are_damaged_are_made_again(tmp_path: Path, harm: str) -> None:
    messages: list[str] = []
    vectors = torch.rand(50, 3)
    folder = tmp_path / "features"
    if harm == "unwritable":
        folder.write_text("in the way")
    else:
        load_or_make(folder, "key", lambda: vectors)
        (file,) = folder.iterdir()
        data = bytearray(file.read_bytes())
        if harm == "a folder":
            file.unlink()
            file.mkdir()
        elif harm == "flipped":
            data[-5] ^= 1
            file.write_bytes(data)
        else:
            key = "key" if harm == "another shape" else "other"
            other = load_or_make(tmp_path / "other", key, lambda: torch.rand(49, 3))
            file.write_bytes(next((tmp_path / "other").iterdir()).read_bytes())
            assert len(other) == 49
    assert torch.equal(load_or_make(folder, "key", lambda: vectors, 50, messages.append), vectors)
    assert len(messages) == (2 if harm == "a folder" else 1)
    if harm in ("flipped", "another shape", "another key"):
        again = load_or_make(folder, "key", lambda: torch.zeros(1), 50, messages.append)
        assert torch.equal(again, vectors)
        assert len(messages) == 1
