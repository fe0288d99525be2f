"""Resumed runs: refused on other images, collapsed ones, and saved checkpoints."""

from pathlib import Path

import pytest
import torch

from selftaught.cli.main import main
from selftaught.runs import folder as run_folder
from tests.commands import argv
from tests.fixtures import Capture, Places
from tests.pictures import folder

SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32"]
SMALL += ["--workers", "0", "--steps", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


def test_resuming_on_other_images_is_refused(tmp_path: Path, capsys: Capture) -> None:
    images = folder(tmp_path / "images")
    out = tmp_path / "run"
    assert main(["pretrain", "--data", str(images), "--out", str(out), *SMALL]) == 0
    before = (out / "run.json").read_text()
    folder(images, each=20, seed=3)
    assert main(["pretrain", "--out", str(out), "--resume"]) == 2
    assert "changed" in capsys.readouterr().err
    assert (out / "run.json").read_text() == before


def test_a_start_that_failed_does_not_occupy_its_folder(images: Path, tmp_path: Path) -> None:
    words = [*argv(f"pretrain --data {images} --out {tmp_path}/run --method moco-v2"), *SMALL]
    assert main([*words, "--method.queue", "0"]) == 2
    assert main(words) == 0


def test_the_last_checkpoint_is_that_of_the_last_step(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = argv(f"pretrain --data {images} --out {out} --save-every 0", *SMALL[:-1], "12")
    assert main(words) == 0
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["next"] == 12


def test_a_collapse_stays_one_when_it_is_resumed(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """With no step left the run was called done, and the exit code was 0."""
    out = tmp_path / "run"
    words = argv(f"pretrain --data {images} --out {out} --method simsiam", *SMALL)
    words += ["--optimizer.lr", "100"]
    assert main([*words, "--steps", "60"]) == 3
    reason = run_folder.read_run(out).facts["reason"]
    capsys.readouterr()
    for _ in range(2):
        assert main(["pretrain", "--out", str(out), "--resume"]) == 3
        assert reason in " ".join(capsys.readouterr().err.split())
        assert run_folder.read_run(out).facts["outcome"] == "collapsed"
    assert main(["export", str(out), "--to", str(tmp_path / "b.safetensors")]) == 0
    assert "do not use this backbone" in " ".join(capsys.readouterr().err.split())
