"""95 % intervals by a bootstrap over the draws of labels and the test images, which hold for few
images, too.

A score is a mean over groups of the mean over the images of each: classes for balanced accuracy,
the positives and the negatives of each question for an AUROC. Every resample weighs the images anew
(the Bayesian bootstrap, Rubin, 1981). Three things keep it honest where images are few, and vanish
where they are many:

- Every resample has one image more, with the best outcome in some and the worst in others. So no
interval is a point,
  and for one group of right and wrong outcomes it is known: with the worst outcome always, that of
  Clopper and Pearson; in half of all resamples, Lancaster's mid-P, and of paired differences
  McNemar's mid-P test (Fagerland et al., 2013, https://doi.org/10.1186/1471-2288-13-91). The extra
  image weighs what the images of the smallest groups do (as in Fay & Feuer, 1997), and never more
  than all that weigh as much.
- Small groups borrow the spread of the others: an image deviates from its group's mean as far as
that is known, and
  from the mean of all groups as far as it is not.
- What deviations from a mean of few images lack is given back, as by n / (n - 1).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

# images of a group at which its own mean begins to count for more than the mean of all groups
KNOWN = 20
# of the resamples have the extra image against the limit that they give: of a score, and
AGAINST = 3 / 4
PAIRED = 1 / 2  # of a difference


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcomes:
    """K scores of the same M test images, of which each has Q outcomes (one a question of an AUROC,
    else one).
    """

    # [K, M, Q] right or wrong, or shares; the mean over draws; of a difference, one minus the other
    values: Array
    groups: NDArray[np.int64]  # [M, Q] which group each outcome is of
    # how many groups carry a score as a whole: 2 for an AUROC, positives and negatives
    sides: int = 1

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The group of every outcome [M, Q], 0 to G - 1, and how many outcomes each has [G]."""
        _, place, count = np.unique(self.groups, return_inverse=True, return_counts=True)
        return place.reshape(self.groups.shape), count

    @cached_property
    def shares(self) -> Array:
        """[M, Q]: what an outcome weighs in the score; they sum to 1."""
        place, count = self._places
        return 1 / (len(count) * count[place])

    @cached_property
    def weights(self) -> Array:
        """[M]: what an image weighs in the score."""
        return np.asarray(self.shares.sum(1))

    @cached_property
    def scores(self) -> Array:
        """[K]: the means over groups."""
        return np.asarray(self._means.mean(1))

    @cached_property
    def _means(self) -> Array:
        place, count = self._places
        flat = self.values.reshape(len(self.values), -1)
        return np.stack([np.bincount(place.ravel(), one, len(count)) for one in flat]) / count

    @cached_property
    def influences(self) -> Array:
        """[K, M]: how an image moves each score per unit of its weight in a resample; they sum to
        0.
        """
        place, count = self._places
        known = (count - 1) / (count + KNOWN)
        widened = (1 - known * (2 - known) / count) ** -0.5
        doubt = (1 - known) * widened
        centre = self._means @ (doubt / doubt.sum())
        expected = known * self._means + (1 - known) * centre[:, None]
        deviations = (self.values - expected[:, place]) * (widened[place] * self.shares)
        return np.asarray(self.sides * deviations.sum(2))

    @cached_property
    def heavy(self) -> Array:
        """[M]: how far an image is one of those that weigh most, squared: 1 for these."""
        return np.asarray((self.weights / self.weights.max()) ** 2)

    @cached_property
    def extra(self) -> float:
        """What the extra image weighs at most: as much as all images that weigh as much as it."""
        turns = 1 + (self.sides - 1) * min(1.0, 4 / self.heavy.sum())
        return float(turns * self.heavy.sum() * self.weights.max())

    @cached_property
    def replaced(self) -> Array:
        """[K]: the mean outcome of the images in whose stead the extra one may be seen."""
        own = (self.values * self.shares).sum(2) / self.weights
        return np.asarray(own @ (self.heavy / self.heavy.sum()))

    def errors(self, widest: float = 1.0) -> Array:
        """[K]: standard errors; `widest` is how far outcomes can lie apart (2 for differences)."""
        unseen = widest * self.extra / (1 + self.heavy.sum())
        return np.sqrt((self.influences**2).sum(1) + unseen**2)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Of K scores: lower and upper limits, and half the widths that they had if labels were drawn
    only once.
    """

    low: Array
    high: Array
    half: Array


def intervals(
    outcomes: Outcomes,
    points: Array,
    paired: NDArray[np.bool_],
    *,
    seed: int,
    resamples: int = 2000,
    share: float = 0.95,
    block: int = 2**22,
) -> Intervals:
    """The intervals of the K mean scores over draws: points [K, D] on the images as they are.

    paired [K]: which are differences of two scores, whose outcomes lie in [-1, 1] and not in [0,
    1]. All are resampled alike. Five draws are few: resampling them gives intervals that are too
    narrow, by sqrt(4/5) and by the tails of a t distribution. Their part is widened by exactly that
    (the expanded percentile interval of Hesterberg, 2015, https://arxiv.org/abs/1411.5279). With a
    single draw (all labels) only the test images vary.
    """
    rng = np.random.default_rng(seed)
    base, swing = [], []
    count = outcomes.weights.size
    rows = max(1, block // count)
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        chosen, unseen = rng.standard_exponential((size, count)), rng.standard_exponential(size)
        whole = chosen @ outcomes.weights + outcomes.weights.max() * unseen
        base.append(outcomes.influences @ (chosen / whole[:, None]).T)
        swing.append(outcomes.extra * unseen / (chosen @ outcomes.heavy + unseen))
    values = outcomes.scores[:, None] + np.concatenate(base, 1)
    extra = np.concatenate(swing)
    worst, replaced = np.where(paired, -1.0, 0.0)[:, None], outcomes.replaced[:, None]
    against = np.arange(resamples) % 4 < 4 * np.where(paired, PAIRED, AGAINST)[:, None]
    lower = values + extra * (np.where(against, worst, 1.0) - replaced)
    upper = values + extra * (np.where(against, 1.0, worst) - replaced)
    half = (_quantiles(upper, (1 + share) / 2) - _quantiles(lower, (1 - share) / 2)) / 2
    draws = points.shape[1]
    if draws > 1:
        tail = (1 + share) / 2
        wider = np.sqrt(draws / (draws - 1)) * stats.t.ppf(tail, draws - 1) / stats.norm.ppf(tail)
        drawn = np.random.default_rng([seed, 1]).integers(0, draws, (resamples, draws))
        apart = wider * ((points - points.mean(1, keepdims=True))[:, drawn]).mean(2)
        lower, upper = lower + apart, upper + apart
    mean = points.mean(1)
    low = np.minimum(np.clip(_quantiles(lower, (1 - share) / 2), worst[:, 0], 1), mean)
    high = np.maximum(np.clip(_quantiles(upper, (1 + share) / 2), worst[:, 0], 1), mean)
    return Intervals(low, high, half)


def _quantiles(values: Array, share: float) -> Array:
    return np.asarray(np.quantile(values, share, axis=1))
