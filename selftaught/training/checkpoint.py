"""Writing and reading of checkpoint files."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from selftaught.distributed import local_shard
from selftaught.errors import UserError, damage_error, read_error
from selftaught.files import COPY_AGAIN, atomic

LAST = "checkpoints/last.pt"  # in a run's folder


def save_checkpoint(path: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint in one atomic step. Raises FileError if writing fails."""

    def write(draft: Path) -> None:
        with draft.open("wb") as file:  # torch's own writer gives no reason for an error
            torch.save(state, file)

    return atomic(path, write)


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running code from the file.

    Raises FileError if the file is damaged or is no checkpoint.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd bytes, which are an error anyway
            state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise read_error(path, error) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise damage_error(
            path, "it is no checkpoint, or holds more than tensors", COPY_AGAIN
        ) from error
    except Exception as error:  # the reader raises many types for damaged bytes
        raise damage_error(
            path, error if path.stat().st_size else "it is empty", COPY_AGAIN
        ) from error
    if not isinstance(state, dict):
        raise damage_error(path, "it is not a checkpoint", COPY_AGAIN)
    return state


def load_method(run: str | Path) -> dict[str, Any]:
    """Read all tensors of the method of a run, by name, from its last checkpoint.

    Raises UserError where there is no such checkpoint, or where its weights are sharded.
    """
    file = Path(run) / LAST
    if not file.is_file():
        raise UserError(
            f"{run} has no {LAST}, which holds the whole method: give the folder of a run whose"
            " checkpoints were kept"
        )
    state = load_checkpoint(file).get("step")
    if not isinstance(state, dict):
        raise UserError(f"{file} has sharded weights: give a run that was trained without --fsdp")
    return {
        name.removeprefix("method."): value
        for name, value in state.items()
        if name.startswith("method.")
    }


def all_finite(state: Any) -> bool:
    """Whether all numbers are finite; of a sharded network, those of this process."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(local_shard(state)).all())
    if isinstance(state, dict):
        return all(all_finite(v) for v in state.values())
    return not isinstance(state, (list, tuple)) or all(all_finite(v) for v in state)
