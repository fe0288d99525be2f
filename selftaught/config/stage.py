"""A stage of training, as a frozen value: print it, hash it, replace a part of it, compare two."""

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
from selftaught.optim import SGD, Cosine, Optimizer
from selftaught.views.spec import Views


@dataclass(frozen=True, kw_only=True)
class Data:
    roots: tuple[str, ...]  # folders or image files, packs or Parquet files; or URLs of these
    labels: str = "auto"  # auto, folders, none, or a CSV file
    # share of images kept out of training, where the folders make no split themselves
    holdout: float = 0.2
    # of the training images: all, 10%, 5 (labels a class), total:1000 (labels, every class at least
    # once)
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
        """`pixel_range`: as for `build_index`."""
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
    """One training: everything that decides its outcome, and nothing else."""

    data: Data
    size: int  # pixels of a large view
    backbone: str = "resnet18"  # timm's name
    stem: Literal["imagenet", "cifar"] = "imagenet"
    # weights to start from: a run, a file, or the name of pretrained ones in timm
    init: str | None = None
    # whose mean and std normalise pixels, where weights state some
    statistics: Literal["weights", "data"] = "weights"
    # all, norm (HPT-BN), last-K blocks, lora-R, or none: only the norms' statistics follow the data
    trainable: str = "all"
    method: Method.Config = field(default_factory=METHODS[DEFAULT].Config)
    hard: tuple[HardExample, ...] = ()
    combine: Literal["mean", "sum"] = "mean"  # of the clean and the hard losses
    views: Views = Views()
    optimizer: Optimizer = SGD()
    schedule: Cosine = Cosine()
    clip: float = 0.0  # norm at which gradients are clipped; 0 = never
    batch: int = 256  # images a step, over all processes
    accumulate: int = 1  # parts that a batch is worked through in
    steps: int = 10_000
    base: str | None = None  # weights that a whole chain began from: they compete for being kept
    # best: of the start and of checkpoints at log-spaced steps (HPT)
    keep: Literal["last", "best"] = "last"
    precision: Literal["fp32", "bf16"] = "fp32"
    # the backbone, by torch.compile: it rounds otherwise, so a run goes on as it began
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        trainable.parse(self.trainable)
        require(self.size >= 8, "--size", "8 pixels or more", self.size)
        require(self.batch >= 1, "--batch", "1 or more", self.batch)
        require(self.accumulate >= 1, "--accumulate", "1 or more", self.accumulate)
        require(self.steps >= 0, "--steps", "0 or more", self.steps)
        require(self.clip >= 0, "--clip", "0 or more", self.clip)
        if self.compile and self.trainable == "none":
            raise UserError(
                "--compile does nothing with --trainable none, where no step is trained: leave"
                " it out"
            )


def method_of(config: Method.Config) -> type[Method]:
    """The method whose hyperparameters these are, of this package or of another."""
    kind = type(config)
    found = next((m for m in METHODS.values() if m.Config is kind), None)
    found = found or next((m for m in subclasses() if vars(m).get("Config") is kind), None)
    if found is None:
        raise UserError(f"{kind.__qualname__} is no Config of a method: each method has its own")
    return found


def subclasses(kind: Any = Method) -> Iterator[type[Method]]:
    """All methods that Python has seen, in the order of their definition."""
    for below in kind.__subclasses__():
        yield below
        yield from subclasses(below)


def differences(one: Stage, other: Stage) -> list[str]:
    """The fields in which two stages differ, by name."""
    return [f.name for f in fields(Stage) if getattr(one, f.name) != getattr(other, f.name)]


def shared_index(
    data: Data,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    pixel_range: PixelRange | None = PixelRange(),
) -> Index:
    """The index, made by rank 0 and read from its cache by the others. `pixel_range`: as for
    `build_index`.
    """
    if rank() == 0:
        try:
            return data.index(seed, on_progress, pixel_range)
        finally:
            # in any case: what rank 0 refuses, the others will refuse for themselves
            wait_for_rank0()
    wait_for_rank0()
    return data.index(seed, pixel_range=pixel_range)
