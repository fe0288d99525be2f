"""What a self-supervised method is: pseudo-labels, and a network that predicts them. Read this file
first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from selftaught.ranges import check_ranges
from selftaught.seeding import key

# a tensor, or a (nested) tuple of tensors, each with the batch first; inputs may hold `Fixed` ones
Tensors = Any


@dataclass(frozen=True)
class Batch:
    """Views of B images. A view is an image in pixel space: float [B, 3, H, W] in [0, 1]; the
    backbone normalises.
    """

    views: tuple[Tensor, ...]  # the large views first; resolutions may differ
    index: Tensor  # [B] position of each image in the training set
    label: Tensor  # [B] class, or -1 when unlabelled
    seed: Tensor  # int64 [B], for a method's own random choices about each image: see `random`
    # what only some methods know, by name; the batch is the first dimension of each
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def random(self, shape: Sequence[int], salt: str = "") -> Tensor:
        """Uniform numbers in [0, 1): float32 [B, *shape]. Another `salt` gives other numbers.

        They follow from `seed` alone: the same on every device, in any split of the batch, and
        every time they are asked for.
        """
        count = math.prod(shape)
        places = torch.arange(1, count + 1, device=self.seed.device)
        bits = mix_bits(mix_bits(self.seed ^ key(salt))[:, None] + places * GOLDEN)
        # the 24 upper bits are what float32 holds exactly
        return (((bits >> 40) & (2**24 - 1)).float() / 2**24).view(-1, *shape)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `fn` to every tensor."""
        return Batch(
            tuple(map(fn, self.views)),
            fn(self.index),
            fn(self.label),
            fn(self.seed),
            {name: fn(extra) for name, extra in self.extras.items()},
        )


GOLDEN = -0x61C8864680B583EB  # 2**64 divided by the golden ratio, as int64


def mix_bits(x: Tensor) -> Tensor:
    """int64 -> int64, one to one, such that every bit depends on all: splitmix64's finisher
    (Steele et al., 2014). Products wrap around.
    """
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # int64's own shift would keep the sign


def image_seeds(seed: int, first: int, count: int) -> Tensor:
    """int64 [count]: of the images at the places first, first + 1, ... of an epoch, over all
    processes.
    """
    return mix_bits(seed + torch.arange(first, first + count) * GOLDEN)


