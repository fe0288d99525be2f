"""Measures of features: spread, effective rank, alignment, uniformity, and kNN."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.features.knn import KNN
from selftaught.features.metrics import auroc, balanced_accuracy
from selftaught.features.protocol import Features


@torch.no_grad()
def measure(vectors: Tensor, second: Tensor | None = None) -> dict[str, float]:
    """Measure the features [N, D] of a fixed sample; returns std, rank, alignment and uniformity.

    - std: mean standard deviation of the L2-normalised features, times sqrt(D). 1 is spread over
      the sphere, 0 is one point.
    - rank: RankMe (Garrido et al., 2023, https://arxiv.org/abs/2210.02885), exp of the entropy of
      the singular values.
    - alignment and uniformity: Wang & Isola (2020, https://arxiv.org/abs/2005.10242), alpha = 2 and
      t = 2. Alignment needs `second` [N, D], the features of another view of the same images.

    If a feature is not finite, std and rank are nan, and the others are left out.
    """
    vectors = vectors.double()
    if not bool(torch.isfinite(vectors).all()):
        return {"std": math.nan, "rank": math.nan}
    unit = F.normalize(vectors, dim=1)
    measures = {
        "std": float(unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5),
        "rank": effective_rank(vectors),
    }
    if second is not None and bool(torch.isfinite(second).all()):
        distance = unit - F.normalize(second.double(), dim=1)
        measures["alignment"] = float(distance.square().sum(1).mean())
    if len(unit) > 1:
        measures["uniformity"] = float((-2 * torch.pdist(unit).square()).exp().mean().log())
    return measures


@torch.no_grad()
def measure_knn(
    vectors: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor
) -> dict[str, float]:
    """Score kNN of features [N, D] with the neighbours `bank` [M, D]; returns {"knn": score}.

    The score is balanced accuracy for labels [N], and AUROC for labels [N, C]. Empty if features
    are not finite, or all labels are equal.
    """
    if not all(bool(torch.isfinite(v).all()) for v in (vectors, bank)):
        return {}
    if any(len(some_labels.unique(dim=0)) < 2 for some_labels in (labels, bank_labels)):
        return {}
    train = Features(bank.double(), bank_labels)
    values = KNN().score_features(train, vectors.double()).values.cpu()
    labels = labels.cpu()
    score = balanced_accuracy(labels, values) if labels.ndim == 1 else auroc(labels, values)[0]
    return {"knn": score} if math.isfinite(score) else {}


def effective_rank(vectors: Tensor) -> float:
    """RankMe of [N, D]: between 1 (all on one line) and min(N, D); 0 for zeros."""
    singular = torch.linalg.svdvals(vectors.double())
    share = singular / singular.sum().clamp_min(1e-30)
    return float(torch.special.entr(share).sum().exp()) if bool(singular.any()) else 0.0
