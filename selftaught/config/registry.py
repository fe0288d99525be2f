"""Names of methods, optimizers and hard examples, and the classes that they stand for.

A class of this package has a word as its name; a class of another package has
`package.module:Class`.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from selftaught.config.stage import Stage, method_of
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.hard.base import HardExample, part_name
from selftaught.method import Method
from selftaught.methods import METHODS
from selftaught.models.python_objects import import_object, object_name
from selftaught.optim import OPTIMIZERS, Optimizer
from selftaught.text import suggest_names


def find_name(name: str, among: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `among`. Raises UserError, with the nearest names."""
    names = sorted(among)
    if name in names:
        return name
    near = suggest_names(name, names, cutoff=0.4)
    raise UserError(f"there is no {what} '{name}'; did you mean {' or '.join(near)}?")


def find_kind(name: str, among: Mapping[str, type], base: type, what: str) -> Any:
    """Return the subclass of `base` with that name.

    Raises UserError where there is none, or where it is abstract.
    """
    if ":" not in name:
        return among[find_name(name, among, what)]
    kind = import_object(name, what)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UserError(f"{name} is no {what}: it must be a subclass of {base.__qualname__}")
    if inspect.isabstract(kind):
        lacking = ", ".join(sorted(getattr(kind, "__abstractmethods__", ())))
        raise UserError(f"{name} is not complete: define {lacking}")
    return kind


def kind_name(kind: type, among: Mapping[str, type]) -> str:
    """Return the name by which `find_kind` finds a class."""
    return next((name for name, one in among.items() if one is kind), "") or object_name(kind)


def find_method(name: str) -> type[Method]:
    """Return the method with that name. Raises UserError where there is none, or no own Config."""
    method: type[Method] = find_kind(name, METHODS, Method, "method")
    if "Config" not in vars(method):  # `method_of` finds a method by its Config
        raise UserError(
            f"{name} has no Config of its own: define a frozen dataclass Config(Method.Config) in"
            " it, with or without fields"
        )
    return method


def find_hard(name: str) -> type[HardExample]:
    """Return the hard example with that name. Raises UserError where there is none."""
    kind: type[HardExample] = find_kind(name, HARD, HardExample, "hard example")
    return kind


def find_optimizer(name: str) -> Any:
    """Return the optimizer with that name. Raises UserError where there is none."""
    return find_kind(name, OPTIMIZERS, Optimizer, "optimizer")


def method_name(stage: Stage) -> str:
    return kind_name(method_of(stage.method), METHODS)


def optimizer_name(stage: Stage) -> str:
    return kind_name(type(stage.optimizer), OPTIMIZERS)


def hard_name(hard: HardExample) -> str:
    return kind_name(type(hard), HARD)


def hard_word(kind: type[HardExample]) -> str:
    """Return its word in flags: the `cutmix` of --hard.cutmix.weight."""
    return next((name for name, one in HARD.items() if one is kind), "") or part_name(kind)


def summary(stage: Stage) -> str:
    """Describe the main settings of a stage in one line."""
    hard = "".join(f" + {hard_name(h)}" for h in stage.hard)
    network = f"{stage.backbone} ({stage.stem} stem), {stage.size} pixels, {stage.precision}"
    optimizer = f"{optimizer_name(stage)} at {stage.optimizer.lr:g}"
    training = f"{stage.steps:,} steps of {stage.batch}, {optimizer}"
    return f"{method_name(stage)}{hard}: {network}, {training}; all settings are in run.json"
