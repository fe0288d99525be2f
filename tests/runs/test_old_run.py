"""A run folder that an earlier version wrote still goes on, and is still evaluated, exported and
reported on.

`old_run/run` was stopped at step 33 of 80, then evaluated: SimCLR with CutMix on the 24 images of
`old_run/images`, written by commit b92c1ea. It is never written anew: a change that cannot read it
breaks what people have.
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from selftaught import load
from selftaught.cli.main import main
from tests.fixtures import Patch

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: Patch) -> Path:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_it_goes_on_to_its_end(old_run: Path) -> None:
    assert main(["pretrain", "--out", "run", "--resume"]) == 0
    record = json.loads((old_run / "run.json").read_text())
    lines = (old_run / "journal.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if '"loss"' in line]
    assert record["finished"]
    assert max(steps) == 80
    assert steps == sorted(set(steps)), "it went on where it had stopped"


def test_it_is_evaluated(old_run: Path) -> None:
    (old_run / "evaluation.json").unlink()
    assert main(["evaluate", "run", "--data", "images", "--protocol", "knn", "--against"]) == 0
    assert json.loads((old_run / "evaluation.json").read_text())


def test_its_scores_are_read_and_reported(old_run: Path) -> None:
    assert main(["report", "run", "--out", "page.html"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "simclr" in page
    assert "evaluat" in page.lower()


def test_its_weights_are_exported_and_loaded(old_run: Path) -> None:
    assert main(["export", "run", "--to", "w.safetensors"]) == 0
    exported, kept = load_file("w.safetensors"), load_file(old_run / "backbone.safetensors")
    assert exported.keys() <= kept.keys() or kept.keys() <= exported.keys()
    load(old_run)
