"""Settings of a run that do not change its outcome: device, workers, saving."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selftaught.loggers.logger import Logger
from selftaught.training.session import Session

MONITOR_IMAGES = 256  # held-out images whose features are measured


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Settings of a run that do not change its outcome."""

    device: str = "cpu"
    workers: int = 2
    # compute threads; by default as many as a resumed run recorded, or as torch is set to
    threads: int | None = None
    on_collapse: Literal["stop", "warn"] = "stop"
    save_every: float = 120.0  # seconds between checkpoints
    # shards weights, gradients and optimizer state over the processes
    fsdp: bool = False
    # images whose features are measured; the kNN bank has up to four times as many
    monitor_images: int = MONITOR_IMAGES
    draw: Callable[[Session, Path | None], None] | None = None  # draws the album
    resume: bool = False
    # receive the metrics on rank 0, as the run's journal does
    loggers: tuple[Logger, ...] = ()
    # additional entries of run.json, such as the command and the versions
    note: dict[str, Any] = field(default_factory=dict)
