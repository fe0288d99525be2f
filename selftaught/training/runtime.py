"""How a stage is carried out, which does not change its outcome: device, workers, saving."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selftaught.loggers.logger import Logger
from selftaught.training.session import Session

WATCHED = 256  # held-back images whose features are followed


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a run is carried out, which does not change its outcome."""

    device: str = "cpu"
    workers: int = 2
    threads: int | None = None  # that compute; as a run that goes on began, or else as torch is set
    on_collapse: Literal["stop", "warn"] = "stop"
    save_every: float = 120.0  # seconds between checkpoints
    # each process holds its share of weights, gradients and the optimizer's memory
    fsdp: bool = False
    # images whose features are followed; with labels, four times as many vote on them
    watched: int = WATCHED
    draw: Callable[[Session, Path | None], None] | None = None  # pictures at the end, into a folder
    resume: bool = False
    # that metrics go to, besides the run's journal; on rank 0
    loggers: tuple[Logger, ...] = ()
    # more for run.json: the command, the versions
    note: dict[str, Any] = field(default_factory=dict)
