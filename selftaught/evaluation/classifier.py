"""Evaluation of the classifier that a network was fine-tuned or distilled with."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selftaught.errors import UserError
from selftaught.features.extract import extract
from selftaught.features.protocol import LabelledImages, Protocol, Scores, Subject
from selftaught.models import heads
from selftaught.runs import folder as run_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Classifier(Protocol):
    """Scores images by the logits of the network's own classifier. It does not train."""

    @property
    def name(self) -> str:
        return "classifier"

    @property
    def learns(self) -> bool:
        return False

    def describe(self) -> str:
        return "the classifier that it was trained with"

    def supports(self, subject: Subject) -> bool:
        """Whether the run has a classifier of the images' classes.

        Raises UserError if its classes differ, or if the evaluated backbone has no classifier.
        """
        if subject.name in ("random", "init") or not Path(subject.name).is_dir():
            if subject.first:
                raise UserError(
                    f"{subject.name} is a backbone alone: give the folder of a run of supervised"
                    " or distillation"
                )
            log.info(f"{subject.name} has no classifier of its own: omitted")
            return False
        run = run_folder.resolve_run(Path(subject.name))
        classes = heads.load_head(run).classes if (run / heads.FILE).is_file() else ()
        if not classes:
            if subject.first:
                load_classifier(subject)  # raises the error
            log.info(f"{subject.name} has no classifier: omitted")
            return False
        heads.refuse_other(subject.name, classes, subject.classes)
        return True

    def score(self, subject: Subject, train: LabelledImages, test: Tensor) -> Scores:
        """Logits [M, C] of the images at `test` [M], in the order of the subject's classes."""
        trained = load_classifier(subject)
        trained.network.to(subject.device).to(memory_format=torch.channels_last)
        logits = extract(
            trained.network,
            subject.images,
            test,
            size=subject.size,
            device=subject.device,
            precision=subject.precision,
            workers=subject.workers,
        )
        return Scores(logits[:, [trained.classes.index(c) for c in subject.classes]])


def load_classifier(subject: Subject) -> heads.Trained:
    """Load the classifier of a subject that is a run."""
    return heads.classifier(run_folder.resolve_run(Path(subject.name)))
