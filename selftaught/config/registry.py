"""Names of methods, optimizers and hard examples, and what has a name."""

import difflib
from collections.abc import Iterable

from selftaught.config.stage import Stage, method_of
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.hard.base import HardExample
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS


def find_name(name: str, among: Iterable[str], what: str) -> str:
    """`name`, if it is one of them; else a UserError with the nearest."""
    names = sorted(among)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
    raise UserError(f"there is no {what} '{name}'; did you mean {' or '.join(near)}?")


def method_name(stage: Stage) -> str:
    return next(name for name, method in METHODS.items() if method is method_of(stage.method))


def optimizer_name(stage: Stage) -> str:
    return next(name for name, kind in OPTIMIZERS.items() if kind is type(stage.optimizer))


def hard_name(hard: HardExample) -> str:
    return next(name for name, kind in HARD.items() if kind is type(hard))


def summary(stage: Stage) -> str:
    """What was chosen, by hand or by default."""
    hard = "".join(f" + {hard_name(h)}" for h in stage.hard)
    network = f"{stage.backbone} ({stage.stem} stem), {stage.size} pixels, {stage.precision}"
    how = (
        f"{stage.steps:,} steps of {stage.batch}, {optimizer_name(stage)} at {stage.optimizer.lr:g}"
    )
    return f"{method_name(stage)}{hard}: {network}, {how}; all settings are in run.json"
