"""Fine-tuning as an evaluation: what is trained, on which images a setting is chosen, and what a
wild rate does.
"""

import contextlib
import copy
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.cli.main import main
from selftaught.data.index import build
from selftaught.data.index.build import Index
from selftaught.data.loading.images import Images, default_canvas
from selftaught.errors import UserError
from selftaught.evaluation import finetune
from selftaught.evaluation.compare import evaluate
from selftaught.evaluation.finetune import FineTune, drops, goodness
from selftaught.evaluation.results import Results
from selftaught.features.protocol import FeatureExtractor, LabelledImages, Scores, Subject
from selftaught.models import backbone as backbone_module
from tests.networks import RESNET, assert_same_weights
from tests.pictures import folder

QUICK = FineTune(steps=(3,), epochs=(), rates=(0.05,), batch=16)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three classes of 16 images, 3 of each held out."""
    return build.build_index([folder(tmp_path_factory.mktemp("images") / "set")])


@pytest.fixture(scope="module")
def images(index: Index) -> Images:
    return Images(index.paths, index.sizes, default_canvas(index.sizes, 32))


@pytest.fixture(scope="module")
def backbone() -> backbone_module.Backbone:
    torch.manual_seed(0)
    # as whoever evaluates may have left it
    return backbone_module.create(RESNET).requires_grad_(False)


def labelled(index: Index, positions: Tensor, labels: Tensor | None = None) -> LabelledImages:
    known = index.labels if labels is None else labels
    assert known is not None
    return LabelledImages(positions, known[positions])


@pytest.fixture
def subject(images: Images, backbone: backbone_module.Backbone) -> Subject:
    def refuse(positions: Tensor) -> Tensor:
        pytest.fail("frozen features are no part of it")

    return Subject(
        name="own",
        backbone=backbone,
        images=images,
        size=32,
        device="cpu",
        precision="fp32",
        features=FeatureExtractor(refuse),
    )


@pytest.fixture
def train(index: Index) -> LabelledImages:
    return labelled(index, index.train)


@pytest.fixture
def test(index: Index) -> LabelledImages:
    return labelled(index, index.held_out)


def several(index: Index) -> Tensor:
    """Labels [N, 3] of several classes an image: its own, the one before it, and one that every
    image has.
    """
    assert index.labels is not None
    own = torch.nn.functional.one_hot(index.labels, 3)
    return (own + own.roll(1, 1)).clamp(max=1) * torch.tensor([1, 1, 0]) + torch.tensor([0, 0, 1])


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was given to every training: the optimizer's groups, the method, and its parameters at
    the beginning.
    """
    seen: list[dict[str, Any]] = []
    real = finetune.fit

    def fit(step: Any, method: Any, epochs: Any, optimizer: Any, loop: Any) -> Iterator[Any]:
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        seen.append(
            {"method": method, "groups": optimizer.param_groups, "loop": loop, "before": before}
        )
        return real(step, method, epochs, optimizer, loop)

    monkeypatch.setattr(finetune, "fit", fit)
    return seen


# ------------------------------------------------------------------------------------------- the
# protocol


def test_the_rate_falls_to_a_tenth_twice() -> None:
    """At 833 and 1667 of 2,500 steps, and at 30 and 60 of 90 epochs."""
    for length, falls in ((2500, (833, 1667)), (90, (30, 60))):
        rates = [drops((n + 0.5) / length) for n in range(length)]
        assert [n for n in range(1, length) if rates[n] < rates[n - 1]] == list(falls)
        assert (rates[0], rates[length // 2], rates[-1]) == pytest.approx((1, 0.1, 0.01))


def test_every_length_is_tried_with_every_rate() -> None:
    article = FineTune()
    # 3 batches of 256 an epoch
    assert article.settings(1000) == [(2500, 0.01), (2500, 0.001), (270, 0.01), (270, 0.001)]
    assert article.settings(100)[2:] == [(90, 0.01), (90, 0.001)]  # one batch, of all there are
    assert (
        "2500 steps or 90 epochs, rate 0.01 or 0.001, 100 times that for the head"
        in article.describe()
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"steps": (), "epochs": ()},
        {"rates": ()},
        {"rates": (0.0,)},
        {"batch": 0},
        {"head": -1.0},
        {"steps": (0,)},
    ],
)
def test_settings_that_make_no_sense_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="fine-tuning"):
        FineTune(**asked)


