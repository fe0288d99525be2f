"""What is written of a run while it trains: run.json, the journal, the entries of loggers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught.config.serialization import to_json
from selftaught.distributed import rank
from selftaught.errors import UserError
from selftaught.loggers.jsonl import JSONL
from selftaught.loggers.logger import Logger, Loggers, RunFacts
from selftaught.runs import folder as run_folder
from selftaught.training.loop import Report
from selftaught.training.lost_images import LostImages
from selftaught.training.runtime import Runtime
from selftaught.training.session import Session
from selftaught.training.stopwatch import Stopwatch


class RunRecord:
    """Writes run.json and the journal, and hands the same to the loggers; on rank 0 alone.

    The journal is a part of the run: where it cannot be written, training fails. A logger that
    fails is left out.
    """

    def __init__(self, session: Session, folder: Path, runtime: Runtime, lost: LostImages) -> None:
        self.session, self.folder, self.runtime, self.lost = session, folder, runtime, lost
        self.first = rank() == 0
        self.begun = False  # on rank 0, once the folder is this run's
        self.outcome = "running"
        self.stopwatch = Stopwatch()
        self.images = 0  # since the last entry
        self.journal: Logger = JSONL()
        self.loggers = Loggers(runtime.loggers if self.first else ())

    def refuse_other_data(self) -> None:
        """A resumed run goes on with the images that it began with: its order and memories count
        them.
        """
        index = self.session.index
        was = run_folder.read_run(self.folder).facts["data"]["fingerprint"]
        if was not in (index.fingerprint, index.listing):
            raise UserError(
                f"the images have changed since {self.folder} was begun: bring the old ones back to"
                " go on with it, or begin a new run in another --out, with this one's weights by"
                " --init"
            )

    def begin(self, step: int) -> None:
        """Begin with a run of which `step` steps are done."""
        if not self.first:
            return
        self.write_run("running")
        stage = self.session.stage
        facts = RunFacts(
            folder=self.folder,
            steps=stage.steps,
            step=step,
            resumed=step > 0,
            config=to_json(stage),
        )
        self.journal.begin(facts)
        self.begun = True
        self.loggers.begin(facts)

    def log(
        self, report: Report | None, features: Mapping[str, float] | None, skipped: int
    ) -> None:
        """An entry after a step, or of the start; `skipped`: steps so far."""
        if not self.begun:
            return
        passed = self.stopwatch.lap()
        waited, self.session.waited = self.session.waited, 0.0
        values: dict[str, Any] = {
            "epoch": report.epoch if report else 0,
            "loss": finite(report.loss) if report else None,
            "losses": {k: finite(v) for k, v in report.losses.items()} if report else {},
            "lr": report.lr if report else 0.0,
            "images_per_s": self.images / passed if report else None,
            "wait": waited / passed if report else None,
            "skipped": skipped,
            "lost": len(self.lost),
            "seconds": self.stopwatch.seconds,
            "features": None if features is None else {k: finite(v) for k, v in features.items()},
        }
        self.images = 0
        step = report.step + 1 if report else 0
        self.journal.metrics(step, values)
        self.loggers.metrics(step, values)

    def close(self, outcome: str, **more: Any) -> None:
        """The outcome, and `more` facts, into run.json. Loggers stay open for pictures."""
        self.outcome = outcome
        if self.first:
            self.write_run(outcome, **more)
        if self.begun:
            self.journal.finish(outcome)

    def write_run(self, outcome: str, **more: Any) -> None:
        session = self.session
        facts = {
            **self.runtime.note,
            "held": session.images.hold,
            "threads": torch.get_num_threads(),
            "log": [logger.name for logger in self.runtime.loggers if logger.name != "terminal"],
            **self.lost.facts(),
        }
        run_folder.write_run(self.folder, session.stage, session.index, outcome, {**facts, **more})


def finite(value: Tensor | float) -> float | None:
    """A number that JSON has, or None."""
    return float(value) if math.isfinite(value) else None
