"""95 % intervals by a bootstrap over label draws and test images, valid for few images too.

A score is the mean over groups of the mean over the images of a group. Groups are the classes for
balanced accuracy, and the positives and negatives of each question for AUROC. Every resample draws
new weights of the images (the Bayesian bootstrap, Rubin, 1981). Three corrections keep the coverage
for few images, and vanish for many:

- Every resample has one extra image, with the best outcome in some and the worst in others. So no
  interval is a point. For one group of right and wrong outcomes the result is a standard interval.
  With the worst outcome in all resamples it is that of Clopper and Pearson. In half of them it is
  Lancaster's mid-P, and for paired differences McNemar's mid-P test (Fagerland et al., 2013,
  https://doi.org/10.1186/1471-2288-13-91). The extra image has the weight of the images of the
  smallest groups (as in Fay & Feuer, 1997), and at most that of all images of equal weight.
- Means of small groups are uncertain. So the deviation of an image is from a weighted mean: that of
  its group, and that of all groups, which counts more for small groups.
- Deviations from a mean of few images are too small. They are scaled, as by n / (n - 1).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

# size of a group above which its own mean counts more than the mean of all groups
KNOWN = 20
# share of the resamples in which the extra image widens the limit
AGAINST = 3 / 4  # for a score
PAIRED = 1 / 2  # for a difference


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcomes:
    """The outcomes of K scores on the same M test images.

    Each image has Q outcomes: one for each question of an AUROC, else one.
    """

    # [K, M, Q] in [0, 1], the mean over draws; for a difference, one minus the other
    values: Array
    groups: NDArray[np.int64]  # [M, Q] group of each outcome
    # number of groups of one question: 2 for an AUROC, positives and negatives
    sides: int = 1

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The group of every outcome [M, Q], from 0 to G - 1, and the size of every group [G]."""
        _, place, count = np.unique(self.groups, return_inverse=True, return_counts=True)
        return place.reshape(self.groups.shape), count

    @cached_property
    def shares(self) -> Array:
        """[M, Q]: weight of each outcome in the score; they sum to 1."""
        place, count = self._places
        return 1 / (len(count) * count[place])

    @cached_property
    def weights(self) -> Array:
        """[M]: weight of each image in the score."""
        return np.asarray(self.shares.sum(1))

    @cached_property
    def scores(self) -> Array:
        """[K]: the means over groups."""
        return np.asarray(self._means.mean(1))

    @cached_property
    def _means(self) -> Array:
        """[K, G]: mean of each group."""
        place, count = self._places
        flat = self.values.reshape(len(self.values), -1)
        return np.stack([np.bincount(place.ravel(), one, len(count)) for one in flat]) / count

    @cached_property
    def influences(self) -> Array:
        """[K, M]: change of each score per unit of an image's weight in a resample.

        The sum over images is 0.
        """
        place, count = self._places
        own_share = (count - 1) / (count + KNOWN)  # weight of the group's own mean
        scale = (1 - own_share * (2 - own_share) / count) ** -0.5
        pooled_share = (1 - own_share) * scale
        centre = self._means @ (pooled_share / pooled_share.sum())
        expected = own_share * self._means + (1 - own_share) * centre[:, None]
        deviations = (self.values - expected[:, place]) * (scale[place] * self.shares)
        return np.asarray(self.sides * deviations.sum(2))

    @cached_property
    def relative_squares(self) -> Array:
        """[M]: squared weight of each image relative to the largest weight."""
        return np.asarray((self.weights / self.weights.max()) ** 2)

    @cached_property
    def extra(self) -> float:
        """Maximum weight of the extra image: that of all images of the largest weight together."""
        turns = 1 + (self.sides - 1) * min(1.0, 4 / self.relative_squares.sum())
        return float(turns * self.relative_squares.sum() * self.weights.max())

    @cached_property
    def replaced(self) -> Array:
        """[K]: mean outcome of the images that the extra image replaces."""
        own = (self.values * self.shares).sum(2) / self.weights
        return np.asarray(own @ (self.relative_squares / self.relative_squares.sum()))

    def errors(self, widest: float = 1.0) -> Array:
        """[K]: standard errors. `widest`: range of the outcomes, 2 for differences."""
        extra = widest * self.extra / (1 + self.relative_squares.sum())
        return np.sqrt((self.influences**2).sum(1) + extra**2)


@dataclass(frozen=True, eq=False)
class Intervals:
    """The intervals of K scores."""

    low: Array  # [K]
    high: Array  # [K]
    half: Array  # [K] half the width without the variation of label draws


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
    """Compute the intervals of K scores, each a mean over D draws.

    points: [K, D] scores of each draw on all test images. paired: [K] whether a score is a
    difference, with outcomes in [-1, 1] instead of [0, 1]. All scores share the resamples.

    A bootstrap of few draws gives intervals that are too narrow: for five draws by sqrt(4/5), and
    by the tails of a t distribution. The part of the draws is widened by these factors (the
    expanded percentile interval of Hesterberg, 2015, https://arxiv.org/abs/1411.5279). With a
    single draw (all labels) only the test images vary.
    """
    rng = np.random.default_rng(seed)
    base, extra_shares = [], []
    count = outcomes.weights.size
    rows = max(1, block // count)
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        masses, extra_mass = (
            rng.standard_exponential((size, count)),
            rng.standard_exponential(size),
        )
        total = masses @ outcomes.weights + outcomes.weights.max() * extra_mass
        base.append(outcomes.influences @ (masses / total[:, None]).T)
        extra_shares.append(
            outcomes.extra * extra_mass / (masses @ outcomes.relative_squares + extra_mass)
        )
    values = outcomes.scores[:, None] + np.concatenate(base, 1)
    extra = np.concatenate(extra_shares)
    worst, replaced = np.where(paired, -1.0, 0.0)[:, None], outcomes.replaced[:, None]
    against = np.arange(resamples) % 4 < 4 * np.where(paired, PAIRED, AGAINST)[:, None]
    lower = values + extra * (np.where(against, worst, 1.0) - replaced)
    upper = values + extra * (np.where(against, 1.0, worst) - replaced)
    half = (_quantiles(upper, (1 + share) / 2) - _quantiles(lower, (1 - share) / 2)) / 2
    draws = points.shape[1]
    if draws > 1:
        tail = (1 + share) / 2
        wider = np.sqrt(draws / (draws - 1)) * stats.t.ppf(tail, draws - 1) / stats.norm.ppf(tail)
        indices = np.random.default_rng([seed, 1]).integers(0, draws, (resamples, draws))
        shift = wider * ((points - points.mean(1, keepdims=True))[:, indices]).mean(2)
        lower, upper = lower + shift, upper + shift
    mean = points.mean(1)
    low = np.minimum(np.clip(_quantiles(lower, (1 - share) / 2), worst[:, 0], 1), mean)
    high = np.maximum(np.clip(_quantiles(upper, (1 + share) / 2), worst[:, 0], 1), mean)
    return Intervals(low, high, half)


def _quantiles(values: Array, share: float) -> Array:
    return np.asarray(np.quantile(values, share, axis=1))
