"""The checkpoints of a run: when one is saved, and which one a resumed run goes on with."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from selftaught.distributed import any_rank, broadcast_object, is_sharded, rank
from selftaught.errors import FileError, damage_error
from selftaught.training import checkpoint, fsdp
from selftaught.training.step import Step

CHECKPOINTS = ("last.pt", "best.pt")  # what a run goes on with: the first of them that is whole
QUESTION_STEPS = 8  # steps between questions that all ranks answer: each costs a collective

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and loads a network, its optimizer and the state of a run. Of a sharded network every
    rank writes its part, else rank 0 alone.
    """

    def __init__(
        self, step: Step, optimizer: torch.optim.Optimizer, folder: Path, seconds: float
    ) -> None:
        self.step, self.optimizer, self.folder = step, optimizer, folder
        self.seconds = seconds  # between checkpoints
        self.sharded = is_sharded(step.parameters())
        self.restart_clock()

    def restart_clock(self) -> None:
        self.saved = time.perf_counter()

    def files(self) -> list[Path]:
        """Those that are there, the one to try first first."""
        return [file for name in CHECKPOINTS if os.path.lexists(file := self.folder / name)]

    def due(self, step: int) -> bool:
        """Whether it is time to save; shards, which all ranks save at once, by rank 0's clock."""
        late = time.perf_counter() - self.saved > self.seconds
        if not self.sharded:
            return late
        return step % QUESTION_STEPS == 0 and bool(broadcast_object(late))

    def save(self, state: Mapping[str, Any], name: str = "last.pt") -> None:
        """`state`: of the run, with the `next` step. Raises FileError where the disk refuses."""
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
        """Load the first of some checkpoints that is whole: an older one leads to the same end.
        `load_state` takes the state of the run. Raises FileError where none is whole.
        """
        failures: list[str] = []
        for file in files:
            error: Exception | None = None
            try:
                state = checkpoint.load_checkpoint(file, device)
                fsdp.restore(self.step, self.optimizer, state, file.parent)
                load_state(state)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except FileError as damage:
                error = damage
            except Exception as misfit:  # another version's fails in many ways, for one reason
                error = damage_error(
                    file,
                    f"it does not fit: {misfit!r}",
                    "take the version that wrote it, or delete it",
                )
            if not any_rank(error is not None):
                if failures:
                    log.warning(
                        f"{failures[0]}; going on with {file.name}, from step {state['next']}"
                    )
                return
            failures.append(str(error or f"{file} is damaged, as another process sees it"))
        raise FileError(
            f"{'; '.join(failures)}; without any checkpoint --resume begins at the first step"
        )


def is_finite(state: Any, sharded: bool) -> bool:
    """Whether every number of a state is finite; of a sharded one, on every rank."""
    finite = checkpoint.all_finite(state)
    return not any_rank(not finite) if sharded else finite
