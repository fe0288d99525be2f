"""The checkpoints of a run: when to save one, and which one to resume from."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from selftaught.distributed import any_rank, broadcast_object, is_sharded, rank
from selftaught.errors import FileError, damage_error
from selftaught.files import COPY_AGAIN
from selftaught.training import checkpoint, fsdp
from selftaught.training.step import Step

CHECKPOINTS = ("last.pt", "best.pt")  # a run resumes from the first one that is complete
QUESTION_STEPS = 8  # steps between two agreements of all ranks, as each costs a collective

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and loads a network, its optimizer and the state of a run.

    Rank 0 writes. If the network is sharded, every rank writes its shards.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer, folder: Path, seconds: float
    ) -> None:
        self.step, self.optimizer, self.folder = step, optimizer, folder
        self.seconds = seconds  # between checkpoints
        self.sharded = is_sharded(step.parameters())
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count the seconds until the next checkpoint from now on."""
        self.saved = time.perf_counter()

    def files(self) -> list[Path]:
        """The checkpoints that exist, in the order in which `load` should try them.

        Raises FileError where no checkpoint could be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileError(f"{self.folder} is no folder: move it away")
        files = [file for name in CHECKPOINTS if os.path.lexists(file := self.folder / name)]
        if taken := [str(file) for file in files if file.is_dir()]:
            raise FileError(f"{', '.join(taken)}: a folder lies in this place, move it away")
        return files

    def due(self, step: int) -> bool:
        """Whether to save now. Sharded ranks save together, so rank 0 decides for all."""
        late = time.perf_counter() - self.saved > self.seconds
        if not self.sharded:
            return late
        return step % QUESTION_STEPS == 0 and bool(broadcast_object(late))

    def save(self, state: Mapping[str, Any], name: str = "last.pt") -> None:
        """Save a checkpoint, unless the weights are not finite.

        state: that of the run, with the step `next`. Raises FileError if writing fails.
        """
        if name == "last.pt":
            self.restart_clock()
        if rank() != 0 and not self.sharded:
            return
        network = self.step.state_dict()
        if not is_finite(network, self.sharded):
            log.warning(
                f"step {state['next']}: the weights are not finite; the last good checkpoint is"
                " kept"
            )
            return
        file = self.folder / name
        if self.sharded:
            fsdp.save(self.step, self.optimizer, dict(state), file)
        else:
            checkpoint.save_checkpoint(
                file, {**state, "step": network, "optimizer": self.optimizer.state_dict()}
            )

    def load(
        self,
        files: Sequence[Path],
        device: torch.device,
        load_state: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Load the first complete checkpoint of `files`.

        An older one leads to the same result, with more steps. `load_state` receives the state of
        the run. Raises FileError if no checkpoint is complete.
        """
        failures: list[str] = []
        for file in files:
            error: Exception | None = None
            try:
                state = checkpoint.load_checkpoint(file, device)
                if not isinstance(state.get("next"), int):
                    raise damage_error(file, "it does not state its step", COPY_AGAIN)
                if not checkpoint.all_finite(state.get("step")):
                    raise damage_error(file, "its weights are not finite", COPY_AGAIN)
                fsdp.restore(self.step, self.optimizer, state, file.parent)
                load_state(state)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except FileError as damage:
                error = damage
            except Exception as misfit:  # another version's state raises many types
                error = damage_error(
                    file,
                    f"it does not fit: {misfit!r}",
                    "use the version that wrote it, or delete it",
                )
            if not any_rank(error is not None):
                if failures:
                    log.warning(f"{failures[0]}; continuing from {file.name}, step {state['next']}")
                return
            failures.append(str(error or f"{file} is damaged, according to another process"))
        raise FileError(
            f"{'; '.join(failures)}; without any checkpoint --resume begins at the first step"
        )


def is_finite(state: Any, sharded: bool) -> bool:
    """Whether every number of a state is finite; if it is sharded, on all ranks."""
    finite = checkpoint.all_finite(state)
    return not any_rank(not finite) if sharded else finite
