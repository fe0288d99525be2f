"""Which training images keep their labels: N a class, N in all, or all of them; drawn by a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.errors import UserError


@dataclass(frozen=True)
class Budget:
    """How many labels an evaluation may use: `per_class` of each class, `total` in all, or every
    label.
    """

    per_class: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        if self.per_class is not None and self.total is not None:
            raise UserError("labels are given as a number a class or as a total, not both")
        if min(n for n in (self.per_class, self.total, 1) if n is not None) < 1:
            raise UserError("the number of labels must be 1 or more")

    @classmethod
    def parse(cls, text: str, flag: str = "--labels") -> "Budget":
        """Parse "5", "all" or "total:1000". Raises UserError, which names `flag`."""
        kind, colon, number = text.rpartition(":")
        if text == "all":
            return cls()
        if kind not in ("", "total") or (colon and not kind) or not number.isdecimal():
            raise UserError(
                f"{flag} takes 5 (a class), total:1000 (in all) or all, and not '{text}'"
            )
        return cls(total=int(number)) if kind else cls(per_class=int(number))

    def __str__(self) -> str:
        if self.total is not None:
            return f"total:{self.total}"
        return "all" if self.per_class is None else str(self.per_class)


def draw(
    labels: Tensor, *, per_class: int | None = None, total: int | None = None, seed: int
) -> Tensor:
    """Return the positions [n], ascending, of the images whose labels may be used.

    labels: [N] long or [N, C] 0/1. per_class: that many of each class, or all of a smaller class.
    With several classes an image, images are added until each class has that many, rarest class
    first. total: each class once, then random images of any class; all where there are fewer.
    Raises UserError where the classes need more than `total`. With one seed and one class an image,
    a smaller draw is part of a larger one.
    """
    Budget(per_class, total)  # raises UserError for invalid numbers
    labels = labels.cpu()
    if per_class is None and total is None:
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if total is not None and total >= len(labels):
        return torch.arange(len(labels))
    is_drawn = torch.zeros(len(labels), dtype=torch.bool)
    quota = 1 if per_class is None else per_class
    if labels.ndim == 1:
        for name in labels.unique():
            is_drawn[order[labels[order] == name][:quota]] = True
    else:
        positive = labels > 0
        for name in positive.sum(0).argsort(stable=True):
            missing = quota - int((is_drawn & positive[:, name]).sum())
            candidates = order[(positive[:, name] & ~is_drawn)[order]]
            is_drawn[candidates[: max(0, missing)]] = True
    if total is not None:
        if int(is_drawn.sum()) > total:
            raise UserError(
                f"total:{total} labels do not reach every class, that takes {int(is_drawn.sum())}"
            )
        rest = order[~is_drawn[order]]
        is_drawn[rest[: total - int(is_drawn.sum())]] = True
    return is_drawn.nonzero().squeeze(1)


def shortfall(labels: Tensor, per_class: int) -> int:
    """Return the number of classes that have images, but fewer than `per_class`."""
    counts = labels.sum(0) if labels.ndim == 2 else torch.bincount(labels)
    return int(((counts > 0) & (counts < per_class)).sum())
