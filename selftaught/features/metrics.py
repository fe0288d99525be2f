"""Balanced accuracy and area under the ROC curve, and what each image adds to it."""

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import recall_score, roc_auc_score
from torch import Tensor


def balanced_accuracy(labels: Tensor, values: Tensor) -> float:
    """The mean over the classes in `labels` [M] of the share of their images that values [M, C] put
    there.
    """
    present = labels.unique().tolist()
    # sklearn's balanced_accuracy_score, without its warning when a class was guessed that no image
    # has
    return float(
        recall_score(
            labels.numpy(),
            values.argmax(1).numpy(),
            labels=present,
            average="macro",
            zero_division=0,
        )
    )


def auroc(labels: Tensor, values: Tensor) -> tuple[float, int]:
    """Area under the ROC curve, and how many classes were skipped: no test image has them, or every
    one.

    labels [M] of two classes: of the score of class 1 against class 0. labels [M, C]: the mean over
    classes. nan if every class was skipped.
    """
    found = [
        float(roc_auc_score(truth.numpy(), score.numpy()))
        for truth, score in _questions(labels, values, skip=True)
    ]
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


def placements(labels: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What an AUROC is the mean of: for each image and question the share of the other side's
    images on whose right side it is (a tie counts half), [M, Q] float64; and which side it is on,
    [M, Q]: 2 q, or 2 q + 1 for the positives of question q.

    The mean over either side's images is the area. Every question must have images on both sides.
    """
    shares, sides = [], []
    for number, (truth, score) in enumerate(_questions(labels, values, skip=False)):
        yes, ranks = truth.numpy(), rankdata(score.numpy())
        share = np.empty(len(yes))
        share[yes] = (ranks[yes] - rankdata(score.numpy()[yes])) / (~yes).sum()
        share[~yes] = 1 - (ranks[~yes] - rankdata(score.numpy()[~yes])) / yes.sum()
        shares.append(torch.from_numpy(share))
        sides.append(2 * number + truth.long())
    return torch.stack(shares, 1), torch.stack(sides, 1)


def effective_count(labels: Tensor) -> float:
    """How many images of classes of one size would say as much: of labels [N] by a balanced
    accuracy, of [N, C] by an AUROC, of which positives and negatives are the classes. 0 where
    nothing can be told.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels)[None]
        counts = counts[:, counts[0] > 0]
    else:
        counts = torch.stack([(labels > 0).sum(0), (labels <= 0).sum(0)])
        counts = counts[:, (counts > 0).all(0)]
    return float(counts.shape[1] ** 2 / (1 / counts).sum()) if counts.numel() else 0.0
