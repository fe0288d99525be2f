"""Parses the words of a command into a dataclass of options, with one-line errors.

tyro writes the help and builds the options. Its own errors are boxes of several lines, so all words
are checked before it sees them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Positional, arg

from selftaught.config.overrides import coerce
from selftaught.errors import UserError
from selftaught.text import find_near

T = TypeVar("T")
_OPTION = "option"  # key in the metadata of a field

# Help that several commands share
Device = Literal["auto", "cpu", "cuda"]
DEVICE = "device of the computation"
THREADS = "compute threads; auto: one for each free core"
WORKERS = "processes that decode images, if these are not in memory; auto: at most 2"
LABELS_FROM = "class folders or a CSV; auto: whatever is there"
MAX_PIXELS = "maximum of an image; larger ones are omitted"


@dataclasses.dataclass(frozen=True)
class Option:
    """What the help says of a field. `without`: its default in words."""

    metavar: str
    text: str
    without: str
    positional: bool


def option(
    metavar: str,
    text: str,
    without: str = "",
    default: Any = dataclasses.MISSING,
    positional: bool = False,
) -> Any:
    """Return a field of a dataclass of options. Without a default it is required."""
    if not without:
        required = default is dataclasses.MISSING
        without = "required" if required else _words_of(default)
    about = Option(metavar, text, without, positional)
    return dataclasses.field(default=default, metadata={_OPTION: about})


def _words_of(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return str(default)


def annotate(name: str, kind: Any, about: Option) -> Any:
    """Return the type of a field with what tyro's help says of it."""
    if about.positional:
        marks = arg(metavar=about.metavar, help=about.text, help_behavior_hint=f"({about.without})")
        return Annotated[kind, marks, Positional]
    marks = arg(
        name=name.replace("_", "-"),
        help=about.text,
        metavar=about.metavar or None,
        help_behavior_hint=f"({about.without})",
    )
    return Annotated[kind, marks]


def parse_options(kind: type[T], command: str, words: Sequence[str]) -> T:
    """Parse the words of a command into `kind`, a dataclass with fields of `option`.

    Raises UserError for words that do not fit, and SystemExit after the help.
    """
    options: T = parse_annotated(_annotated(kind), command, words)
    return options


@functools.cache
def _annotated(kind: type) -> type:
    """Derive a dataclass whose fields have annotations for tyro."""
    hints = get_type_hints(kind, include_extras=True)
    fields = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if about := field.metadata.get(_OPTION):
            hint = annotate(field.name, hint, about)
        elif dataclasses.is_dataclass(hint):
            paragraph = (hint.__doc__ or "").partition("\n\n")[0]
            hint = Annotated[hint, arg(help=" ".join(paragraph.split()))]
        fields.append((field.name, hint, copy.copy(field)))
    derived = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), kw_only=True)
    derived.__doc__ = kind.__doc__
    return derived


def parse_annotated(kind: type, command: str, words: Sequence[str]) -> Any:
    """Parse the words of a command into a dataclass with tyro's annotations.

    Raises UserError for words that do not fit, and SystemExit after the help.
    """
    if not {"-h", "--help"} & {*words}:
        check_words(kind, command, words)
    return tyro.cli(kind, prog=f"selftaught {command}", args=list(words))


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
    positional = [leaf for leaf in leaves(kind) if leaf.positional]  # one at most
    flags = {leaf.name: leaf for leaf in leaves(kind) if not leaf.positional}
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


# Words before they are parsed


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
