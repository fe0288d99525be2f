"""The accuracy of a pretext task on held-out images, and the stage that a method recommends."""

import json
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selftaught import distributed
from selftaught.cli.main import main
from selftaught.features import statistics
from selftaught.features.extract import extract
from selftaught.loggers import jsonl
from selftaught.methods import METHODS
from selftaught.methods.pretext.rotation import Rotation
from selftaught.models.stages import StageFeatures, stage_at
from selftaught.runs import folder as run_folder
from selftaught.training import monitor, pretext_accuracy
from selftaught.training.monitor import Monitor
from selftaught.training.pretext_accuracy import measure_accuracy
from selftaught.training.session import Session, build_session
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder

SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32"]
SMALL += ["--workers", "0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: Places, pictures: None) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rotation"
    words = ["--data", str(images), "--out", str(out), "--method", "rotation", "--steps", "4"]
    assert main(["pretrain", *words, *SMALL]) == 0
    return out


def session_of(run: Path) -> Session:
    stage = run_folder.read_run(run).stage
    return build_session(stage, stage.data.index(stage.seed), torch.device("cpu"), 0)


def test_it_is_logged_beside_chance(trained: Path) -> None:
    entries = jsonl.read_journal(trained / "journal.jsonl")
    for entry in entries:
        assert ("pretext" in entry) == (entry["features"] is not None)
        assert entry.get("pretext_chance", 0.25) == 0.25
        assert 0 <= entry.get("pretext", 0) <= 1
    assert "pretext" in entries[0]
    facts = json.loads((trained / "run.json").read_text())
    assert facts["pretext"] == entries[-1]["pretext"]
    assert facts["pretext_chance"] == 0.25


def test_after_the_last_step_more_images_are_graded(trained: Path) -> None:
    monitor = Monitor(session_of(trained), 4)
    assert (len(monitor.held_out), len(monitor.graded_images)) == (
        4,
        len(monitor.session.index.held_out),
    )
    assert monitor.measure_pretext() == measure_accuracy(monitor.session, monitor.held_out)
    monitor.measured_at = monitor.session.stage.steps
    assert monitor.measure_pretext() == measure_accuracy(monitor.session, monitor.graded_images)


def test_the_error_is_that_of_a_mean(trained: Path, monkeypatch: Patch) -> None:
    session = session_of(trained)
    grades = torch.tensor([0.0, 1, 1, 0, 1])
    monkeypatch.setattr(Rotation, "grade", lambda *_: grades)
    measured = measure_accuracy(session, session.index.held_out[:5])
    assert measured["pretext_error"] == pytest.approx(grades.std().item() / 5**0.5)
    monkeypatch.setattr(Rotation, "grade", lambda *_: grades[:1])
    assert measure_accuracy(session, session.index.held_out[:1])["pretext_error"] == 0


def test_a_resumed_run_keeps_it(images: Path, trained: Path, tmp_path: Path) -> None:
    facts = json.loads((trained / "run.json").read_text())
    assert main(["pretrain", "--out", str(trained), "--resume"]) == 0
    again = json.loads((trained / "run.json").read_text())
    keys = ("pretext", "pretext_chance", "recommended_stage")
    assert [again[key] for key in keys] == [facts[key] for key in keys]


@pytest.mark.parametrize(("accuracy", "warns"), [(0.25, True), (0.255, True), (0.3, False)])
def test_a_task_that_is_not_learnt_is_said_at_the_end(
    images: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, accuracy: float, warns: bool
) -> None:
    values = chain([0.25], repeat(accuracy))  # the first one before training
    measure = lambda *_: {"pretext": next(values), "pretext_chance": 0.25}  # noqa: E731
    monkeypatch.setattr(monitor, "measure_accuracy", measure)
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--method", "rotation"]
    assert main(["pretrain", *words, "--steps", "2", *SMALL]) == 0
    assert ("not learnt" in capsys.readouterr().err) == warns


def test_a_method_without_grades_logs_none(images: Path, tmp_path: Path) -> None:
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--steps", "2", *SMALL]
    assert main(["pretrain", *words]) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert not {"pretext", "pretext_chance", "recommended_stage"} & facts.keys()
    for entry in jsonl.read_journal(tmp_path / "run" / "journal.jsonl"):
        assert not {"pretext", "pretext_chance"} & entry.keys()


def test_a_right_network_has_all_points_and_modes_stay(trained: Path, monkeypatch: Patch) -> None:
    session = session_of(trained)
    session.method.train()
    session.method.network[1].eval()
    positions = session.index.held_out
    first = measure_accuracy(session, positions)
    assert first == measure_accuracy(session, positions)  # the same turns each time
    assert session.method.training
    assert not session.method.network[1].training
    answers = lambda self, data, predictions: predictions.argmax(2)  # noqa: E731
    monkeypatch.setattr(Rotation, "targets", answers)
    assert measure_accuracy(session, positions)["pretext"] == 1.0
    assert measure_accuracy(session, positions[:0]) == {}


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_measure_what_one_does(
    trained: Path, world: int, monkeypatch: Patch
) -> None:
    session = session_of(trained)
    positions = session.index.held_out
    alone = measure_accuracy(session, positions)
    shares: list[Tensor] = []
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(pretext_accuracy, "gather", lambda x: shares.append(x) or x)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        measure_accuracy(session, positions)
    assert len(shares[0]) < len(positions)
    monkeypatch.setattr(pretext_accuracy, "gather", lambda x: torch.cat(shares))
    assert measure_accuracy(session, positions) == alone


def test_the_report_and_export_name_it(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["report", str(trained), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    facts = json.loads((trained / "run.json").read_text())
    error = 196 * facts["pretext_error"]
    assert f"{100 * facts['pretext']:.1f} ± {error:.1f} % (chance 25.0 %)" in page
    assert '<section id="task">' in page
    assert page.count("truth ") >= 8
    stage = facts["recommended_stage"]
    assert stage in page
    assert main(["export", str(trained), "--to", str(tmp_path / "backbone.pth")]) == 0
    assert stage in capsys.readouterr().err


def test_features_for_a_task_may_tell_less_of_classes(trained: Path, tmp_path: Path) -> None:
    """kNN is no sign of a collapse there: before a puzzle is learnt, features lose colours."""
    graded = session_of(trained)
    assert Monitor(graded, 16).detector.voters == 0
    plain = replace(graded.stage, method=METHODS["simclr"].Config())
    session = build_session(plain, graded.index, torch.device("cpu"), 0)
    assert Monitor(session, 16).detector.voters > 0


def test_where_nothing_is_trained_no_task_is_learnt(
    images: Path, trained: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--method", "rotation"]
    words += ["--init", str(trained), "--trainable", "none", "--steps", "2"]
    assert main(["pretrain", *words, *SMALL[2:]]) == 0
    assert "not learnt" not in capsys.readouterr().err


def test_the_recommended_stage_is_monitored(trained: Path) -> None:
    session = session_of(trained)
    monitor = Monitor(session, 16)
    backbone = session.backbone
    maps = backbone.maps(torch.rand(2, 3, 32, 32))
    assert monitor.stage == list(maps)[-2] == stage_at(backbone, 0.75)
    network = StageFeatures(backbone, {monitor.stage: maps[monitor.stage].shape[1]})
    result = [
        extract(network, session.images, monitor.images, size=32, share=share)
        for share in (1.0, 0.7)
    ]
    assert monitor.measure().items() >= statistics.measure(*result).items()


@pytest.mark.parametrize(
    ("depth", "stages", "name"), [(0, 5, 0), (1, 5, 4), (0.75, 5, 3), (0.75, 4, 2), (0.75, 12, 8)]
)
def test_a_depth_is_the_same_part_of_every_network(
    depth: float, stages: int, name: int, monkeypatch: Patch
) -> None:
    widths = {str(i): 8 for i in range(stages)}
    monkeypatch.setattr("selftaught.models.stages.stage_widths", lambda backbone: widths)
    assert stage_at(None, depth) == str(name)
    assert stage_at(None, None) is None


def test_without_held_out_images_it_says_so(images: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--method", "rotation"]
    assert main(["pretrain", *words, "--steps", "2", "--holdout", "0", *SMALL]) == 0
    assert "held-out" in capsys.readouterr().err
    assert "pretext" not in json.loads((tmp_path / "run" / "run.json").read_text())
