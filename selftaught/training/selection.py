"""Selection of the best weights: of the start, of the end, or between both.

Continued pretraining does not always help (Reed et al., 2021, https://arxiv.org/abs/2103.12718), so
the start is a candidate. Weights between start and end are often better than both (Wortsman et al.,
2022, https://arxiv.org/abs/2109.01903). Weights before the end are no candidates: at a high
learning rate they are worse.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught import files
from selftaught.data.index.build import Index
from selftaught.distributed import broadcast_tensors, is_sharded, rank, wait_for_rank0
from selftaught.features import statistics
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe, stratified_folds
from selftaught.features.metrics import auroc
from selftaught.features.protocol import Features
from selftaught.models import heads
from selftaught.models.backbone import Backbone
from selftaught.models.batch_norm import running_statistics
from selftaught.models.interpolation import interpolate_states
from selftaught.models.weights import io as weights_io
from selftaught.runs import folder as run_folder
from selftaught.training.checkpoint_folder import is_finite
from selftaught.training.monitor import extract_features
from selftaught.training.session import Session

MOST = 1000  # maximum number of labelled images that are scored
FEW = 500  # up to so many labelled images, cross-validation has five folds; above, two
BASE = -1  # the step of the weights that the chain of stages started from, if the stage did not
SHARES = (0.25, 0.5, 0.75)  # of the way from the start to the end
UNLABELLED = 1000  # images that are scored if there are no labels

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Weights and their scores: a share of the way from the start to those after `step` steps."""

    step: int
    share: float = 1.0
    file: str  # relative to the run's folder
    # rank, alignment, uniformity; with labels also knn and linear, as AUROC in [0, 1]
    scores: dict[str, float]

    @property
    def by_labels(self) -> bool:
        """Whether labels decide the score."""
        return "linear" in self.scores

    @property
    def score(self) -> float:
        """The mean AUROC of kNN and linear probe; without labels the effective rank.

        The effective rank is RankMe (Garrido et al., 2023, https://arxiv.org/abs/2210.02885).
        """
        if self.by_labels:
            return (self.scores["knn"] + self.scores["linear"]) / 2
        return self.scores["rank"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that is kept, and the two that were compared."""

    kept: Candidate
    start: Candidate
    best: Candidate  # the best one after training

    @property
    def worse(self) -> bool:
        """Whether no trained weights are better than the start."""
        return self.kept.step == self.start.step

    @property
    def text(self) -> str:
        """The choice as a sentence, with a worse result first."""
        metric = "mean AUROC of kNN and linear probe on training labels"
        if not self.start.by_labels:
            metric = (
                "effective rank: without labels, or with too few to score by, nothing better can be"
                " said"
            )
        place, name = (
            ("at the start", "the start")
            if self.start.step != BASE
            else ("as it was brought", "what was brought")
        )
        before, after = f"{score_text(self.start)} {place}", score_text(self.best)
        if self.best is self.start and self.start.step > 0:
            return f"kept: step {self.start.step:,}, {score_text(self.start)} ({metric})"
        if self.best is self.start:
            return (
                f"nothing that was trained could be scored; kept: {name}, with"
                f" {score_text(self.start)} ({metric})"
            )
        if self.worse:
            scores = f"{before}, {after} at best, after {self.best.step:,} steps"
            return f"training did not help: {scores} ({metric}); kept: {name}"
        part = (
            "" if self.kept.share == 1 else f"{self.kept.share:.0%} of the way from the start to "
        )
        return f"kept: {part}step {self.kept.step:,}, {before}, {after} there ({metric})"

    def facts(self) -> dict[str, Any]:
        """The entry `choice` of run.json."""
        return {
            "kept": self.kept.step,
            "share": self.kept.share,
            "file": self.kept.file,
            "worse": self.worse,
            "text": self.text,
            "start": self.start.scores,
            "best": self.best.scores,
        }


def score_text(candidate: Candidate) -> str:
    """A score as text: an AUROC in percent, or an effective rank."""
    return f"{100 * candidate.score:.1f} %" if candidate.by_labels else f"{candidate.score:.1f}"


def choose(candidates: Sequence[Candidate]) -> Choice:
    """Choose the candidate with the highest score; of equal ones, the nearest to the start."""
    start, *others = sorted(candidates, key=lambda c: (c.step, c.share))
    best = max(others, key=lambda c: c.score, default=start)  # max keeps the first of equals
    return Choice(kept=best if best.score > start.score else start, start=start, best=best)


def sample(index: Index) -> Tensor:
    """Draw the training images that candidates are scored on: positions [n].

    Only labelled images are drawn, if there are any.
    """
    train = index.train
    labelled = train[index.labelled[train]]
    positions, most = (labelled, MOST) if len(labelled) else (train, UNLABELLED)
    rng = torch.Generator().manual_seed(1)
    return positions[torch.randperm(len(positions), generator=rng)[:most]]


class Candidates:
    """Scores the start, the end and weights between them, saves them, and chooses the best.

    There are candidates only if the stage keeps the best weights (`keep="best"`).
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder = session, folder
        best = session.stage.keep == "best"
        # Random weights are no start to go back to.
        start = {0} if session.stage.init is not None else set()
        self.steps = start | {session.stage.steps} if best else set()
        self.positions = sample(session.index) if best else torch.empty(0, dtype=torch.long)
        self.candidates: list[Candidate] = []

    def due(self, step: int) -> bool:
        """Whether the weights after `step` steps are a candidate without a score."""
        return step in self.steps and not any(c.step == step for c in self.candidates)

    def score_candidates(self, step: int) -> None:
        """Score the weights of this step.

        At step 0 the weights that the chain of stages started from are scored too, and at the end
        those between start and end. After an error none of the step is a candidate, so that a
        resumed run scores all of them.
        """
        broadcast_tensors(running_statistics(self.session.step))
        stage = self.session.stage
        candidates = []
        if step == 0 and stage.base is not None:
            candidates += self.score(self.load(stage.base), BASE)
        candidates += self.score(self.session.backbone, step)
        present = {
            c.step: self.folder / c.file for c in [*self.candidates, *candidates] if c.share == 1
        }
        if step > 0 and stage.init is not None and {0, step} <= present.keys():
            wait_for_rank0()  # it writes the files
            for share in SHARES:
                between = self.interpolate(present[0], present[step], share)
                candidates += self.score(between, step, share)
        self.candidates += candidates

    def load(self, weights: str | Path) -> Backbone:
        """Build a copy of the backbone with other weights, on the device."""
        session = self.session
        with torch.random.fork_rng(devices=[]):
            backbone = run_folder.random_like(session.backbone, 0, drawn=False)
        weights_io.load_weights(backbone, weights, own_statistics=False)
        return backbone.to(session.device).to(memory_format=torch.channels_last)

    def interpolate(self, start: Path, end: Path, share: float) -> Backbone:
        """Build start + share * (end - start), of all weights and running statistics."""
        backbone = self.load(end)
        states = self.load(start).state_dict(), backbone.state_dict()
        backbone.load_state_dict(interpolate_states(*states, share))
        return backbone

    def score(self, backbone: Backbone, step: int, share: float = 1.0) -> list[Candidate]:
        """Score weights, and save them in the run's folder; an empty list if they are not
        finite.
        """
        labels = self.session.index.labels
        vectors, closer = (
            extract_features(self.session, self.positions, share, backbone) for share in (1.0, 0.7)
        )
        sharded = is_sharded(self.session.step.parameters())
        if not is_finite([backbone.state_dict(), vectors, closer], sharded):
            return []
        scores = statistics.measure(vectors, closer)
        if labels is not None and bool(self.session.index.labelled[self.positions].all()):
            scores |= label_scores(vectors, labels[self.positions])
        name = "base" if step == BASE else f"step-{step}"
        if share < 1:
            name += f"-share-{share:g}"
        file = f"checkpoints/{name}.safetensors"
        has_head = step > 0 and self.session.stage.learns
        head = self.folder / f"checkpoints/{name}-{heads.FILE}" if has_head else None
        save_weights(self.session, backbone, self.folder / file, head, trained=step > 0)
        candidate = Candidate(step=step, share=share, file=file, scores=scores)
        log.info(f"{name}: {score_text(candidate)}")
        return [candidate]

    def keep_best(self) -> Choice:
        """Choose the best weights, and copy them to the run's backbone.safetensors."""
        choice = choose(self.candidates)
        log.info(choice.text)
        if rank() != 0:
            return choice
        weights, head = self.folder / choice.kept.file, self.folder / heads.FILE
        # The start has no head file, because its head is not trained.
        source = weights.with_name(f"{weights.stem}-{heads.FILE}")
        if source.is_file():
            files.atomic(head, lambda draft: shutil.copyfile(source, draft))
        else:
            head.unlink(missing_ok=True)
        files.atomic(
            self.folder / "backbone.safetensors", lambda draft: shutil.copyfile(weights, draft)
        )
        return choice

    def state_dict(self) -> dict[str, Any]:
        """The candidates as plain values."""
        return {"candidates": [asdict(candidate) for candidate in self.candidates]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the candidates of `state_dict`."""
        self.candidates = [Candidate(**candidate) for candidate in state["candidates"]]


def save_weights(
    session: Session, backbone: Backbone, file: Path, head_file: Path | None, trained: bool = True
) -> None:
    """Save a backbone, and the method's head in `head_file` if the method has one.

    Later stages can start from the head. `trained`: these are not the weights of the start.
    """
    head = session.method.head
    if head is not None and head_file is not None:
        labels = session.index.labels
        several = labels is not None and labels.dim() == 2
        heads.save_head(head, session.classes, several, head_file)
    backbone.view_size = session.stage.size
    backbone.norm_size = session.stage.norm_size if trained else None
    weights_io.save_backbone(backbone, file)


def label_scores(vectors: Tensor, labels: Tensor) -> dict[str, float]:
    """The AUROC of kNN and of a linear probe on features [N, D], by cross-validation.

    labels: [N], or [N, C] for several classes an image. The AUROC is of each class against the
    rest, averaged over classes; accuracy would ignore rare classes. Returns an empty dict if no
    fold has a class with positive and negative images.
    """
    labels = labels.cpu()
    if labels.ndim == 1:
        labels = torch.unique(labels, return_inverse=True)[1]  # a sample can lack classes
    parts = 5 if len(labels) <= FEW else 2
    if len(labels) < 2 * parts or (labels.ndim == 1 and int(labels.max()) == 0):
        return {}
    truth = F.one_hot(labels) if labels.ndim == 1 else labels
    fold = stratified_folds(labels, parts, 0)
    scores: dict[str, float] = {}
    for protocol in (KNN(), LinearProbe(folds=3)):
        areas = []
        for part in range(parts):
            out = fold == part
            train = Features(vectors[~out], labels[~out])
            values = protocol.score_features(train, vectors[out]).values.double().cpu()
            if labels.ndim == 1 and protocol.name == "linear":
                values = values.log_softmax(1)
            values = F.pad(values, (0, truth.shape[1] - values.shape[1]), value=float(values.min()))
            areas.append(auroc(truth[out], values)[0])
        defined = [area for area in areas if math.isfinite(area)]
        if not defined:
            return {}
        scores[protocol.name] = sum(defined) / len(defined)
    return scores
