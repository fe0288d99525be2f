"""The logger of the terminal: one live line of progress on standard error."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from selftaught.loggers.logger import Logger, RunFacts

PACKAGE = logging.getLogger("selftaught")  # the terminal shows the messages of this logger


class Progress(Logger):
    """Shows the step, loss, images a second, share of waiting, time left and features' spread.

    As a context manager it also shows the messages of the package's `logging` loggers.
    """

    def __init__(self, show: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not show)
        self.live = Live(
            console=self.console,
            transient=True,
            refresh_per_second=4,
            auto_refresh=self.console.is_terminal,
        )
        self.steps = 0
        self.first: tuple[float, int] | None = None
        self.features: dict[str, float] = {}
        self.pretext: tuple[float, float | None] | None = None  # accuracy, chance
        self.printed = 0.0
        self.handler = MessageHandler(self)
        self.level = PACKAGE.level

    @property
    def name(self) -> str:
        return "terminal"

    def __enter__(self) -> Self:
        self.level = PACKAGE.level
        PACKAGE.setLevel(logging.INFO)
        PACKAGE.addHandler(self.handler)
        self.live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.live.stop()
        PACKAGE.removeHandler(self.handler)
        PACKAGE.setLevel(self.level)

    def of(self, what: str) -> Callable[[int, int], None]:
        """Return a callback (done, total) that shows the progress of `what`."""

        def show(done: int, total: int) -> None:
            if total:
                self.line(f"{what}: {done:,} of {total:,}", final=False)

        return show

    def say(self, text: str) -> None:
        """Print a line above the live line."""
        self.console.print(Text(text), soft_wrap=True)

    def begin(self, facts: RunFacts) -> None:
        self.steps, self.first, self.features, self.pretext = facts.steps, None, {}, None

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self.features = values["features"] or self.features
        if values.get("pretext") is not None:
            self.pretext = (values["pretext"], values.get("pretext_chance"))
        now = time.perf_counter()
        if self.first is None:
            self.first = (now, step)
        start_time, start_step = self.first
        parts = [f"step {step:,} of {self.steps:,}"]
        if values["loss"] is not None:
            parts.append(f"loss {values['loss']:.3f}")
        if values["images_per_s"]:
            parts.append(f"{values['images_per_s']:,.0f} images/s")
            parts.append(f"waiting {100 * values['wait']:.0f} %")
        if step > start_step:
            seconds_a_step = (now - start_time) / (step - start_step)
            parts.append(f"{clock(seconds_a_step * (self.steps - step))} left")
        if self.features.get("std") is not None:
            parts.append(f"spread {self.features['std']:.2f}")
        if self.features.get("knn") is not None:
            parts.append(f"kNN {100 * self.features['knn']:.1f} %")
        if self.pretext is not None:
            accuracy, chance = self.pretext
            beside = "" if chance is None else f" (chance {100 * chance:.1f} %)"
            parts.append(f"task {100 * accuracy:.1f} %{beside}")
        self.line("  ".join(parts), final=values["features"] is not None)

    def image(self, step: int, name: str, path: Path) -> None:
        pass

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, outcome: str) -> None:
        pass

    def line(self, text: str, final: bool) -> None:
        """Replace the live line. Without a terminal, print it every 30 s and where `final`."""
        if self.console.is_terminal:
            self.live.update(Text(text))
        elif final or time.perf_counter() - self.printed > 30:
            self.printed = time.perf_counter()
            self.console.print(Text(text), soft_wrap=True)


class MessageHandler(logging.Handler):
    """Prints messages above the live line."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.progress.say(self.format(record))
        except Exception:  # a closed terminal must not stop training
            self.handleError(record)


def clock(seconds: float) -> str:
    """Format a time as h:mm:ss, or as m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
