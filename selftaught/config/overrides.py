"""Settings of a stage by name: fields of `Stage` and `Data`, and of the values that they hold.

{"data": "photos/", "method": "simclr", "method.temperature": 0.2, "hard": ("cutmix",)}

The same names come from flags, from YAML and from Python's keywords. A dash is an underscore.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from selftaught.config import registry
from selftaught.config.mismatch import describe_kind
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.hard.base import HardExample
from selftaught.method import Method
from selftaught.methods import METHODS
from selftaught.models.anchor import Anchor
from selftaught.optim import OPTIMIZERS, Cosine, Optimizer
from selftaught.text import suggest_names
from selftaught.views.spec import Views

Count = int | Literal["auto"]  # of threads, of processes

# The settings that take one word or value, with their types. A method, a hard example or an
# optimizer is a name, a class or a value. Views are the name of their pipeline or a value. An
# anchor is its weight, 0 for none, or a value.
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
    "norm_statistics": Literal["weights", "data"],
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
    "anchor": float,
    "clip": float,
    "precision": Literal["auto", "fp32", "bf16"],
    "compile": bool,
    "seed": int,
}
# settings that do not change the outcome of a stage: the same for all stages of a plan
CONDUCT = frozenset({"device", "threads", "workers", "on_collapse", "save_every", "fsdp", "log"})
# settings whose fields can be set one by one: method.temperature, hard.cutmix.weight
GROUPS = ("method", "hard", "views", "optimizer", "schedule", "anchor")


@dataclass(frozen=True)
class Overrides:
    """Settings by name: `values` of whole fields, and `fields` of the groups."""

    values: dict[str, Any]
    fields: dict[str, dict[str, Any]]


def normalise(name: str) -> str:
    """Return the name of a field: a dash is an underscore."""
    return name.replace("-", "_")


def flag(name: str) -> str:
    """Return the flag of a field: `--labels-from`."""
    return f"--{name.replace('_', '-')}"


def read_overrides(settings: Mapping[str, Any]) -> Overrides:
    """Check settings and convert them to their types. A setting of None is left out.

    Raises UserError for an unknown name, and for a value of the wrong type.
    """
    values: dict[str, Any] = {}
    fields: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, content in settings.items():
        name = normalise(str(name))
        if content is None:
            continue
        if isinstance(content, Mapping):
            raise UserError(
                f"{name}: give its fields one by one, as {name}.{next(iter(content), 'field')}"
            )
        group, dot, field = name.partition(".")
        if dot and group in GROUPS:
            fields[group][field] = content
        elif name in FIELDS:
            values[name] = read_value(name, content)
        else:
            near = suggest_names(name, FIELDS)
            raise UserError(f"there is no setting {flag(name)}; did you mean {', '.join(near)}?")
    return Overrides(values, fields)


def read_value(name: str, content: Any) -> Any:
    """Convert the value of a whole field. A class becomes its name; a name stays a name."""
    if name == "hard":
        content = content if isinstance(content, (list, tuple)) else (content,)
        return tuple(_read_kind(one, HardExample, HARD, name) for one in content)
    if name == "method":
        if isinstance(content, type) and issubclass(content, Method):
            content = registry.kind_name(content, METHODS)
        return _read_kind(content, Method.Config, METHODS, name)
    if name == "optimizer":
        return _read_kind(content, Optimizer, OPTIMIZERS, name)
    if isinstance(content, {"views": Views, "anchor": Anchor}.get(name, ())):
        return content
    if name == "schedule":
        if not isinstance(content, Cosine):
            raise UserError("schedule is a Cosine; its fields are schedule.warmup and so on")
        return content
    return coerce(flag(name), content, FIELDS[name])


def _read_kind(content: Any, base: type, among: Mapping[str, type], name: str) -> Any:
    if isinstance(content, type) and issubclass(content, base):
        return registry.kind_name(content, among)
    if isinstance(content, base | str):
        return content
    raise UserError(f"{name} is a name, a class or a {base.__qualname__}, not {content!r}")


def coerce(name: str, content: Any, kind: Any) -> Any:
    """Convert `content` to the type `kind`. Raises UserError, which names the valid values."""
    if NoneType in get_args(kind):
        if content is None:
            return None
        rest = [k for k in get_args(kind) if k is not NoneType]
        kind = functools.reduce(operator.or_, rest)
    if get_origin(kind) is tuple:
        several = content if isinstance(content, (list, tuple)) else (content,)
        kinds = get_args(kind)
        if kinds[-1] is ...:
            return tuple(coerce(name, one, kinds[0]) for one in several)
        if len(several) != len(kinds):
            raise UserError(f"{name} takes {len(kinds)} values, and not {len(several)}")
        return tuple(coerce(name, *pair) for pair in zip(several, kinds, strict=True))
    if kind is bool:
        if not isinstance(content, bool):
            raise UserError(f"{name} takes {describe_kind(bool)}, and not '{content}'")
        return content
    if isinstance(content, (list, tuple)):
        raise UserError(f"{name} takes one value, and not {len(content)}")
    if kind is str:
        return os.fspath(content) if isinstance(content, os.PathLike) else str(content)
    if kind in (int, float) or get_origin(kind) in (Literal, Union, UnionType):
        return value(name, str(content), kind)
    if not isinstance(content, kind):
        raise UserError(f"{name} takes a {kind.__name__}, and not '{content}'")
    return content


def value(flag: str, word: str, kind: Any) -> Any:
    """Convert a word to `kind`: int, float, a Literal of strings, or a union of both.

    Raises UserError, which names the valid values.
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
        kinds = " or ".join((*names, describe_kind(kind)))
        raise UserError(f"{flag} takes {kinds}, and not '{word}'") from None


def replace_fields(group: str, value: Any, fields: Mapping[str, Any]) -> Any:
    """Return a frozen value with other fields, converted to their types.

    Raises UserError for an unknown field and for a value of the wrong type.
    """
    if not fields:
        return value
    kinds = get_type_hints(type(value))
    names = [f.name for f in dataclasses.fields(value)]
    changed = {}
    for name, content in fields.items():
        if name not in names:
            near = suggest_names(name, names)
            flags = ", ".join(flag(f"{group}.{one}") for one in near)
            raise UserError(f"there is no {flag(f'{group}.{name}')}; did you mean {flags}?")
        changed[name] = coerce(flag(f"{group}.{name}"), content, kinds[name])
    return dataclasses.replace(value, **changed)


def refuse_others(
    names: Iterable[str], group: str, name: str, kind: type, among: Mapping[str, type]
) -> None:
    """Raise UserError for fields of the group that other kinds have and `kind` lacks."""
    own = {f.name for f in dataclasses.fields(kind)}
    for field in names:
        able = [
            other
            for other, one in among.items()
            if field in (f.name for f in dataclasses.fields(one))
        ]
        if able and field not in own:
            raise UserError(f"{name} has no {flag(f'{group}.{field}')}: it is of {', '.join(able)}")
