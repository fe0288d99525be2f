"""What a person sees while a run goes on: one live line on standard error."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Progress:
    """Shows the step, the loss, images a second, time left, the share of time spent waiting, the
    features' spread.
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
        self.told = 0.0

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.live.stop()

    def of(self, what: str) -> Callable[[int, int], None]:
        """A callable that shows how much of something is done."""

        def show(done: int, total: int) -> None:
            if total:
                self.line(f"{what}: {done:,} of {total:,}", final=False)

        return show

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def begin(self, steps: int) -> None:
        """Expect a stage of so many steps."""
        self.steps, self.first, self.features = steps, None, {}

    def entry(self, entry: dict[str, Any]) -> None:
        """Show a journal entry."""
        step = entry["step"]
        self.features = entry["features"] or self.features
        now = time.perf_counter()
        if self.first is None:
            self.first = (now, step)
        began, start = self.first
        parts = [f"step {step:,} of {self.steps:,}"]
        if entry["loss"] is not None:
            parts.append(f"loss {entry['loss']:.3f}")
        if entry["images_per_s"]:
            parts.append(f"{entry['images_per_s']:,.0f} images/s")
            parts.append(f"waiting {100 * entry['wait']:.0f} %")
        if step > start:
            parts.append(f"{clock((now - began) / (step - start) * (self.steps - step))} left")
        if self.features.get("std") is not None:
            parts.append(f"spread {self.features['std']:.2f}")
        if self.features.get("knn") is not None:
            parts.append(f"kNN {100 * self.features['knn']:.1f} %")
        self.line("  ".join(parts), final=entry["features"] is not None)

    def line(self, text: str, final: bool) -> None:
        """Replace the live line; where there is no terminal, print it now and then."""
        if self.console.is_terminal:
            self.live.update(Text(text))
        elif final or time.perf_counter() - self.told > 30:
            self.told = time.perf_counter()
            self.console.print(Text(text), soft_wrap=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
