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
    """Measures of the features [N, D] of a fixed sample; `second` [N, D] are those of another view
    of the same images.

    std: of the L2-normalised features, the mean over dimensions times sqrt(D): 1 = spread over the
    sphere, 0 = one point. rank: RankMe (Garrido et al., 2023, https://arxiv.org/abs/2210.02885),
    exp of the entropy of the singular values. alignment (with `second`) and uniformity: Wang &
    Isola (2020, https://arxiv.org/abs/2005.10242), alpha = 2 and t = 2.

    Features that are not finite have std and rank nan, and nothing else.
    """
    vectors = vectors.double()
    if not bool(torch.isfinite(vectors).all()):
        return {"std": math.nan, "rank": math.nan}
    unit = F.normalize(vectors, dim=1)
    found = {
        "std": float(unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5),
        "rank": effective_rank(vectors),
    }
    if second is not None and bool(torch.isfinite(second).all()):
        found["alignment"] = float(
            (unit - F.normalize(second.double(), dim=1)).square().sum(1).mean()
        )
    if len(unit) > 1:
        found["uniformity"] = float((-2 * torch.pdist(unit).square()).exp().mean().log())
    return found


@torch.no_grad()
def votes(vectors: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> dict[str, float]:
    """knn: balanced accuracy of a vote among `bank` [M, D]; for several classes an image, the
    AUROC. Nothing where the features are not finite, or the labels of one kind.
    """
    if not all(bool(torch.isfinite(v).all()) for v in (vectors, bank)):
        return {}
    if any(len(found.unique(dim=0)) < 2 for found in (labels, bank_labels)):
        return {}
    train = Features(bank.double(), bank_labels)
    values = KNN().score_features(train, vectors.double()).values.cpu()
    labels = labels.cpu()
    accuracy = balanced_accuracy(labels, values) if labels.ndim == 1 else auroc(labels, values)[0]
    return {"knn": accuracy} if math.isfinite(accuracy) else {}


def effective_rank(vectors: Tensor) -> float:
    """RankMe of [N, D]: between 1 (all on one line) and min(N, D); 0 for zeros."""
    singular = torch.linalg.svdvals(vectors.double())
    share = singular / singular.sum().clamp_min(1e-30)
    return float(torch.special.entr(share).sum().exp()) if bool(singular.any()) else 0.0
