"""Balanced accuracy and area under the ROC curve; and the same under many resamplings of the test images at
once.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import recall_score, roc_auc_score
from torch import Tensor


def balanced_accuracy(labels: Tensor, values: Tensor) -> float:
    """The mean over the classes in `labels` [M] of the share of their images that values [M, C] put there."""
    present = labels.unique().tolist()
    # sklearn's balanced_accuracy_score, without its warning when a class was guessed that no image has
    return float(recall_score(labels.numpy(), values.argmax(1).numpy(), labels=present, average="macro", zero_division=0))


def auroc(labels: Tensor, values: Tensor) -> tuple[float, int]:
    """Area under the ROC curve, and how many classes were skipped: no test image has them, or every one.

    labels [M] of two classes: of the score of class 1 against class 0. labels [M, C]: the mean over classes.
    nan if every class was skipped.
    """
    found = [float(roc_auc_score(truth.numpy(), score.numpy())) for truth, score in _questions(labels, values, skip=True)]
    skipped = (1 if labels.ndim == 1 else labels.shape[1]) - len(found)
    return (float(np.mean(found)) if found else float("nan")), skipped


def _questions(labels: Tensor, values: Tensor, *, skip: bool) -> list[tuple[Tensor, Tensor]]:
    """Yes-no questions of an AUROC: truth [M] bool and score [M] of each."""
    if labels.ndim == 1:
        # a difference of logits, or of shares, orders images as the probability of class 1 does
        questions = [(labels == 1, (values[:, 1] - values[:, 0]).double())]
    else:
        questions = [(labels[:, c] > 0, values[:, c].double()) for c in range(labels.shape[1])]
    return [(t, s) for t, s in questions if not skip or (bool(t.any()) and not bool(t.all()))]


def resampled_balanced_accuracy(labels: Tensor, correct: Tensor, counts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Balanced accuracy [R, K] of K outcomes when test image m appears counts[r, m] times.

    correct [M, K] 0/1: was image m given its class; every class must appear in every row of counts [R, M].
    """
    right = correct.numpy().astype(np.float32)
    recalls = []
    for name in labels.unique():
        where = (labels == name).numpy()
        recalls.append(counts[:, where] @ right[where] / counts[:, where].sum(1, keepdims=True))
    return np.mean(np.asarray(recalls, dtype=np.float64), axis=0)


def resampled_auroc(labels: Tensor, values: Tensor, counts: NDArray[np.float32]) -> NDArray[np.float64]:
    """AUROC [R] when test image m appears counts[r, m] times; classes with one value in a row are skipped in
    that row.
    """
    areas = []
    for truth, score in _questions(labels, values, skip=True):
        order = torch.argsort(score, stable=True)
        yes = truth[order].numpy()
        _, tie = np.unique(score[order].numpy(), return_inverse=True)
        starts = np.flatnonzero(np.r_[True, tie[1:] != tie[:-1]])
        weight = counts[:, order.numpy()].astype(np.float64)
        positive = np.add.reduceat(weight * yes, starts, axis=1)
        negative = np.add.reduceat(weight * ~yes, starts, axis=1)
        below = np.cumsum(negative, axis=1) - 0.5 * negative  # a tie counts half
        pairs = positive.sum(1) * negative.sum(1)
        with np.errstate(invalid="ignore"):
            areas.append(np.where(pairs > 0, (positive * below).sum(1) / pairs, np.nan))
    return np.nanmean(np.asarray(areas), axis=0)
