"""The record of a run while it trains: run.json, the journal, and the entries of loggers."""

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
    """Writes run.json and the journal, and sends the same entries to the loggers, on rank 0.

    The journal is a part of the run, so an error in writing it ends the training. A logger that
    fails is omitted from then on.
    """

    def __init__(self, session: Session, folder: Path, runtime: Runtime, lost: LostImages) -> None:
        self.session, self.folder, self.runtime, self.lost = session, folder, runtime, lost
        self.first = rank() == 0
        self.begun = False  # whether rank 0 has opened the folder for this run
        self.outcome = "running"
        self.stopwatch = Stopwatch()
        self.images = 0  # since the last entry
        self.journal: Logger = JSONL()
        self.loggers = Loggers(runtime.loggers if self.first else ())

    def refuse_other_data(self) -> None:
        """Raise UserError if a resumed run has other images than before.

        The order of the images and the memory banks refer to their positions.
        """
        index = self.session.index
        fingerprint = run_folder.read_run(self.folder).facts["data"]["fingerprint"]
        if fingerprint not in (index.fingerprint, index.listing):
            raise UserError(
                f"the images have changed since the start of {self.folder}: restore the old ones to"
                " continue it, or start a new run in another --out, with its weights as --init"
            )

    def begin(self, step: int) -> None:
        """Open the record of a run after `step` steps."""
        if not self.first:
            return
        stage = self.session.stage
        facts = RunFacts(
            folder=self.folder,
            steps=stage.steps,
            step=step,
            resumed=step > 0,
            config=to_json(stage),
        )
        # The journal first: where it cannot be opened, run.json stays as it was.
        self.journal.begin(facts)
        self.write_run("running")
        self.begun = True
        self.loggers.begin(facts)

    def log(
        self,
        report: Report | None,
        features: Mapping[str, float] | None,
        skipped: int,
        pretext: Mapping[str, float] | None = None,
    ) -> None:
        """Write an entry after a step, or of the start.

        skipped: skipped steps so far. pretext: accuracy of the method's task, and that of chance.
        """
        if not self.begun:
            return
        seconds = self.stopwatch.lap()
        waited, self.session.waited = self.session.waited, 0.0
        values: dict[str, Any] = {
            "epoch": report.epoch if report else 0,
            "loss": finite(report.loss) if report else None,
            "losses": {k: finite(v) for k, v in report.losses.items()} if report else {},
            "lr": report.lr if report else 0.0,
            "images_per_s": self.images / seconds if report else None,
            "wait": waited / seconds if report else None,
            "skipped": skipped,
            "lost": len(self.lost),
            "seconds": self.stopwatch.seconds,
            "features": None if features is None else {k: finite(v) for k, v in features.items()},
            **(pretext or {}),
        }
        self.images = 0
        step = report.step + 1 if report else 0
        self.journal.metrics(step, values)
        self.loggers.metrics(step, values)

    def close(self, outcome: str, **more: Any) -> None:
        """Write the outcome and `more` entries to run.json. Loggers stay open for pictures."""
        self.outcome = outcome
        if self.first:
            self.write_run(outcome, **more)
        if self.begun:
            self.journal.finish(outcome)

    def write_run(self, outcome: str, **more: Any) -> None:
        """Write run.json."""
        session = self.session
        facts = {
            **self.runtime.note,
            "held": session.images.in_memory,
            "threads": torch.get_num_threads(),
            "log": [logger.name for logger in self.runtime.loggers if logger.name != "terminal"],
            **self.lost.facts(),
        }
        run_folder.write_run(self.folder, session.stage, session.index, outcome, {**facts, **more})


def finite(value: Tensor | float) -> float | None:
    """A finite number, else None, as JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
