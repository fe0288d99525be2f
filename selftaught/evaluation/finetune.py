"""Evaluation by fine-tuning the whole network with few labels.

The protocol is that of the semi-supervised study of HPT (Reed et al., 2021,
https://arxiv.org/abs/2103.12718). It tries a few schedules and learning rates; the rate of the head
is 100 times that of the backbone. A held-out part of the labelled images selects the setting. The
final network is trained with all labels.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from selftaught.errors import UserError
from selftaught.features.linear import stratified_folds
from selftaught.features.metrics import auroc, balanced_accuracy
from selftaught.features.protocol import LabelledImages, Protocol, Scores, Subject, class_count
from selftaught.method import Batch, Setup, image_seeds
from selftaught.methods.supervised.supervised import Supervised
from selftaught.seeding import key
from selftaught.training.loop import MOST_SKIPS, Loop, fit
from selftaught.training.step import Step
from selftaught.views.augment import Augment, centre
from selftaught.views.spec import Views

# random crops and flips only
CROPS = Views(large=1, scale=(0.08, 1.0), jitter=0.0, gray=0.0, blur=0.0)
DROPS = (1 / 3, 2 / 3)  # progress at which the learning rate drops to a tenth


def drops(progress: float) -> float:
    """Factor of the learning rate at `progress` in [0, 1]."""
    return float(0.1 ** sum(progress >= drop for drop in DROPS))


@dataclass(frozen=True, kw_only=True)
class FineTune(Protocol):
    """Fine-tunes with SGD, momentum .9 and no weight decay.

    It tries every length with every learning rate, and uses the best setting. Raises UserError for
    values out of range.
    """

    steps: tuple[int, ...] = (2500,)  # lengths in steps
    epochs: tuple[float, ...] = (90.0,)  # lengths in passes over the labelled images
    rates: tuple[float, ...] = (0.01, 0.001)  # learning rates of the backbone, for a batch of 256
    head: float = 100.0  # factor of the rate for the head
    batch: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.steps or self.epochs) or not self.rates:
            raise UserError("fine-tuning needs a length and a rate")
        if min(*self.steps, *self.epochs, *self.rates, self.head, self.batch) <= 0:
            raise UserError("fine-tuning: lengths, rates and batch must be above 0")

    @property
    def name(self) -> str:
        return "finetune"

    def describe(self) -> str:
        lengths = [*(f"{n} steps" for n in self.steps), *(f"{n:g} epochs" for n in self.epochs)]
        rates = " or ".join(f"{r:g}" for r in self.rates)
        return (
            f"the whole network, {' or '.join(lengths)}, rate {rates}, {self.head:g} times that for"
            " the head"
        )

    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        """Logits [M, C] of the images at `test` [M]; `chosen` is the setting."""
        settings = self.settings(len(train.labels))
        best = settings[0]
        if len(settings) > 1:
            fold = stratified_folds(train.labels, 5, self.seed)
            held_out = fold == 0
            if bool(held_out.any()) and int((~held_out).sum()) > 1:  # batch norm needs two images
                rest, positions = train.take(~held_out), train.positions[held_out]
                scores = [self.tune(subject, rest, positions, *s) for s in settings]
                values = [goodness(train.labels[held_out], s) for s in scores]
                best = settings[max(range(len(settings)), key=values.__getitem__)]
        steps, rate = best
        return Scores(self.tune(subject, train, test, steps, rate), {"steps": steps, "rate": rate})

    def settings(self, images: int) -> list[tuple[int, float]]:
        """The pairs of steps and learning rate to try with so many labelled images."""
        per_epoch = max(images // min(self.batch, images), 1)
        lengths = [*self.steps, *(max(round(n * per_epoch), 1) for n in self.epochs)]
        return list(product(lengths, self.rates))

    def tune(
        self, subject: Subject, train: LabelledImages, test: Tensor, steps: int, rate: float
    ) -> Tensor:
        """Fine-tune a copy of the backbone; return the logits [M, C] of the test images.

        They are all 0 if training diverged.
        """
        device = torch.device(subject.device)
        failure = torch.zeros(len(test), max(class_count(train.labels), 2))
        torch.manual_seed(key(self.seed, "head"))
        backbone = copy.deepcopy(subject.backbone).requires_grad_(True)
        method = Supervised(
            Supervised.Config(),
            Setup(backbone, len(train.labels), max(class_count(train.labels), 2)),
        )
        head = method.classifier[0]
        assert isinstance(head, torch.nn.Linear)
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.zeros_(head.bias)
        step = Step(method).to(device).to(memory_format=torch.channels_last).train()
        batch = min(self.batch, len(train.labels))
        peak = rate * batch / 256
        parts = [
            {"params": list(backbone.parameters()), "peak": peak},
            {"params": list(head.parameters()), "peak": peak * self.head},
        ]
        optimizer = torch.optim.SGD(parts, lr=0.0, momentum=0.9)
        loop = Loop(
            steps=steps,
            steps_per_epoch=len(train.labels) // batch,
            schedule=drops,
            bf16=subject.precision == "bf16",
            seed=self.seed,
        )
        skips = 0
        for report in fit(
            step,
            method,
            lambda epoch, first: self.batches(subject, train, batch, epoch, first),
            optimizer,
            loop,
        ):
            skips = skips + 1 if report.skipped else 0
            if skips == MOST_SKIPS:  # before `fit` raises Diverged, as other settings may work
                return failure
        step.eval()
        logits = []
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=subject.precision == "bf16")
        with torch.no_grad(), bf16:
            for positions in test.split(256):
                pixels, aspect = take_pixels(subject, positions)
                logits.append(method.network(centre(pixels, aspect, subject.size)).float().cpu())
        scores = torch.cat(logits)
        return scores if bool(torch.isfinite(scores).all()) else failure

    def batches(
        self, subject: Subject, train: LabelledImages, batch: int, epoch: int, first: int
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch from its step `first` on."""
        seed = key(self.seed, "finetune", epoch)
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
        augment = Augment(CROPS, subject.size)
        for place, rows in enumerate(order.split(batch)[: len(order) // batch]):
            if place < first:
                continue
            rng = torch.Generator().manual_seed(key(seed, place))
            pixels, aspect = take_pixels(subject, train.positions[rows])
            labels = train.labels[rows].to(pixels.device)
            yield Batch(
                augment(pixels, aspect, rng),
                rows,
                labels,
                image_seeds(key(seed, place), 0, len(rows)).to(pixels.device),
            )


def take_pixels(subject: Subject, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of the images at `positions` [n], on the subject's device, and their aspects [n]."""
    pixels, rows = subject.images.take(positions)
    return pixels.to(subject.device), subject.images.aspect[rows]


def goodness(labels: Tensor, values: Tensor) -> float:
    """Balanced accuracy of scores [M, C]; AUROC for several classes an image."""
    if labels.ndim == 2:
        return auroc(labels, values)[0]
    return balanced_accuracy(labels, values)
