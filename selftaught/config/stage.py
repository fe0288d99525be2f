"""A stage of training as a frozen value: all settings that decide its outcome."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from selftaught.data.index import build
from selftaught.data.index.build import Index
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import rank, wait_for_rank0
from selftaught.errors import UserError, require
from selftaught.hard.base import HardExample
from selftaught.method import Method
from selftaught.methods import DEFAULT, METHODS
from selftaught.models import trainable
from selftaught.models.anchor import Anchor
from selftaught.optim import SGD, Cosine, Optimizer
from selftaught.ranges import check_seed
from selftaught.views.spec import Views


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of a stage and their labels."""

    roots: tuple[str, ...]  # folders or image files, packs or Parquet files; or URLs of these
    labels: str = "auto"  # auto, folders, none, or a CSV file
    # share of images held out of training, where the folders define no split
    holdout: float = 0.2
    # training images to use: all, 10%, 5 (labels a class), total:1000 (labels, one a class or more)
    subset: str = "all"
    max_pixels: int = MAX_PIXELS  # of an image; larger ones are left out

    def __post_init__(self) -> None:
        require(self.max_pixels >= 1, "--max-pixels", "1 or more", self.max_pixels)

    def index(
        self,
        seed: int,
        on_progress: Callable[[int, int], None] | None = None,
        pixel_range: PixelRange | None = PixelRange(),
    ) -> Index:
        """Build the index of the images. Arguments and errors are those of `build_index`."""
        check_seed(seed)
        index = build.build_index(
            self.roots,
            labels=self.labels,
            holdout=self.holdout,
            seed=seed,
            on_progress=on_progress,
            max_pixels=self.max_pixels,
            pixel_range=pixel_range,
        )
        return index.subset(self.subset, seed)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training: all settings that decide its outcome, and no others."""

    data: Data
    size: int  # pixels of a large view
    backbone: str = "resnet18"  # timm's name
    stem: Literal["imagenet", "cifar"] = "imagenet"
    # weights to start from: a run, a file, or the name of pretrained weights in timm
    init: str | None = None
    # source of the mean and std that normalise pixels: the weights, where they state some, or data
    statistics: Literal["weights", "data"] = "weights"
    # all, norm (HPT-BN), last-K blocks, lora-R, or none: only statistics of norms are updated
    trainable: str = "all"
    # running statistics of batch norms: those of the weights, which stay, or of the data
    norm_statistics: Literal["weights", "data"] = "data"
    method: Method.Config = field(default_factory=METHODS[DEFAULT].Config)
    hard: tuple[HardExample, ...] = ()
    combine: Literal["mean", "sum"] = "mean"  # of the clean and the hard losses
    anchor: Anchor | None = None  # holds the backbone near the weights of `init`
    views: Views = Views()
    optimizer: Optimizer = SGD()
    schedule: Cosine = Cosine()
    clip: float = 0.0  # norm at which gradients are clipped; 0 = never
    batch: int = 256  # images a step, over all processes
    accumulate: int = 1  # parts that a batch is split into, to save memory
    steps: int = 10_000
    base: str | None = None  # weights that a chain of stages began from: a candidate of keep=best
    # weights to keep. best: of the start, the end, and weights between them
    keep: Literal["last", "best"] = "last"
    precision: Literal["fp32", "bf16"] = "fp32"
    # torch.compile of the backbone. It changes rounding, so a resumed run keeps the setting.
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        trainable.parse(self.trainable)
        require(self.size >= 8, "--size", "8 pixels or more", self.size)
        require(self.batch >= 1, "--batch", "1 or more", self.batch)
        require(self.accumulate >= 1, "--accumulate", "1 or more", self.accumulate)
        require(self.steps >= 0, "--steps", "0 or more", self.steps)
        require(self.clip >= 0, "--clip", "0 or more", self.clip)
        check_seed(self.seed)
        if self.anchor and self.init is None:
            raise UserError("--anchor holds weights that are given: name them by --init")
        if self.norm_statistics == "weights" and self.init is None:
            raise UserError("--norm-statistics weights needs weights: name them by --init")
        if self.norm_statistics == "weights" and not self.learns:
            raise UserError(
                "--trainable none sets the statistics of norms to those of the data: leave out"
                " --norm-statistics weights"
            )
        if self.method.two_player and any(h.weight for h in self.hard):
            raise UserError(
                "this method has a discriminator, which would take hard examples for real images:"
                " leave out --hard"
            )
        if self.compile and not self.learns:
            raise UserError(
                "--compile does nothing with --trainable none, which trains no step: leave it out"
            )

    @property
    def norm_size(self) -> int | None:
        """Pixels of the views that the trained batch norms have statistics of, if it is certain."""
        follow = self.norm_statistics == "data" and self.trainable in ("all", "norm", "none")
        return self.size if self.init is None or (follow and self.steps) else None

    @property
    def learns(self) -> bool:
        """Whether steps change weights, and not only the statistics of norms."""
        return self.trainable != "none"


def method_of(config: Method.Config) -> type[Method]:
    """Return the method of these hyperparameters, of this package or of another.

    Raises UserError where no imported method has this Config.
    """
    kind = type(config)
    method = next((m for m in METHODS.values() if m.Config is kind), None)
    method = method or next((m for m in subclasses() if vars(m).get("Config") is kind), None)
    if method is None:
        raise UserError(f"{kind.__qualname__} is no Config of a method: each method has its own")
    return method


def subclasses(kind: Any = Method) -> Iterator[type[Method]]:
    """Yield all imported methods, in the order of their definition."""
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


def differences(one: Stage, other: Stage) -> list[str]:
    """Return the names of the fields in which two stages differ."""
    return [f.name for f in fields(Stage) if getattr(one, f.name) != getattr(other, f.name)]


def shared_index(
    data: Data,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    pixel_range: PixelRange | None = PixelRange(),
) -> Index:
    """Build the index on rank 0; the other ranks read it from its cache.

    Arguments and errors are those of `Data.index`.
    """
    if rank() == 0:
        try:
            return data.index(seed, on_progress, pixel_range)
        finally:
            # also after an error, which the other ranks then raise themselves
            wait_for_rank0()
    wait_for_rank0()
    return data.index(seed, pixel_range=pixel_range)
