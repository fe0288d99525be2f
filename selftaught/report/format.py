"""Formatting of values as text."""

from collections.abc import Callable
from typing import Any

from selftaught.runs.reader import number


def format_duration(seconds: float | None) -> str:
    """A duration in seconds, minutes or hours; empty for None."""
    if seconds is None:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def format_integer(value: object) -> str:
    """An integer with thin spaces between thousands; empty for anything but a number."""
    parsed = number(value)
    return f"{parsed:,.0f}".replace(",", "\u202f") if parsed is not None else ""


def format_sentence(value: object) -> str:
    """A text as a sentence: with a capital letter and a full stop."""
    text = str(value or "").strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def format_count(amount: int, noun: str) -> str:
    """A count with its noun, in the plural unless the count is 1."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def as_list(value: Any) -> list[Any]:
    """A list as a list, an empty value as an empty list, any other value as a list of one."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value in (None, "", {}) else [value]


def format_value(value: Any, join: Callable[[list[str]], str] = ", ".join) -> str:
    """A value of the configuration as text; lists are joined by `join`."""
    if isinstance(value, (list, tuple)):
        return join([format_value(part) for part in value])
    if isinstance(value, dict):
        return part_title(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def part_title(value: Any) -> str:
    """The name of a part of the configuration, which is a name or a table with one."""
    if isinstance(value, dict):
        keys = ("name", "kind", "type", "_type")
        return next((str(value[key]) for key in keys if value.get(key)), "")
    return str(value) if value not in (None, "") else ""


def run_letter(position: int) -> str:
    """The letter of run number `position`: A, B, ... Z, AA, AB, ..."""
    prefix = run_letter(position // 26 - 1) if position >= 26 else ""
    return prefix + chr(ord("A") + position % 26)
