"""The logger of Weights & Biases, online or offline (extra `wandb`)."""

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.loggers.logger import Logger, RunFacts, read_ids, scalars, score_values, write_ids

log = logging.getLogger(__name__)


class WandB(Logger):
    """Writes curves, pictures and scores to a run of the project WANDB_PROJECT, or `selftaught`.

    Without a key it works offline and writes files in the run's folder, for `wandb sync`.
    """

    run: Any

    @property
    def name(self) -> str:
        return "wandb"

    def begin(self, facts: RunFacts) -> None:
        import wandb

        stored = read_ids(facts.folder, self.name) if facts.resumed else {}
        ids = {
            "id": stored.get("id", uuid.uuid4().hex[:8]),
            "project": stored.get("project", os.environ.get("WANDB_PROJECT", "selftaught")),
        }
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not has_key(wandb):
            mode = "offline"
            log.info(
                f"no W&B key is set: files are written to {facts.folder / 'wandb'}; upload them by"
                " `wandb sync`"
            )
        settings = wandb.Settings(silent=True, console="off", disable_code=True)
        self.run = wandb.init(
            **ids,
            dir=str(facts.folder),
            name=facts.folder.name,
            resume="allow",
            mode=mode,
            config=dict(facts.config),
            settings=settings,
        )
        # a resumed run logs some steps again, which W&B's own counter would refuse
        self.run.define_metric("*", step_metric="step")
        write_ids(facts.folder, self.name, ids)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log({**scalars(values), "step": step})

    def image(self, step: int, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "step": step})

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run.summary.update(score_values(rows))

    def finish(self, outcome: str) -> None:
        self.run.summary["outcome"] = outcome
        self.run.finish(exit_code=0 if outcome in ("done", "stopped") else 1)


def has_key(wandb: Any) -> bool:
    """Whether a key is set. It does not prompt for one, which would block training."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older version, without these arguments
        return bool(wandb.api.api_key)
