"""Values as text."""

from collections.abc import Callable
from typing import Any

from selftaught.runs.reader import number

# Words


def format_duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if hours < 2
        else f"{hours:.1f} h"
    )


def format_integer(value: object) -> str:
    found = number(value)
    return f"{found:,.0f}".replace(",", "\u202f") if found is not None else ""


def format_sentence(value: object) -> str:
    text = str(value or "").strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def format_count(amount: int, noun: str) -> str:
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def as_list(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, a single value as a list of it."""
    return (
        list(value)
        if isinstance(value, list | tuple)
        else []
        if value in (None, "", {})
        else [value]
    )


def format_value(value: Any, join: Callable[[list[str]], str] = ", ".join) -> str:
    if isinstance(value, list | tuple):
        return join([format_value(part) for part in value])
    if isinstance(value, dict):
        return part_title(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def part_title(value: Any) -> str:
    """What a part of the configuration is called: a name, or a table that holds one."""
    if isinstance(value, dict):
        return next(
            (str(value[key]) for key in ("name", "kind", "type", "_type") if value.get(key)), ""
        )
    return str(value) if value not in (None, "") else ""


def run_letter(position: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (run_letter(position // 26 - 1) if position >= 26 else "") + chr(
        ord("A") + position % 26
    )
