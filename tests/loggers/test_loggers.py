"""Loggers: one protocol, files that other tools read, and a training that none of them stops."""

import json
import logging
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.evaluation.evaluate import Evaluation, log_scores
from selftaught.evaluation.results import Results
from selftaught.loggers import logger as logger_module
from selftaught.loggers.jsonl import JSONL, read_journal
from selftaught.loggers.logger import (
    LOGGERS,
    Logger,
    Loggers,
    RunFacts,
    build_loggers,
    scalars,
    score_values,
)
from selftaught.loggers.terminal import Progress
from selftaught.runs import folder as run_folder
from selftaught.training import run_record
from selftaught.training.run_record import RunRecord
from selftaught.training.runtime import Runtime
from selftaught.training.trainer import train
from selftaught.visualize import snapshots
from tests.fixtures import Capture, Patch
from tests.pictures import folder

SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32"]
HERE = ["--workers", "0", "--device", "cpu"]
SCORED = ["--protocol", "knn", "--labels", "all", "--against", "random", *HERE]
KNN = "scores/knn/all/balanced_accuracy/run"


def values(loss: float) -> dict[str, Any]:
    """An entry of the journal."""
    numbers = {"epoch": 0, "loss": loss, "lr": 0.1, "skipped": 0, "lost": 0, "seconds": 1.0}
    features = {"std": 0.5, "rank": 20.0}
    unknown = {"images_per_s": None, "wait": None}
    return {**numbers, **unknown, "losses": {"clean": loss}, "features": features}


ROWS = [
    {"backbone": name, "protocol": "knn", "labels": "all", "metric": "balanced_accuracy"}
    | {"mean": mean, "low": 0.1, "high": 0.9, "draws": 1}
    for name, mean in (("run", 0.75), ("random", 0.5))
]


def log_run(logger: Logger, place: Path, picture: Path | None = None) -> None:
    """A run of four steps that is killed after its third, resumed after its second, and scored."""
    config = {"method": {"temperature": 0.2}, "steps": 4}
    logger.begin(RunFacts(folder=place, steps=4, config=config))
    for step in (0, 1, 2, 3):
        logger.metrics(step, values(4.0 - step))
    logger.finish("stopped")
    logger.begin(RunFacts(folder=place, steps=4, step=2, resumed=True, config=config))
    for step in (3, 4):
        logger.metrics(step, values(10.0 + step))
    if picture:
        logger.image(4, "album/views", picture)
    logger.finish("done")
    logger.begin(RunFacts(folder=place, steps=4, step=4, resumed=True, config=config))
    logger.scores(ROWS)
    logger.finish("done")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "views.png"
    Image.new("RGB", (12, 8), (255, 0, 0)).save(file)
    return file


# ------------------------------------------------------------------------------------------------
# the protocol


