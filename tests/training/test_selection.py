"""Which weights are kept: the start's unless a checkpoint is better, by labels where there are
any.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selftaught.cli import flags
from selftaught.config.stage import shared_index
from selftaught.data.index.build import Index
from selftaught.data.io.paths import Paths
from selftaught.errors import FileError
from selftaught.training import selection
from selftaught.training.selection import Candidate, Candidates, choose, label_scores
from selftaught.training.session import build_session
from tests.commands import argv, succeed
from tests.fixtures import Patch, Places
from tests.pictures import folder

RUN = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --steps 3")


def labelled(step: int, knn: float, linear: float, rank: float = 1.0) -> Candidate:
    return Candidate(step=step, file=f"{step}", scores={"knn": knn, "linear": linear, "rank": rank})


def unlabelled(step: int, rank: float) -> Candidate:
    return Candidate(
        step=step, file=f"{step}", scores={"rank": rank, "alignment": 0.1, "uniformity": -1.0}
    )


# The choice


def test_the_best_by_labels_wins_whatever_its_rank() -> None:
    start, best, last = (0.6, 0.7, 9), (0.7, 0.9, 3), (0.8, 0.7, 20)
    result = choose([labelled(0, *start), labelled(10, *best), labelled(50, *last)])
    assert (result.kept.step, result.worse) == (10, False)
    assert (
        result.text
        == "kept: step 10, 65.0 % at the start, 80.0 % there (mean AUROC of kNN and linear probe on"
        " training labels)"
    )
    assert result.facts()["kept"] == 10
    assert result.facts()["start"]["rank"] == 9


def test_what_got_worse_is_said_first() -> None:
    # in any order
    result = choose([labelled(50, 0.5, 0.6), labelled(0, 0.8, 0.8), labelled(10, 0.7, 0.7)])
    assert (result.kept.step, result.best.step, result.worse) == (0, 10, True)
    assert result.text.startswith(
        "training did not help: 80.0 % at the start, 70.0 % at best, after 10 steps"
    )
    assert result.text.endswith("kept: the start")


def test_a_tie_is_no_reason_to_change() -> None:
    assert choose([labelled(0, 1, 1), labelled(10, 1, 1)]).worse
    equal = choose([labelled(0, 0.5, 0.5), labelled(10, 0.9, 0.7), labelled(20, 0.8, 0.8)])
    assert equal.kept.step == 10  # the earlier


def test_without_labels_the_rank_decides_and_the_text_admits_it() -> None:
    result = choose([unlabelled(0, 7.0), unlabelled(10, 11.5), unlabelled(20, 6.0)])
    assert (result.kept.step, result.worse) == (10, False)
    assert "7.0 at the start, 11.5 there (effective rank: without labels, " in result.text
    assert "or with too few to score by, nothing better can be said)" in result.text
    assert choose([unlabelled(0, 7.0), unlabelled(10, 5.0)]).worse


def test_with_nothing_to_compare_the_start_stays() -> None:
    result = choose([labelled(0, 0.5, 0.5)])
    assert (result.kept.step, result.best.step, result.worse) == (0, 0, True)
    assert result.text.startswith(
        "nothing that was trained could be scored; kept: the start, with 50.0 %"
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_what_is_kept_is_never_below_the_start(scores: list[float]) -> None:
    result = choose([labelled(10 * i, score, score) for i, score in enumerate(scores)])
    assert result.kept.score == max(scores)
    assert result.worse == (scores[0] == max(scores))


def test_of_equal_candidates_the_nearest_to_the_start_is_kept() -> None:
    def between(share: float, score: float) -> Candidate:
        return replace(labelled(50, score, score), share=share)

    result = choose([labelled(0, 0.5, 0.5), *(between(s, 0.8) for s in (1.0, 0.75, 0.5))])
    assert (result.kept.step, result.kept.share) == (50, 0.5)
    assert "50% of the way from the start to step 50" in result.text
    assert result.facts()["share"] == 0.5
    assert choose([labelled(0, 0.8, 0.8), between(0.25, 0.8)]).worse


# Its scores


def clusters(labels: Tensor, spread: float = 0.3, seed: int = 0) -> Tensor:
    """Features [N, 16] around a corner of their own for every class."""
    rng = torch.Generator().manual_seed(seed)
    return torch.eye(16)[labels] + spread * torch.randn(len(labels), 16, generator=rng) / 4


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def test_features_that_tell_classes_apart_score_high_and_noise_at_chance() -> None:
    labels = torch.arange(200) % 4
    good, bad = label_scores(clusters(labels), labels), label_scores(noise(200), labels)
    assert good.keys() == bad.keys() == {"knn", "linear"}
    assert min(good.values()) > 0.99
    assert all(0.4 < score < 0.6 for score in bad.values())


def test_two_classes_of_any_number() -> None:
    labels = torch.tensor([7, 3]).repeat(30)
    assert min(label_scores(clusters(labels), labels).values()) > 0.99
    assert all(0.3 < score < 0.7 for score in label_scores(noise(60), labels).values())


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    labels = torch.cat([torch.arange(190) % 2, torch.full((10,), 2)])
    vectors = clusters(labels)
    assert min(label_scores(vectors, labels).values()) > 0.98
    # it looks like the others: an accuracy would lose 5 %
    vectors[labels == 2] = clusters(torch.arange(10) % 2, seed=1)
    blind = label_scores(vectors, labels)
    assert all(score < 0.92 for score in blind.values())


def test_a_class_of_one_image_does_not_stop_it() -> None:
    labels = torch.cat([torch.arange(60) % 3, torch.tensor([3])])
    result = label_scores(clusters(labels), labels)
    assert all(math.isfinite(score) and score > 0.6 for score in result.values())


def test_several_classes_an_image() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 5, generator=rng) < 0.3).to(torch.int8)
    labels[:, 4] = 0  # a class that no image has is passed over
    vectors = torch.cat([labels.float(), torch.zeros(200, 11)], dim=1) + 0.1 * noise(200)
    assert min(label_scores(vectors, labels).values()) > 0.95
    assert all(0.4 < score < 0.6 for score in label_scores(noise(200, seed=1), labels).values())


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(50, dtype=torch.long),  # one class
        torch.full((50,), 4),  # one class, not the first
        torch.tensor([0, 1, 0, 1]),  # too few
        torch.ones(50, 1, dtype=torch.int8),  # every image has the only class
        torch.zeros(50, 3, dtype=torch.int8),  # none has any
    ],
)
def test_where_labels_say_nothing_there_is_no_score(labels: Tensor) -> None:
    assert label_scores(noise(len(labels)), labels) == {}


def test_many_images_take_two_parts_and_give_the_same_answer() -> None:
    labels = torch.arange(selection.FEW + 200) % 3
    assert min(label_scores(clusters(labels), labels).values()) > 0.99


def test_the_same_features_score_the_same() -> None:
    labels = torch.arange(90) % 3
    assert label_scores(noise(90), labels) == label_scores(noise(90), labels)


# Its images


def index(labels: Tensor | None, count: int) -> Index:
    paths = Paths([f"{i}.png" for i in range(count)])
    rest: dict[str, Any] = {"split": "drawn", "unreadable": (), "fingerprint": ""}
    test, sizes = torch.arange(count) % 5 == 0, torch.ones(count, 2, dtype=torch.long)
    rest |= {"paths": paths, "names": paths, "sizes": sizes, "test": test}
    return Index(labels=labels, classes=("a", "b"), **rest)


def test_labelled_training_images_are_scored_and_no_held_out_one() -> None:
    labels = torch.where(torch.arange(100) % 3 == 0, torch.arange(100) % 2, -1)
    positions = selection.sample(index(labels, 100))
    assert sorted(positions.tolist()) == [i for i in range(100) if i % 5 and i % 3 == 0]


@pytest.mark.parametrize(
    ("labels", "most"),
    [
        (None, selection.UNLABELLED),
        (torch.full((5000,), -1), selection.UNLABELLED),
        (torch.zeros(5000), selection.MOST),
    ],
)
def test_no_more_images_than_needed(labels: Tensor | None, most: int) -> None:
    positions = selection.sample(index(labels, 5000))
    assert len(positions.unique()) == most
    assert (positions % 5 != 0).all()
    assert torch.equal(positions, selection.sample(index(labels, 5000)))


# Candidates of a run


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def start(images: Path, tmp_path_factory: Places) -> Path:
    out = tmp_path_factory.mktemp("runs") / "start"
    succeed("pretrain", "--data", images, "--out", out, *RUN)
    return out


def candidates_of(images: Path, out: Path, **fields: Any) -> Candidates:
    """Those of a run that is not trained: its first and last weights are equal."""
    words = [*argv(f"--data {images} --out {out}"), *RUN, *argv("--keep best")]
    words += [f"--{name}={value}" for name, value in fields.items()]
    stage = flags.stage_from(words, None, "cpu", shared_index)
    index = stage.data.index(stage.seed)
    session = build_session(stage, index, torch.device("cpu"), 0)
    (out / "checkpoints").mkdir(parents=True)
    return Candidates(session, out)


def scored(candidates: Candidates) -> list[tuple[int, float]]:
    for step in (0, 3):
        if candidates.due(step):
            candidates.score_candidates(step)
    return [(c.step, c.share) for c in candidates.candidates]


def test_random_weights_are_no_candidate(images: Path, tmp_path: Path) -> None:
    candidates = candidates_of(images, tmp_path / "run")
    assert scored(candidates) == [(3, 1.0)]
    choice = candidates.keep_best()
    assert (choice.kept.step, choice.text.startswith("kept: step 3, ")) == (3, True)


@pytest.fixture
def equal_scores(monkeypatch: Patch) -> None:
    """All candidates score the same."""
    monkeypatch.setattr(selection, "label_scores", lambda *_: {"knn": 0.5, "linear": 0.5})


@pytest.mark.usefixtures("equal_scores")
def test_a_step_that_failed_is_scored_whole(
    images: Path, start: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    candidates = candidates_of(images, tmp_path / "run", init=start)
    save, full = selection.save_weights, [True]

    def refuse(session: Any, backbone: Any, file: Path, head: Path | None, trained: bool) -> None:
        if "share-0.5" in file.name and full:
            raise FileError("the disk is full")
        save(session, backbone, file, head, trained)

    monkeypatch.setattr(selection, "save_weights", refuse)
    with pytest.raises(FileError):
        scored(candidates)
    again = Candidates(candidates.session, candidates.folder)
    again.load_state_dict(candidates.state_dict())
    full.clear()
    assert scored(again) == [(0, 1.0), (3, 1.0), *((3, share) for share in selection.SHARES)]


@pytest.mark.usefixtures("equal_scores")
def test_a_head_that_is_not_trained_is_not_saved(images: Path, start: Path, tmp_path: Path) -> None:
    for name, trainable in (("all", "all"), ("none", "none")):
        fields = {"init": start, "trainable": trainable, "method": "simclr"}
        candidates = candidates_of(images, tmp_path / name, **fields)
        scored(candidates)
        heads = list((tmp_path / name / "checkpoints").glob("step-3*head*"))
        assert bool(heads) == (name == "all")


def test_labels_of_held_out_images_alone_score_nothing(start: Path, tmp_path: Path) -> None:
    """Each image has several classes, and the training images have no labels."""
    images = folder(tmp_path / "images" / "train", classes=1)
    folder(tmp_path / "images" / "test", classes=1, seed=1)
    rows = [f"test/class 0/{i:03}.png,{i % 2},{i // 2 % 2}" for i in range(16)]
    table = "\n".join(["file,a,b", *rows])
    (images.parent / "labels.csv").write_text(table + "\n")
    candidates = candidates_of(images.parent, tmp_path / "run", init=start)
    assert candidates.session.index.labels.ndim == 2
    scored(candidates)
    assert not any(c.by_labels for c in candidates.candidates)
