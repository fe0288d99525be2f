"""The run as a Python object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftaught.config.stage import Stage
from selftaught.runs import folder as run_folder


@dataclass(frozen=True)
class Run:
    """A run's folder, or the folder of a plan. Functions take it in place of a path."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def stage(self) -> Stage:
        """The configuration; of a plan, that of its outcome."""
        return run_folder.read_run(self.folder).stage

    @property
    def facts(self) -> dict[str, Any]:
        """The content of run.json, such as outcome, data and versions."""
        return run_folder.read_run(self.folder).facts

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Rows {backbone, protocol, labels, metric, mean, low, high, draws} of every evaluation."""
        own = run_folder.read_run(self.folder).folder
        return [row for entry in run_folder.evaluations(own) for row in entry["rows"]]
