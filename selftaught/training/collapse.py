"""Detection of collapse from measures of the features, never from the loss alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SOLVED = 0.01  # accuracy of a pretext task above chance; or two standard errors, if that is more
MIN_LOST_VOTES = 10  # ten correct votes all become wrong by chance with probability 1/1000


@dataclass(kw_only=True)
class CollapseDetector:
    """Warns when features begin to collapse; `patience` bad observations in a row are a collapse.

    Features are compared with the first observation, before training, and with the best so far.
    Fixed thresholds would fail: a random ResNet already has a std of .2 to .4. An observation is
    bad in any of these cases:

    - The features are not finite. This counts as collapse at once.
    - Rank is below .5 of the start or .25 of the best, or std below .35 or .25. At learning rates
      100 times too high, rank fell to .03 to .3 of the start in ten steps. It recovered late or
      never. In healthy runs it was above .88 after ten steps and above .95 after twenty.
    - The loss is within 1 % of `collapsed_loss`, and rank or std is below .8 of the start.
    - `collapsed_loss` is 0 (the loss of constant outputs) and the loss is below .01.
    - `voters` is set and kNN is below .92 of the start. The fall must be more than three standard
      errors of that many votes, and at least ten votes. The errors are Wilson's, which hold for few
      votes and for shares of 0 and 1. At rates 100 times too high, kNN was at .58 to .91 of the
      start for hundreds of steps. Rank and std sometimes recovered meanwhile. In 41 healthy runs
      kNN was above .93 at every observation, and soon above 1. This holds for methods without a
      graded task. Before a puzzle is learnt, kNN falls to .8, as tiles tell little of colours.

    During the first `settle` steps the running statistics of batch norm are not accurate yet.
    Healthy runs without warm-up fell to .42 of the rank there. So the limits are .2 of the rank and
    .3 of the std. Rank also falls while classes form, as in supervised training. It is ignored when
    kNN rose by .05 and std did not fall.

    Finite features are not bad while the method solves its task on held-out images: constant ones
    do not allow that. In a healthy MAE rank fell to .4 of the start in 50 steps, and kNN to .7.
    """

    patience: int = 3
    settle: int = 20
    # `effective_count` of the images that kNN scores. 0 turns kNN off: features that start from
    # trained weights may have to get worse first.
    voters: float = 0
    start: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    bad: int = 0  # bad observations in a row

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
        collapsed_loss: float | None = None,
    ) -> str | None:
        """Add one observation; returns a warning when it is the first bad one or the collapse.

        features: the dict of `measure`, with "knn" where there are labels, and "pretext" and
        "pretext_chance" where a task is graded. `collapsed_loss` is the loss of a network with
        constant output: ln(K + 1) with K negatives, ln(K) with K clusters.
        """
        std, rank = features["std"], features["rank"]
        if not (math.isfinite(std) and math.isfinite(rank)):
            self.bad = max(self.bad + 1, self.patience)
            return f"step {step}: {self._describe_nan()}" if self.bad == self.patience else None
        if not self.start:
            names = ("std", "rank", "knn", "pretext")
            self.start = {name: features[name] for name in names if name in features}
            self.best = {"std": std, "rank": rank}
            return None
        collapsed = _equals(loss, collapsed_loss)
        signs = [] if self.is_solved(features) else self._list_signs(step, features, collapsed)
        if collapsed and collapsed_loss == 0:
            signs.append("the loss is that of constant outputs")
        was_healthy = self.bad == 0
        self.best = {"std": max(self.best["std"], std), "rank": max(self.best["rank"], rank)}
        if not signs:
            self.bad = 0
            return None
        self.bad += 1
        if not was_healthy and self.bad != self.patience:
            return None  # the warning was given at the first bad observation
        if collapsed and collapsed_loss:
            signs.append(f"the loss is at its chance level {collapsed_loss:.2f}")
        state = "the features have collapsed" if self.collapsed else "the features are collapsing"
        count = f" ({self.bad} of {self.patience} observations)"
        cause = self._suggest_remedy(step, collapsed, collapsed_loss)
        return f"step {step}: {state}{count}: {', '.join(signs)}. {cause}"

    def is_solved(self, measures: Mapping[str, float]) -> bool:
        """Whether a pretext task is solved above chance, and better than before training.

        Random networks may be above chance: those of `spotting-artifacts` order places by blur.
        """
        least = max(measures.get("pretext_chance", math.inf), self.start.get("pretext", 0.0))
        margin = max(SOLVED, 2 * measures.get("pretext_error", 0.0))
        return measures.get("pretext", 0.0) > least + margin

    def _list_signs(self, step: int, features: Mapping[str, float], collapsed: bool) -> list[str]:
        fractions = {"rank": (0.2, 0.0), "std": (0.3, 0.0)}  # of the start, of the best
        if step >= self.settle:
            fractions = {"rank": (0.5, 0.25), "std": (0.35, 0.25)}
            if collapsed:
                fractions = {"rank": (0.8, 0.25), "std": (0.8, 0.25)}
        words = {"rank": "effective rank", "std": "spread"}
        classes_form = (
            "knn" in features
            and "knn" in self.start
            and features["knn"] >= self.start["knn"] + 0.05
            and features["std"] >= self.start["std"]
        )
        return [
            f"{words[name]} {features[name]:.2g}, {self.start[name]:.2g} at the start"
            for name, (of_start, of_best) in fractions.items()
            if features[name] < max(of_start * self.start[name], of_best * self.best[name])
            and not (name == "rank" and classes_form)
        ] + self._list_knn_sign(step, features)

    def _list_knn_sign(self, step: int, features: Mapping[str, float]) -> list[str]:
        if step < self.settle or not self.voters:
            return []
        if "knn" not in features or "knn" not in self.start:
            return []
        now, start = features["knn"], self.start["knn"]
        noise = max(start - wilson_low(start, self.voters), MIN_LOST_VOTES / self.voters)
        if now >= start - max(0.08 * start, noise):
            return []
        return [f"kNN {100 * now:.1f} %, {100 * start:.1f} % at the start"]

    def _suggest_remedy(self, step: int, collapsed: bool, collapsed_loss: float | None) -> str:
        rate = "try a tenth of it (--optimizer.lr)"
        mean = "if hard examples are on, use the weighted mean of their losses and not the sum"
        if collapsed and collapsed_loss == 0:
            return (
                "Likely cause: nothing prevents constant outputs; check the stop-gradient, the"
                " predictor and the teacher's momentum, then the learning rate:"
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

    def _describe_nan(self) -> str:
        return (
            "the features are not finite, the weights have diverged. Likely cause: the learning"
            " rate is too high; try a tenth of it (--optimizer.lr) or a longer warm-up, and"
            " --precision fp32 if it is bf16"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state that later observations depend on, as plain numbers."""
        return {"start": dict(self.start), "best": dict(self.best), "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.start, self.best = dict(state["start"]), dict(state["best"])
        self.bad = int(state["bad"])


def wilson_low(share: float, count: float, errors: float = 3.0) -> float:
    """Lower end of Wilson's interval of a share of `count` votes, at `errors` standard errors."""
    more = errors**2 / count
    middle = share + more / 2
    return (middle - math.sqrt(more * share * (1 - share) + more**2 / 4)) / (1 + more)


def _equals(loss: float | None, collapsed_loss: float | None) -> bool:
    if loss is None or collapsed_loss is None or not math.isfinite(loss):
        return False
    return abs(loss - collapsed_loss) <= 0.01 * (abs(collapsed_loss) or 1.0)
