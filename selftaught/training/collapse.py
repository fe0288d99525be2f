"""Detects early when features collapse, by measures and never by the loss alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOST = 10  # votes that chance does not take away one after the other


@dataclass(kw_only=True)
class CollapseDetector:
    """Warns when features collapse, and calls it a collapse after `patience` observations in a row.

    It compares with the first observation (before training) and with the best so far, never with
    fixed values: a randomly initialised ResNet already puts all images close together (std .2 to
    .4). An observation is bad when

    - the features are not finite (a collapse at once);
    - rank falls below .5 of the start or .25 of the best, or std below .35 or .25. Recorded at
    learning rates 100
      times too high: rank fell to .03 to .3 of the start in ten steps, and came back late or never.
      Recorded in healthy runs: above .88 after ten steps, above .95 after twenty;
    - the loss sits within 1 % of `chance`, and rank or std fell below .8 of the start;
    - chance is 0 (the loss of agreeing on a constant) and the loss is below .01, whatever the
    features look like;
    - `voters` is set and kNN fell below .92 of the start, by more than three standard errors of so
    many votes (Wilson's,
      which hold for few votes, and for all or none right) and by no fewer than ten votes (that ten
      of ten change for the worse has a chance of one in a thousand). Recorded at rates 100 times
      too high, where rank and std may recover while nothing is learnt: .58 to .91 of the start, for
      hundreds of steps; in 41 healthy runs: above .93 at every observation, and above 1 soon.

    In the first `settle` steps, while the running statistics of batch norm catch up (healthy runs
    without warm-up fell to .42 of the rank), only .2 of the rank and .3 of the std are bad. Rank
    may fall while classes form, as in supervised training: it says nothing when kNN rose by .05 and
    std did not fall.
    """

    patience: int = 3
    settle: int = 20
    # `effective_count` of the images whose kNN is judged: of a run from random weights, as given
    # ones
    voters: float = 0
    # may have to get worse first
    start: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    bad: int = 0

    @property
    def collapsed(self) -> bool:
        """`patience` bad observations in a row."""
        return self.bad >= self.patience

    def observe(
        self,
        step: int,
        features: Mapping[str, float],
        *,
        loss: float | None = None,
        chance: float | None = None,
    ) -> str | None:
        """Takes in what `measure` found; a warning when trouble begins, and when it has become a
        collapse.

        `chance` is the loss of a network that says the same of every image: ln(K + 1) with K
        negatives, ln(K) with K clusters.
        """
        std, rank = features["std"], features["rank"]
        if not (math.isfinite(std) and math.isfinite(rank)):
            self.bad = max(self.bad + 1, self.patience)
            return f"step {step}: {self._diverged()}" if self.bad == self.patience else None
        if not self.start:
            self.start = {
                name: features[name] for name in ("std", "rank", "knn") if name in features
            }
            self.best = {"std": std, "rank": rank}
            return None
        stuck = _at_chance(loss, chance)
        signs = self._signs(step, features, stuck)
        if stuck and chance == 0:
            signs.append("the loss is that of agreeing on a constant")
        was_sound = self.bad == 0
        self.best = {"std": max(self.best["std"], std), "rank": max(self.best["rank"], rank)}
        if not signs:
            self.bad = 0
            return None
        self.bad += 1
        if not was_sound and self.bad != self.patience:
            return None  # said already
        if stuck and chance:
            signs.append(f"the loss sits at its chance level {chance:.2f}")
        state = "the features have collapsed" if self.collapsed else "the features are collapsing"
        count = f" ({self.bad} of {self.patience} observations)"
        return (
            f"step {step}: {state}{count}: {', '.join(signs)}. {self._cause(step, stuck, chance)}"
        )

    def _signs(self, step: int, features: Mapping[str, float], stuck: bool) -> list[str]:
        fractions = {"rank": (0.2, 0.0), "std": (0.3, 0.0)}
        if step >= self.settle:
            fractions = {"rank": (0.5, 0.25), "std": (0.35, 0.25)}
            if stuck:
                fractions = {"rank": (0.8, 0.25), "std": (0.8, 0.25)}
        words = {"rank": "effective rank", "std": "spread"}
        forming = (
            "knn" in features
            and "knn" in self.start
            and features["knn"] >= self.start["knn"] + 0.05
            and features["std"] >= self.start["std"]
        )
        return [
            f"{words[name]} {features[name]:.2g}, {self.start[name]:.2g} at the start"
            for name, (of_start, of_best) in fractions.items()
            if features[name] < max(of_start * self.start[name], of_best * self.best[name])
            and not (name == "rank" and forming)
        ] + self._harm(step, features)

    def _harm(self, step: int, features: Mapping[str, float]) -> list[str]:
        if (
            step < self.settle
            or not self.voters
            or not {"knn"} <= features.keys() & self.start.keys()
        ):
            return []
        now, start = features["knn"], self.start["knn"]
        noise = max(start - least(start, self.voters), LOST / self.voters)
        return (
            [f"kNN {100 * now:.1f} %, {100 * start:.1f} % at the start"]
            if now < start - max(0.08 * start, noise)
            else []
        )

    def _cause(self, step: int, stuck: bool, chance: float | None) -> str:
        rate = "try a tenth of it (--optimizer.lr)"
        mean = "if hard examples are on, take the weighted mean of their losses and not the sum"
        if stuck and chance == 0:
            return (
                "Likely cause: nothing keeps the branches from agreeing on a constant; check the"
                " stop-gradient, the predictor and the teacher's momentum, then the learning rate:"
                f" {rate}"
            )
        if step <= 10 * self.settle:
            return (
                f"Likely cause: the learning rate is too high for the beginning; {rate} or a longer"
                f" warm-up; {mean}; a larger batch helps too"
            )
        return (
            f"Likely cause: the learning rate is too high; {rate}; {mean}; a larger batch or a"
            " longer warm-up help too"
        )

    def _diverged(self) -> str:
        return (
            "the features are not finite, the weights have diverged. Likely cause: the learning"
            " rate is too high; try a tenth of it (--optimizer.lr) or a longer warm-up, and"
            " --precision fp32 if it is bf16"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that later observations depend on; plain numbers."""
        return {"start": dict(self.start), "best": dict(self.best), "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on as the detector that gave `state` would have."""
        self.start, self.best, self.bad = (
            dict(state["start"]),
            dict(state["best"]),
            int(state["bad"]),
        )


def least(share: float, count: float, errors: float = 3.0) -> float:
    """Wilson's lower limit of a share of `count` votes, so many standard errors below it."""
    more = errors**2 / count
    middle = share + more / 2
    return (middle - math.sqrt(more * share * (1 - share) + more**2 / 4)) / (1 + more)


def _at_chance(loss: float | None, chance: float | None) -> bool:
    if loss is None or chance is None or not math.isfinite(loss):
        return False
    return abs(loss - chance) <= 0.01 * (abs(chance) or 1.0)