def test_the_head_learns_a_hundred_times_faster_and_everything_moves(
    subject: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    replace(QUICK, steps=(6,), rates=(0.5,)).score(subject, train, test.positions)
    (only,) = fitted
    trunk, head = only["groups"]
    # by the batch
    assert (trunk["peak"], head["peak"]) == pytest.approx((0.5 * 16 / 256, 100 * 0.5 * 16 / 256))
    assert {g["momentum"] for g in only["groups"]} == {0.9}
    assert {g["weight_decay"] for g in only["groups"]} == {0}
    linear = only["method"].network[1]
    assert {id(p) for p in head["params"]} == {id(p) for p in linear.parameters()}
    assert {id(p) for p in trunk["params"]} == {id(p) for p in only["method"].backbone.parameters()}
    assert not only["before"]["classifier.0.bias"].any()
    assert 0.005 < only["before"]["classifier.0.weight"].std() < 0.02
    after = dict(only["method"].named_parameters())
    assert not [name for name, value in only["before"].items() if torch.equal(value, after[name])]


def test_the_backbone_given_is_left_as_it_was(
    subject: Subject,
    backbone: backbone_module.Backbone,
    train: LabelledImages,
    test: LabelledImages,
) -> None:
    before = copy.deepcopy(backbone)
    QUICK.score(subject, train, test.positions)
    assert_same_weights(backbone, before)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.training == before.training


def test_each_backbone_is_tuned_for_itself(
    subject: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    torch.manual_seed(1)
    another = replace(subject, backbone=backbone_module.create(RESNET))
    own, other, again = (
        QUICK.score(each, train, test.positions).values for each in (subject, another, subject)
    )
    assert not torch.equal(own, other)
    assert torch.equal(own, again)


def test_the_same_seed_is_the_same_result(
    subject: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    torch.manual_seed(123)  # whatever was drawn before
    one = QUICK.score(subject, train, test.positions).values
    assert torch.equal(QUICK.score(subject, train, test.positions).values, one)
    other = replace(QUICK, seed=1)
    assert not torch.equal(other.score(subject, train, test.positions).values, one)


# ------------------------------------------------------------------------------------------- what
# is learnt


LEARNS = FineTune(steps=(32,), epochs=(), rates=(0.5,), batch=16)


def test_separable_images_are_learnt(
    subject: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    scores = LEARNS.score(subject, train, test.positions)
    assert scores.values.shape == (9, 3)
    assert goodness(test.labels, scores.values) > 0.8  # chance is a third


def test_several_classes_an_image_are_learnt(
    subject: Subject, index: Index, fitted: list[dict[str, Any]]
) -> None:
    """By binary cross-entropy, scored by AUROC; the class that every image has is in no mean."""
    labels = several(index).to(torch.int8)
    train, test = (
        labelled(index, positions, labels) for positions in (index.train, index.held_out)
    )
    tuned = evaluate([subject], train, test, [LEARNS], labels=("all",), resamples=10)
    (row,) = tuned.rows
    assert (row.metric, row.protocol, row.draws) == ("auroc", "finetune", 1)
    assert row.mean > 0.9
    assert any("1 of 3 classes" in note for note in tuned.notes)
    method = fitted[0]["method"]
    logits = torch.randn(4, 3)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, train.labels[:4].float()
    )
    torch.testing.assert_close(method.loss(logits, train.labels[:4]), expected)


# ----------------------------------------------------------------------------------- how a setting
# is chosen


def test_a_setting_is_chosen_on_kept_out_training_images(
    subject: Subject, train: LabelledImages, test: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was chosen is then trained on all of them. Test images are looked at once, at the
    end.
    """
    tried: list[tuple[set[int], set[int], int, float]] = []

    def tune(
        self: FineTune, on: Subject, part: LabelledImages, seen: Tensor, steps: int, rate: float
    ) -> Tensor:
        tried.append((set(part.positions.tolist()), set(seen.tolist()), steps, rate))
        right = torch.nn.functional.one_hot(labels_of[seen], 3).float()
        return right if (steps, rate) == (7, 0.5) else -right

    labels_of = index_labels(train, test)
    monkeypatch.setattr(FineTune, "tune", tune)
    asked = FineTune(steps=(3, 7), epochs=(), rates=(0.1, 0.5))
    scores = asked.score(subject, train, test.positions)
    assert scores.chosen == {"steps": 7, "rate": 0.5}
    everything = set(train.positions.tolist())
    *trials, last = tried
    assert [t[2:] for t in trials] == [(3, 0.1), (3, 0.5), (7, 0.1), (7, 0.5)]
    assert len({frozenset(t[1]) for t in trials}) == 1  # the same images judge all of them
    for learnt_on, judged_on, _, _ in trials:
        assert learnt_on | judged_on == everything
        assert not learnt_on & judged_on
        assert set(labels_of[torch.tensor(sorted(judged_on))].tolist()) == {0, 1, 2}
    assert last == (everything, set(test.positions.tolist()), 7, 0.5)


def index_labels(*parts: LabelledImages) -> Tensor:
    """The label of every image by its position."""
    labels = torch.zeros(sum(len(p.labels) for p in parts), dtype=torch.long)
    for part in parts:
        labels[part.positions] = part.labels
    return labels


def test_test_labels_change_no_prediction(
    subject: Subject, train: LabelledImages, test: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Scores] = []
    real = FineTune.score

    def score(self: FineTune, *args: Any) -> Scores:
        said.append(real(self, *args))
        return said[-1]

    monkeypatch.setattr(FineTune, "score", score)
    asked = replace(QUICK, rates=(0.1, 0.0001))
    mixed = LabelledImages(test.positions, test.labels.roll(4))
    for held_out in (test, mixed):
        evaluate([subject], train, held_out, [asked], labels=("4",), draws=1, resamples=10)
    one, other = said
    assert torch.equal(one.values, other.values)
    assert one.chosen == other.chosen


def test_one_setting_needs_no_choice(
    subject: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    assert QUICK.score(subject, train, test.positions).chosen == {"steps": 3, "rate": 0.05}
    assert len(fitted) == 1


def test_two_images_are_too_few_to_choose_on(
    subject: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    """Batch norm cannot be trained on the one that would be left."""
    firsts = torch.tensor([int((train.labels == c).nonzero()[0]) for c in (0, 1)])
    asked = replace(QUICK, rates=(0.05, 0.01))
    scores = asked.score(subject, train.take(firsts), test.positions)
    assert scores.chosen["rate"] == 0.05
    assert scores.values.shape == (9, 2)


def test_a_class_that_was_not_there_to_learn_counts_as_wrong() -> None:
    labels, values = torch.tensor([0, 1, 2]), -torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
    assert goodness(labels, values) == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------- a wild
# rate


@pytest.mark.parametrize("steps", [2, 30])  # so short that nobody gives up, and long enough
def test_a_rate_that_diverges_is_scored_as_chance(
    steps: int, subject: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    wild = FineTune(steps=(steps,), epochs=(), rates=(1e30,), batch=16)
    found = evaluate([subject], train, test, [wild], labels=("all",), resamples=10)
    assert [(r.metric, r.mean) for r in found.rows] == [("balanced_accuracy", pytest.approx(1 / 3))]


def test_a_rate_that_diverges_is_chance_for_several_classes_too(
    subject: Subject, index: Index
) -> None:
    wild = FineTune(steps=(2,), epochs=(), rates=(1e30,), batch=16)
    labels = several(index)
    train, test = (
        labelled(index, positions, labels) for positions in (index.train, index.held_out)
    )
    found = evaluate([subject], train, test, [wild], labels=("all",), resamples=10)
    assert [(r.metric, r.mean) for r in found.rows] == [("auroc", 0.5)]


def test_of_a_wild_rate_and_a_tame_one_the_tame_one_is_taken(
    subject: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    asked = replace(LEARNS, rates=(1e30, 0.5))
    scores = asked.score(subject, train, test.positions)
    assert scores.chosen["rate"] == 0.5
    assert goodness(test.labels, scores.values) > 1 / 3


def test_images_that_are_gone_are_no_bad_rate(
    subject: Subject, index: Index, train: LabelledImages, test: LabelledImages
) -> None:
    gone = Images([Path("nowhere.png")] * len(index), index.sizes, 32, hold=False)
    with pytest.raises(UserError, match="no image can be read"):
        QUICK.score(replace(subject, images=gone), train, test.positions)


# ------------------------------------------------------------------------------------------- the
# command


def test_the_command_fine_tunes_a_run_beside_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = folder(tmp_path / "images", each=8)
    out = tmp_path / "run"
    small = [
        "--backbone",
        RESNET,
        "--size",
        "32",
        "--batch",
        "8",
        "--precision",
        "fp32",
        "--workers",
        "0",
    ]
    assert main(["pretrain", "--data", str(images), "--out", str(out), "--steps", "2", *small]) == 0
    before = (out / "backbone.safetensors").read_bytes()
    asked = [
        "--finetune.steps",
        "2",
        "--finetune.epochs",
        "--finetune.rates",
        "0.1",
        "0.01",
        "--finetune.batch",
        "8",
    ]
    words = [
        "evaluate",
        str(out),
        "--protocol",
        "finetune",
        "--labels",
        "5",
        "--draws",
        "2",
        "--against",
        "random",
    ]
    capsys.readouterr()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*words, *asked, "--json", "--workers", "0"]) == 0
    rows = json.loads(said.getvalue())
    assert {(r["backbone"], r["protocol"], r["labels"], r["metric"], r["draws"]) for r in rows} == {
        (name, "finetune", "5", "balanced_accuracy", 2) for name in (str(out), "random")
    }
    assert all(0 <= r["low"] <= r["mean"] <= r["high"] <= 1 for r in rows)
    kept = json.loads((out / "evaluation.json").read_text())[0]
    assert Results.from_json(
        json.dumps({k: kept[k] for k in ("rows", "differences", "notes")})
    ).differences
    assert (out / "backbone.safetensors").read_bytes() == before
    assert not (out / "features").exists()  # frozen features are no part of it
    assert main([*words, "--finetune.rates", "0", "--json"]) == 2
    assert "above 0" in capsys.readouterr().err
