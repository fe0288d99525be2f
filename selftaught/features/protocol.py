"""What an evaluation is: a backbone, labelled training images and test images in; one score a test
image and class out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from selftaught.data.loading.images import Images
from selftaught.errors import UserError
from selftaught.method import Encoder

# what people call each protocol
TITLES: Mapping[str, str] = {
    "knn": "kNN",
    "linear": "linear probe",
    "finetune": "fine-tuning",
    "classifier": "own classifier",
}


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
        check_finite(self.vectors)

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
    stage: str = ""  # of the backbone, where the protocol chose one


def check_finite(vectors: Tensor) -> None:
    """Raises UserError where a feature of [N, D] is not finite."""
    # a block at a time: isfinite of a whole bank would hold a second copy of it
    if not all(bool(torch.isfinite(block).all()) for block in vectors.split(65536)):
        raise UserError(
            "the features are not finite: the backbone has diverged; evaluate an earlier"
            " checkpoint or train again with a tenth of the learning rate"
        )


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Some images of a set: positions [N] long; labels [N] long (one class) or [N, C] 0/1."""

    positions: Tensor
    labels: Tensor

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def take(self, rows: Tensor) -> "LabelledImages":
        """Some of them, by row or by mask, in that order."""
        return LabelledImages(self.positions[rows], self.labels[rows])


class FeatureExtractor:
    """The features of a frozen backbone, extracted once for each of several sets of images."""

    def __init__(self, extract: Callable[[Tensor], Tensor], *sets: Tensor) -> None:
        """`extract`: positions [N] -> vectors [N, D] float32."""
        self.extract, self.sets = extract, sets
        self.vectors: Tensor | None = None

    def __call__(self, positions: Tensor, columns: slice = slice(None)) -> Tensor:
        """Vectors [n, D] of images of the sets, in the order of `positions` [n]; `columns`: some of
        the D. Raises UserError where any feature of the sets is not finite.
        """
        if self.vectors is None:
            self.vectors = torch.cat([self.extract(each) for each in self.sets])
            check_finite(self.vectors)
            everything = torch.cat(self.sets)
            self.row = torch.full((int(everything.max()) + 1,), -1)
            self.row[everything] = torch.arange(len(everything))
        return self.vectors[:, columns][self.row[positions]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A backbone as protocols see it: the network on its device, the images, and its features."""

    name: str
    backbone: Encoder
    images: Images
    size: int  # pixels
    device: str
    precision: Literal["fp32", "bf16"]
    features: Callable[[Tensor], Tensor]  # positions [n] -> [n, D], of a FeatureExtractor
    # the same of each stage, its map averaged over all places; empty where nothing asks for them
    layers: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    workers: int = 0
    classes: tuple[str, ...] = ()  # of the labels
    first: bool = False  # what is evaluated; others are compared with it


class Protocol(ABC):
    """A way to score a backbone. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The word for it on the command line and in result rows."""

    @property
    def layer(self) -> str:
        """The stage whose features it reads, or "best"; empty for the final features."""
        return ""

    @property
    def learns(self) -> bool:
        """Whether it learns from the training images, so that these must be of several classes."""
        return True

    def supports(self, subject: Subject) -> bool:
        """Whether this backbone can be scored at all. Raises UserError where it should be."""
        return True

    @abstractmethod
    def describe(self) -> str:
        """One line with every setting, for reports."""

    @abstractmethod
    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        """Learns from `train`; scores the test images at positions [M], whose labels it never sees.
        Columns are the classes 0..C-1 of the training labels.
        """


class FeatureProtocol(Protocol):
    """A protocol that learns from frozen features alone."""

    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        features = labelled_features(subject, train)
        return self.score_features(features, subject.features(test).to(features.vectors.device))

    def settle(self, train: Features) -> "FeatureProtocol":
        """The same protocol with the settings that it chooses for these features, as fixed ones."""
        return self

    @abstractmethod
    def score_features(self, train: Features, test: Tensor) -> Scores:
        """Learns from `train`; scores the test vectors [M, D]."""


def labelled_features(subject: Subject, images: LabelledImages) -> Features:
    """The final features of labelled images, on the subject's GPU if there is one.

    Features that are larger than an eighth of its free memory stay on the CPU, because a linear
    probe holds several copies.
    """
    vectors, device = subject.features(images.positions), torch.device(subject.device)
    if device.type == "cuda" and vectors.nbytes > torch.cuda.mem_get_info(device)[0] // 8:
        device = vectors.device
    return Features(vectors.to(device), images.labels.to(device))


def class_count(labels: Tensor) -> int:
    """How many columns the scores have: C of [N, C], the largest class + 1 of [N]."""
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
