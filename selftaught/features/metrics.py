"""Balanced accuracy, area under the ROC curve (AUROC), and the contribution of each image."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor


def balanced_accuracy(labels: Tensor, values: Tensor) -> float:
    """Mean recall over the classes in `labels` [M], for the predictions values.argmax [M, C]."""
    counts = torch.bincount(labels)
    hits = torch.bincount(labels[values.argmax(1) == labels], minlength=len(counts))
    present = counts > 0
    return float((hits[present].double() / counts[present]).mean())


def auroc(labels: Tensor, values: Tensor) -> tuple[float, int]:
    """AUROC of values [M, C], and the number of classes that were skipped.

    labels [M] of two classes: class 1 against class 0. labels [M, C]: the mean over classes. A
    class is skipped if no image has it, or every image. nan if all classes are skipped.
    """
    areas = [
        _area(truth.numpy(), score.numpy())
        for truth, score in _questions(labels, values, skip=True)
    ]
    skipped = (1 if labels.ndim == 1 else labels.shape[1]) - len(areas)
    return (float(np.mean(areas)) if areas else float("nan")), skipped


def _area(truth: np.ndarray, score: np.ndarray) -> float:
    """AUROC of one binary problem: the share of pairs, one positive and one negative, in order."""
    positives = int(truth.sum())
    above = rankdata(score)[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(truth) - positives)))


def _questions(labels: Tensor, values: Tensor, *, skip: bool) -> list[tuple[Tensor, Tensor]]:
    """The binary problems of an AUROC: truth [M] bool and score [M] of each."""
    if labels.ndim == 1:
        # A difference of logits or shares orders images as the probability of class 1 does.
        questions = [(labels == 1, (values[:, 1] - values[:, 0]).double())]
    else:
        questions = [(labels[:, c] > 0, values[:, c].double()) for c in range(labels.shape[1])]
    return [(t, s) for t, s in questions if not skip or (bool(t.any()) and not bool(t.all()))]


def placements(labels: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Placement values, whose mean over the positives or the negatives is the AUROC.

    Returns two tensors [M, Q] for M images and Q binary problems:

    - float64: the share of the opposite class that the image is ranked correctly against. A tie
      counts half.
    - int64: the group of the image, 2 q for negatives of problem q and 2 q + 1 for positives.

    Every problem must have positives and negatives.
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
    """The number of images in balanced classes that would give the same precision of a score.

    labels [N]: for balanced accuracy. labels [N, C]: for AUROC, with positives and negatives as the
    classes. 0 if no score can be computed.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels)[None]
        counts = counts[:, counts[0] > 0]
    else:
        counts = torch.stack([(labels > 0).sum(0), (labels <= 0).sum(0)])
        counts = counts[:, (counts > 0).all(0)]
    return float(counts.shape[1] ** 2 / (1 / counts).sum()) if counts.numel() else 0.0
