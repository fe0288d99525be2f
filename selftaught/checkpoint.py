"""Files that are whole or not there: checkpoints and everything else a run writes."""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from selftaught.distributed import local


def atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then put it in its place: a crash leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    draft = Path(name)
    try:
        write(draft)
        with draft.open("rb") as f:
            os.fsync(f.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    return atomic(path, lambda draft: draft.write_text(json.dumps(value, indent=2) + "\n"))


def save(path: Path, state: dict[str, Any]) -> Path:
    return atomic(path, lambda draft: torch.save(state, draft))


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Never runs code from the file."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def all_finite(state: Any) -> bool:
    """Of a sharded network, this process's share."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(local(state)).all())
    if isinstance(state, dict):
        return all(all_finite(v) for v in state.values())
    return not isinstance(state, list | tuple) or all(all_finite(v) for v in state)


@contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `file`, after waiting for whoever holds it; a process that dies lets go of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