class Encoder(nn.Module):
    """A backbone, as methods know it: pixels [B, 3, H, W] in [0, 1] -> features [B, `features`].

    `forward(pixels, mapped=True)` returns what `with_map` does.
    """

    features: int
    channels: int  # of a map, which is `features` in most networks

    def with_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, `features`] and the map [B, `channels`, h, w] that they are pooled from."""
        # a call: what compiles or shards a network stands around its calls
        features, found = self(pixels, mapped=True)
        return features, found

    def maps(self, pixels: Tensor) -> dict[str, Tensor]:
        """The map [B, C, h, w] of every stage, by the stage's name, from the first to the last."""
        raise NotImplementedError(f"{type(self).__name__} gives no maps of its stages")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method's defaults depend on."""

    images: int  # in the training set
    batch: int  # images a step, over all processes
    steps: int  # in the whole stage
    features: int  # width of the backbone's output
    parts: int = 1  # that a batch is worked through in: a loss sees one at a time
    begun: bool = False  # from weights that are there, not from random ones
    classes: int = 0  # that the labels of the training set tell apart

    @property
    def shown(self) -> int:
        """Images that an epoch shows: those that fill no part of a batch are left out."""
        part = max(self.batch // self.parts, 1)
        return max(self.images // part * part, 1)


class GroupOptions(TypedDict, total=False):
    """How the parameters of one part are optimized otherwise than the rest."""

    lr_factor: float  # of the stage's rate
    constant_lr: bool  # the rate stays at its peak throughout
    weight_decay: float  # norms and biases have none in any case
    betas: tuple[float, float]  # of AdamW


C = TypeVar("C", bound="Method.Config")


@dataclass(frozen=True, kw_only=True)
class Defaults(Generic[C]):
    """What a method is trained with unless something else is asked for."""

    config: C  # its hyperparameters, scaled to the data, the hardware and the start
    # how its views differ from MoCo-v2's: fields of `views.spec.Views`
    views: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.06  # peak rate of SGD with momentum .9, for 256 images a step
    clip: float = 0.0  # norm at which gradients are clipped; 0 = never

    def replace_config(self, **fields: Any) -> Self:
        """The same with other hyperparameters."""
        return replace(self, config=replace(self.config, **fields))


@dataclass(frozen=True)
class Setup:
    """What a method is built on, beside its hyperparameters."""

    backbone: Encoder
    images: int  # in the training set
    classes: int = 0  # that the labels of the training set tell apart
    # backbone and head of the run that `Config.previous_run` names
    previous: nn.Sequential | None = None


class Method(nn.Module, ABC):
    """Predict pseudo-labels (`targets`) from images (`inputs`).

    The four verbs are called in the order they are written here. Hard examples reuse the last three
    with other inputs, which is why a method never hears of them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Hyperparameters, as published; each method extends it with its own.

        The type of a number says its range, from `selftaught.ranges`: `momentum: Share`.
        """

        def __post_init__(self) -> None:
            """Raises UserError for a number outside the range of its type."""
            check_ranges(self, "method")

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """What to train with in `setting`; these hyperparameters are the most that it takes."""
            return Defaults(config=self)

        def previous_run(self, init: str | None) -> str | None:
            """The run whose network, head included, the method takes; None where it takes none.

            `init`: the weights that the backbone starts from.
            """
            return None

        @property
        def min_batch(self) -> int:
            """Fewest images of a process in a part of a batch: a batch norm of vectors needs two
            values.
            """
            return 1

        @property
        def min_images(self) -> int:
            """Images that an epoch must show: as many as there are clusters to make of them."""
            return 1

        @property
        def hidden_layers(self) -> int:
            """How many layers of its head a later stage can keep."""
            return 0

    paper: ClassVar[str] = ""  # authors, year, address
    views: ClassVar[int] = 2  # large views that it needs
    multi_crop: ClassVar[bool] = False  # inputs are views, and small ones may follow the large ones
    # the loss or the targets compare the samples of a batch with each other: several processes
    # gather predictions and targets, and a batch worked through in parts is another batch
    couples_samples: ClassVar[bool] = False
    local_batch_norm: ClassVar[bool] = False  # batch norms stay each process's own on GPUs, too
    # labels of the training set. required: labelled images alone are shown; mixed: labelled and
    # unlabelled images in one batch, `Batch.label` being -1 of the latter
    labels: ClassVar[Literal["unused", "required", "mixed"]] = "unused"
    # its head tells classes: it can be scored as it is, and teach
    classifies: ClassVar[bool] = False

    backbone: Encoder
    progress: float = 0.0  # share of training done, written by the loop

    @abstractmethod
    def __init__(self, config: Any, setup: Setup) -> None:
        """Raises UserError where `config` does not fit the training set."""
        super().__init__()
        self.backbone = setup.backbone

    def inputs(self, batch: Batch) -> Tensors:
        """What the network sees: images, and what is `Fixed`."""
        return batch.views

    @abstractmethod
    def predict(self, inputs: Tensors) -> Tensors:
        """What the network says of it."""

    @abstractmethod
    def targets(self, batch: Batch, predictions: Tensors) -> Tensors:
        """What it should have said: the pseudo-labels."""

    @abstractmethod
    def loss(self, predictions: Tensors, targets: Tensors) -> Tensor:
        """How far off it was: a scalar, the mean over the samples."""

    @property
    def head(self) -> nn.Sequential | None:
        """What a later stage may keep behind the backbone: an `mlp`; None if nothing."""
        return None

    def collapsed_loss(self, batch_size: int) -> float | None:
        """The loss of a network with constant output, or None where it is unknown: a loss stuck
        there is collapse.

        `batch_size`: images that one loss sees, over all processes.
        """
        return None

    def parameter_groups(self) -> Mapping[str, GroupOptions]:
        """Parts with their own rate, betas or decay, by how the names of their parameters begin:
        `{"predictor": {"constant_lr": True}}`.
        """
        return {}

    def grade(self, predictions: Tensors, targets: Tensors) -> Tensor | None:
        """Which predictions are right: float [B] in [0, 1], for the accuracy of the pretext task on
        images held out. None where right and wrong have no meaning.
        """
        return None

    def judged(self) -> Encoder:
        """The network that is evaluated and exported: the backbone, or an averaged copy of it."""
        return self.backbone

    def before_epoch(self, batches: Iterable[Batch]) -> None:
        """Relabel the data set, for methods that cluster it. `batches` is one pass over this
        process's share; batch norms are in training mode and remember nothing of it.
        """

    def after_backward(self) -> None:
        """Edit gradients before the optimizer reads them."""

    def after_step(self, batch: Batch, predictions: Tensors, targets: Tensors) -> None:
        """Update what learns without gradients: teachers, queues, memories. Predictions and targets
        are detached.
        """


@dataclass(frozen=True)
class Fixed:
    """A leaf of `inputs` that hard examples neither attack nor mix: an order, a mask, tokens. The
    functions below pass it on as it is; `predict` reads its value.
    """

    value: Tensor


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Tensors) -> Tensors:
    """Apply `fn` to every leaf that is not `Fixed`."""
    if isinstance(tree, tuple):
        return tuple(map_tensors(fn, t) for t in tree)
    return tree if isinstance(tree, Fixed) else fn(tree)


def zip_tensors(fn: Callable[..., Tensor], *trees: Tensors) -> Tensors:
    """Apply `fn` to the leaves of several trees of one shape, leaf by leaf; of what is `Fixed`, the
    first tree's stays.
    """
    if isinstance(trees[0], tuple):
        return tuple(zip_tensors(fn, *branches) for branches in zip(*trees, strict=True))
    return trees[0] if isinstance(trees[0], Fixed) else fn(*trees)


def leaves(tree: Tensors) -> list[Tensor]:
    """The leaves that are not `Fixed`, in their order."""
    if isinstance(tree, tuple):
        return [leaf for t in tree for leaf in leaves(t)]
    return [] if isinstance(tree, Fixed) else [tree]


def detach(tree: Tensors) -> Tensors:
    return map_tensors(lambda t: t.detach(), tree)
