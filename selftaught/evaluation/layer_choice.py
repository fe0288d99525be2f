"""Evaluation at the stages of a backbone: at one of them, at all, or at the best one.

The features of a stage are its map, averaged over all places. Pretext tasks teach the middle of a
network best (Kolesnikov et al., 2019, https://arxiv.org/abs/1901.09005).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from selftaught.errors import UserError
from selftaught.evaluation.compare import refusal
from selftaught.evaluation.cross_validation import choose, hold_out
from selftaught.features.protocol import (
    FeatureProtocol,
    LabelledImages,
    Protocol,
    Scores,
    Subject,
    labelled_features,
)
from selftaught.models.backbone import Backbone
from selftaught.models.stages import require_stages

LAST = "last"  # the final features
ALL, BEST = "all", "best"
FOLDS = 5
CROSS_VALIDATE = 1000  # images; of more, one fold is enough


@dataclass(frozen=True, kw_only=True)
class AtLayer(Protocol):
    """A protocol of frozen features that reads those of one stage."""

    protocol: FeatureProtocol
    stage: str

    @property
    def name(self) -> str:
        return self.protocol.name

    @property
    def layer(self) -> str:
        return self.stage

    def describe(self) -> str:
        return f"{self.protocol.describe()}, at the stage {self.stage}"

    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        return self.protocol.score(at_layer(subject, self.stage), train, test)


@dataclass(frozen=True, kw_only=True)
class AtBestLayer(Protocol):
    """A protocol of frozen features that chooses a stage, or the final features.

    Each choice compares scores on kept-out images of the labelled training images at hand: five
    folds, or one fifth of more than 1000 images. So it uses no more labels than are drawn, and
    never the test images. A linear probe chooses its penalty once for each stage: a narrow stage
    takes a weaker one, and looks poor at that of a wide one. Of equal scores the later stage is
    taken.
    """

    protocol: FeatureProtocol
    seed: int = 0

    @property
    def name(self) -> str:
        return self.protocol.name

    @property
    def layer(self) -> str:
        return BEST

    def describe(self) -> str:
        return f"{self.protocol.describe()}, at the stage that is the best on training images"

    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        stage = self.choose(subject, train)
        return replace(self.protocol.score(at_layer(subject, stage), train, test), stage=stage)

    def choose(self, subject: Subject, train: LabelledImages) -> str:
        """Choose the stage with the best score on kept-out training images."""
        parts = FOLDS if len(train.labels) <= CROSS_VALIDATE else 1
        splits = hold_out(train, FOLDS, parts, self.seed, is_scorable)
        names = [LAST, *reversed(list(subject.layers))]
        at = {name: at_layer(subject, name) for name in names}

        @cache
        def settle(name: str) -> FeatureProtocol:
            return self.protocol.settle(labelled_features(at[name], train))

        def score(rest: LabelledImages, held_out: Tensor, stages: Sequence[str]) -> list[Tensor]:
            return [settle(s).score(at[s], rest, held_out).values.cpu() for s in stages]

        return choose(names, splits, score)


def is_scorable(train: LabelledImages, test: LabelledImages) -> bool:
    """Whether something can be learnt and scored."""
    return bool(len(train.labels) and len(test.labels)) and not refusal(
        train.labels.cpu(), test.labels.cpu()
    )


def at_layer(subject: Subject, stage: str) -> Subject:
    """Return the subject with the features of a stage, or the same one for the final features."""
    return subject if stage == LAST else replace(subject, features=subject.layers[stage])


def at_layers(
    protocols: Sequence[Protocol], layers: str, compared: Mapping[str, Backbone], seed: int = 0
) -> list[Protocol]:
    """Return the protocols at `layers`: "last", "all", "best" or the name of a stage.

    compared: the backbones by name. Raises UserError for protocols that do not use frozen features,
    backbones without stages, and stages that a backbone does not have.
    """
    if layers == LAST:
        return list(protocols)
    frozen = []
    for protocol in protocols:
        if not isinstance(protocol, FeatureProtocol):
            raise UserError(
                f"--layers {layers} is about frozen features, which {protocol.name} does not use:"
                f" leave out --layers, or {protocol.name} in --protocol"
            )
        frozen.append(protocol)
    stages = {name: list(require_stages(backbone, name)) for name, backbone in compared.items()}
    if layers == BEST:
        return [AtBestLayer(protocol=protocol, seed=seed) for protocol in frozen]
    first = next(iter(stages.values()))
    for name, own in stages.items():
        if layers == ALL and own != first:
            raise UserError(
                f"--layers all compares equal stages, and {name} has others: {', '.join(own)};"
                " choose --layers best, or leave it out of --against"
            )
        if layers != ALL and layers not in own:
            raise UserError(
                f'--layers {layers}: {name} has no such stage; choose "last", "all", "best",'
                f" {', '.join(own)}"
            )
    result: list[Protocol] = []
    for protocol in frozen:
        names = first if layers == ALL else [layers]
        result += [AtLayer(protocol=protocol, stage=stage) for stage in names]
        result += [protocol] if layers == ALL else []
    return result
