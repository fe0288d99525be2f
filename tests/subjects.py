"""Backbones for protocols whose features are given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from selftaught.evaluation.compare import evaluate
from selftaught.evaluation.results import Results
from selftaught.features.protocol import (
    FeatureExtractor,
    Features,
    LabelledImages,
    Protocol,
    Subject,
)


def subject_of(name: str, train: Features, test: Features) -> Subject:
    """A backbone with these features of the images 0..N-1 and N..N+M-1."""
    vectors = torch.cat([train.vectors, test.vectors])
    unused: Any = nn.Identity()
    return Subject(
        name=name,
        backbone=unused,
        images=unused,
        size=32,
        device="cpu",
        precision="fp32",
        features=FeatureExtractor(vectors.__getitem__, torch.arange(len(vectors))),
    )


def evaluate_features(
    backbones: Mapping[str, tuple[Features, Features]],
    protocols: Sequence[Protocol],
    **settings: Any,
) -> Results:
    """`compare.evaluate` of backbones by their (training, test) features."""
    train, test = next(iter(backbones.values()))
    count = len(train.labels)
    return evaluate(
        [subject_of(name, *features) for name, features in backbones.items()],
        LabelledImages(torch.arange(count), train.labels),
        LabelledImages(count + torch.arange(len(test.labels)), test.labels),
        protocols,
        **settings,
    )
