"""The contract of a hard example: one more loss, computed with a method's own functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from selftaught.devices import upcast
from selftaught.distributed import gather
from selftaught.method import Method, Tensors, leaves, map_tensors
from selftaught.ranges import BelowOne, NonNegative, check_ranges


@dataclass(frozen=True, kw_only=True)
class HardExample(ABC):
    """One more loss, on views whose pseudo-labels are hard to predict.

    HEXA: Li et al., 2020, https://arxiv.org/abs/2012.13493. The paper's settings are not public, so
    the defaults are ours.
    """

    weight: NonNegative = 1.0  # of its loss; the clean loss has weight 1
    # share of training before the first hard example
    start: BelowOne = 0.0
    # the multi-crop views to use: all of them, or only the large ones
    crops: Literal["large", "all"] = "large"
    # batch norms that hard examples use: those of the clean views, or an auxiliary set
    norm: Literal["shared", "auxiliary"] = "shared"

    def __post_init__(self) -> None:
        """Raises UserError for a number outside the range of its type."""
        check_ranges(self, f"hard.{part_name(self)}")

    min_batch: ClassVar[int] = 1  # fewest images of a process in a part of a batch

    @property
    def reuses_gradient(self) -> bool:
        """Whether `loss` uses the clean loss's gradient at the inputs.

        The clean backward pass then computes it at little cost.
        """
        return False

    @abstractmethod
    def loss(
        self,
        method: Method,
        inputs: Tensors,
        targets: Tensors,
        rng: torch.Generator,
        input_grad: Tensors | None,
    ) -> Tensor:
        """Return the loss, a scalar. `targets` come from the clean views and stay fixed.

        `rng` has the same state on every rank. `input_grad` is the clean loss's gradient at
        `inputs`, or None where the clean pass does not compute it.
        """


def objective(method: Method, predictions: Tensors, targets: Tensors) -> Tensor:
    """Return the method's loss at full precision.

    A method that couples samples gets the global batch.
    """
    predictions, targets = map_tensors(upcast, predictions), map_tensors(upcast, targets)
    if method.couples_samples:
        predictions, targets = map_tensors(gather, predictions), map_tensors(gather, targets)
    with torch.autocast(leaves(predictions)[0].device.type, enabled=False):
        return method.loss(predictions, targets)


def part_name(hard: HardExample | type[HardExample]) -> str:
    """Return the name of its loss in the journal and of its flags."""
    kind = hard if isinstance(hard, type) else type(hard)
    return kind.__name__.lower()
