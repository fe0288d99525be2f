"""Weights & Biases, online or offline (extra `wandb`)."""

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.loggers.logger import Logger, RunFacts, read_ids, scalars, score_values, write_ids

log = logging.getLogger(__name__)


class WandB(Logger):
    """Curves, pictures and scores into a run of the project WANDB_PROJECT, or `selftaught`.

    Without a key it is offline: files in the run's folder, for `wandb sync`.
    """

    run: Any

    @property
    def name(self) -> str:
        return "wandb"

    def begin(self, facts: RunFacts) -> None:
        import wandb

        earlier = read_ids(facts.folder, self.name) if facts.resumed else {}
        ids = {
            "id": earlier.get("id", uuid.uuid4().hex[:8]),
            "project": earlier.get("project", os.environ.get("WANDB_PROJECT", "selftaught")),
        }
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not has_key(wandb):
            mode = "offline"
            log.info(
                f"no W&B key is set: its files lie in {facts.folder / 'wandb'}, for `wandb sync`"
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
        # a resumed run logs some steps again: W&B's own counter would refuse them
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
    """Whether a key is set; nobody is asked for one in the middle of a training."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older version, which has no such question
        return bool(wandb.api.api_key)
