"""What does not fit in a configuration or a plan, in words."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import cattrs

from selftaught.errors import UserError

_MOST = 4  # sentences
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "yes or no",
    tuple: "a list",
}


def describe_mismatch(error: Exception) -> str:
    """Say in one line what does not fit, and where. For the errors of a converter."""
    sentences = list(dict.fromkeys(_sentences(error, "", None)))
    more = [f"and {len(sentences) - _MOST} more"] if len(sentences) > _MOST else []
    return "; ".join(sentences[:_MOST] + more)


def _sentences(error: BaseException, place: str, kind: Any) -> Iterator[str]:
    """Yield a sentence for each error; `place` is the path of a field, as in `steps.hpt[0]`."""
    if not isinstance(error, (cattrs.ClassValidationError, cattrs.IterableValidationError)):
        yield _sentence(error, place, kind)
        return
    noted, others = error.group_exceptions()
    for one, note in noted:
        if isinstance(note, cattrs.IterableValidationNote):
            inner = f"{place}[{note.index}]"
        else:
            inner = f"{place}.{note.name}" if place else note.name
        yield from _sentences(one, inner, note.type)
    for one in others:
        yield from _sentences(one, place, None)


def _sentence(error: BaseException, place: str, kind: Any) -> str:
    if isinstance(error, UserError):  # it names its setting
        return str(error)
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        fields = ", ".join(sorted(error.extra_fields))
        return f"{place} has no field {fields}" if place else f"there is no field {fields}"
    if isinstance(error, KeyError):
        return f"{place or error} is missing"
    return f"{place} takes {describe_kind(kind)}" if place else str(error)


def describe_kind(kind: Any) -> str:
    """Say what a field of this type takes."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        kinds = [describe_kind(one) for one in get_args(kind) if one is not NoneType]
        return " or ".join(kinds)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return _WORDS.get(get_origin(kind) or kind, "fields with names")
