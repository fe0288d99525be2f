"""What an evaluation is: frozen features and their labels in, one score a test image and class
out.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selftaught.errors import UserError


@dataclass(frozen=True, eq=False)
class Features:
    """The features of N images: vectors [N, D] float32; labels [N] long (one class) or [N, C] 0/1
    (several classes).

    Raises UserError for lengths that differ, images without a label, and features that are not
    finite.
    """

    vectors: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if (
            self.vectors.ndim != 2
            or self.labels.ndim not in (1, 2)
            or len(self.vectors) != len(self.labels)
        ):
            raise UserError(
                f"features {tuple(self.vectors.shape)} and labels {tuple(self.labels.shape)}"
                " differ: expected [N, D] and [N] or [N, C]"
            )
        if len(self.vectors) == 0:
            raise UserError(
                "no image to evaluate on: give labelled data with images on both sides of the split"
            )
        if self.labels.min() < 0:
            raise UserError(
                f"{int((self.labels < 0).sum())} images have no label: evaluate on labelled images"
                " only"
            )
        # a block at a time: isfinite of a whole bank would hold a second copy of it
        if not all(bool(torch.isfinite(block).all()) for block in self.vectors.split(65536)):
            raise UserError(
                "the features are not finite: the backbone has diverged; evaluate an earlier"
                " checkpoint or train again with a tenth of the learning rate"
            )

    @property
    def multi_label(self) -> bool:
        """True when an image may have several classes (labels [N, C])."""
        return self.labels.ndim == 2

    def take(self, positions: Tensor) -> "Features":
        """The features of some of the images, in the order of `positions` [n]."""
        return Features(self.vectors[positions], self.labels[positions])


@dataclass(frozen=True, eq=False)
class Scores:
    """What a protocol says of M test images: values [M, C], higher = more likely; what it chose on
    the training images.
    """

    values: Tensor
    chosen: Mapping[str, float] = field(default_factory=dict)


class Protocol(ABC):
    """A way to score frozen features. Subclasses are frozen dataclasses; `score` sees test labels
    never, not even to choose.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The word for it on the command line and in result rows."""

    @property
    def learns(self) -> bool:
        """Whether it learns from the training images, so that these must be of several classes."""
        return True

    def of(self, backbone: str) -> "Protocol":
        """The same for one of the backbones, where it needs the backbone itself."""
        return self

    @abstractmethod
    def describe(self) -> str:
        """One line with every setting, for reports."""

    @abstractmethod
    def score(self, train: Features, test: Tensor) -> Scores:
        """Learns from `train`; scores the test vectors [M, D]. Columns are the classes 0..C-1 of
        the training labels.
        """


def class_count(labels: Tensor) -> int:
    """How many columns the scores have: C of [N, C], the largest class + 1 of [N]."""
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
