"""The contract of a self-supervised method: pseudo-labels, and a network that predicts them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from selftaught.ranges import check_ranges
from selftaught.seeding import key

# A tensor, or a (nested) tuple of tensors, each with the batch first. Inputs may hold `Fixed` ones.
Tensors = Any


@dataclass(frozen=True)
class Batch:
    """Views of B images. A view is float [B, 3, H, W] in [0, 1]; the backbone normalises it."""

    views: tuple[Tensor, ...]  # the large views first; resolutions may differ
    index: Tensor  # [B] position of each image in the training set
    label: Tensor  # [B] class, or -1 when unlabelled
    seed: Tensor  # int64 [B], the source of random numbers for each image: see `random`
    # further tensors that some methods need, by name; the batch is the first dimension of each
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def random(self, shape: Sequence[int], salt: str = "") -> Tensor:
        """Uniform numbers in [0, 1): float32 [B, *shape]. Another `salt` gives other numbers.

        They depend on `seed`, `shape` and `salt` alone. They are the same on every device, in any
        split of the batch and in every call.
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
    """int64 -> int64, one to one: every bit of the result depends on all bits of `x`.

    This is the last part of splitmix64 (Steele et al., 2014). Products wrap around.
    """
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # int64's own shift would keep the sign


def image_seeds(seed: int, first: int, count: int) -> Tensor:
    """Seeds, int64 [count], of the images at the places first, first + 1, ... of an epoch.

    Places count over all processes.
    """
    return mix_bits(seed + torch.arange(first, first + count) * GOLDEN)


class Encoder(nn.Module):
    """A backbone as methods use it: pixels [B, 3, H, W] in [0, 1] -> features [B, `features`].

    `forward(pixels, mapped=True)` returns the pair of `with_map`, and `staged=True` the three of
    `with_stages`.
    """

    features: int
    channels: int  # of a feature map; equal to `features` in most networks
    has_map: bool = True  # whether `with_map` works
    # height and width in pixels of a patch that `tokens` masks; None: the network has no patches
    patch_size: tuple[int, int] | None = None
    recorder: CallRecorder | None = None  # of `record_calls`

    def __call__(self, pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Not a hook: torch.compile would compile it, and not notice when it is removed.
        if self.recorder is None or not torch.is_grad_enabled():
            return super().__call__(pixels, *args, **kwargs)
        return self.recorder.record(super().__call__, pixels, *args, **kwargs)

    def with_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, `features`] and the map [B, `channels`, h, w] that they are pooled from."""
        # through __call__, because torch.compile and FSDP wrap the calls of a network
        features, feature_map = self(pixels, mapped=True)
        return features, feature_map

    def with_stages(self, pixels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The pair of `with_map`, and the map [B, C, h, w] of every stage.

        Stages are by name, from the first to the last; their maps are before any last norm. Raises
        NotImplementedError where the network has no stages.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no maps of its stages")

    def maps(self, pixels: Tensor) -> dict[str, Tensor]:
        """The maps of `with_stages` alone."""
        return self.with_stages(pixels)[2]

    def tokens(
        self,
        pixels: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features [B, `features`] and patch tokens [B, N, `channels`], row by row.

        Class tokens and registers are no patch tokens. `mask` [B, N], bool: patches whose
        embedding is replaced by `mask_token` [`channels`] before the first block; their pixels
        have no influence. `keep` [B, K], int64: the only patches that the blocks compute; the
        tokens are then theirs, in this order. Raises NotImplementedError where the network has no
        patches.
        """
        raise NotImplementedError(f"{type(self).__name__} has no patch tokens")


@dataclass(frozen=True)
class Call:
    """One call of a backbone with gradients: its input and its outputs."""

    pixels: Tensor  # [B, 3, H, W], detached
    features: Tensor  # [B, D]
    places: Tensor | None  # [B, C, N], the map's places in rows; None where maps are not recorded


