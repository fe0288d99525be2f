"""Checks the words of a command, with errors of one line. tyro's own are boxes of several lines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from tyro.conf import Positional, arg

from selftaught.config.overrides import coerce
from selftaught.errors import UserError
from selftaught.text import find_near


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One value of the options: its name as a flag, its type, and what the help says of it."""

    name: str
    kind: Any
    metavar: str
    text: str
    required: bool
    positional: bool


def leaves(kind: type, prefix: str = "") -> Iterator[Leaf]:
    """Yield the values of a dataclass of options, and of the dataclasses that it holds."""
    hints, marked = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint: Any = hints[field.name]
        name = prefix + field.name.removesuffix("_fields").replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{name}.")
            continue
        marks = getattr(marked[field.name], "__metadata__", ())
        about = next((mark for mark in marks if hasattr(mark, "metavar")), arg())
        yield Leaf(
            name=name,
            kind=hint,
            metavar=getattr(about, "metavar", None) or "",
            text=getattr(about, "help", None) or "",
            required=field.default is field.default_factory is dataclasses.MISSING,
            positional=Positional in marks,
        )


def check_words(kind: type, command: str, words: Sequence[str]) -> None:
    """Raise UserError for the first word that does not fit, or for a value that is missing."""
    known = list(leaves(kind))
    positional = [leaf for leaf in known if leaf.positional]  # one at most
    flags = {leaf.name: leaf for leaf in known if not leaf.positional}
    for word in words:
        if re.match(r"-[^-\d.]", word):
            raise UserError(f"there is no {word}: flags begin with --")
    groups = group_words(words)
    others = words_before(words)  # words of no flag
    for name, values in groups:
        others += _check_flag(name, values, flags, command)
    count = sum(_count(leaf.kind) or len(others) for leaf in positional)
    if len(others) > count:
        raise UserError(f"'{others[count]}' belongs to no flag")
    for leaf in positional:
        if others:
            _convert(leaf.metavar, others, leaf.kind)
        elif leaf.required:
            raise UserError(f"{leaf.metavar} is missing: {leaf.text}")
    for leaf in flags.values():
        if leaf.required and leaf.name not in dict(groups):
            raise UserError(f"--{leaf.name} {leaf.metavar} is missing: {leaf.text}")


def _check_flag(
    name: str, values: list[str], flags: dict[str, Leaf], command: str
) -> Sequence[str]:
    """Check a flag and its values; return the words behind them, which belong to no flag."""
    group, dot, last = name.rpartition(".")
    leaf, is_off = flags.get(name), False
    if leaf is None and last.startswith("no-"):
        leaf, is_off = flags.get(group + dot + last.removeprefix("no-")), True
    if leaf is None or (is_off and leaf.kind is not bool):
        raise UserError(f"there is no --{name}{_advise(name, list(flags), command)}")
    if leaf.kind is bool:
        return values
    count = _count(leaf.kind)
    if count is None:
        _convert(f"--{name}", values, leaf.kind)
        return ()
    if not values:
        raise UserError(f"--{name} has no value: give {leaf.metavar or 'one'}")
    _convert(f"--{name}", values[:count], leaf.kind)
    return values[count:]


def _count(kind: Any) -> int | None:
    """The number of words of a value; None for any number."""
    for one in (kind, *get_args(kind)):
        if get_origin(one) is tuple:
            return None if get_args(one)[-1] is ... else len(get_args(one))
    return 1


def _convert(name: str, values: Sequence[str], kind: Any) -> None:
    """Raise UserError, which names the valid values, for words that are no value of `kind`."""
    coerce(name, tuple(values) if _count(kind) != 1 else values[0], kind)


def _advise(name: str, flags: list[str], command: str) -> str:
    """Name the flags that may be meant."""
    group, dot, last = name.rpartition(".")
    alike = [flag for flag in flags if flag.rpartition(".")[2] == last]
    near = alike or find_near(name, flags)
    if dot and not near:
        near = [flag for flag in flags if flag.rpartition(".")[0] == group]
    if not near:
        return f": `selftaught {command} --help` lists the flags"
    return f"; did you mean {' or '.join(f'--{flag}' for flag in near)}?"


def words_before(words: Sequence[str]) -> list[str]:
    """The words before the first flag."""
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:first])


def group_words(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The values of each flag: [("hard", ["adversarial", "cutmix"]), ...]."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            groups.append((name.replace("_", "-"), [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
    return groups
