"""Options of a command as a dataclass: their help, and their values from words.

tyro writes the help and builds the dataclass.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro
from tyro.conf import Positional, arg

from selftaught.cli.argv import check_words

T = TypeVar("T")
_OPTION = "option"  # key in the metadata of a field

# Help that several commands share
THREADS_HELP = "compute threads; auto: one for each free core"
WORKERS_HELP = "processes that decode images, if these are not in memory"
WORKERS_DEFAULT = "auto: at most 2"
MAX_PIXELS_HELP = "maximum of an image; larger ones are omitted"
Device = Literal["auto", "cpu", "cuda"]


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


# Fields that several commands have


def device_option() -> Any:
    return option("auto|cpu|cuda", "device of the computation", default="auto")


def threads_option() -> Any:
    return option("auto|THREADS", THREADS_HELP, default="auto")


def workers_option() -> Any:
    return option("auto|PROCESSES", WORKERS_HELP, WORKERS_DEFAULT, default="auto")


def labels_option(metavar: str = "auto|folders|none|FILE.csv") -> Any:
    return option(metavar, "class folders or a CSV; auto: whatever is there", default="auto")


def _words_of(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return str(default)


def annotate(name: str, kind: Any, about: Option) -> Any:
    """Return the type of a field with what tyro's help says of it."""
    marks = arg(
        name=None if about.positional else name.replace("_", "-"),
        help=about.text,
        metavar=about.metavar or None,
        help_behavior_hint=f"({about.without})",
    )
    return Annotated[kind, marks, Positional] if about.positional else Annotated[kind, marks]


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
