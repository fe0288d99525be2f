"""What a network's own classifier says: the accuracy of a fine-tuned or distilled network as it
is.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught.data.index.build import Index
from selftaught.data.loading.images import Images
from selftaught.errors import UserError
from selftaught.evaluation.compare import evaluate
from selftaught.evaluation.results import Results
from selftaught.features.extract import extract
from selftaught.features.protocol import Features, Protocol, Scores
from selftaught.loggers.terminal import Progress
from selftaught.models import heads
from selftaught.runs import folder as run_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Classifier(Protocol):
    """Nothing is learnt: the "features" are the logits of the classes, in the order of the
    labels.
    """

    @property
    def name(self) -> str:
        return "classifier"

    @property
    def learns(self) -> bool:
        return False

    def describe(self) -> str:
        return "the classifier that it was trained with"

    def score(self, train: Features, test: Tensor) -> Scores:
        return Scores(test)


def classifiers(
    learnt: Path, names: Iterable[str], index: Index, progress: Progress
) -> dict[str, heads.Trained]:
    """Of the runs that are compared those that tell classes, which must be these images'; the
    judged one has to.
    """
    found = {}
    for name in names:
        if name in ("random", "init") or not Path(name).is_dir():
            if name == str(learnt):
                raise UserError(
                    f"{name} is a backbone alone: give the folder of a run of supervised or"
                    " distillation"
                )
            log.info(f"{name} has no classifier of its own: left out there")
            continue
        found[name] = heads.classifier(run_folder.resolve_run(Path(name)))
        heads.refuse_other(name, found[name].classes, index.classes)
    return found


def score_classifiers(
    found: Mapping[str, heads.Trained],
    protocol: Classifier,
    index: Index,
    images: Images,
    test: Tensor,
    *,
    seed: int,
    progress: Progress,
    **how: Any,
) -> Results:
    """Their scores on the test images; `how` is what `extract` wants to know."""
    assert index.labels is not None
    labels = index.labels[test]
    logits = {}
    for name, trained in found.items():
        trained.network.to(how["device"]).to(memory_format=torch.channels_last)
        said = extract(
            trained.network, images, test, on_progress=progress.of(f"what {name} says"), **how
        )
        columns = [trained.classes.index(c) for c in index.classes]
        features = Features(said[:, columns], labels)
        logits[name] = (features, features)  # there is nothing to learn from
    scored = evaluate(logits, [protocol], labels=["all"], seed=seed)
    return replace(
        scored,
        rows=tuple(replace(row, labels="own") for row in scored.rows),
        differences=tuple(replace(difference, labels="own") for difference in scored.differences),
    )
