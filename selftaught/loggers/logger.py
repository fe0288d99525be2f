"""The contract of a logger, which takes a run's facts, metrics, pictures and scores."""

import importlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selftaught import files
from selftaught.errors import UserError

# name: module, class, and the packages of its extra
LOGGERS = {
    "tensorboard": ("selftaught.loggers.tensorboard", "TensorBoard", ("tensorboard",)),
    "wandb": ("selftaught.loggers.wandb", "WandB", ("wandb",)),
    "mlflow": ("selftaught.loggers.mlflow", "MLflow", ("mlflow", "sqlalchemy", "alembic")),
}
IDS = "loggers.json"  # in the run's folder: the ids by which each logger finds the run

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts of a run that a logger needs before the first entry."""

    folder: Path
    steps: int  # of the whole run
    step: int = 0  # steps already done
    resumed: bool = False  # entries up to `step` stay, and new ones follow them
    config: Mapping[str, Any] = field(default_factory=dict)  # as in run.json


class Logger(ABC):
    """Takes the entries of a run. One logger can serve several runs, one after the other.

    Every method may raise any exception. `Loggers` then drops the logger.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in `--log` and run.json."""

    @abstractmethod
    def begin(self, facts: RunFacts) -> None:
        """Open a run, or continue it where `facts.resumed`."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Log an entry of the journal: numbers, None, and mappings of them (losses, features)."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Log a picture file."""

    @abstractmethod
    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the rows of an evaluation, as in evaluation.json. The run's own backbone is `run`."""

    @abstractmethod
    def finish(self, outcome: str) -> None:
        """Close the run. `outcome` is that of run.json."""


class Loggers:
    """Calls several loggers. One that fails is dropped with a warning of one line."""

    def __init__(self, loggers: Iterable[Logger] = ()) -> None:
        self.loggers = list(loggers)
        self.has_run = False

    def begin(self, facts: RunFacts) -> None:
        self.has_run = True
        self._each(lambda logger: logger.begin(facts))

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._each(lambda logger: logger.metrics(step, values))

    def image(self, step: int, name: str, path: Path) -> None:
        self._each(lambda logger: logger.image(step, name, path))

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._each(lambda logger: logger.scores(rows))

    def finish(self, outcome: str) -> None:
        if self.has_run:
            self._each(lambda logger: logger.finish(outcome))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for logger in tuple(self.loggers):
            try:
                call(logger)
            except Exception as error:  # of any kind: an error of a logger must not stop training
                self.loggers.remove(logger)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                log.warning("logger %s failed and is left out: %s", logger.name, reason)


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return an entry's numbers by flat names: {"losses": {"clean": 1.0}} -> losses/clean: 1.0."""
    return dict(_flatten(values, prefix))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", float(value)


def build_loggers(names: Iterable[str]) -> tuple[Logger, ...]:
    """Build the loggers of these names.

    Raises UserError for an unknown name, and where a library is not installed.
    """
    loggers = []
    for name in dict.fromkeys(names):
        if name not in LOGGERS:
            raise UserError(f"--log {name}: there is no such logger; choose {', '.join(LOGGERS)}")
        module, kind, packages = LOGGERS[name]
        if lacking := [package for package in packages if find_spec(package) is None]:
            raise UserError(
                f"--log {name} needs {', '.join(lacking)}: pip install 'selftaught[{name}]'"
            )
        loggers.append(getattr(importlib.import_module(module), kind)())
    return tuple(loggers)


def read_ids(folder: Path, name: str) -> dict[str, Any]:
    """Read the ids that a logger stored for a run; empty where there are none."""
    ids = _all_ids(folder).get(name)
    return ids if isinstance(ids, dict) else {}


def write_ids(folder: Path, name: str, ids: Mapping[str, str]) -> None:
    """Store a logger's ids of a run, so that a resumed run or an evaluation continues it."""
    files.write_json(folder / IDS, {**_all_ids(folder), name: dict(ids)})


def _all_ids(folder: Path) -> dict[str, Any]:
    try:
        ids: dict[str, Any] = files.read_json(folder / IDS, dict)
    except UserError:
        return {}
    return ids


def score_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return means by names that are the same for all runs: scores/knn/5/balanced_accuracy/run."""
    values = {}
    for row in rows:
        parts = ("protocol", "labels", "metric", "backbone", "layer")
        name = "/".join(Path(str(row[part])).name for part in parts if row.get(part))
        values[f"scores/{re.sub(r'[^a-zA-Z0-9_./ -]', '-', name)}"] = float(row["mean"])
    return values