@dataclass
class CallRecorder:
    """The calls of a backbone so far. `maps`: record the maps too."""

    maps: bool
    calls: list[Call] = field(default_factory=list)

    def record(
        self,
        call: Callable[..., Any],
        pixels: Tensor,
        mapped: bool = False,
        staged: bool = False,
        tokens: tuple[Tensor | None, ...] | None = None,
    ) -> Any:
        """Call the backbone, and return what the caller expects."""
        places = None
        if tokens is not None:
            output = features, patches = call(pixels, tokens=tokens)
            if self.maps and tokens[-1] is None:  # some of the patches are no map
                places = patches.transpose(1, 2)
        elif staged:
            output = features, feature_map, _ = call(pixels, staged=True)
            places = feature_map.flatten(2) if self.maps else None
        elif mapped or self.maps:
            output = features, feature_map = call(pixels, mapped=True)
            places = feature_map.flatten(2) if self.maps else None
        else:
            features = call(pixels)
        self.calls.append(Call(pixels.detach(), features, places))
        return output if mapped or staged or tokens is not None else features


@contextmanager
def record_calls(encoder: Encoder, maps: bool) -> Iterator[list[Call]]:
    """Inside, the backbone's calls with gradients are added to the list."""
    recorder = CallRecorder(maps)
    encoder.recorder = recorder
    try:
        yield recorder.calls
    finally:
        encoder.recorder = None


