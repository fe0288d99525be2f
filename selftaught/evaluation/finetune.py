"""Evaluation by fine-tuning the whole network with few labels.

The head starts as the linear probe on the frozen features of the same images (Kumar et al., 2022,
https://arxiv.org/abs/2202.10054). Weights between the start and the end of training compete
(Wortsman et al., 2022, https://arxiv.org/abs/2109.01903), and so does the start itself. Labelled
images that are held out from training select the setting. The final network is trained with all
labels.

`HPT` is the protocol of the semi-supervised study of Reed et al. (2021,
https://arxiv.org/abs/2103.12718): a random head whose rate is 100 times that of the backbone.

One file, over 200 lines: two protocols are values of one class, and a third of it is their fields.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from tyro.conf import arg

from selftaught.errors import UserError
from selftaught.evaluation.cross_validation import choose, hold_out
from selftaught.features.linear import LinearClassifier, LinearProbe
from selftaught.features.protocol import (
    LabelledImages,
    Protocol,
    Scores,
    Subject,
    class_count,
    labelled_features,
)
from selftaught.method import Batch, Setup, image_seeds
from selftaught.methods.supervised.supervised import Supervised
from selftaught.models.batch_norm import batch_norms
from selftaught.models.interpolation import interpolate_states
from selftaught.optim import OPTIMIZERS, Cosine
from selftaught.ranges import (
    Count,
    Natural,
    NonzeroShare,
    Positive,
    Seed,
    Share,
    TwoOrMore,
    check_given,
    check_order,
    check_ranges,
)
from selftaught.seeding import key
from selftaught.training.loop import MOST_SKIPS, Loop, fit
from selftaught.training.step import Step
from selftaught.views.augment import Augment, centre
from selftaught.views.spec import Views

DROPS = (1 / 3, 2 / 3)  # progress at which the learning rate drops to a tenth


def drops(progress: float) -> float:
    """Factor of the learning rate at `progress` in [0, 1]."""
    return float(0.1 ** sum(progress >= drop for drop in DROPS))


class Setting(NamedTuple):
    """What is chosen on held-out images. No steps, rate and blend: the linear probe."""

    steps: int
    rate: float
    blend: float  # share of the way from the start to the trained weights


PROBE = Setting(0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class FineTune(Protocol):
    """Fine-tunes without weight decay.

    It tries every length with every learning rate and every blend, and uses the best setting. With
    one image a class no image can be held out, and the setting is the first one: the probe, if its
    blend is among `blends`. Raises UserError for values out of range.
    """

    # lengths in steps
    steps: Annotated[tuple[Count, ...], arg(help_behavior_hint="(default: none)")] = ()
    epochs: tuple[Positive, ...] = (10.0,)  # lengths in passes over the labelled images
    min_steps: Count = 80  # of a length in passes, as few images have few steps a pass
    # learning rates of the backbone, for a batch of 256
    rates: tuple[Positive, ...] = (0.0025, 0.008)
    head: Positive = 1.0  # factor of the rate for the head
    batch: Count = 32  # images in a step
    seed: Seed = 0
    # the head at the beginning: the linear probe on frozen features, or random weights
    start: Literal["probe", "random"] = "probe"
    # shares of the way from the start to the trained weights; 0 is the linear probe
    blends: tuple[Share, ...] = (0.0, 0.5, 1.0)
    optimizer: Literal["sgd", "adamw"] = "adamw"  # sgd: with momentum .9
    schedule: Literal["cosine", "drops"] = "cosine"  # drops: to a tenth after each third
    norms: Literal["frozen", "batch"] = "frozen"  # statistics of batch norm in training
    # share of the image's area in a random crop
    crops: tuple[NonzeroShare, NonzeroShare] = (0.35, 1.0)
    balance: bool = True  # draw every class equally often; the score is balanced accuracy
    folds: TwoOrMore = 3  # parts of the labelled images, of which one is held out
    cross_validate: Natural = 500  # up to so many labelled images every part is held out once

    def __post_init__(self) -> None:
        if not (self.steps or self.epochs):
            raise UserError("fine-tuning has no length: give --finetune.steps or --finetune.epochs")
        check_given(self, "finetune", "rates", "blends")
        check_ranges(self, "finetune")
        check_order(self, "finetune", "crops")
        if self.start == "random" and 0 in self.blends:
            raise UserError(
                "--finetune.blends 0 is the linear probe: from a random head leave it out"
            )

    @property
    def views(self) -> Views:
        """Random crops and flips only."""
        return Views(large=1, scale=self.crops, jitter=0.0, gray=0.0, blur=0.0)

    @property
    def name(self) -> str:
        return "finetune"

    def describe(self) -> str:
        least = f" ({self.min_steps} steps or more)" if self.min_steps > 1 else ""
        lengths = [f"{n} steps" for n in self.steps]
        lengths += [f"{n:g} epochs{least}" for n in self.epochs]
        rates = " or ".join(f"{r:g}" for r in self.rates)
        blends = " or ".join(f"{b:g}" for b in sorted(self.blends))
        head = "the linear probe" if self.start == "probe" else "a random head"
        balance = ", classes drawn equally often" if self.balance else ""
        return (
            f"the whole network from {head}, {' or '.join(lengths)} of {self.optimizer}, rate"
            f" {rates}, {self.head:g} times that for the head, {blends} of the way to the trained"
            f" weights{balance}, chosen on training images"
        )

    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        """Logits [M, C] of the images at `test` [M]; `chosen` is the setting.

        If training diverged they are those of the probe, or all 0 where the probe is no setting.
        """
        settings, count = self.settings(len(train.labels)), len(train.labels)
        folds = self.folds if count <= self.cross_validate else 1
        parts = hold_out(train, self.folds, folds, self.seed) if len(settings) > 1 else []
        best = choose(settings, parts, partial(self.score_settings, subject))
        (values,) = self.score_settings(subject, train, test, [best])
        if values is None and PROBE in settings:
            best = PROBE
            (values,) = self.score_settings(subject, train, test, [best])
        if values is None:
            values = torch.zeros(len(test), column_count(train.labels))
        return Scores(values, best._asdict())

    def settings(self, images: int) -> list[Setting]:
        """The settings to try with so many labelled images; the probe is the first one."""
        per_epoch = max(images // min(self.batch, images), 1)
        lengths = [*self.steps, *(max(round(n * per_epoch), self.min_steps) for n in self.epochs)]
        blends = sorted(blend for blend in self.blends if blend)
        trained = [Setting(*each) for each in product(lengths, self.rates, blends)]
        return [PROBE, *trained] if 0 in self.blends else trained

    def score_settings(
        self, subject: Subject, train: LabelledImages, test: Tensor, settings: Sequence[Setting]
    ) -> list[Tensor | None]:
        """Logits [M, C] of the test images by each setting; None where training diverged.

        Settings of one length and rate that follow each other share a training.
        """
        head = None
        if self.start == "probe":
            head = LinearProbe(seed=self.seed).fit(labelled_features(subject, train))
        scores: list[Tensor | None] = []
        for (steps, rate), group in groupby(settings, lambda setting: setting[:2]):
            method = self.build(subject, train, head)
            network = method.network
            start = {name: value.clone() for name, value in network.state_dict().items()}
            finite = steps == 0 or self.train(method, subject, train, steps, rate)
            end = {name: value.clone() for name, value in network.state_dict().items()}
            for setting in group:
                if not finite:
                    scores.append(None)
                    continue
                network.load_state_dict(interpolate_states(start, end, setting.blend))
                logits = predict(method, subject, test)
                scores.append(logits if bool(logits.isfinite().all()) else None)
        return scores

    def build(
        self, subject: Subject, train: LabelledImages, head: LinearClassifier | None
    ) -> Supervised:
        """A copy of the backbone with a head, which is random if `head` is None."""
        torch.manual_seed(key(self.seed, "head"))
        backbone = copy.deepcopy(subject.backbone).requires_grad_(True)
        setup = Setup(backbone, len(train.labels), column_count(train.labels))
        method = Supervised(Supervised.Config(), setup)
        linear = method.classifier[0]
        assert isinstance(linear, torch.nn.Linear)
        with torch.no_grad():
            if head is None:
                torch.nn.init.normal_(linear.weight, std=0.01)
                torch.nn.init.zeros_(linear.bias)
            else:
                linear.weight.copy_(head.weight)
                linear.bias.copy_(head.bias)
        return method.to(subject.device).to(memory_format=torch.channels_last)

    def train(
        self, method: Supervised, subject: Subject, train: LabelledImages, steps: int, rate: float
    ) -> bool:
        """Train backbone and head; return whether that went without divergence."""
        step = Step(method).train()
        if self.norms == "frozen":
            for _, _, norm in batch_norms(step):
                norm.eval()
        batch = min(self.batch, len(train.labels))
        recipe = OPTIMIZERS[self.optimizer](lr=rate * batch / 256, weight_decay=0.0)
        parts = {"classifier": {"lr_factor": self.head}}
        loop = Loop(
            steps=steps,
            steps_per_epoch=len(train.labels) // batch,
            schedule=drops if self.schedule == "drops" else Cosine(),
            bf16=subject.precision == "bf16",
            seed=self.seed,
        )
        skips = 0
        for report in fit(
            step,
            method,
            lambda epoch, first: self.batches(subject, train, batch, epoch, first),
            recipe.build(method.named_parameters(), parts),
            loop,
        ):
            skips = skips + 1 if report.skipped else 0
            if skips == MOST_SKIPS:  # before `fit` raises Diverged, as other settings may work
                return False
        return True

    def batches(
        self, subject: Subject, train: LabelledImages, batch: int, epoch: int, first: int
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch from its step `first` on."""
        seed = key(self.seed, "finetune", epoch)
        rng = torch.Generator().manual_seed(seed)
        if self.balance and not train.multi_label:
            order = draw_balanced(train.labels, rng)
        else:
            order = torch.randperm(len(train.labels), generator=rng)
        augment = Augment(self.views, subject.size)
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


