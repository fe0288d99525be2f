"""A run from its beginning to its end: stopped, killed, resumed, collapsed, on bad files; and what
is made of it.
"""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import selftaught
from selftaught.cli.main import main
from selftaught.data.index.build import build_index
from selftaught.data.loading import images as images_module
from selftaught.evaluation import evaluate
from selftaught.evaluation.results import Results
from selftaught.loggers import jsonl
from selftaught.methods.contrastive import moco
from selftaught.runs import folder as run_folder
from selftaught.training.collapse import CollapseDetector
from selftaught.training.monitor import Monitor
from tests.commands import argv
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder
from tests.several import begin, kill, together
from tests.stopping import stopped_at

SMALL = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --workers 0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: Places, pictures: None) -> Path:
    """A HEXA run of a few steps, with its pictures."""
    out = tmp_path_factory.mktemp("runs") / "hexa"
    words = ["pretrain", "--data", str(images), "--out", str(out), "--steps", "6", *SMALL]
    assert main([*words, "--hard", "adversarial", "cutmix"]) == 0
    return out


def weights(out: Path) -> bytes:
    """Exactly: the same weights are the same file."""
    return (out / "backbone.safetensors").read_bytes()


def test_the_guard_compares_the_clean_loss_with_chance(
    images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Together with hard ones it would never sit there."""
    values: list[float | None] = []
    observe = lambda self, step, features, *, loss, collapsed_loss: values.append(loss)  # noqa: E731
    monkeypatch.setattr(CollapseDetector, "observe", observe)
    words = [*argv(f"pretrain --data {images} --out {tmp_path} --steps 4 --combine sum"), *SMALL]
    assert main([*words, "--hard", "cutmix"]) == 0
    last = jsonl.read_journal(tmp_path / "journal.jsonl")[-1]
    assert values[-1] == last["losses"]["clean"] < last["loss"]


def test_a_run_leaves_its_folder(trained: Path) -> None:
    facts = json.loads((trained / "run.json").read_text())
    assert (facts["outcome"], facts["lost"]) == ("done", 0)
    assert facts["data"]["images"] == 48
    assert facts["data"]["labels"]
    entries = jsonl.read_journal(trained / "journal.jsonl")
    assert [e["step"] for e in entries] == list(range(7))
    assert set(entries[-1]["losses"]) == {"clean", "adversarial", "cutmix"}
    assert set(entries[-1]["features"]) >= {"std", "rank", "alignment", "uniformity", "knn"}
    assert entries[-1]["images_per_s"] > 0
    checkpoints, album = ("last.pt", "best.pt"), ("views.png", "hard.json", "map.json")
    for name in (*(f"checkpoints/{n}" for n in checkpoints), *(f"album/{n}" for n in album)):
        assert (trained / name).is_file(), name
    assert not list(trained.rglob(".*"))  # no drafts left


def test_the_same_seed_is_the_same_run(images: Path, trained: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert main(argv(f"pretrain --config {trained}/run.json --out {again} --workers 0")) == 0
    assert weights(again) == weights(trained)
    assert main(argv(f"pretrain --config {trained}/run.json --seed 1 --out {other}")) == 0
    assert weights(other) != weights(trained)


@pytest.mark.parametrize("method", ["deepcluster-v2", "swav", "byol"])
def test_stopped_and_resumed_it_ends_as_if_it_never_stopped(
    method: str, images: Path, tmp_path: Path
) -> None:
    words = [
        *argv(f"--data {images} --method {method} --steps 7 --hard adversarial cutmix"),
        *SMALL,
    ]
    assert main(["pretrain", *words, "--out", str(tmp_path / "whole")]) == 0
    with stopped_at(3, 6):  # within an epoch of four steps, twice
        assert main(["pretrain", *words, "--out", str(tmp_path / "parts")]) == 0
        assert run_folder.read_run(tmp_path / "parts").facts["outcome"] == "stopped"
        for _ in range(2):
            assert main(["pretrain", "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert run_folder.read_run(tmp_path / "parts").facts["outcome"] == "done"
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    entries = [jsonl.read_journal(tmp_path / name / "journal.jsonl") for name in ("parts", "whole")]
    assert [(e["step"], e["loss"], e["features"]) for e in entries[0]] == [
        (e["step"], e["loss"], e["features"]) for e in entries[1]
    ]


def test_a_run_goes_on_as_it_began_with_less_memory_too(
    images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Views of images that memory holds differ a little from those of images that are read anew."""
    words = ["--data", str(images), "--steps", "3", *SMALL]
    for free, name in ((2**40, "held"), (0, "read")):
        monkeypatch.setattr(images_module, "free_memory", lambda free=free: free)
        assert main(["pretrain", *words, "--out", str(tmp_path / name)]) == 0
        assert run_folder.read_run(tmp_path / name).facts["held"] is (name == "held")
    assert weights(tmp_path / "held") != weights(tmp_path / "read")
    monkeypatch.setattr(images_module, "free_memory", lambda: 2**40)
    with stopped_at(1):
        assert main(["pretrain", *words, "--out", str(tmp_path / "parts")]) == 0
    monkeypatch.setattr(images_module, "free_memory", lambda: 0)
    assert main(["pretrain", "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "held")


@pytest.mark.slow
def test_killed_in_two_processes_and_resumed_it_ends_the_same(images: Path, tmp_path: Path) -> None:
    def words(out: str) -> list[str]:
        return ["pretrain", "--out", str(tmp_path / out), "--workers", "0", "--save-every", "0"]

    log, out = tmp_path / "parts.log", tmp_path / "parts"
    new = [*argv(f"--data {images} --method moco-v2 --hard adversarial cutmix --steps 14"), *SMALL]
    together(tmp_path / "whole.log", *words("whole"), *new)
    victim = begin(log, *words("parts"), *new)
    while victim.poll() is None and len(jsonl.read_journal(out / "journal.jsonl")) < 5:
        time.sleep(0.05)
    assert victim.poll() is None, log.read_text()
    kill(victim, out)
    assert not (out / "backbone.safetensors").exists()
    together(log, *words("parts"), "--resume")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_another_folder_is_not_overwritten_nor_resumed_differently(
    images: Path, trained: Path, capsys: Capture
) -> None:
    before = weights(trained)
    words = ["pretrain", "--data", str(images), "--out", str(trained), *SMALL]
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--steps", "7"]) == 2
    assert "steps" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(trained / "none"), "--resume"]) == 2
    assert "no run" in capsys.readouterr().err
    assert weights(trained) == before


def test_only_the_norms_move(images: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "norm"
    start = trained / "backbone.safetensors"
    words = [*argv(f"--data {images} --init {start} --trainable norm --steps 6"), *SMALL]
    assert main(["pretrain", *words, "--out", str(out)]) == 0
    before, after = load_file(start), load_file(out / "backbone.safetensors")
    norms = {
        f"{name}.{key}"
        for name, module in timm.create_model("test_resnet", num_classes=0).named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for key in module.state_dict()
    }
    assert all(torch.equal(after[key], value) for key, value in before.items() if key not in norms)
    moved = {key for key in norms if not torch.equal(after[key], before[key])}
    kinds = {key.rpartition(".")[2] for key in moved}
    assert kinds >= {"weight", "bias", "running_mean", "running_var"}
    assert main(argv(f"evaluate {out} --labels all --protocol knn --workers 0")) == 0
    rows = json.loads((out / "evaluation.json").read_text())[0]["rows"]
    assert {row["backbone"] for row in rows} == {str(out), "random", "init"}


def test_a_collapse_is_stopped_with_its_reason(tmp_path: Path, capsys: Capture) -> None:
    images = folder(tmp_path / "images", each=40)
    words = [*argv(f"--data {images} --out {tmp_path}/run --method simclr --steps 400"), *SMALL]
    assert main(["pretrain", *words, "--optimizer.lr", "20"]) in (2, 3)
    text = capsys.readouterr().err
    assert "--optimizer.lr" in text
    facts = run_folder.read_run(tmp_path / "run").facts
    assert facts["outcome"] in ("collapsed", "diverged")
    assert not facts["finished"]


def test_a_loss_that_is_no_number_ends_the_run_with_its_reason(
    images: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(moco, "info_nce", lambda query, *_: query.sum() * torch.nan)
    words = [*argv(f"--data {images} --out {tmp_path}/run --method moco-v2 --steps 40"), *SMALL]
    assert main(["pretrain", *words]) == 2
    assert "--optimizer.lr" in capsys.readouterr().err
    facts = run_folder.read_run(tmp_path / "run").facts
    assert facts["outcome"] == "diverged"
    assert not facts["finished"]
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert "Training failed at step" in (tmp_path / "report.html").read_text()


def test_what_looks_like_a_collapse_is_looked_at_again_soon(
    images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    def measure(monitor: Monitor) -> dict[str, float]:
        sound = monitor.measured_at in (0, 25)
        return {"std": 0.4, "rank": 40.0} if sound else {"std": 0.01, "rank": 1.0}

    monkeypatch.setattr(Monitor, "measure", measure)
    words = ["--data", str(images), "--steps", "200", *SMALL]
    assert main(["pretrain", *words, "--out", str(tmp_path / "run")]) == 3
    assert measured(tmp_path / "run") == [0, 10, 15, 20]
    monkeypatch.setattr(
        Monitor,
        "measure",
        lambda monitor: {"std": 0.4 if monitor.measured_at != 10 else 0.01, "rank": 40.0},
    )
    assert main(["pretrain", *words, "--out", str(tmp_path / "sound"), "--steps", "30"]) == 0
    assert measured(tmp_path / "sound") == [0, 10, 15, 25, 30]


def measured(out: Path) -> list[int]:
    """The steps at which features were measured."""
    return [e["step"] for e in jsonl.read_journal(out / "journal.jsonl") if e["features"]]


def test_bad_files_are_named_and_the_rest_is_trained_on(tmp_path: Path, capsys: Capture) -> None:
    images = folder(tmp_path / "images", each=30)
    place = images / "class 0"
    good = (place / "000.png").read_bytes()
    rgb = Image.open(place / "001.png")
    rgb.save(place / "whole.jpg")
    (place / "cut.jpg").write_bytes((place / "whole.jpg").read_bytes()[:700])
    (place / "cut.png").write_bytes(good[: len(good) // 2])
    (place / "empty.jpg").touch()
    (place / "words.jpg").write_text("no picture")
    (place / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (1, 1), (9, 8, 7)).save(place / "dot.png")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(
        place / "sixteen.png"
    )
    rgb.convert("CMYK").save(place / "cmyk.jpg")
    rgb.save(place / "moves.gif", save_all=True, append_images=[rgb.rotate(90)])
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--steps", "3", *SMALL]
    assert main(["pretrain", *words]) == 0
    text = capsys.readouterr().err
    data = run_folder.read_run(tmp_path / "run").facts["data"]
    bad = {"cut.jpg", "cut.png", "empty.jpg", "words.jpg", "gone.png"}
    assert {Path(p).name for p, _ in data["unreadable"]} == bad
    assert data["images"] == 95
    assert all(name in text for name in bad)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--method", "moco"], "moco-v2"),
        (["--method", "moco-v2", "--method.queue", "100000"], "--method.queue"),
        (
            ["--method.queue", "64"],
            "simclr has no --method.queue: it is of densecl, infomin, moco-v1, moco-v2, pcl, swav",
        ),
        (["--optimizer.betas", "0.9", "0.99"], "sgd has no --optimizer.betas: it is of adamw"),
        (["--batch", "4000"], "--batch"),
        (["--backbone", "resnet19"], "resnet18"),
        (["--init", "nothing.pth"], "nothing.pth"),
        (["--device", "cuda"], "CUDA"),
        (["--views.scale", "2", "3"], "scale"),
        (["--method", "deepcluster-v2", "--method.clusters", "1000"], "clusters"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    change: list[str], word: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    if "cuda" in change and torch.cuda.is_available():
        pytest.skip("there is one here")
    words = ["pretrain", "--out", str(tmp_path / "run"), "--steps", "2", *SMALL]
    if "--data" not in change:
        words += ["--data", str(images)]
    assert main([*words, *change]) == 2
    text = capsys.readouterr().err.strip().splitlines()
    assert text[-1].startswith("selftaught: ")
    assert word in text[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_labels_no_accuracy_is_shown(images: Path, tmp_path: Path, capsys: Capture) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(file, flat / f"{i}.png")
    assert main([*argv(f"pretrain --data {flat} --out {tmp_path}/run --steps 2"), *SMALL]) == 0
    entries = jsonl.read_journal(tmp_path / "run" / "journal.jsonl")
    assert all("knn" not in e["features"] for e in entries if e["features"])
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "labels" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0


def test_evaluate_prints_one_json_list(trained: Path, capsys: Capture) -> None:
    words = argv(f"evaluate {trained} --labels 2 all total:9 --json --draws 2")
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {tuple(row) for row in rows} == {
        ("backbone", "protocol", "labels", "metric", "mean", "low", "high", "draws")
    }
    assert len(rows) == 2 * 2 * 3  # trained and random; knn and linear; three budgets
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in rows)
    assert main([*words, "--protocol", "knn"]) == 0
    assert json.loads(capsys.readouterr().out) == [r for r in rows if r["protocol"] == "knn"]


def test_evaluations_at_once_are_all_kept(trained: Path, tmp_path: Path) -> None:
    judgement = evaluate.Evaluation(results=Results(rows=()), verdict="")
    index = build_index([Path(run_folder.read_run(trained).stage.data.roots[0])])
    with ThreadPoolExecutor(8) as several:
        for done in [
            several.submit(evaluate.save_evaluation, tmp_path, judgement, index, ["images"], f"{i}")
            for i in range(24)
        ]:
            done.result()
    assert {e["command"] for e in json.loads((tmp_path / "evaluation.json").read_text())} == {
        f"{i}" for i in range(24)
    }


def test_its_checkpoint_holds_the_same_weights(trained: Path) -> None:
    own, checkpoint = selftaught.load(trained), selftaught.load(trained / "checkpoints" / "last.pt")
    one, other = dict(own.state_dict()), dict(checkpoint.state_dict())
    torch.testing.assert_close(other, one, rtol=0, atol=0)
    for part in ("name", "stem", "image_size"):
        assert getattr(checkpoint, part) == getattr(own, part)
    for file in ("run.json", "checkpoints/best.pt"):
        assert selftaught.load(trained / file).name == own.name


def test_export_gives_timm_the_same_features(
    trained: Path, tmp_path: Path, capsys: Capture
) -> None:
    pixels = torch.rand(4, 3, 32, 32)
    own = selftaught.load(trained).eval()
    for name in ("backbone.safetensors", "backbone.pth"):
        assert main(["export", str(trained), "--to", str(tmp_path / name)]) == 0
        lines = capsys.readouterr().out
        scope: dict[str, Any] = {}
        exec(lines, scope)  # what `export` tells people to type
        # normalised by what the run learnt with
        assert torch.equal(scope["features"](pixels), own(pixels))


def test_report_and_methods(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["report", str(trained), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "hexa" in page
    assert main(["report", str(tmp_path)]) == 2
    capsys.readouterr()
    assert main(["methods", "--json"]) == 0
    named = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert {"moco-v2", "deepcluster-v2", "adversarial", "cutmix", "sgd"} <= named
    assert main(["pretrian"]) == 2
    assert "pretrain" in capsys.readouterr().err


def test_four_lines_of_python(images: Path, tmp_path: Path) -> None:
    small = {"steps": 2, "backbone": "test_resnet", "batch": 8, "size": 32}
    out = selftaught.pretrain(images, out=tmp_path / "run", method__temperature=0.3, **small)
    assert out.stage.method.temperature == 0.3
    assert selftaught.evaluate(out, labels=("all",)).verdict
    assert selftaught.load(out)(torch.rand(2, 3, 32, 32)).shape == (2, 96)