@contextmanager
def pause_recording(network: nn.Module) -> Iterator[None]:
    """Inside, the calls of the encoders in `network` are not recorded."""
    encoders = [m for m in network.modules() if isinstance(m, Encoder)]
    recorders = [encoder.recorder for encoder in encoders]
    for encoder in encoders:
        encoder.recorder = None
    try:
        yield
    finally:
        for encoder, recorder in zip(encoders, recorders, strict=True):
            encoder.recorder = recorder


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The data, batch and network that a method's defaults depend on."""

    images: int  # in the training set
    batch: int  # images a step, over all processes
    steps: int  # in the whole stage
    features: int  # width of the backbone's output
    size: int = 224  # pixels of a side of a view
    parts: int = 1  # parts that a batch is split into; each loss is computed on one part
    pretrained: bool = False  # the backbone starts from trained weights, not from random ones
    classes: int = 0  # number of classes in the labels of the training set

    @property
    def shown(self) -> int:
        """Images of an epoch. Images that do not fill a part of a batch are left out."""
        part = max(self.batch // self.parts, 1)
        return max(self.images // part * part, 1)


class GroupOptions(TypedDict, total=False):
    """Options of the optimizer for one part of the parameters."""

    lr_factor: float  # multiplies the stage's rate
    constant_lr: bool  # the rate stays at its peak throughout
    weight_decay: float  # of weights; norms and biases never decay
    betas: tuple[float, float]  # of AdamW


C = TypeVar("C", bound="Method.Config")


@dataclass(frozen=True, kw_only=True)
class Defaults(Generic[C]):
    """The values that a method is trained with where the user gives no others."""

    config: C  # its hyperparameters, scaled to the data, the hardware and the start
    # fields of `views.spec.Views` in which its views differ from MoCo-v2's
    views: Mapping[str, Any] = field(default_factory=dict)
    # peak rate for 256 images a step; that of sgd is for a momentum of .9
    lr: float = 0.06
    optimizer: str = "sgd"  # the name of the optimizer that `lr` belongs to
    clip: float = 0.0  # norm at which gradients are clipped; 0 = never

    def replace_config(self, **fields: Any) -> Self:
        """Return a copy with other hyperparameters."""
        return replace(self, config=replace(self.config, **fields))


@dataclass(frozen=True)
class Previous:
    """A trained network that a method is built from, besides its own backbone."""

    source: str  # a run; of a backbone also a file of weights, or the name of weights in timm
    # head: backbone and head of the run. classifier: the same, and its outputs are classes.
    # method: all tensors of the run's method, by name.
    part: Literal["head", "classifier", "backbone", "method"]


@dataclass(frozen=True)
class Setup:
    """The values that a method is built from, besides its hyperparameters."""

    backbone: Encoder
    images: int  # in the training set
    classes: int = 0  # number of classes in the labels of the training set
    # what `Config.previous` names: backbone and head, a backbone alone, or the tensors of a method
    previous: nn.Sequential | Encoder | Mapping[str, Any] | None = None


class Method(nn.Module, ABC):
    """A method predicts pseudo-labels (`targets`) from images (`inputs`).

    A step calls `inputs`, `predict`, `targets` and `loss` in this order. Hard examples call
    `predict` and `loss` with other inputs, so a method needs no code for them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Hyperparameters with the values of the paper. Each method extends this class.

        The type of a number states its range, from `selftaught.ranges`: `momentum: Share`.
        """

        def __post_init__(self) -> None:
            """Raises UserError for a number outside the range of its type."""
            check_ranges(self, "method")

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Return the defaults for `setting`. These hyperparameters are their upper limits."""
            return Defaults(config=self)

        def previous(self, init: str | None) -> Previous | None:
            """The trained network that the method is built from, or None: see `Setup.previous`.

            `init`: the weights that the backbone starts from. Raises UserError where the method
            needs a network and none is named.
            """
            return None

        @property
        def min_batch(self) -> int:
            """Fewest images of a process in a part of a batch.

            A batch norm of vectors, for example, needs two.
            """
            return 1

        @property
        def min_images(self) -> int:
            """Fewest images of an epoch. A method that clusters them needs one for each cluster."""
            return 1

        @property
        def two_player(self) -> bool:
            """Whether two networks learn from opposite losses: see `methods.parts.two_player`.

            Hard examples are then refused, as a discriminator would take them for real images. So
            are sharded weights, because one network is called with detached ones.
            """
            return False

        @property
        def hidden_layers(self) -> int:
            """Number of layers of the head that a later stage can keep."""
            return 0

    paper: ClassVar[str] = ""  # authors, year, address
    views: ClassVar[int] = 2  # number of large views
    multi_crop: ClassVar[bool] = False  # inputs are views, and small ones may follow the large ones
    # The loss or the targets compare the samples of a batch with each other. Several processes then
    # gather predictions and targets, and splitting a batch into parts changes the loss.
    couples_samples: ClassVar[bool] = False
    local_batch_norm: ClassVar[bool] = False  # batch norms are not synchronised between GPUs
    # Labels of the training set. required: only labelled images are used. mixed: a batch holds
    # labelled and unlabelled images, and `Batch.label` of the latter is -1.
    labels: ClassVar[Literal["unused", "required", "mixed"]] = "unused"
    # the head predicts classes: it can be evaluated as it is, and can be a teacher
    classifies: ClassVar[bool] = False
    # The stage whose features are the best, as its depth: 0 is the first stage of the backbone, 1
    # the last. None: the final features. Collapse is watched there, and `export` names it.
    recommended_stage: ClassVar[float | None] = None
    # Only the centre square of each image is used. An image that is not square is stored with one
    # axis less sharp than the other, which tells some pretext tasks their answer.
    square_images: ClassVar[bool] = False
    masks_patches: ClassVar[bool] = False  # the backbone must be a ViT: so is the default one

    backbone: Encoder
    progress: float = 0.0  # share of training done; the training loop sets it

    @abstractmethod
    def __init__(self, config: Any, setup: Setup) -> None:
        """Raises UserError where `config` does not fit the training set."""
        super().__init__()
        self.backbone = setup.backbone

    def inputs(self, batch: Batch) -> Tensors:
        """Return the inputs of the network: images, and `Fixed` tensors."""
        return batch.views

    @abstractmethod
    def predict(self, inputs: Tensors) -> Tensors:
        """Return the outputs of the network for `inputs`."""

    @abstractmethod
    def targets(self, batch: Batch, predictions: Tensors) -> Tensors:
        """Return the pseudo-labels of the clean views. Hard examples use the same ones."""

    @abstractmethod
    def loss(self, predictions: Tensors, targets: Tensors) -> Tensor:
        """Return the loss: a scalar, the mean over the samples."""

    @property
    def head(self) -> nn.Sequential | None:
        """The head that a later stage can keep: an `mlp`, or None."""
        return None

    def mix_targets(self, own: Tensors, partner: Tensors, mask: Tensor) -> Tensors | None:
        """Return the targets of mixed images, or None: then two losses are weighted by the share.

        A method with a target for each place of an image needs its own rule. mask: [H, W] or
        [1, 1], the share in [0, 1] of `own` at each pixel; the rest is the partner's.
        """
        return None

    def collapsed_loss(self, batch_size: int) -> float | None:
        """The loss of a network with constant output, or None where it is unknown.

        A loss that stays at this value means collapse. `batch_size`: images of one loss, over all
        processes.
        """
        return None

    def parameter_groups(self) -> Mapping[str, GroupOptions]:
        """Options of the optimizer by prefix of parameter names.

        An example: `{"predictor": {"constant_lr": True}}`.
        """
        return {}

    def grade(self, predictions: Tensors, targets: Tensors) -> Tensor | None:
        """Return the correctness of each prediction: float [B] in [0, 1], or None.

        Its mean over held-out images is the accuracy of the pretext task. None: the method has no
        notion of a correct prediction. The network is in evaluation mode. The first view is the
        centre square of the image, and further ones are 0.7 of it. `Batch.index` is -1.
        """
        return None

    def chance(self) -> float | None:
        """Return the mean grade of random guesses in [0, 1], or None where it is unknown."""
        return None

    def illustrate(
        self, batch: Batch, predictions: Tensors, targets: Tensors
    ) -> Sequence[Illustration]:
        """Return what the report shows of held-out images: one illustration an image, or none.

        The network is in evaluation mode, as for `grade`.
        """
        return ()

    @property
    def backbone_is_idle(self) -> bool:
        """Whether the backbone takes no part in the present step, so that no anchor holds it."""
        return False

    def judged(self) -> Encoder:
        """Return the network to evaluate and export: the backbone, or an averaged copy of it."""
        return self.backbone

    def before_epoch(self, batches: Iterable[Batch]) -> None:
        """Compute new pseudo-labels of the data set, for methods that cluster it.

        `batches` is one pass over this process's share of the images. Batch norms are in training
        mode, and their running statistics do not change.
        """

    def after_backward(self) -> None:
        """Change gradients before the optimizer's step."""

    def after_step(self, batch: Batch, predictions: Tensors, targets: Tensors) -> None:
        """Update state that has no gradients: teachers, queues, memory banks.

        Predictions and targets are detached.
        """


@dataclass(frozen=True)
class Illustration:
    """The answer of a method to one image, as pictures and a line of text."""

    # float [3, h, w] in [0, 1] by title, in order: input, prediction, truth, as far as they exist
    pictures: Mapping[str, Tensor]
    text: str = ""  # prediction and truth in words, where they are no pictures
    correct: bool | None = None  # None where the method has no notion of it


@dataclass(frozen=True)
class Fixed:
    """A leaf of `inputs` that hard examples leave unchanged: an order, a mask, tokens.

    The functions below return it as it is; `predict` reads its value.
    """

    value: Tensor


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Tensors) -> Tensors:
    """Apply `fn` to every leaf that is not `Fixed`."""
    if isinstance(tree, tuple):
        return tuple(map_tensors(fn, t) for t in tree)
    return tree if isinstance(tree, Fixed) else fn(tree)


def zip_tensors(fn: Callable[..., Tensor], *trees: Tensors) -> Tensors:
    """Apply `fn` to the corresponding leaves of several trees of one shape.

    Where a leaf is `Fixed`, the result has the first tree's leaf.
    """
    if isinstance(trees[0], tuple):
        return tuple(zip_tensors(fn, *branches) for branches in zip(*trees, strict=True))
    return trees[0] if isinstance(trees[0], Fixed) else fn(*trees)


def leaves(tree: Tensors) -> list[Tensor]:
    """Return the leaves that are not `Fixed`, in order."""
    if isinstance(tree, tuple):
        return [leaf for t in tree for leaf in leaves(t)]
    return [] if isinstance(tree, Fixed) else [tree]


def detach(tree: Tensors) -> Tensors:
    """Detach every leaf that is not `Fixed`."""
    return map_tensors(lambda t: t.detach(), tree)