# the protocol of Reed et al.
HPT = FineTune(
    steps=(2500,),
    epochs=(90.0,),
    min_steps=1,
    rates=(0.01, 0.001),
    head=100.0,
    batch=256,
    start="random",
    blends=(1.0,),
    optimizer="sgd",
    schedule="drops",
    norms="batch",
    crops=(0.08, 1.0),
    balance=False,
    folds=5,
    cross_validate=0,
)


@torch.no_grad()
def predict(method: Supervised, subject: Subject, positions: Tensor) -> Tensor:
    """Logits [M, C] float32 of the images at `positions` [M], in evaluation mode."""
    method.eval()
    device = torch.device(subject.device)
    logits = []
    for part in positions.split(256):
        views = centre(*take_pixels(subject, part), subject.size)
        with torch.autocast(device.type, torch.bfloat16, enabled=subject.precision == "bf16"):
            features = method.backbone(views)
        logits.append(method.classifier(features.float()).cpu())  # as the probe, in full precision
    return torch.cat(logits)


def take_pixels(subject: Subject, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of the images at `positions` [n], on the subject's device, and their aspects [n]."""
    pixels, rows = subject.images.read(positions)
    return pixels.to(subject.device), subject.images.aspect[rows]


def draw_balanced(labels: Tensor, rng: torch.Generator) -> Tensor:
    """Rows [N] of N images in random order, every class of labels [N] equally often.

    Images of rare classes come several times, and of frequent ones a part comes. Where classes are
    equally frequent each image comes once.
    """
    order = torch.randperm(len(labels), generator=rng)
    members = [order[labels[order] == c] for c in labels.unique()]
    each = -(-len(labels) // len(members))
    rows = torch.cat([rows.repeat(-(-each // len(rows)))[:each] for rows in members])
    return rows[torch.randperm(len(rows), generator=rng)][: len(labels)]


def column_count(labels: Tensor) -> int:
    """The number of columns of the scores: two at least."""
    return max(class_count(labels), 2)
