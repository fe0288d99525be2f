"""Images that vanish or break between the index and the end of training are reported, and many of
them stop it.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from selftaught.cli.main import main
from selftaught.loggers import jsonl
from selftaught.training import trainer
from tests.commands import argv
from tests.fixtures import Capture, Patch
from tests.pictures import folder

SMALL = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --workers 0 --steps 3")


@pytest.fixture
def lose(monkeypatch: Patch) -> Any:
    """`lose(files)` deletes files when all is indexed and nothing is loaded."""

    def arrange(files: list[Path]) -> None:
        assemble = trainer.build_session

        def later(*args: Any, **kwargs: Any) -> Any:
            for file in files:
                file.unlink()
            return assemble(*args, **kwargs)

        monkeypatch.setattr(trainer, "build_session", later)

    return arrange


def test_few_lost_images_are_reported(tmp_path: Path, lose: Any, capsys: Capture) -> None:
    images, out = folder(tmp_path / "images"), tmp_path / "run"
    gone = sorted(images.rglob("*.png"))[3:5]
    lose(gone)
    assert main(["pretrain", "--data", str(images), "--out", str(out), *SMALL]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert facts["lost"] == 2
    assert [path for path, _ in facts["lost_images"]] == [str(file) for file in gone]
    assert jsonl.read_journal(out / "journal.jsonl")[-1]["lost"] == 2
    last = " ".join(capsys.readouterr().err.split("\n")[-2:])
    assert "2 images" in last


def test_many_lost_images_stop_a_run(tmp_path: Path, lose: Any, capsys: Capture) -> None:
    images, out = folder(tmp_path / "images"), tmp_path / "run"
    lose(sorted(images.rglob("*.png"))[:6])
    assert main(["pretrain", "--data", str(images), "--out", str(out), *SMALL]) == 2
    facts = json.loads((out / "run.json").read_text())
    assert (facts["outcome"], facts["lost"]) == ("failed", 6)
    assert "--resume" in capsys.readouterr().err
