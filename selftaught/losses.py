"""Loss functions: pure, scalar, written as in their papers, blind to distribution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Tell each query's key from the negatives (van den Oord et al., 2018; He et al., 2020).

    query, key [B, D]; negatives [K, D]; all of unit norm.
    """
    positive = (query * key).sum(1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, query @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def nt_xent(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Tell each query's key from every other sample of the batch (Chen et al., 2020, equation 1).

    query, key [B, D] of unit norm. One direction: SimCLR averages it with that of `nt_xent(key, query)`.
    """
    itself = torch.eye(len(query), dtype=torch.bool, device=query.device)
    among_queries = (query @ query.T).masked_fill(itself, -torch.inf)
    logits = torch.cat([query @ key.T, among_queries], dim=1) / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of the directions of x and y [B, D] (Grill et al., 2020, equation 2)."""
    return 2 - 2 * F.cosine_similarity(x, y, dim=1).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples softly so that prototypes are used equally (Caron et al., 2020, algorithm 1).

    scores [B, K] -> assignment [B, K] whose rows sum to 1.
    """
    q = ((scores - scores.max()) / epsilon).exp()  # the shift cancels in the first division
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)  # an unused prototype stays unused
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return q


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """logits, target [B, K]; rows of the target sum to 1."""
    return -(target * logits.log_softmax(1)).sum(1).mean()
