"""What a hard example is: one more loss, made from a method's own verbs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from selftaught.devices import upcast
from selftaught.distributed import gather
from selftaught.method import Method, Tensors, leaves, map_tensors
from selftaught.ranges import NonNegative, Range, check_ranges


@dataclass(frozen=True, kw_only=True)
class HardExample(ABC):
    """One more loss, made from a method's own verbs: views whose pseudo-labels are hard to predict.

    (HEXA: Li et al., 2020, https://arxiv.org/abs/2012.13493; the paper's settings are not public:
    these are ours.)
    """

    weight: NonNegative = 1.0  # beside the clean loss's 1
    # share of training before the first hard example
    start: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    # of multi-crop views: all of them, or the large ones alone
    crops: Literal["large", "all"] = "large"
    norm: Literal["shared", "auxiliary"] = "shared"  # whose batch norm hard examples pass through

    def __post_init__(self) -> None:
        """Raises UserError for a number outside the range of its type."""
        check_ranges(self, f"hard.{part_name(self)}")

    min_batch: ClassVar[int] = 1  # images that each process must have in a part of a batch

    @property
    def reuses_gradient(self) -> bool:
        """Whether `loss` wants the clean loss's gradient at the inputs, which is then nearly
        free.
        """
        return False

    @abstractmethod
    def loss(
        self,
        method: Method,
        inputs: Tensors,
        targets: Tensors,
        rng: torch.Generator,
        slope: Tensors | None,
    ) -> Tensor:
        """inputs, and targets computed from clean views and held fixed -> scalar.

        `rng` is in the same state on every rank; `slope` is the loss's gradient at `inputs`, or
        None where the clean pass does not give it.
        """


def objective(method: Method, predictions: Tensors, targets: Tensors) -> Tensor:
    """The method's loss, at full precision, over the global batch where it compares samples."""
    predictions, targets = map_tensors(upcast, predictions), map_tensors(upcast, targets)
    if method.couples_samples:
        predictions, targets = map_tensors(gather, predictions), map_tensors(gather, targets)
    with torch.autocast(leaves(predictions)[0].device.type, enabled=False):
        return method.loss(predictions, targets)


def part_name(hard: HardExample | type[HardExample]) -> str:
    kind = hard if isinstance(hard, type) else type(hard)
    return kind.__name__.lower()
