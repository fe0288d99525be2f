"""Fine-tuning as an evaluation: what is trained, on which images a setting is chosen, and what a
wild rate does.
"""

import contextlib
import copy
import io
import json
import shutil
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
from selftaught.evaluation.cross_validation import choose, goodness, hold_out
from selftaught.evaluation.finetune import (
    HPT,
    PROBE,
    FineTune,
    Setting,
    draw_balanced,
    drops,
    interpolate_states,
)
from selftaught.evaluation.results import Results
from selftaught.features.extract import extract
from selftaught.features.linear import LinearProbe
from selftaught.features.protocol import FeatureExtractor, LabelledImages, Scores, Subject
from selftaught.models import backbone as backbone_module
from tests.commands import argv, succeed
from tests.fixtures import Capture, Patch, Places
from tests.networks import RESNET, assert_same_weights
from tests.pictures import folder

QUICK = replace(HPT, steps=(3,), epochs=(), rates=(0.05,), batch=16)


@pytest.fixture(scope="module")
def index(tmp_path_factory: Places) -> Index:
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
    targets = index.labels if labels is None else labels
    assert targets is not None
    return LabelledImages(positions, targets[positions])


@pytest.fixture
def subject(images: Images, backbone: backbone_module.Backbone) -> Subject:
    def refuse(positions: Tensor) -> Tensor:
        pytest.fail("frozen features are no part of it")

    of: dict[str, Any] = {"name": "own", "size": 32, "device": "cpu", "precision": "fp32"}
    return Subject(**of, backbone=backbone, images=images, features=FeatureExtractor(refuse))


@pytest.fixture
def probed(subject: Subject, train: LabelledImages, test: LabelledImages) -> Subject:
    """As `subject`, with frozen features."""

    def features(positions: Tensor) -> Tensor:
        return extract(subject.backbone, subject.images, positions, size=32)

    return replace(subject, features=FeatureExtractor(features, train.positions, test.positions))


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
def fitted(monkeypatch: Patch) -> list[dict[str, Any]]:
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
    # 3 batches of 256 an epoch
    lengths = [(2500, 0.01), (2500, 0.001), (270, 0.01), (270, 0.001)]
    assert HPT.settings(1000) == [Setting(steps, rate, 1.0) for steps, rate in lengths]
    # one batch, of all there are
    assert HPT.settings(100)[2:] == [Setting(90, 0.01, 1.0), Setting(90, 0.001, 1.0)]
    assert (
        "2500 steps or 90 epochs of sgd, rate 0.01 or 0.001, 100 times that for the head"
        in HPT.describe()
    )


def test_the_probe_is_the_first_setting_and_every_blend_is_tried() -> None:
    asked = FineTune(steps=(7,), epochs=(), rates=(0.1, 0.2), blends=(1.0, 0.0, 0.5))
    trained = [Setting(7, rate, blend) for rate in (0.1, 0.2) for blend in (0.5, 1.0)]
    assert asked.settings(50) == [PROBE, *trained]
    assert replace(asked, blends=(0.5, 1.0)).settings(50) == trained
    assert replace(asked, blends=(0.0,)).settings(50) == [PROBE]


def test_few_images_have_more_passes() -> None:
    asked = FineTune(epochs=(10.0,), batch=32, min_steps=80, rates=(0.1,), blends=(1.0,))
    for number, steps in ((6, 80), (140, 80), (2000, 620)):
        assert asked.settings(number) == [Setting(steps, 0.1, 1.0)]
    assert FineTune().settings(50)[0] == PROBE


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"steps": (), "epochs": ()}, "fine-tuning has no length: give --finetune.steps"),
        ({"rates": ()}, "--finetune.rates needs one number or more"),
        ({"rates": (0.0,)}, "--finetune.rates must be above 0"),
        ({"batch": 0}, "--finetune.batch must be 1 or more"),
        ({"head": -1.0}, "--finetune.head must be above 0"),
        ({"steps": (0,)}, "--finetune.steps must be 1 or more"),
        ({"blends": ()}, "--finetune.blends needs one number or more"),
        ({"blends": (0.5, 1.1)}, "--finetune.blends must be from 0 to 1"),
        ({"start": "random"}, "--finetune.blends 0 is the linear probe"),  # to blend with
        ({"folds": 1}, "--finetune.folds must be 2 or more"),
        ({"min_steps": 0}, "--finetune.min-steps must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FineTune(**asked)


def test_crops_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"--finetune\.crops"):
        FineTune(crops=(0.0, 1.0))


