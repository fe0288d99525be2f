"""Commands from start to end: training, evaluation and export."""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
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


def test_nothing_held_out_is_fine(images: Path, tmp_path: Path) -> None:
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--holdout", "0", *SMALL]
    assert main(["pretrain", *words]) == 0
    other = folder(tmp_path / "other", seed=5)
    assert main(argv(f"evaluate {tmp_path}/run --data {other} --labels all --workers 0")) == 0


def test_several_classes_an_image_from_start_to_end(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", each=12)
    rows = [
        f"{file.relative_to(images)},{'a|b' if i % 3 == 0 else 'abc'[i % 3]}"
        for i, file in enumerate(sorted(images.rglob("*.png")))
    ]
    (images / "labels.csv").write_text("\n".join(["path,label", *rows]))
    words = [*argv(f"--data {images} --method supervised --out {tmp_path}/run"), *SMALL]
    assert main(["pretrain", *words]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--labels", "all", "--workers", "0"]) == 0
    rows_found = json.loads((tmp_path / "run" / "evaluation.json").read_text())[0]["rows"]
    assert {row["metric"] for row in rows_found} == {"auroc"}


def test_messages_for_what_is_not_there(images: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(tmp_path / "typo"), "--data", str(images)]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL]) == 0
    (tmp_path / "run" / "backbone.safetensors").unlink()
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "x.pth")]) == 2
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "list.json").write_text("[]")
    assert (
        main(["pretrain", "--config", str(tmp_path / "list.json"), "--out", str(tmp_path / "new")])
        == 2
    )
    assert run_folder.has_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("command", "remedy"),
    [("pretrain", "--accumulate 2"), ("adapt", "--accumulate 2"), ("evaluate", "--size")],
)
def test_memory_that_is_full(
    command: str, remedy: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    module = importlib.import_module(f"selftaught.cli.{command}")
    monkeypatch.setattr(module, command, run)
    assert main([command]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the memory of the GPU is full: 20 MiB more were asked for; end other" in line
    assert remedy in line


def test_source_that_is_not_installed(
    images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(run_folder, "version", version)
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL]) == 2
    assert "selftaught: selftaught is not installed" in capsys.readouterr().err


def test_one_of_several_processes_ends_without_being_taken_apart() -> None:
    """torch aborted there, now and then, after all was done; what is registered for the end is done
    all the same.
    """
    program = (
        "import atexit, os, sys\nfrom selftaught.cli.main import main\nclass Abort:\n    def"
        " __del__(self, end=os.abort):\n        end()\nheld = Abort()\natexit.register(print,"
        " 'tidied up')\nsys.argv = ['selftaught', *sys.argv[1:]]\nsys.exit(main())"
    )
    for words, code in ((["--version"], 0), (["prétrain"], 2)):
        command = [sys.executable, "-c", program, *words]
        env = {**os.environ, "WORLD_SIZE": "2"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, "tidied up" in done.stdout) == (code, True), done.stderr
