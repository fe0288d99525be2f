"""The logger of MLflow: to a server, or to a SQLite file beside the run (extra `mlflow`)."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.loggers.logger import Logger, RunFacts, read_ids, scalars, score_values, write_ids

EXPERIMENT = "selftaught"
STATUS = {"done": "FINISHED", "stopped": "KILLED", "running": "KILLED"}  # others: FAILED
MOST_PARAMS = 100  # MLflow's limit for one request


class MLflow(Logger):
    """Writes curves, pictures and scores to an MLflow run.

    The server is MLFLOW_TRACKING_URI, or `mlflow.db` beside the run's folder. The experiment is
    MLFLOW_EXPERIMENT_NAME, or `selftaught`.
    """

    client: Any
    id: str

    @property
    def name(self) -> str:
        return "mlflow"

    def begin(self, facts: RunFacts) -> None:
        from mlflow import MlflowClient

        for library in ("mlflow", "alembic"):  # they log every step of making a database
            logging.getLogger(library).setLevel(logging.WARNING)
        stored = read_ids(facts.folder, self.name) if facts.resumed else {}
        beside = facts.folder.resolve().parent
        uri = stored.get("uri") or os.environ.get("MLFLOW_TRACKING_URI")
        local = None if uri else (beside / "mlartifacts").as_uri()
        uri = uri or f"sqlite:///{beside / 'mlflow.db'}"
        self.steps = facts.steps
        self.client = MlflowClient(tracking_uri=uri)
        if "id" in stored:
            self.id = stored["id"]
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        if experiment := self.client.get_experiment_by_name(name):
            experiment_id = experiment.experiment_id
        else:
            experiment_id = self.client.create_experiment(name, artifact_location=local)
        self.id = self.client.create_run(experiment_id, run_name=facts.folder.name).info.run_id
        write_ids(facts.folder, self.name, {"id": self.id, "uri": uri})
        self._params(facts.config)

    def _params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:500]) for name, value in flat_config(config).items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(self.id, params=params[start : start + MOST_PARAMS])

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in scalars(values).items()]
        self.client.log_batch(self.id, metrics=metrics)

    def image(self, step: int, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path), str(Path(name).parent))

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.metrics(self.steps, score_values(rows))

    def finish(self, outcome: str) -> None:
        self.client.set_tag(self.id, "outcome", outcome)
        self.client.set_terminated(self.id, STATUS.get(outcome, "FAILED"))


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"method": {"momentum": 0.9}} -> {"method.momentum": 0.9}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
