"""What is measured of the features while a stage trains, and on which images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selftaught.data.index.build import Index
from selftaught.distributed import broadcast_object
from selftaught.features import statistics
from selftaught.features.extract import extract
from selftaught.features.metrics import effective_count
from selftaught.models.backbone import Backbone
from selftaught.training.collapse import CollapseDetector
from selftaught.training.session import Session

MEASURES = 20  # how often in a whole run, and
RARELY = 50  # steps between them at least: a measurement costs as much as some four steps
EARLY = (10, 25, 50, 100, 200, 400)  # besides: a collapse shows soon
SOON = 5  # steps after a measurement that looked like one


class Monitor:
    """Measures features on held-out images while a stage trains, and watches them for collapse."""

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self.every = max(session.stage.steps // MEASURES, RARELY)
        self.measured_at = 0  # step
        self.best = -1.0
        self.bank, self.voted, self.watched = sample(session.index, number)
        labels = session.index.labels
        judged = labels is not None and not session.stage.init and len(self.voted) > 0
        self.detector = CollapseDetector(
            voters=effective_count(labels[self.voted]) if labels is not None and judged else 0
        )

    def positions(self) -> list[Tensor]:
        """Of all images that are measured."""
        return [self.bank, self.voted, self.watched]

    def due(self, step: int) -> bool:
        suspicious = 0 < self.detector.bad < self.detector.patience
        return (
            step % self.every == 0
            or step in EARLY
            or (suspicious and step - self.measured_at >= SOON)
            or step == self.session.stage.steps
        )

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of two centre crops of every watched image: the whole one, and a closer one."""
        whole, closer = (
            extract_features(self.session, self.watched, share) for share in (1.0, 0.7)
        )
        measures = statistics.measure(whole, closer)
        labels = self.session.index.labels
        if labels is not None and len(self.bank) and len(self.voted):
            bank, voted = (extract_features(self.session, p) for p in (self.bank, self.voted))
            measures |= statistics.votes(voted, labels[self.voted], bank, labels[self.bank])
        return measures

    def observe(self, step: int, features: Mapping[str, float], loss: float | None) -> str | None:
        """A warning where the features begin to collapse, or have."""
        stage = self.session.stage
        collapsed = self.session.method.collapsed_loss(stage.batch // stage.accumulate)
        return self.detector.observe(step, features, loss=loss, chance=collapsed)

    def improves(self, features: Mapping[str, float]) -> bool:
        """Whether these features are the best so far, which is remembered."""
        quality = features.get("knn", features.get("rank", 0.0))
        better = quality > self.best
        if better:
            self.best = quality
        return better

    def synchronise(self) -> None:
        """Rank 0 alone observes; every rank measures again at the same step."""
        self.detector.bad = broadcast_object(self.detector.bad)

    def state_dict(self) -> dict[str, Any]:
        state = self.detector.state_dict()
        return {"guard": state, "looked": self.measured_at, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.detector.load_state_dict(state["guard"])
        self.measured_at, self.best = state["looked"], state["best"]


def extract_features(
    session: Session, positions: Tensor, share: float = 1.0, backbone: Backbone | None = None
) -> Tensor:
    """Features [n, D] of images at `positions` [n], of the session's backbone or another one;
    `share`: of the image's short side that is seen.
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
    """Positions of the labelled images that vote, of those that are voted on, and of those whose
    features are watched: fixed for a data set. Held-back images are voted on and watched; where
    there are few, training images are watched besides, and where there are none, some are voted on
    that do not vote.
    """
    rng = torch.Generator().manual_seed(0)

    def some(positions: Tensor, most: int) -> Tensor:
        return positions[torch.randperm(len(positions), generator=rng)[:most]]

    known = index.labelled
    bank, held = some(index.train[known[index.train]], 5 * number), some(index.held_out, number)
    voted = held[known[held]]
    if not len(voted):
        half = min(number, len(bank) // 2)
        bank, voted = bank[half:], bank[:half]
    watched = torch.cat([held, some(index.train, number)])[:number]
    return bank[: 4 * number], voted, watched
