"""Journals and checkpoints: torn lines, resumed runs, and files that are whole or not there."""

import math
import os
from pathlib import Path

import pytest
import torch

from selftaught.errors import FileError
from selftaught.files import atomic, write_json
from selftaught.loggers.jsonl import Journal, read_journal
from selftaught.training import checkpoint
from selftaught.training.checkpoint import all_finite


def entries(*steps: int) -> list[dict[str, int]]:
    return [{"step": s} for s in steps]


def written(path: Path, *steps: int) -> Path:
    journal = Journal(path, after=0)
    for entry in entries(*steps):
        journal.write(entry)
    journal.close()
    return path


def test_what_is_written_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "journal.jsonl"
    journal = Journal(path, after=0)
    assert read_journal(path) == []
    for step in (1, 2):
        journal.write({"step": step, "loss": 0.5, "name": "line\nbreak, \u2028 and é"})
        assert read_journal(path) == journal.entries  # before it is closed: others look on
        assert len(path.read_bytes().splitlines()) == step
    journal.close()


def test_there_need_not_be_one(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == []
    assert Journal(tmp_path / "new.jsonl", after=5).entries == []


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "journal.jsonl", 1, 2, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = (1, 2, 3) if cut == 1 else (1, 2)  # without its line break alone, a line is still whole
    assert read_journal(path) == entries(*kept)
    journal = Journal(path, after=9)
    journal.write({"step": 4})
    journal.close()
    assert read_journal(path) == entries(*kept, 4)


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl", 10, 20, 30, 40)
    journal = Journal(path, after=20)
    assert journal.entries == read_journal(path) == entries(10, 20)
    journal.write({"step": 30})
    journal.close()
    assert read_journal(path) == entries(10, 20, 30)


def test_a_run_from_the_beginning_starts_a_new_journal(tmp_path: Path) -> None:
    path = written(tmp_path / "journal.jsonl", 10, 20)
    assert Journal(path, after=0).entries == read_journal(path) == []


# Checkpoints


def test_a_file_is_put_in_its_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    for text in ("one", "two"):
        assert atomic(path, lambda draft, text=text: draft.write_text(text)) == path
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o644
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError("no space left"), KeyboardInterrupt()], ids=["disk", "stop"]
)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_checkpoint(path, {"w": torch.ones(3)})

    def write(draft: Path) -> None:
        draft.write_bytes(b"half of")
        raise error

    with pytest.raises(type(error)):
        atomic(path, write)
    assert torch.equal(checkpoint.load_checkpoint(path)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]  # and no draft


def test_a_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", object())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_comes_back_as_it_was_and_runs_no_code(tmp_path: Path) -> None:
    state = {"step": {"w": torch.rand(3), "n": torch.tensor(3)}, "next": 7, "best": None}
    state["peaks"] = [0.1, 0.2]
    back = checkpoint.load_checkpoint(checkpoint.save_checkpoint(tmp_path / "last.pt", state))
    assert torch.equal(back["step"]["w"], state["step"]["w"])
    assert {k: v for k, v in back.items() if k != "step"} == {
        k: v for k, v in state.items() if k != "step"
    }
    torch.save({"path": Path("x")}, tmp_path / "pickle.pt")
    with pytest.raises(FileError, match="more than tensors"):
        checkpoint.load_checkpoint(tmp_path / "pickle.pt")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_anywhere_is_found(bad: float) -> None:
    good = {
        "a": torch.ones(2),
        "b": [torch.zeros(1), (torch.arange(3), {"c": torch.rand(2, 2)})],
        "d": "text",
        "e": None,
    }
    assert all_finite(good)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        spoilt = torch.tensor([0.0, bad], dtype=dtype)
        assert not all_finite(spoilt)
        assert not all_finite({**good, "d": spoilt})
        assert not all_finite({**good, "b": [torch.zeros(1), (torch.arange(3), {"c": spoilt})]})


def test_what_holds_no_fractions_is_finite() -> None:
    sound = {"n": torch.tensor(2**62), "flags": torch.tensor([True]), "none": []}
    assert all_finite({**sound, "empty": torch.zeros(0)})


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Nor is a device, such as /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic(pipe, lambda draft: draft.write_text("all of it"))
        assert os.read(reader, 100) == b"all of it"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
