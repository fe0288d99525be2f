"""The logger of TensorBoard: event files in the run's folder (extra `tensorboard`)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selftaught.loggers.logger import Logger, RunFacts, scalars, score_values, write_ids

FOLDER = "tensorboard"  # in the run's folder


class TensorBoard(Logger):
    """Writes curves, pictures and scores to event files, for `tensorboard --logdir`."""

    writer: Any

    @property
    def name(self) -> str:
        return "tensorboard"

    def begin(self, facts: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # a resumed run logs the steps after its checkpoint again
        purge = facts.step + 1 if facts.resumed else 0
        self.steps = facts.steps
        self.writer = SummaryWriter(str(facts.folder / FOLDER), purge_step=purge, flush_secs=10)
        if not facts.resumed:
            text = json.dumps(facts.config, indent=2)
            self.writer.add_text("config", "    " + text.replace("\n", "\n    "), 0)
        write_ids(facts.folder, self.name, {"folder": FOLDER})

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in scalars(values).items():
            self.writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for name, value in score_values(rows).items():
            self.writer.add_scalar(name, value, self.steps)

    def finish(self, outcome: str) -> None:
        self.writer.add_text("outcome", outcome, self.steps)
        self.writer.close()
