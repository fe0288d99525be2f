"""Loss functions: pure formulas as in their papers, without state and without collectives."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KOLEO_EPS = 1e-8  # added to distances, whose logarithm is infinite at 0


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE: classify each query's key among negatives (van den Oord et al., 2018).

    query, key [B, D]; negatives [K, D]; all of unit norm. The queue form is He et al.'s (2020).
    """
    # The query is divided instead of the logits, because it is much smaller.
    query = query / temperature
    positive = (query * key).sum(1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, query @ negatives.T], dim=1)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def nt_xent(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """NT-Xent: classify each query's key among the whole batch (Chen et al., 2020, equation 1).

    query, key [B, D] of unit norm. This is one direction. SimCLR averages it with
    `nt_xent(key, query)`.
    """
    diagonal = torch.eye(len(query), dtype=torch.bool, device=query.device)
    query_similarity = (query @ query.T).masked_fill(diagonal, -torch.inf)
    logits = torch.cat([query @ key.T, query_similarity], dim=1) / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def pick_nce(query: Tensor, candidates: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE with explicit candidates (van den Oord et al., 2018, equation 4).

    query [N, D]; candidates [M, D]; all of unit norm. key [N] is the position of each query's key
    among the M candidates. MoCo v3 uses the same form (Chen et al., 2021, algorithm 1).
    """
    return F.cross_entropy(query @ candidates.T / temperature, key)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Log loss of a discriminator's scores (Goodfellow et al., 2014, equation 1), of any shape.

    With real and fake ones swapped it is the loss of the generator, in the form that does not
    saturate (section 3).
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of the directions of x and y [B, D] (Grill et al., 2020, eq. 2)."""
    return 2 - 2 * F.cosine_similarity(x, y, dim=1).mean()


def unit_distance(x: Tensor, target: Tensor) -> Tensor:
    """Mean cosine distance of x [B, D, ...] to a target of unit norm along dimension 1.

    It is linear in the target. So the loss of a weighted mean of targets is that of their losses.
    """
    return 1 - (F.normalize(x, dim=1) * target).sum(1).mean()


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float, iterations: int, valid: Tensor | None = None
) -> Tensor:
    """Assign samples softly so that prototypes are used equally (Caron et al., 2020, algorithm 1).

    scores [B, K] -> assignment [B, K] whose rows sum to 1. Samples that are not `valid` [B] have no
    part in it; their rows are 0.
    """
    q = ((scores - scores.max()) / epsilon).exp()  # the shift cancels in the first division
    if valid is not None:
        q = q * valid[:, None]
    for _ in range(iterations):
        # The clamp avoids 0 / 0 for a prototype without samples.
        q = q / q.sum(0, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return q


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with soft targets. logits, target [B, K]; rows of the target sum to 1."""
    return -(target * logits.log_softmax(1)).sum(1).mean()


def koleo(x: Tensor) -> Tensor:
    """KoLeo: spread samples by the distance to their nearest one (Sablayrolles et al., 2018).

    x [B, D] is normalised here to unit norm. The loss is 0 where there is no other sample.
    """
    if len(x) < 2:
        return 0 * x.sum()
    x = F.normalize(x, dim=1)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(1)
    return -((x - x[nearest]).norm(dim=1) + KOLEO_EPS).log().mean()


def nce(positive: Tensor, negatives: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation (Gutmann & Hyvärinen, 2010; Wu et al., 2018, eqs. 6 and 7).

    positive [B]: log P(i|v) of the image itself. negatives [B, K]: the same of K images that were
    drawn uniformly from a set of `images`.
    """
    noise = math.log(negatives.shape[1] / images)  # log of K P_n
    return -(F.logsigmoid(positive - noise) + F.logsigmoid(noise - negatives).sum(1)).mean()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [B, C], from 0 to 4, of x [B, D] and y [C, D] of unit norm."""
    return (2 - 2 * x @ y.T).clamp_min(0)


def margin_contrastive(x: Tensor, y: Tensor, margin: float) -> Tensor:
    """Margin loss of pairs (Hadsell et al., 2006, equation 4).

    x, y [B, D] of unit norm. Equal rows are positive pairs, all others are negative pairs. Both
    kinds have the same weight.
    """
    diagonal = torch.eye(len(x), dtype=torch.bool, device=x.device)
    squared = squared_distances(x, y)
    distance = squared.clamp_min(1e-6).sqrt()  # the gradient of sqrt is infinite at 0
    pull = squared.diagonal().mean() / 2
    hinge = F.relu(margin - distance).square().masked_fill(diagonal, 0)
    push = hinge.sum() / max(len(x) * (len(x) - 1), 1) / 2
    return pull + push


def triplet(x: Tensor, y: Tensor, margin: float) -> Tensor:
    """Triplet loss with semi-hard negatives (Schroff et al., 2015, equations 3 and 4).

    x, y [B, D] of unit norm; equal rows are positive pairs. The negative is the nearest one beyond
    the positive. If there is none, it is the farthest one.
    """
    diagonal = torch.eye(len(x), dtype=torch.bool, device=x.device)
    squared = squared_distances(x, y)
    positive = squared.diagonal()
    semi_hard = squared.masked_fill(diagonal | (squared <= positive[:, None]), torch.inf).amin(1)
    farthest = squared.masked_fill(diagonal, -torch.inf).amax(1)
    negative = torch.where(semi_hard.isinf(), farthest, semi_hard)
    return F.relu(positive - negative + margin).mean()


@torch.no_grad()
def most_similar(x: Tensor, y: Tensor) -> Tensor:
    """Match each position of x with the most similar one of y (Wang et al., 2020, equation 4).

    x [B, C, S], y [B, C, T] -> positions in T [B, S]. The similarity is the cosine.
    """
    return torch.einsum("bcs,bct->bst", F.normalize(x, dim=1), F.normalize(y, dim=1)).argmax(2)


def barlow(x: Tensor, y: Tensor, redundancy: float) -> Tensor:
    """Barlow Twins: cross-correlation minus identity (Zbontar et al., 2021, equation 1).

    x, y [B, D] are standardised here over the batch. With C = x'y / B, the sum of squares of C is
    <xx', yy'> / B^2. So no D x D matrix is needed where D > B.
    """
    b, d = x.shape
    x, y = standardize(x), standardize(y)
    diagonal = (x * y).mean(0)
    squares = ((x @ x.T) * (y @ y.T)).sum() / b**2 if d > b else (x.T @ y / b).square().sum()
    return (1 - diagonal).square().sum() + redundancy * (squares - diagonal.square().sum())


def standardize(x: Tensor) -> Tensor:
    """Give each column of x [B, D] mean 0 and standard deviation 1, as batch norm does."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def spread_loss(x: Tensor) -> Tensor:
    """VICReg's variance term of x [B, D] (Bardes et al., 2021, equations 1 and 2).

    It is the mean over columns of how far the standard deviation is below 1.
    """
    return F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


def squared_covariance(x: Tensor) -> Tensor:
    """VICReg's covariance term of x [B, D] (Bardes et al., 2021, equation 4).

    It is the sum of squares of all covariances of two columns, divided by D. As |x'x| = |xx'|, the
    smaller of the two matrices is computed.
    """
    b, d = x.shape
    x = x - x.mean(0)
    gram = x @ x.T if d > b else x.T @ x
    return ((gram / (b - 1)).square().sum() - x.var(0).square().sum()) / d


def proto_nce(
    query: Tensor, prototypes: Tensor, concentration: Tensor, label: Tensor, others: Tensor
) -> Tensor:
    """ProtoNCE of one clustering (Li et al., 2020, equation 11).

    query [B, D], prototypes [K, D], all of unit norm; concentration [K]; label [B], the prototype
    of each query. A label of -1 means none and adds a loss of 0. others [R] are the negative
    prototypes; a query's own prototype among them is masked out.
    """
    own = label.clamp_min(0)
    positive = (query * prototypes[own]).sum(1) / concentration[own]
    negatives = (query @ prototypes[others].T / concentration[others]).masked_fill(
        others == own[:, None], -torch.inf
    )
    losses = torch.cat([positive[:, None], negatives], 1).logsumexp(1) - positive
    return (losses * (label >= 0)).mean()


@torch.no_grad()
def concentration(
    points: Tensor, centroids: Tensor, label: Tensor, mean: float, alpha: float
) -> Tensor:
    """Concentration, or temperature, of each cluster [K] (Li et al., 2020, equation 12).

    points [N, D], centroids [K, D], label [N]. Small clusters count as wider, by `alpha`. A cluster
    of fewer than two points is as wide as the widest. Values are clamped to the quantiles .1
    and .9, then scaled to a mean of `mean`, as in the authors' code.
    """
    distance = (points - centroids[label]).norm(dim=1)
    sums = torch.zeros_like(centroids[:, 0]).index_add_(0, label, distance)
    counts = torch.bincount(label, minlength=len(centroids)).to(points)
    width = torch.where(counts > 1, sums / (counts.clamp_min(1) * (counts + alpha).log()), 0)
    # The clamp avoids 0 / 0 where all points are equal.
    width = torch.where(counts > 1, width, width.max()).clamp_min(1e-6)
    low, high = width.quantile(width.new_tensor([0.1, 0.9]))
    width = width.clamp(low, high)
    return mean * width / width.mean()
