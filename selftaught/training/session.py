"""The session of a stage: its images, network and losses, built from its configuration."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.config.batch_check import check_counts
from selftaught.config.stage import Stage, method_of
from selftaught.data.alike import refuse_alike
from selftaught.data.index.build import Index
from selftaught.data.loading.images import Images, default_canvas, statistics
from selftaught.data.loading.loader import Batches, Raw
from selftaught.data.loading.ragged import RaggedImages
from selftaught.devices import to_device
from selftaught.distributed import all_reduce_sum, rank, world_size
from selftaught.errors import UserError
from selftaught.method import Batch, Encoder, Method, Setup, image_seeds
from selftaught.models import backbone as backbone_module
from selftaught.models import heads
from selftaught.models.anchor import AnchorLoss
from selftaught.models.backbone import Backbone
from selftaught.models.weights import io as weights_io
from selftaught.seeding import key
from selftaught.training.checkpoint import load_method
from selftaught.training.compile import compile_backbones
from selftaught.training.prefetch import idle
from selftaught.training.step import Step
from selftaught.views.augment import Augment, centre


@dataclass
class Session:
    """The parts that a stage trains with.

    They are the same for a new run, a resumed run and a finished one.
    """

    stage: Stage
    index: Index
    images: Images
    batches: Batches
    augment: Augment
    step: Step
    device: torch.device
    classes: tuple[str, ...] = ()  # the classes of the method's head; empty if it has none

    @property
    def method(self) -> Method:
        return self.step.method

    @property
    def backbone(self) -> Backbone:
        """The backbone that is measured, evaluated and exported."""
        backbone = self.step.method.judged()
        assert isinstance(backbone, Backbone)
        return backbone

    def overview(self, number: int) -> Iterator[Batch]:
        """Yield an epoch's images in other views than those it is trained on.

        A pseudo-label teaches no invariance if it is made of the view that must predict it.
        """
        return self.epochs(number, 0, "overview")

    def epochs(self, number: int, first: int, purpose: str = "views") -> Iterator[Batch]:
        """Yield an epoch's batches from its step `first` on.

        `waited` counts the seconds in which the device waits for data.
        """
        skip = first * self.stage.accumulate
        raws = iter(self.batches.epoch(number, skip))
        place = skip
        while True:
            raw, waited = idle(self.device, lambda: next(raws, None))
            self.waited += waited
            if raw is None:
                return
            # Random numbers of views depend on the process, those of methods on the image.
            size = len(raw.index)
            first = (place * world_size() + rank()) * size
            seeds = image_seeds(key(self.stage.seed, purpose, "images", number), first, size)
            yield self.batch(raw, key(self.stage.seed, purpose, number, place, rank()), seeds)
            place += 1

    waited: float = 0.0

    def eagerly(self) -> AbstractContextManager[Any]:
        """Inside, the backbone runs uncompiled.

        Compilation would take longer than the few calls in other shapes and modes.
        """
        return torch.compiler.set_stance("force_eager") if self.stage.compile else nullcontext()

    @torch.no_grad()
    def refresh(self, steps: int) -> None:
        """Estimate the running statistics of the backbone's batch norms on this data.

        They become the plain mean over `steps` batches of unaugmented images. Nothing else changes
        (Base of Reed et al., 2021, https://arxiv.org/abs/2103.12718).
        """
        norms = [
            m
            for m in self.backbone.modules()
            if isinstance(m, _BatchNorm) and m.track_running_stats
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
        self.backbone.train()
        for norm in norms:
            norm.train()  # `Backbone.train` leaves norms without gradients in evaluation mode
        bf16 = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16"
        )
        batches = (raw for number in count() for raw in self.batches.epoch(number))
        for raw in islice(batches, steps):
            with bf16:
                self.backbone(centre(self.move_pixels(raw.pixels), raw.aspect, self.stage.size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            for statistic in (norm.running_mean, norm.running_var):
                if statistic is not None:
                    all_reduce_sum(statistic).div_(world_size())
        self.backbone.train()

    def batch(self, raw: Raw, seed: int, seeds: Tensor | None = None) -> Batch:
        """Draw views of `raw` with `seed`.

        seeds: [B] of `Batch`; by default they follow from `seed`.
        """
        rng = torch.Generator().manual_seed(seed)
        seeds = image_seeds(seed, 0, len(raw.index)) if seeds is None else seeds
        index, label = to_device(raw.index, self.device), to_device(raw.label, self.device)
        views = self.augment(self.move_pixels(raw.pixels), raw.aspect, rng)
        return Batch(views, index, label, to_device(seeds, self.device))

    def move_pixels(self, pixels: Tensor | RaggedImages) -> Tensor | RaggedImages:
        """Copy pixels to the device. Images of different sizes stay on the CPU."""
        return pixels.to(self.device, non_blocking=True) if isinstance(pixels, Tensor) else pixels


def check(stage: Stage, index: Index) -> None:
    """Raise UserError if the stage cannot be trained on these images."""
    method = method_of(stage.method)
    if method.labels != "unused" and index.labels is None:
        raise UserError(
            f"{method.__name__} needs labels: put images into class folders, or write a labels.csv"
        )
    if stage.batch % (world_size() * stage.accumulate):
        raise UserError(
            f"a batch of {stage.batch} does not divide into {world_size()} processes x"
            f" {stage.accumulate} parts: change --batch or --accumulate"
        )
    if stage.steps:
        check_counts(stage, len(training_positions(stage, index)))
    if stage.trainable not in ("all", "norm", "none"):
        with torch.device("meta"):
            network = backbone_module.create(stage.backbone, stem=stage.stem, image_size=stage.size)
            backbone_module.set_trainable(network, stage.trainable)


def training_positions(stage: Stage, index: Index) -> Tensor:
    """Positions [n] of the images that a stage trains on; labelled ones if it requires labels."""
    required = method_of(stage.method).labels == "required"
    return index.train[index.labelled[index.train]] if required else index.train


def build_session(
    stage: Stage,
    index: Index,
    device: torch.device,
    workers: int,
    say: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] | None = None,
    in_memory: bool | None = None,
) -> Session:
    """Build the session of `stage` at step 0, with random weights or those of `stage.init`.

    in_memory: as for `Images`. Raises UserError if the stage cannot be trained on these images.
    """
    check(stage, index)
    method = method_of(stage.method)
    previous, predicted = load_previous(stage, index, say)
    images = Images(
        index.paths,
        index.sizes,
        default_canvas(index.sizes, stage.size),
        in_memory,
        groups=index.groups,
        pixel_range=index.pixel_range,
        square=method.square_images,
        on_progress=on_progress,
    )
    positions = training_positions(stage, index)
    if stage.steps:
        refuse_alike(images, positions, say)
    per_process = stage.batch // (world_size() * stage.accumulate)
    batches = Batches(
        images,
        positions,
        index.labels,
        batch=per_process,
        seed=stage.seed,
        rank=rank(),
        world=world_size(),
        workers=workers,
        pin=device.type == "cuda",
        own_size=device.type == "cpu",
    )
    torch.manual_seed(key(stage.seed, "weights"))
    mean, std = (
        backbone_module.usual_statistics(stage.backbone)  # if the weights state none
        if stage.init and stage.statistics == "weights"
        else statistics(images, index.train)
    )
    backbone = backbone_module.create(
        stage.backbone, stem=stage.stem, mean=mean, std=std, image_size=stage.size
    )
    backbone.pixel_range = index.pixel_range
    augment = Augment(stage.views, stage.size)
    if stage.views.small:
        backbone_module.check_patches(backbone.network, stage.backbone, augment.small_size)
    if stage.init:
        say(
            weights_io.load_weights(
                backbone, stage.init, own_statistics=stage.statistics == "weights"
            )
        )
    torch.manual_seed(key(stage.seed, "head"))
    # Before the method copies the backbone for a teacher.
    backbone_module.set_trainable(
        backbone, stage.trainable, keep_statistics=stage.norm_statistics == "weights"
    )
    setup = Setup(backbone, len(positions), len(index.classes), previous)
    instance = method(stage.method, setup)
    step = Step(instance, stage.hard, stage.combine)
    step.to(device).to(memory_format=torch.channels_last)
    if stage.anchor:
        step.anchor = AnchorLoss(stage.anchor, instance.backbone)
    if stage.compile:
        compile_backbones(step, device)
        if step.anchor:
            compile_backbones(step.anchor.start, device)
        say("the first steps compile the backbone, and may take a minute each")
    classes = index.classes if method.labels != "unused" else predicted
    return Session(stage, index, images, batches, augment, step, device, classes)


def load_previous(
    stage: Stage, index: Index, say: Callable[[str], None]
) -> tuple[nn.Sequential | Encoder | Mapping[str, Any] | None, tuple[str, ...]]:
    """Load the network for `Setup.previous`, and the names of the classes that it predicts.

    Raises UserError if there is none, or if the classes of a teacher do not fit.
    """
    previous = stage.method.previous(stage.init)
    if previous is None:
        return None, ()
    if previous.part == "backbone":
        try:
            teacher = weights_io.load_network(previous.source)
        except UserError as error:
            raise UserError(f"the teacher: {error}") from error
        say(f"the teacher is {teacher.name} of {previous.source}")
        square = (stage.size, stage.size)
        if backbone_module.nearest_size(teacher, square) != square:
            say(f"it takes no views of {stage.size} pixels: they are resized for it")
        return teacher, ()
    if previous.part == "method":
        return load_method(previous.source), ()
    if previous.part == "head":
        trained = heads.load_head(previous.source)
        return trained.network, trained.classes
    trained = heads.classifier(previous.source)
    if trained.several:
        raise UserError(
            f"{previous.source} predicts several classes an image: give a teacher that predicts one"
        )
    if index.labels is not None:
        heads.refuse_other(previous.source, trained.classes, index.classes, heads.UNLABELLED)
    return trained.network, trained.classes
