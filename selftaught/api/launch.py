"""Settings of a command's execution: device, threads and processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from selftaught.config.overrides import Count
from selftaught.distributed import process_group, rank
from selftaught.errors import UserError, require
from selftaught.loggers.logger import build_loggers
from selftaught.loggers.terminal import Progress
from selftaught.training.runtime import Runtime
from selftaught.training.threads import check, take_share
from selftaught.visualize import snapshots


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Settings of execution, which change at most the last digits of a result."""

    device: str = "auto"  # auto, cpu or cuda
    threads: Count = "auto"  # compute threads; auto: one for each free core
    workers: Count = "auto"  # processes that decode images; auto: at most 2
    on_collapse: Literal["stop", "warn"] = "stop"
    save_every: float = 120.0  # seconds between checkpoints
    fsdp: bool = False  # shards weights and gradients over the processes
    log: tuple[str, ...] = ()  # loggers besides the journal: tensorboard, wandb, mlflow

    def __post_init__(self) -> None:
        check(self.threads, self.workers)
        build_loggers(self.log)  # raises UserError for packages that are not installed
        require(self.save_every >= 0, "--save-every", "0 or more", self.save_every)

    @contextmanager
    def start(self, command: str, show: bool = True) -> Iterator[tuple[Runtime, Progress]]:
        """Join the process group, choose threads and workers, and show progress."""
        device = find_device(self.device)
        with (
            process_group(device),
            Progress(show=show and rank() == 0) as progress,
            take_share(self.threads, self.workers, progress.say) as share,
        ):
            yield (
                Runtime(
                    device=device,
                    workers=share.workers,
                    threads=None if self.threads == "auto" else self.threads,
                    on_collapse=self.on_collapse,
                    save_every=self.save_every,
                    fsdp=self.fsdp,
                    draw=snapshots.draw,
                    loggers=(progress, *build_loggers(self.log)),
                    note={"command": command, "device": device},
                ),
                progress,
            )


def find_device(name: str) -> str:
    """The device of `name`: `auto` is a GPU if there is one. Raises UserError if it is missing."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is auto, cpu or cuda, and not '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: use --device cpu, or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def refuse_file(out: Path) -> None:
    """Raise UserError if `out` is a file."""
    if out.is_file():
        raise UserError(f"{out} is a file: choose another --out")