def test_the_head_learns_a_hundred_times_faster_and_everything_moves(
    subject: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    replace(QUICK, steps=(6,), rates=(0.5,)).score(subject, train, test.positions)
    (only,) = fitted
    linear, backbone = only["method"].network[1], only["method"].backbone
    groups = {id(p): group for group in only["groups"] for p in group["params"]}
    assert groups.keys() == {id(p) for p in (*linear.parameters(), *backbone.parameters())}
    for part, factor in ((backbone, 1), (linear, 100)):  # by the batch
        peaks = {groups[id(p)]["peak"] for p in part.parameters()}
        assert list(peaks) == pytest.approx([factor * 0.5 * 16 / 256])
    assert {g["momentum"] for g in only["groups"]} == {0.9}
    assert {g["weight_decay"] for g in only["groups"]} == {0}
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


LEARNS = replace(HPT, steps=(32,), epochs=(), rates=(0.5,), batch=16)


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


@pytest.mark.parametrize("cross_validate", [0, 100])
def test_a_setting_is_chosen_on_kept_out_training_images(
    cross_validate: int,
    subject: Subject,
    train: LabelledImages,
    test: LabelledImages,
    monkeypatch: Patch,
) -> None:
    """And what was chosen is then trained on all of them. Test images are looked at once, at the
    end.
    """
    tried: list[tuple[set[int], set[int], list[Setting]]] = []

    def score_settings(
        self: FineTune, on: Subject, part: LabelledImages, seen: Tensor, settings: list[Setting]
    ) -> list[Tensor]:
        tried.append((set(part.positions.tolist()), set(seen.tolist()), list(settings)))
        right = torch.nn.functional.one_hot(labels_of[seen], 3).float()
        return [right if setting[:2] == (7, 0.5) else -right for setting in settings]

    labels_of = index_labels(train, test)
    monkeypatch.setattr(FineTune, "score_settings", score_settings)
    asked = replace(
        HPT, steps=(3, 7), epochs=(), rates=(0.1, 0.5), folds=4, cross_validate=cross_validate
    )
    scores = asked.score(subject, train, test.positions)
    assert scores.chosen == {"steps": 7, "rate": 0.5, "blend": 1}
    everything = set(train.positions.tolist())
    *trials, last = tried
    assert len(trials) == (4 if cross_validate else 1)
    judged = [position for _, judged_on, _ in trials for position in judged_on]
    assert len(judged) == len(set(judged))  # each once
    assert (set(judged) == everything) == bool(cross_validate)
    for learnt_on, judged_on, settings in trials:
        assert settings == asked.settings(len(everything))
        assert learnt_on | judged_on == everything
        assert not learnt_on & judged_on
        assert set(labels_of[torch.tensor(sorted(judged_on))].tolist()) == {0, 1, 2}
    assert last == (everything, set(test.positions.tolist()), [Setting(7, 0.5, 1)])


def index_labels(*parts: LabelledImages) -> Tensor:
    """The label of every image by its position."""
    labels = torch.zeros(sum(len(p.labels) for p in parts), dtype=torch.long)
    for part in parts:
        labels[part.positions] = part.labels
    return labels


def test_test_labels_change_no_prediction(
    subject: Subject, train: LabelledImages, test: LabelledImages, monkeypatch: Patch
) -> None:
    text: list[Scores] = []
    real = FineTune.score

    def score(self: FineTune, *args: Any) -> Scores:
        text.append(real(self, *args))
        return text[-1]

    monkeypatch.setattr(FineTune, "score", score)
    asked = replace(QUICK, rates=(0.1, 0.0001))
    mixed = LabelledImages(test.positions, test.labels.roll(4))
    for held_out in (test, mixed):
        evaluate([subject], train, held_out, [asked], labels=("4",), draws=1, resamples=10)
    one, other = text
    assert torch.equal(one.values, other.values)
    assert one.chosen == other.chosen


def test_one_setting_needs_no_choice(
    subject: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    chosen = QUICK.score(subject, train, test.positions).chosen
    assert chosen == {"steps": 3, "rate": 0.05, "blend": 1}
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
    wild = replace(HPT, steps=(steps,), epochs=(), rates=(1e30,), batch=16)
    result = evaluate([subject], train, test, [wild], labels=("all",), resamples=10)
    assert [(r.metric, r.mean) for r in result.rows] == [
        ("balanced_accuracy", pytest.approx(1 / 3))
    ]


def test_a_rate_that_diverges_is_chance_for_several_classes_too(
    subject: Subject, index: Index
) -> None:
    wild = replace(HPT, steps=(2,), epochs=(), rates=(1e30,), batch=16)
    labels = several(index)
    train, test = (
        labelled(index, positions, labels) for positions in (index.train, index.held_out)
    )
    result = evaluate([subject], train, test, [wild], labels=("all",), resamples=10)
    assert [(r.metric, r.mean) for r in result.rows] == [("auroc", 0.5)]


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
    gone = Images([Path("nowhere.png")] * len(index), index.sizes, 32, in_memory=False)
    with pytest.raises(UserError, match="no image can be read"):
        QUICK.score(replace(subject, images=gone), train, test.positions)


# --------------------------------------------------------------------------------- the probe as
# start


SHORT = FineTune(steps=(4,), epochs=(), rates=(0.01,), batch=16, folds=2)


def probe_scores(subject: Subject, train: LabelledImages, test: LabelledImages) -> Tensor:
    return LinearProbe().score(subject, train, test.positions).values


def test_before_any_step_the_network_scores_as_the_probe_does(
    probed: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    """Also where the features are standardised with very different scales."""
    (values,) = SHORT.score_settings(probed, train, test.positions, [PROBE])
    assert values is not None
    expected = probe_scores(probed, train, test)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


def test_the_probe_of_several_classes_an_image_is_a_start_too(
    probed: Subject, index: Index
) -> None:
    labels = several(index).to(torch.int8)
    train, test = (labelled(index, p, labels) for p in (index.train, index.held_out))
    (values,) = SHORT.score_settings(probed, train, test.positions, [PROBE])
    assert values is not None
    expected = probe_scores(probed, train, test)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    assert SHORT.score(probed, train, test.positions).values.shape == (9, 3)


def test_norms_keep_their_statistics_unless_asked(
    probed: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    for norms in ("frozen", "batch"):
        asked = replace(SHORT, norms=norms, blends=(1.0,))
        asked.score(probed, train, test.positions)
    networks = [probed.backbone, *(each["method"].backbone for each in fitted)]
    start, frozen, batch = (n.get_buffer("network.bn1.running_mean") for n in networks)
    assert torch.equal(frozen, start)
    assert not torch.equal(batch, start)


def test_every_class_is_drawn_equally_often() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 20 + [2] * 3 + [5])
    rows = draw_balanced(labels, rng)
    assert len(rows) == 24
    assert torch.bincount(labels[rows]).tolist() == [8, 0, 8, 0, 0, 8]
    assert len(rows[labels[rows] == 0].unique()) == 8  # no frequent image twice
    assert torch.bincount(rows)[20:23].tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    even = torch.arange(12) % 3
    assert draw_balanced(even, rng).sort().values.tolist() == list(range(12))
    assert not torch.equal(draw_balanced(even, rng), draw_balanced(even, rng))


def test_weights_between_start_and_end() -> None:
    start, end = (
        {"w": torch.zeros(3), "n": torch.tensor(1)},
        {"w": torch.ones(3), "n": torch.tensor(5)},
    )
    for blend in (0.0, 0.25, 1.0):
        between = interpolate_states(start, end, blend)
        assert between["w"].tolist() == [blend] * 3
        assert between["n"] == 5


def test_blends_of_one_training_train_once(
    probed: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    settings = replace(SHORT, rates=(0.01, 0.02)).settings(len(train.labels))
    scores = SHORT.score_settings(probed, train, test.positions, settings)
    assert len(scores) == len(settings)
    assert len(fitted) == 2


@pytest.mark.parametrize("draw", range(3))
def test_two_labels_a_class_are_enough_to_be_no_worse_than_the_probe(
    draw: int, probed: Subject, train: LabelledImages, test: LabelledImages
) -> None:
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(draw))
    few = train.take(torch.cat([order[train.labels[order] == c][:2] for c in range(3)]))
    scores = replace(SHORT, seed=draw).score(probed, few, test.positions)
    probe = goodness(test.labels, probe_scores(probed, few, test))
    assert goodness(test.labels, scores.values) >= probe
    assert scores.chosen.keys() == {"steps", "rate", "blend"}


def test_with_one_label_a_class_it_is_the_probe(
    probed: Subject, train: LabelledImages, test: LabelledImages, fitted: list[dict[str, Any]]
) -> None:
    """No image can be held out whose class is still there."""
    few = train.take(torch.tensor([int((train.labels == c).nonzero()[0]) for c in range(3)]))
    scores = SHORT.score(probed, few, test.positions)
    assert scores.chosen == PROBE._asdict()
    assert not fitted
    expected = probe_scores(probed, few, test)
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-4)


def test_a_wild_rate_leaves_the_probe(
    probed: Subject, train: LabelledImages, test: LabelledImages, monkeypatch: Patch
) -> None:
    """Whether it diverges while it is chosen, or only with all labels."""
    wild = replace(SHORT, rates=(1e30,), steps=(12,))
    expected = probe_scores(probed, train, test)
    scores = wild.score(probed, train, test.positions)
    assert scores.chosen == PROBE._asdict()
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(finetune, "choose", lambda settings, parts, score: settings[-1])
    late = wild.score(probed, train, test.positions)
    assert late.chosen == PROBE._asdict()
    assert torch.equal(late.values, scores.values)
    alone = replace(wild, blends=(1.0,)).score(probed, train, test.positions)
    assert not alone.values.any()


def test_a_fold_that_lacks_a_class_is_judged_all_the_same() -> None:
    """Its images of that class count as wrong; diverged settings count as chance."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    parts = hold_out(LabelledImages(torch.arange(7), labels), 3, 3, seed=0)
    assert sorted(int(p) for _, held_out in parts for p in held_out.positions) == list(range(7))

    def score(rest: LabelledImages, positions: Tensor, settings: Any) -> list[Tensor | None]:
        classes = int(rest.labels.max()) + 1
        right = torch.nn.functional.one_hot(labels[positions], 3)[:, :classes].float()
        return [None, -right, right]

    assert choose(["diverged", "wrong", "right"], parts, score) == "right"
    assert choose(["first", "second"], [], score) == "first"


# ------------------------------------------------------------------------------------------- the
# command


@pytest.fixture(scope="module")
def run(tmp_path_factory: Places) -> Path:
    place = tmp_path_factory.mktemp("run")
    small = argv("--size 32 --batch 8 --precision fp32 --workers 0 --steps 2 --backbone", RESNET)
    succeed("pretrain", "--data", folder(place / "images", each=8), "--out", place / "run", *small)
    return place / "run"


@pytest.mark.parametrize(
    "more",
    [[], argv("--finetune.start random --finetune.blends 1 --finetune.norms batch")],
    ids=["probe", "random"],
)
def test_the_command_fine_tunes_a_run_beside_others(
    more: list[str], run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    before = (out / "backbone.safetensors").read_bytes()
    asked = argv("--finetune.steps 2 --finetune.epochs --finetune.rates 0.1 0.01", *more)
    asked += argv("--finetune.batch 8 --finetune.folds 2")
    words = argv(f"evaluate {out} --protocol finetune --labels 5 --draws 2 --against random")
    capsys.readouterr()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main([*words, *asked, "--json", "--workers", "0"]) == 0
    rows = json.loads(text.getvalue())
    assert {(r["backbone"], r["protocol"], r["labels"], r["metric"], r["draws"]) for r in rows} == {
        (name, "finetune", "5", "balanced_accuracy", 2) for name in (str(out), "random")
    }
    assert all(0 <= r["low"] <= r["mean"] <= r["high"] <= 1 for r in rows)
    kept = json.loads((out / "evaluation.json").read_text())[0]
    assert Results.from_json(
        json.dumps({k: kept[k] for k in ("rows", "differences", "notes")})
    ).differences
    assert (out / "backbone.safetensors").read_bytes() == before
    assert (out / "features").exists() == (not more)  # frozen features are no part of a random head
    (choice, _) = kept["choices"]
    assert (choice["backbone"], choice["labels"], len(choice["chosen"])) == (str(out), "5", 2)
    assert choice["chosen"][0].keys() == {"steps", "rate", "blend"}
    assert main([*words, "--finetune.rates", "0", "--json"]) == 2
    assert "above 0" in capsys.readouterr().err
