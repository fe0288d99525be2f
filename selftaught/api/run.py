"""A run, as Python holds it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftaught.config.stage import Stage
from selftaught.runs import folder as run_folder


@dataclass(frozen=True)
class Run:
    """A run's folder, or the folder of an adapted chain. It can stand wherever a path can."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def stage(self) -> Stage:
        """Every setting; of a chain, those of its last stage."""
        return run_folder.read_run(self.folder).stage

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says: outcome, data, versions."""
        return run_folder.read_run(self.folder).facts

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Rows {backbone, protocol, labels, metric, mean, low, high, draws} of every evaluation."""
        own = run_folder.read_run(self.folder).folder
        return [row for one in run_folder.evaluations(own) for row in one["rows"]]
