"""95 % intervals by a bootstrap over the draws of labels and the test images."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor


def resample_counts(labels: Tensor, resamples: int, seed: int, block: int = 2**22) -> Iterator[NDArray[np.float32]]:
    """How often each of M test images appears in each resample: blocks [r, M] that make up [resamples, M].

    One class an image: each class is resampled by itself, as balanced accuracy sees them, so none can vanish.
    Several classes an image: all images together. The same labels and seed give the same counts: what makes
    comparisons paired.
    """
    rng = np.random.default_rng(seed)
    count = len(labels)
    groups = [torch.arange(count)] if labels.ndim == 2 else [(labels == c).nonzero().squeeze(1) for c in labels.unique()]
    rows = max(1, block // count)
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        counts = np.zeros((size, count), dtype=np.float32)
        for group in groups:
            drawn = rng.integers(0, len(group), (size, len(group))) + len(group) * np.arange(size)[:, None]
            found = np.bincount(drawn.ravel(), minlength=size * len(group))
            counts[:, group.numpy()] = found.reshape(size, len(group))
        yield counts


def interval(
    resampled: NDArray[np.float64], points: NDArray[np.float64], seed: int, share: float = 0.95
) -> tuple[float, float]:
    """The interval of the mean over draws: resampled [R, D] over test images, points [D] on the images as
    they are.

    Five draws are few: resampling them gives intervals that are too narrow, by sqrt(4/5) and by the tails of
    a t distribution. Their part is widened by exactly that (the expanded percentile interval of Hesterberg,
    2015, https://arxiv.org/abs/1411.5279). With a single draw (all labels) only the test images vary.
    """
    rng = np.random.default_rng([seed, 1])
    values = resampled.mean(1)
    values = values[np.isfinite(values)]  # a resample may miss all images of a rare class, which has no AUROC then
    if not len(values):
        return -np.inf, np.inf  # nothing can be said
    draws = len(points)
    if draws > 1:
        tail = (1 + share) / 2
        wider = np.sqrt(draws / (draws - 1)) * stats.t.ppf(tail, draws - 1) / stats.norm.ppf(tail)
        chosen = rng.integers(0, draws, (len(values), draws))
        values = values + wider * (points[chosen].mean(1) - points.mean())
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
