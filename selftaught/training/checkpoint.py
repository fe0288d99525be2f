"""Checkpoints: what a run saves of itself, and reads back."""

from pathlib import Path
from typing import Any

import torch

from selftaught.distributed import local_shard
from selftaught.errors import damage_error, read_error
from selftaught.files import _COPY, atomic


def save_checkpoint(path: Path, state: dict[str, Any]) -> Path:
    def write(draft: Path) -> None:
        with draft.open("wb") as file:  # torch's own writer does not tell why it failed
            torch.save(state, file)

    return atomic(path, write)


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Never runs code from the file. Raises FileError where it is cut off, or no checkpoint."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise read_error(path, error) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (
        Exception
    ) as error:  # broken bytes make the reader fail in many ways, each for the same reason
        raise damage_error(path, error if path.stat().st_size else "it is empty", _COPY) from error
    if not isinstance(state, dict):
        raise damage_error(path, "it is no checkpoint", _COPY)
    return state


def all_finite(state: Any) -> bool:
    """Of a sharded network, this process's share."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(local_shard(state)).all())
    if isinstance(state, dict):
        return all(all_finite(v) for v in state.values())
    return not isinstance(state, list | tuple) or all(all_finite(v) for v in state)
