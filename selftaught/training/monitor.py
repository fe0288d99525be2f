"""Measurement of the features while a stage trains."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.data.index.build import Index
from selftaught.distributed import broadcast_object
from selftaught.features import statistics
from selftaught.features.extract import extract
from selftaught.features.metrics import effective_count
from selftaught.models.stages import StageFeatures, stage_at, stage_widths
from selftaught.training.collapse import CollapseDetector
from selftaught.training.pretext_accuracy import has_grades, measure_accuracy
from selftaught.training.session import Session

log = logging.getLogger(__name__)

MEASURES = 20  # measurements in a run, at regular intervals
RARELY = 50  # minimum interval in steps, as a measurement costs as much as about four steps
EARLY = (10, 25, 50, 100, 200, 400)  # additional steps, as collapse usually begins early
GRADED = 2048  # held-out images that the task is graded on after the last step
SOON = 5  # steps until the next measurement after a bad one


class Monitor:
    """Measures features on held-out images while a stage trains, and detects collapse.

    The features are the final ones, or those of the stage that the method recommends. A method that
    grades its predictions is tested on held-out images, too. number: how many images are measured.
    """

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self.every = max(session.stage.steps // MEASURES, RARELY)
        self.measured_at = 0  # step
        self.best = -1.0
        self.bank, self.queries, self.images = sample(session.index, number)
        self.held_out = self.images[: len(session.index.held_out)]
        order = torch.randperm(
            len(session.index.held_out), generator=torch.Generator().manual_seed(0)
        )
        self.graded_images = session.index.held_out[order[: max(GRADED, len(self.held_out))]]
        self.stage = recommended_stage(session)
        self.pretext: dict[str, float] = {}  # the last one of `measure_pretext`
        if has_grades(session.method) and not len(self.held_out):
            log.info("there are no held-out images: the accuracy of the task is not measured")
        labels = session.index.labels
        uses_knn = labels is not None and not session.stage.init and len(self.queries) > 0
        # Features for a task may lose colours before they solve it.
        uses_knn = uses_knn and not has_grades(session.method)
        self.detector = CollapseDetector(
            voters=effective_count(labels[self.queries]) if labels is not None and uses_knn else 0
        )

    def positions(self) -> list[Tensor]:
        """Positions of all images that are measured, as three tensors."""
        return [self.bank, self.queries, self.images]

    def due(self, step: int) -> bool:
        """Whether the features are measured after `step` steps."""
        suspicious = 0 < self.detector.bad < self.detector.patience
        return (
            step % self.every == 0
            or step in EARLY
            or (suspicious and step - self.measured_at >= SOON)
            or step == self.session.stage.steps
        )

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Compute the measures of the features, and kNN where there are labels.

        The features are of two centre crops of each image: of 1.0 and of 0.7 of the short side.
        """
        network = None
        if self.stage is not None:
            backbone = self.session.backbone
            network = StageFeatures(backbone, {self.stage: stage_widths(backbone)[self.stage]})
        whole, closer = (
            extract_features(self.session, self.images, share, network) for share in (1.0, 0.7)
        )
        measures = statistics.measure(whole, closer)
        labels = self.session.index.labels
        if labels is not None and len(self.bank) and len(self.queries):
            bank, queries = (
                extract_features(self.session, p, backbone=network)
                for p in (self.bank, self.queries)
            )
            measures |= statistics.measure_knn(
                queries, labels[self.queries], bank, labels[self.bank]
            )
        return measures

    def measure_pretext(self) -> dict[str, float]:
        """Measure the accuracy of the method's task on held-out images; empty if it has none.

        After the last step it is measured on more images.
        """
        last = self.measured_at == self.session.stage.steps
        self.pretext = measure_accuracy(self.session, self.graded_images if last else self.held_out)
        return self.pretext

    def facts(self) -> dict[str, Any]:
        """Entries of run.json: the last accuracy of the task, and the recommended stage."""
        stage = {} if self.stage is None else {"recommended_stage": self.stage}
        return {**self.pretext, **stage}

    def warn_of_task(self) -> str | None:
        """Return a warning if the method's task is at chance on held-out images, or no better
        solved than before training.
        """
        chance = self.pretext.get("pretext_chance")
        if chance is None or self.detector.is_solved(self.pretext):
            return None
        before = self.detector.start.get("pretext", chance)
        return (
            f"the pretext task is not learnt: {100 * self.pretext['pretext']:.1f} % on held-out"
            f" images, {100 * chance:.1f} % by chance, {100 * before:.1f} % before training. Train"
            " for longer, or try another learning rate (--optimizer.lr)"
        )

    def observe(self, step: int, features: Mapping[str, float], loss: float | None) -> str | None:
        """Add a measurement to the detector; return a warning if the features collapse."""
        stage = self.session.stage
        collapsed = self.session.method.collapsed_loss(stage.batch // stage.accumulate)
        measures = {**features, **self.pretext}
        return self.detector.observe(step, measures, loss=loss, collapsed_loss=collapsed)

    def improves(self, features: Mapping[str, float]) -> bool:
        """Whether these features are the best so far; if so, they become the new best."""
        quality = features.get("knn", features.get("rank", 0.0))
        better = quality > self.best
        if better:
            self.best = quality
        return better

    def synchronise(self) -> None:
        """Send the detector's count from rank 0, so that all ranks measure at the same steps."""
        self.detector.bad = broadcast_object(self.detector.bad)

    def state_dict(self) -> dict[str, Any]:
        """The state that later measurements depend on."""
        state = self.detector.state_dict()
        return {
            "guard": state,
            "looked": self.measured_at,
            "best": self.best,
            "pretext": self.pretext,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.detector.load_state_dict(state["guard"])
        self.measured_at, self.best = state["looked"], state["best"]
        self.pretext = dict(state.get("pretext", {}))  # not in checkpoints of older versions


def recommended_stage(session: Session) -> str | None:
    """Return the stage that the method recommends; None for the final features."""
    depth = session.method.recommended_stage
    stage = stage_at(session.backbone, depth)
    if depth is not None and stage is None:
        log.info(f"{session.backbone.name} has no stages: its final features are monitored")
    return stage


def extract_features(
    session: Session, positions: Tensor, share: float = 1.0, backbone: nn.Module | None = None
) -> Tensor:
    """Features [n, D] of the images at `positions` [n].

    share: side of the centre crop, as a fraction of the image's short side.
    backbone: the network; by default that of the session.
    """
    with session.eagerly():
        return extract(
            backbone or session.backbone,
            session.images,
            positions,
            size=session.stage.size,
            batch=256,
            device=session.device,
            precision=session.stage.precision,
            share=share,
        )


def sample(index: Index, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the images to measure: positions of the kNN bank, of kNN queries, and of the rest.

    The choice is fixed for a data set. The bank holds labelled training images, and the queries
    are labelled held-out images. Without any, a part of the bank becomes the queries. The third
    tensor holds held-out images whose features are measured. If there are fewer than `number`,
    training images are added.
    """
    rng = torch.Generator().manual_seed(0)

    def some(positions: Tensor, most: int) -> Tensor:
        return positions[torch.randperm(len(positions), generator=rng)[:most]]

    labelled = index.labelled
    bank = some(index.train[labelled[index.train]], 5 * number)
    held_out = some(index.held_out, number)
    queries = held_out[labelled[held_out]]
    if not len(queries):
        half = min(number, len(bank) // 2)
        bank, queries = bank[half:], bank[:half]
    images = torch.cat([held_out, some(index.train, number)])[:number]
    return bank[: 4 * number], queries, images
