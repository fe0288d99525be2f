"""Every number of every group of flags has a range, and is refused outside of it."""

import dataclasses
from typing import Any, get_type_hints

import pytest

from selftaught.errors import UserError
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.hard import HARD
from selftaught.models.anchor import Anchor
from selftaught.optim import OPTIMIZERS, Cosine
from selftaught.ranges import Range, ranges_of
from selftaught.views.spec import Views

GROUPS: dict[str, type] = {
    "views": Views,
    "anchor": Anchor,
    "schedule": Cosine,
    "knn": KNN,
    "linear": LinearProbe,
    "finetune": FineTune,
    **{f"hard.{name}": kind for name, kind in HARD.items()},
}
CASES = [*GROUPS.items(), *(("optimizer", kind) for kind in OPTIMIZERS.values())]
groups = pytest.mark.parametrize(("group", "kind"), CASES)


def is_number(hint: Any) -> bool:
    return any(word in str(hint) for word in ("int", "float"))


def outside(limits: Range) -> list[float]:
    ends = [limits.low - 1, limits.high + 1, float("nan"), float("inf")]
    ends += [limits.low] * limits.open_low + [limits.high] * limits.open_high
    return ends


@groups
def test_every_number_has_a_range(group: str, kind: type) -> None:
    names = {f.name for f in dataclasses.fields(kind)}
    numbers = {name for name, hint in get_type_hints(kind).items() if is_number(hint)}
    assert numbers & names == {*ranges_of(kind)}


@groups
def test_numbers_outside_of_their_range_are_refused(group: str, kind: type) -> None:
    usual = kind()
    for name, limits in ranges_of(kind).items():
        for number in outside(limits):
            value = getattr(usual, name)
            changed = (number,) * max(len(value), 1) if isinstance(value, tuple) else number
            with pytest.raises(UserError, match=rf"--{group}.{name.replace('_', '-')} must be "):
                dataclasses.replace(usual, **{name: changed})


def test_pairs_of_numbers_rise() -> None:
    with pytest.raises(UserError, match=r"--finetune\.crops takes two numbers in rising order"):
        FineTune(crops=(0.9, 0.2))


def test_penalties_to_choose_from() -> None:
    with pytest.raises(UserError, match=r"--linear\.penalties needs one number or more"):
        LinearProbe(penalties=())