class Recorder(Logger):
    """Keeps what it is given; raises in one of its methods."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[tuple[str, Any]] = []

    @property
    def name(self) -> str:
        return "recorder"

    def note(self, call: str, value: Any = None) -> None:
        self.calls.append((call, value))
        if call == self.fails:
            raise ConnectionError("the server\nis away")

    def begin(self, facts: RunFacts) -> None:
        self.note("begin", (facts.step, facts.resumed))

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self.note("metrics", step)

    def image(self, step: int, name: str, path: Path) -> None:
        assert path.is_file()
        self.note("image", name)

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.note("scores", len(rows))

    def finish(self, outcome: str) -> None:
        self.note("finish", outcome)


def test_a_logger_that_fails_is_left_out_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound, broken = Recorder(), Recorder(fails="metrics")
    loggers = Loggers([broken, sound])
    loggers.begin(RunFacts(folder=tmp_path, steps=3))
    for step in range(3):
        loggers.metrics(step, values(1.0))
    loggers.finish("done")
    assert [call for call, _ in broken.calls] == ["begin", "metrics"]
    assert [call for call, _ in sound.calls] == ["begin", *["metrics"] * 3, "finish"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "recorder" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_what_never_began_is_not_finished(tmp_path: Path) -> None:
    recorder = Recorder()
    Loggers([recorder]).finish("failed")
    assert recorder.calls == []


def test_numbers_of_an_entry_have_flat_names() -> None:
    flat = scalars(values(2.0))
    assert flat["losses/clean"] == flat["loss"] == 2.0
    assert flat["features/rank"] == 20.0
    assert "wait" not in flat
    assert score_values([{**ROWS[0], "labels": "total:30", "backbone": "runs/a b"}]) == {
        "scores/knn/total-30/balanced_accuracy/a b": 0.75
    }


def test_the_journal_and_the_terminal_are_loggers(tmp_path: Path) -> None:
    log_run(JSONL(), tmp_path)
    journal = read_journal(tmp_path / "journal.jsonl")
    assert [(e["step"], e["loss"]) for e in journal] == list(enumerate((4.0, 3.0, 2.0, 13.0, 14.0)))
    with Progress(show=False) as progress:
        log_run(progress, tmp_path)


def test_messages_of_the_package_are_shown_while_the_terminal_is_open(capsys: Capture) -> None:
    package = logging.getLogger("selftaught.training.anything")
    with Progress():
        package.info("100 % is shown")
    package.info("and this is not")
    err = capsys.readouterr().err
    assert "100 % is shown" in err
    assert "and this" not in err


@pytest.mark.parametrize("name", LOGGERS)
def test_an_extra_that_is_not_installed_is_refused_before_anything(
    name: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(logger_module, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"selftaught\[{name}\]"):
        build_loggers([name])
    out = tmp_path / "run"
    assert main(["pretrain", "--data", "nowhere", "--out", str(out), "--log", name]) == 2
    assert f"selftaught[{name}]" in capsys.readouterr().err
    assert not out.exists()


def test_another_name_is_refused(tmp_path: Path, capsys: Capture) -> None:
    words = ["--data", "nowhere", "--out", str(tmp_path / "run"), "--log", "tensorbord"]
    assert main(["pretrain", *words]) == 2
    assert "tensorboard" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# of a training


def test_a_training_logs_and_no_logger_stops_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Patch
) -> None:
    """Its metrics, its pictures and its outcome; weights are the same with and without."""

    def draw(session: Any, album: Path | None) -> None:
        assert album is not None
        album.mkdir()
        for name in ("views.png", "n-0-q.png"):
            Image.new("RGB", (8, 8)).save(album / name)

    monkeypatch.setattr(snapshots, "draw", draw)
    images = folder(tmp_path / "images")
    words = ["pretrain", "--data", str(images), "--steps", "3", *SMALL, *HERE]
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    stage = run_folder.read_run(tmp_path / "plain").stage
    sound, broken = Recorder(), Recorder(fails="begin")
    runtime = Runtime(workers=0, loggers=(broken, sound), draw=draw)
    train(stage, tmp_path / "logged", runtime)
    assert sound.calls == [
        ("begin", (0, False)),
        *(("metrics", step) for step in range(4)),
        ("image", "album/views"),
        ("finish", "done"),
    ]
    assert sum("recorder" in record.getMessage() for record in caplog.records) == 1
    plain, logged = (
        (tmp_path / name / "backbone.safetensors").read_bytes() for name in ("plain", "logged")
    )
    assert plain == logged


def test_rank_0_alone_logs(tmp_path: Path, monkeypatch: Patch) -> None:
    recorder, nothing = Recorder(), cast(Any, None)
    monkeypatch.setattr(run_record, "rank", lambda: 1)
    record = RunRecord(nothing, tmp_path, Runtime(loggers=(recorder,)), nothing)
    record.begin(0)
    record.log(None, {"std": 0.5}, 0)
    record.close("done")
    record.loggers.finish("done")
    assert recorder.calls == []
    assert list(tmp_path.iterdir()) == []


def test_scores_for_a_logger_that_is_not_installed_are_left_out_with_a_line(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger_module, "find_spec", lambda package: None)
    run = run_folder.Run(tmp_path, cast(Any, None), {"log": ["wandb", "unknown"]})
    log_scores(run, Evaluation(results=Results(rows=()), verdict=""), "run")
    (record,) = caplog.records
    assert "selftaught[wandb]" in record.getMessage()


def test_tensorboard_of_a_run_that_is_resumed_and_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    images, out = folder(tmp_path / "images", classes=2), tmp_path / "run"
    words = ["--data", str(images), "--out", str(out), "--steps", "2", *SMALL, *HERE]
    assert main(["pretrain", *words, "--log", "tensorboard"]) == 0
    assert json.loads((out / "run.json").read_text())["log"] == ["tensorboard"]
    assert main(["pretrain", "--out", str(out), "--resume", *HERE]) == 0
    assert main(["evaluate", str(out), *SCORED]) == 0
    read = events(out / "tensorboard")
    journal = read_journal(out / "journal.jsonl")
    assert [e.step for e in read.Scalars("loss")] == [e["step"] for e in journal if e["loss"]]
    assert read.Scalars("features/std")[0].value == pytest.approx(journal[0]["features"]["std"])
    rows = json.loads((out / "evaluation.json").read_text())[0]["rows"]
    mean = next(r["mean"] for r in rows if r["metric"] == "balanced_accuracy")
    assert read.Scalars(KNN)[0].value == pytest.approx(mean)


# ------------------------------------------------------------------------------------------------
# each library's own files


def events(place: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(place))
    read.Reload()
    return read


def test_tensorboard_files(tmp_path: Path, picture: Path) -> None:
    pytest.importorskip("tensorboard")
    (logger,) = build_loggers(["tensorboard"])
    log_run(logger, tmp_path / "run", picture)
    read = events(tmp_path / "run" / "tensorboard")
    losses = [(e.step, e.value) for e in read.Scalars("losses/clean")]
    assert losses == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 13.0), (4, 14.0)]
    assert [e.step for e in read.Scalars("features/rank")] == [0, 1, 2, 3, 4]
    assert (read.Images("album/views")[0].width, read.Images("album/views")[0].height) == (12, 8)
    assert read.Scalars(KNN)[0].value == 0.75
    assert read.Scalars(KNN.replace("/run", "/random"))[0].step == 4


def wandb_records(file: Path) -> list[Any]:
    """Of an offline run's file: a header of 7 bytes, blocks of 32 KiB, records cut into chunks
    (checksum, length, kind), as LevelDB's log.
    """
    from wandb.proto import wandb_internal_pb2

    raw, at, whole, records = file.read_bytes(), 7, b"", []
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def test_wandb_files(tmp_path: Path, picture: Path, monkeypatch: Patch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (logger,) = build_loggers(["wandb"])
    place = tmp_path / "run"
    place.mkdir()
    log_run(logger, place, picture)
    wandb_record = json.loads((place / "loggers.json").read_text())["wandb"]
    files = sorted((place / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert {file.stem for file in files} == {
        f"run-{wandb_record['id']}"
    }  # one run, however often begun
    records = [record for file in files for record in wandb_records(file)]
    history = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    losses = [(h["step"], h["losses/clean"]) for h in history if "losses/clean" in h]
    assert {(0, 4.0), (1, 3.0), (2, 2.0), (3, 13.0), (4, 14.0)} <= set(losses)
    assert any(name.startswith("album/views") for h in history for name in h)
    summary = {
        "/".join(i.nested_key) or i.key: json.loads(i.value_json)
        for r in records
        if r.WhichOneof("record_type") == "summary"
        for i in r.summary.update
    }
    assert summary[KNN] == 0.75


def test_mlflow_store(tmp_path: Path, picture: Path, monkeypatch: Patch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (logger,) = build_loggers(["mlflow"])
    place = tmp_path / "runs" / "a"
    place.mkdir(parents=True)
    log_run(logger, place, picture)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("selftaught")
    (run,) = client.search_runs([experiment.experiment_id])  # one run, however often begun
    assert run.info.status == "FINISHED"
    assert run.data.params["method.temperature"] == "0.2"
    losses = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "losses/clean")}
    assert {(0, 4.0), (1, 3.0), (2, 2.0), (3, 13.0), (4, 14.0)} <= losses
    assert run.data.metrics[KNN] == 0.75
    assert [f.path for f in client.list_artifacts(run.info.run_id, "album")] == ["album/views.png"]
