"""Ranges of numbers as types (`momentum: Share`), and the check of a dataclass's fields."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tyro.conf import arg

from selftaught.errors import UserError, require


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
BelowOne = Annotated[float, Range(0, 1, open_high=True), arg(metavar="0..1")]
NonzeroShare = Annotated[float, Range(0, 1, open_low=True), arg(metavar="0..1")]
TwoOrMore = Annotated[int, Range(2), arg(metavar="INT>=2")]
SEEDS = Range(-(2**63), 2**63 - 1)  # what torch takes
Seed = Annotated[int, SEEDS, arg(metavar="INT")]


@lru_cache
def ranges_of(kind: type) -> dict[str, Range]:
    """Return the ranges of a dataclass's fields, by field name; of a tuple, that of its numbers."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: found for name, hint in hints.items() if (found := _find_range(hint))}


def _find_range(hint: Any) -> Range | None:
    found = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range)), None)
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return found or (_find_range(get_args(bare)[0]) if get_origin(bare) is tuple else None)


def check_ranges(values: Any, group: str) -> None:
    """Raise UserError for the first field of a dataclass that is outside its range.

    `group`: the group of its flags, as in --group.field.
    """
    kind: type = type(values)
    for name, limits in ranges_of(kind).items():
        value = getattr(values, name)
        for number in (value,) if isinstance(value, int | float) else value:
            require(number in limits, _flag(group, name), str(limits), number)


def check_seed(seed: int) -> None:
    """Raise UserError for a number that torch takes for no seed."""
    require(seed in SEEDS, "--seed", "a number of 64 bits", seed)


def check_order(values: Any, group: str, *names: str) -> None:
    """Raise UserError for the first pair of numbers, in the fields `names`, that falls."""
    for name in names:
        low, high = getattr(values, name)
        if low > high:
            raise UserError(
                f"{_flag(group, name)} takes two numbers in rising order, and not {low:g} {high:g}"
            )


def check_given(values: Any, group: str, *names: str) -> None:
    """Raise UserError for the first empty tuple in the fields `names`."""
    for name in names:
        if not getattr(values, name):
            raise UserError(f"{_flag(group, name)} needs one number or more")


def _flag(group: str, name: str) -> str:
    return f"--{group}.{name.replace('_', '-')}"
