"""Ranges of numbers as types (`momentum: Share`), and the check of a dataclass's fields."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

from tyro.conf import arg

from selftaught.errors import require


@dataclass(frozen=True)
class Range:
    """An interval from `low` to `high`. Each end is included unless it is `open`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        low = f"above {self.low:g}" if self.open_low else f"from {self.low:g}"
        return f"{low} to {'below ' if self.open_high else ''}{self.high:g}"


Count = Annotated[int, Range(1), arg(metavar="INT>=1")]
Natural = Annotated[int, Range(0), arg(metavar="INT>=0")]
Positive = Annotated[float, Range(0, open_low=True), arg(metavar="FLOAT>0")]
NonNegative = Annotated[float, Range(0), arg(metavar="FLOAT>=0")]
Share = Annotated[float, Range(0, 1), arg(metavar="0..1")]


@lru_cache
def ranges_of(kind: type) -> dict[str, Range]:
    """Return the ranges of a dataclass's fields, by field name."""
    return {
        name: each
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for each in getattr(hint, "__metadata__", ())
        if isinstance(each, Range)
    }


def check_ranges(values: Any, group: str) -> None:
    """Raise UserError for the first field of a dataclass that is outside its range.

    `group`: the group of its flags, as in --group.field.
    """
    kind: type = type(values)
    for name, limits in ranges_of(kind).items():
        value = getattr(values, name)
        require(value in limits, f"--{group}.{name.replace('_', '-')}", str(limits), value)
