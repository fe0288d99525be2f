"""What is asked for of a stage, by name: fields of `Stage` and `Data`, and of the values they hold.

{"data": "photos/", "method": "simclr", "method.temperature": 0.2, "hard": ("cutmix",)}

The same names come from flags, from YAML and from Python's keywords. A dash is an underscore.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from selftaught.config import registry
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.hard.base import HardExample
from selftaught.method import Method
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS, Cosine, Optimizer
from selftaught.views.spec import Views

Count = int | Literal["auto"]  # of threads, of processes

# What can be asked for in one word or value. A method, a hard example or an optimizer is a name, a
# class or a value; views are the name of their pipeline or a value.
FIELDS: dict[str, Any] = {
    "data": tuple[str, ...],
    "labels_from": str,
    "subset": str,
    "holdout": float,
    "max_pixels": int,
    "method": Method.Config,
    "hard": tuple[HardExample, ...],
    "backbone": str,
    "stem": Literal["imagenet", "cifar"],
    "init": str,
    "statistics": Literal["weights", "data"],
    "trainable": str,
    "keep": Literal["last", "best"],
    "size": int,
    "batch": int,
    "accumulate": int,
    "epochs": float,
    "steps": int,
    "views": Literal["fast", "reference"],
    "optimizer": Optimizer,
    "schedule": Cosine,
    "combine": Literal["mean", "sum"],
    "clip": float,
    "precision": Literal["auto", "fp32", "bf16"],
    "compile": bool,
    "seed": int,
}
# how a stage is carried out, which changes no outcome: the same for all stages of a plan
CONDUCT = frozenset({"device", "threads", "workers", "on_collapse", "save_every", "fsdp", "log"})
# whose fields can be asked for one by one: method.temperature, hard.cutmix.weight
GROUPS = ("method", "hard", "views", "optimizer", "schedule")


@dataclass(frozen=True)
class Overrides:
    """What is asked for, by name: `values` of whole fields, and `fields` of the groups."""

    values: dict[str, Any]
    fields: dict[str, dict[str, Any]]


def normalise(name: str) -> str:
    return name.replace("-", "_")


def flag(name: str) -> str:
    """As it is typed."""
    return f"--{name.replace('_', '-')}"


def read_overrides(asked: Mapping[str, Any]) -> Overrides:
    """Raises UserError for a name that there is not, and for a value that does not fit. None: not
    asked for.
    """
    values: dict[str, Any] = {}
    fields: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, given in asked.items():
        name = normalise(str(name))
        if given is None:
            continue
        if isinstance(given, Mapping):
            raise UserError(
                f"{name}: give its fields one by one, as {name}.{next(iter(given), 'field')}"
            )
        group, dot, field = name.partition(".")
        if dot and group in GROUPS:
            fields[group][field] = given
        elif name in FIELDS:
            values[name] = read_value(name, given)
        else:
            near = difflib.get_close_matches(name, FIELDS, n=3) or sorted(FIELDS)
            raise UserError(f"there is no setting {flag(name)}; did you mean {', '.join(near)}?")
    return Overrides(values, fields)


def read_value(name: str, given: Any) -> Any:
    """The value of a whole field; names of kinds stay names, classes become them."""
    if name == "hard":
        given = given if isinstance(given, list | tuple) else (given,)
        return tuple(_named(one, HardExample, HARD, name) for one in given)
    if name == "method":
        if isinstance(given, type) and issubclass(given, Method):
            given = registry.kind_name(given, METHODS)
        return _named(given, Method.Config, METHODS, name)
    if name == "optimizer":
        return _named(given, Optimizer, OPTIMIZERS, name)
    if name == "views" and isinstance(given, Views):
        return given
    if name == "schedule":
        if not isinstance(given, Cosine):
            raise UserError("schedule is a Cosine; its fields are schedule.warmup and so on")
        return given
    return coerce(flag(name), given, FIELDS[name])


def _named(given: Any, base: type, among: Mapping[str, type], name: str) -> Any:
    if isinstance(given, type) and issubclass(given, base):
        return registry.kind_name(given, among)
    if isinstance(given, base | str):
        return given
    raise UserError(f"{name} is a name, a class or a {base.__qualname__}, not {given!r}")


def coerce(named: str, given: Any, kind: Any) -> Any:
    """`given` as a value of `kind`; raises UserError that says what would be one."""
    if NoneType in get_args(kind):
        if given is None:
            return None
        rest = tuple(k for k in get_args(kind) if k is not NoneType)
        kind = rest[0] if len(rest) == 1 else Union[rest]  # noqa: UP007
    if get_origin(kind) is tuple:
        several = given if isinstance(given, list | tuple) else (given,)
        kinds = get_args(kind)
        if kinds[-1] is ...:
            return tuple(coerce(named, one, kinds[0]) for one in several)
        if len(several) != len(kinds):
            raise UserError(f"{named} takes {len(kinds)} values, and not {len(several)}")
        return tuple(coerce(named, *pair) for pair in zip(several, kinds, strict=True))
    if kind is bool:
        if not isinstance(given, bool):
            raise UserError(f"{named} takes yes or no, and not '{given}'")
        return given
    if isinstance(given, list | tuple):
        raise UserError(f"{named} takes one value, and not {len(given)}")
    if kind is str:
        return os.fspath(given) if isinstance(given, os.PathLike) else str(given)
    if kind in (int, float) or get_origin(kind) in (Literal, Union, UnionType):
        return value(named, str(given), kind)
    if not isinstance(given, kind):
        raise UserError(f"{named} takes a {kind.__name__}, and not '{given}'")
    return given


def value(flag: str, word: str, kind: Any) -> Any:
    """A word as a value of `kind`: str, int, float, a Literal of strings, or a number or a
    Literal.
    """
    if get_origin(kind) is Literal:
        if word not in get_args(kind):
            raise UserError(f"{flag} takes {', '.join(get_args(kind))}, and not '{word}'")
        return word
    names: tuple[str, ...] = ()
    if get_origin(kind) in (Union, UnionType):
        kind, literal = get_args(kind)
        names = get_args(literal)
    if word in names:
        return word
    try:
        return kind(word)
    except ValueError:
        number = f"a {'whole ' if kind is int else ''}number"
        raise UserError(f"{flag} takes {' or '.join((*names, number))}, and not '{word}'") from None


def replace_fields(group: str, value: Any, fields: Mapping[str, Any]) -> Any:
    """A frozen value with other fields, each of its own type. Raises UserError for one it lacks."""
    if not fields:
        return value
    kinds = get_type_hints(type(value))
    names = [f.name for f in dataclasses.fields(value)]
    changed = {}
    for name, given in fields.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3) or sorted(names)
            shown = ", ".join(flag(f"{group}.{one}") for one in near)
            raise UserError(f"there is no {flag(f'{group}.{name}')}; did you mean {shown}?")
        changed[name] = coerce(flag(f"{group}.{name}"), given, kinds[name])
    return dataclasses.replace(value, **changed)


def refuse_others(
    names: Iterable[str], group: str, name: str, kind: type, among: Mapping[str, type]
) -> None:
    """Refuse fields of the group that `kind` lacks, where others have them."""
    own = {f.name for f in dataclasses.fields(kind)}
    for field in names:
        able = [
            other
            for other, one in among.items()
            if field in (f.name for f in dataclasses.fields(one))
        ]
        if able and field not in own:
            raise UserError(f"{name} has no {flag(f'{group}.{field}')}: it is of {', '.join(able)}")
