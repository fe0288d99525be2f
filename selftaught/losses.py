"""Loss functions: pure, scalar, written as in their papers, blind to distribution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Tell each query's key from the negatives (van den Oord et al., 2018; He et al., 2020).

    query, key [B, D]; negatives [K, D]; all of unit norm.
    """
    # it is small: the logits, which are many, are not gone over once more
    query = query / temperature
    positive = (query * key).sum(1, keepdim=True)  # [B, 1]
    logits = torch.cat([positive, query @ negatives.T], dim=1)
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def nt_xent(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Tell each query's key from every other sample of the batch (Chen et al., 2020, equation 1).

    query, key [B, D] of unit norm. One direction: SimCLR averages it with that of `nt_xent(key,
    query)`.
    """
    itself = torch.eye(len(query), dtype=torch.bool, device=query.device)
    among_queries = (query @ query.T).masked_fill(itself, -torch.inf)
    logits = torch.cat([query @ key.T, among_queries], dim=1) / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def pick_nce(query: Tensor, candidates: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Pick each query's key from the candidates (van den Oord et al., 2018, equation 4; Chen et
    al., 2021, algorithm 1).

    query [N, D]; candidates [M, D]; all of unit norm; key [N]: which of the M is the query's own.
    """
    return F.cross_entropy(query @ candidates.T / temperature, key)


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of the directions of x and y [B, D] (Grill et al., 2020, equation
    2).
    """
    return 2 - 2 * F.cosine_similarity(x, y, dim=1).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples softly so that prototypes are used equally (Caron et al., 2020, algorithm 1).

    scores [B, K] -> assignment [B, K] whose rows sum to 1.
    """
    q = ((scores - scores.max()) / epsilon).exp()  # the shift cancels in the first division
    for _ in range(iterations):
        # an unused prototype stays unused
        q = q / q.sum(0, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
        q = q / q.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return q


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """logits, target [B, K]; rows of the target sum to 1."""
    return -(target * logits.log_softmax(1)).sum(1).mean()


def nce(positive: Tensor, negatives: Tensor, images: int) -> Tensor:
    """Tell an image from noise (Wu et al., 2018, equations 6 and 7; Gutmann & Hyvärinen, 2010).

    positive [B]: log P(i|v) of the image itself; negatives [B, K]: of K images drawn uniformly from
    `images`.
    """
    noise = math.log(negatives.shape[1] / images)  # log of K P_n
    return -(F.logsigmoid(positive - noise) + F.logsigmoid(noise - negatives).sum(1)).mean()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """x [B, D], y [C, D] of unit norm -> [B, C], 0 to 4."""
    return (2 - 2 * x @ y.T).clamp_min(0)


def margin_contrastive(x: Tensor, y: Tensor, margin: float) -> Tensor:
    """Partners near, others `margin` apart (Hadsell et al., 2006, equation 4), as many pairs of one
    kind as of the other.

    x, y [B, D] of unit norm; rows of one place are partners.
    """
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    squared = squared_distances(x, y)
    distance = squared.clamp_min(1e-6).sqrt()  # whose slope is infinite at 0
    pull = squared.diagonal().mean() / 2
    push = (
        F.relu(margin - distance).square().masked_fill(itself, 0).sum()
        / max(len(x) * (len(x) - 1), 1)
        / 2
    )
    return pull + push


def triplet(x: Tensor, y: Tensor, margin: float) -> Tensor:
    """Partners nearer than others by `margin` (Schroff et al., 2015, equation 3), for semi-hard
    others (equation 4).

    x, y [B, D] of unit norm; rows of one place are partners. Of the others, the nearest that is
    farther than the partner counts, or the farthest where none is.
    """
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    squared = squared_distances(x, y)
    partner = squared.diagonal()
    beyond = squared.masked_fill(itself | (squared <= partner[:, None]), torch.inf).amin(1)
    farthest = squared.masked_fill(itself, -torch.inf).amax(1)
    return F.relu(partner - torch.where(beyond.isinf(), farthest, beyond) + margin).mean()


@torch.no_grad()
def most_similar(x: Tensor, y: Tensor) -> Tensor:
    """Maps [B, C, S], [B, C, T] -> [B, S]: for each place of x, the place of y whose vector points
    most alike.

    (Wang et al., 2020, equation 4.)
    """
    return torch.einsum("bcs,bct->bst", F.normalize(x, dim=1), F.normalize(y, dim=1)).argmax(2)


def barlow(x: Tensor, y: Tensor, redundancy: float) -> Tensor:
    """The cross-correlation of two views' dimensions should be the identity (Zbontar et al., 2021,
    equation 1).

    x, y [B, D]; standardised here over the batch. With C = x'y / B the sum of all its squares is
    <xx', yy'> / B^2, so that where D > B no D x D matrix is needed.
    """
    b, d = x.shape
    x, y = standardized(x), standardized(y)
    diagonal = (x * y).mean(0)
    squares = ((x @ x.T) * (y @ y.T)).sum() / b**2 if d > b else (x.T @ y / b).square().sum()
    return (1 - diagonal).square().sum() + redundancy * (squares - diagonal.square().sum())


def standardized(x: Tensor) -> Tensor:
    """Each column of x [B, D] with mean 0 and standard deviation 1, as by batch norm."""
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def spread_loss(x: Tensor) -> Tensor:
    """How far the standard deviations of the columns of x [B, D] are below 1 (Bardes et al., 2021,
    equations 1 and 2).
    """
    return F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


def squared_covariance(x: Tensor) -> Tensor:
    """The sum of all squared covariances of two columns of x [B, D], over D (Bardes et al., 2021,
    equation 4).

    As |x'x| = |xx'|, the smaller of the two matrices is enough.
    """
    b, d = x.shape
    x = x - x.mean(0)
    gram = x @ x.T if d > b else x.T @ x
    return ((gram / (b - 1)).square().sum() - x.var(0).square().sum()) / d


def proto_nce(
    query: Tensor, prototypes: Tensor, concentration: Tensor, label: Tensor, others: Tensor
) -> Tensor:
    """Tell each query's prototype from others (Li et al., 2020, equation 11, for one clustering).

    query [B, D], prototypes [K, D], all of unit norm; concentration [K]; label [B], -1 = none,
    which counts nothing; others [R]: the prototypes to tell it from; where a query's own is among
    them it is passed over.
    """
    known = label.clamp_min(0)
    positive = (query * prototypes[known]).sum(1) / concentration[known]
    negatives = (query @ prototypes[others].T / concentration[others]).masked_fill(
        others == known[:, None], -torch.inf
    )
    surprise = torch.cat([positive[:, None], negatives], 1).logsumexp(1) - positive
    return (surprise * (label >= 0)).mean()


@torch.no_grad()
def concentration(
    points: Tensor, centroids: Tensor, label: Tensor, mean: float, alpha: float
) -> Tensor:
    """How wide each cluster is, small ones counting as wider (Li et al., 2020, equation 12): their
    temperatures [K].

    points [N, D], centroids [K, D], label [N]. A cluster of one point or none is as wide as the
    widest; then the widest and the narrowest tenth are cut off, and all scaled to `mean`, as in the
    authors' code.
    """
    distance = (points - centroids[label]).norm(dim=1)
    sums = torch.zeros_like(centroids[:, 0]).index_add_(0, label, distance)
    counts = torch.bincount(label, minlength=len(centroids)).to(points)
    width = torch.where(counts > 1, sums / (counts.clamp_min(1) * (counts + alpha).log()), 0)
    # all points in one place: all alike
    width = torch.where(counts > 1, width, width.max()).clamp_min(1e-6)
    low, high = width.quantile(width.new_tensor([0.1, 0.9]))
    width = width.clamp(low, high)
    return mean * width / width.mean()
