"""Which weights to keep: the start's, or those of one of several checkpoints at log-spaced steps.

Continued pretraining helps for 50 to 50,000 steps, depending on the data, and sometimes not at all
(Reed et al., 2021, https://arxiv.org/abs/2103.12718): so the start competes, and wins where nothing
was better.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught import files
from selftaught.data.index.build import Index
from selftaught.distributed import broadcast_tensors, is_sharded, rank
from selftaught.features import statistics
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe, stratified_folds
from selftaught.features.metrics import auroc
from selftaught.features.protocol import Features
from selftaught.models import heads
from selftaught.models.backbone import Backbone
from selftaught.models.batch_norm import running_statistics
from selftaught.models.weights import io as weights_io
from selftaught.runs import folder as run_folder
from selftaught.training.checkpoint_folder import is_finite
from selftaught.training.monitor import extract_features
from selftaught.training.session import Session

MOST = 2000  # labelled images that are scored, and
FEW = 1000  # up to which number they are split into five parts; beyond, into two
BASE = -1  # the step of the weights that a whole chain began from, where they are not the start's
UNLABELLED = 1000  # images whose features are measured where there are no labels

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights after `step` steps, in `file`, and what was measured of them."""

    step: int
    file: str  # in the run's folder
    # knn and linear: AUROC in [0, 1], where there are labels; rank, alignment, uniformity
    scores: dict[str, float]

    @property
    def by_labels(self) -> bool:
        return "linear" in self.scores

    @property
    def score(self) -> float:
        """With labels the mean AUROC of kNN and linear probe, else the effective rank (RankMe,
        Garrido et al., 2023).
        """
        return (
            (self.scores["knn"] + self.scores["linear"]) / 2
            if self.by_labels
            else self.scores["rank"]
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    kept: Candidate
    start: Candidate
    best: Candidate  # of those that were trained

    @property
    def worse(self) -> bool:
        """Training made nothing better than what it all began from."""
        return self.kept.step == self.start.step

    @property
    def text(self) -> str:
        """In plain words, what got worse first."""
        how = "mean AUROC of kNN and linear probe on training labels"
        if not self.start.by_labels:
            how = (
                "effective rank: without labels, or with too few to score by, nothing better can be"
                " said"
            )
        place, name = (
            ("at the start", "the start")
            if self.start.step != BASE
            else ("as it was brought", "what was brought")
        )
        was, now = f"{score_text(self.start)} {place}", score_text(self.best)
        if self.best is self.start:
            return (
                f"nothing that was trained could be scored; kept: {name}, with"
                f" {score_text(self.start)} ({how})"
            )
        if self.worse:
            found = f"{was}, {now} at best, after {self.best.step:,} steps"
            return f"training did not help: {found} ({how}); kept: {name}"
        return f"kept: step {self.kept.step:,}, {was}, {now} there ({how})"

    def facts(self) -> dict[str, Any]:
        return {
            "kept": self.kept.step,
            "worse": self.worse,
            "text": self.text,
            "start": self.start.scores,
            "best": self.best.scores,
        }


def score_text(candidate: Candidate) -> str:
    return f"{100 * candidate.score:.1f} %" if candidate.by_labels else f"{candidate.score:.1f}"


def choose(candidates: Sequence[Candidate]) -> Choice:
    """The best by score; of equals the earlier one. The first is the start."""
    start, *others = sorted(candidates, key=lambda c: c.step)
    best = max(others, key=lambda c: c.score, default=start)  # max keeps the first of equals
    return Choice(kept=best if best.score > start.score else start, start=start, best=best)


def log_spaced(steps: int) -> set[int]:
    """10, 20, 50, 100, 200, 500, ... and the last one."""
    spaced = (m * 10**e for e in count(1) for m in (1, 2, 5))
    return {0, steps, *takewhile(lambda s: s < steps, spaced)}


def sample(index: Index) -> Tensor:
    """Positions of the training images that candidates are scored on: labelled ones, where there
    are any.
    """
    train = index.train
    known = train[index.labelled[train]]
    among, most = (known, MOST) if len(known) else (train, UNLABELLED)
    return among[torch.randperm(len(among), generator=torch.Generator().manual_seed(1))[:most]]


class Candidates:
    """Scores weights at log-spaced steps, keeps them beside the run, and chooses the best.

    There are none unless the stage keeps the best weights (`keep="best"`).
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder = session, folder
        best = session.stage.keep == "best"
        self.steps = log_spaced(session.stage.steps) if best else set()
        self.positions = sample(session.index) if best else torch.empty(0, dtype=torch.long)
        self.candidates: list[Candidate] = []

    def due(self, step: int) -> bool:
        return step in self.steps and not any(c.step == step for c in self.candidates)

    def score_candidates(self, step: int) -> None:
        """Score the weights of this step; before the first, those that the whole chain began from,
        too.
        """
        broadcast_tensors(running_statistics(self.session.step))
        base = self.session.stage.base
        if step == 0 and base is not None:
            with torch.random.fork_rng(devices=[]):
                backbone = run_folder.random_like(self.session.backbone, 0)
            weights_io.load_weights(backbone, base, own_statistics=False)
            backbone.to(self.session.device).to(memory_format=torch.channels_last)
            self.score(backbone, BASE)
        self.score(self.session.backbone, step)

    def score(self, backbone: Backbone, step: int) -> None:
        """Score weights, and keep them beside the run."""
        labels = self.session.index.labels
        vectors, closer = (
            extract_features(self.session, self.positions, share, backbone) for share in (1.0, 0.7)
        )
        sharded = is_sharded(self.session.step.parameters())
        if not is_finite([backbone.state_dict(), vectors, closer], sharded):
            return
        scores = statistics.measure(vectors, closer)
        if labels is not None:
            scores |= label_scores(vectors, labels[self.positions])
        name = "base" if step == BASE else f"step-{step}"
        file = f"checkpoints/{name}.safetensors"
        head = self.folder / f"checkpoints/{name}-{heads.FILE}" if step > 0 else None
        save_weights(self.session, backbone, self.folder / file, head)
        self.candidates.append(Candidate(step=step, file=file, scores=scores))
        log.info(f"{name}: {score_text(self.candidates[-1])}")

    def keep_best(self) -> Choice:
        """Choose, and put the chosen weights into the run's place."""
        choice = choose(self.candidates)
        log.info(choice.text)
        if rank() != 0:
            return choice
        weights, head = self.folder / choice.kept.file, self.folder / heads.FILE
        # the start's head has learnt nothing: there is none
        beside = weights.with_name(f"{weights.stem}-{heads.FILE}")
        if beside.is_file():
            files.atomic(head, lambda draft: shutil.copyfile(beside, draft))
        else:
            head.unlink(missing_ok=True)
        files.atomic(
            self.folder / "backbone.safetensors", lambda draft: shutil.copyfile(weights, draft)
        )
        return choice

    def state_dict(self) -> dict[str, Any]:
        return {"candidates": [asdict(candidate) for candidate in self.candidates]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.candidates = [Candidate(**candidate) for candidate in state["candidates"]]


def save_weights(session: Session, backbone: Backbone, file: Path, head_file: Path | None) -> None:
    """Weights for others: a backbone's and, in `head_file`, the method's head where later stages
    can use it.
    """
    head = session.method.head
    if head is not None and head_file is not None:
        labels = session.index.labels
        several = labels is not None and labels.dim() == 2
        heads.save_head(head, session.classes, several, head_file)
    weights_io.save_backbone(backbone, file, {"size": str(session.stage.size)})


def label_scores(vectors: Tensor, labels: Tensor) -> dict[str, float]:
    """The AUROC of kNN and of a linear probe on features [N, D], by cross-validation, each class
    against the rest and the mean over them: an accuracy would not see what is learnt of a class
    that is rare. Nothing where no class has images on both sides.
    """
    labels = labels.cpu()
    if labels.ndim == 1:
        labels = torch.unique(labels, return_inverse=True)[1]  # a sample need not hold every class
    parts = 5 if len(labels) <= FEW else 2
    if len(labels) < 2 * parts or (labels.ndim == 1 and int(labels.max()) == 0):
        return {}
    truth = F.one_hot(labels) if labels.ndim == 1 else labels
    fold = stratified_folds(labels, parts, 0)
    found: dict[str, float] = {}
    for protocol in (KNN(), LinearProbe(folds=3)):
        areas = []
        for part in range(parts):
            out = fold == part
            values = (
                protocol.score_features(Features(vectors[~out], labels[~out]), vectors[out])
                .values.double()
                .cpu()
            )
            if labels.ndim == 1 and protocol.name == "linear":
                values = values.log_softmax(1)
            values = F.pad(values, (0, truth.shape[1] - values.shape[1]), value=float(values.min()))
            areas.append(auroc(truth[out], values)[0])
        known = [a for a in areas if math.isfinite(a)]
        if not known:
            return {}
        found[protocol.name] = sum(known) / len(known)
    return found
