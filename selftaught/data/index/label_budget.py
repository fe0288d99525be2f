"""Which training images are labelled: N a class, N in all with every class at least once, or all of
them; by seed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.errors import UserError


@dataclass(frozen=True)
class Budget:
    """How many labels an evaluation may use: `per_class` of each class, or `total` in all; neither:
    all there are.
    """

    per_class: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        if self.per_class is not None and self.total is not None:
            raise UserError("labels are given as a number a class or as a total, not both")
        if min(n for n in (self.per_class, self.total, 1) if n is not None) < 1:
            raise UserError("an evaluation needs at least one label")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """ "5", "all" or "total:1000", as on the command line."""
        kind, colon, number = text.rpartition(":")
        if text == "all":
            return cls()
        if kind not in ("", "total") or (colon and not kind) or not number.isdecimal():
            raise UserError(
                f'labels "{text}" not understood: say 5 (a class), total:1000 (in all) or all'
            )
        return cls(total=int(number)) if kind else cls(per_class=int(number))

    def __str__(self) -> str:
        if self.total is not None:
            return f"total:{self.total}"
        return "all" if self.per_class is None else str(self.per_class)


def draw(
    labels: Tensor, *, per_class: int | None = None, total: int | None = None, seed: int
) -> Tensor:
    """Positions [n] (rising) of the images whose labels may be used; labels [N] long or [N, C] 0/1.

    per_class: that many of each class, or all of a class that has fewer; several classes an image:
    images are added, rarest class first, until each class has that many. total: each class once
    (UserError if that takes more than `total`), then images at random, whatever their class; all of
    them if there are fewer. One seed, one order: of single-class labels, a smaller draw is part of
    a larger one.
    """
    Budget(per_class, total)  # refuses what makes no sense
    labels = labels.cpu()
    if per_class is None and total is None:
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if total is not None and total >= len(labels):
        return torch.arange(len(labels))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    quota = 1 if per_class is None else per_class
    if labels.ndim == 1:
        for name in labels.unique():
            chosen[order[labels[order] == name][:quota]] = True
    else:
        positive = labels > 0
        for name in positive.sum(0).argsort(stable=True):
            missing = quota - int((chosen & positive[:, name]).sum())
            candidates = order[(positive[:, name] & ~chosen)[order]]
            chosen[candidates[: max(0, missing)]] = True
    if total is not None:
        if int(chosen.sum()) > total:
            raise UserError(
                f"total:{total} labels do not reach every class, that takes {int(chosen.sum())}"
            )
        rest = order[~chosen[order]]
        chosen[rest[: total - int(chosen.sum())]] = True
    return chosen.nonzero().squeeze(1)


def shortfall(labels: Tensor, per_class: int) -> int:
    """How many classes have images, but fewer than `per_class`."""
    counts = labels.sum(0) if labels.ndim == 2 else torch.bincount(labels)
    return int(((counts > 0) & (counts < per_class)).sum())
