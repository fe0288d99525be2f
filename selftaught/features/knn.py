"""Weighted k-nearest neighbours (Wu et al., 2018, https://arxiv.org/abs/1805.01978)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.features.protocol import FeatureProtocol, Features, Scores, class_count
from selftaught.ranges import Count, Positive, check_ranges


@dataclass(frozen=True, kw_only=True)
class KNN(FeatureProtocol):
    """A weighted vote of the `neighbours` nearest training images, by cosine similarity.

    A vote has the weight exp(cosine / temperature). If there are fewer training images than
    `neighbours`, all of them vote. Scores are shares of the vote, so a row sums to one. For several
    classes an image, each entry is in [0, 1]. Raises UserError for values out of range.
    """

    neighbours: Count = 20  # nearest training images, which vote
    temperature: Positive = 0.07  # a vote has the weight exp(similarity / temperature)

    def __post_init__(self) -> None:
        check_ranges(self, "knn")

    @property
    def name(self) -> str:
        return "knn"

    def describe(self) -> str:
        return (
            f"weighted kNN, cosine, {self.neighbours} neighbours, temperature {self.temperature:g}"
        )

    @torch.no_grad()
    def score_features(self, train: Features, test: Tensor) -> Scores:
        similarity, neighbour = nearest(test, train.vectors, self.neighbours)
        # Relative to the nearest image, so that exp does not overflow; the shares stay the same.
        weight = ((similarity - similarity[:, :1]) / self.temperature).exp()
        weight = weight / weight.sum(1, keepdim=True)
        classes = class_count(train.labels)
        values = weight.new_zeros(len(test), classes)
        if train.multi_label:
            # Blocks of rows bound the size of [rows, k, C].
            for rows in torch.arange(len(test), device=test.device).split(4096):
                labels = train.labels[neighbour[rows]].to(weight.dtype)
                values[rows] = torch.einsum("mk,mkc->mc", weight[rows], labels)
        else:
            values.scatter_add_(1, train.labels[neighbour], weight)
        return Scores(values)


@torch.no_grad()
def nearest(
    queries: Tensor,
    bank: Tensor,
    neighbours: int,
    *,
    query_block: int = 1024,
    bank_block: int = 32768,
) -> tuple[Tensor, Tensor]:
    """Find the k = min(neighbours, N) rows of `bank` [N, D] nearest to each query [M, D].

    Returns cosine similarities [M, k], in falling order, and positions in the bank [M, k]. Memory
    is bounded by one block of similarities [query_block, bank_block], one block of the bank and the
    result.
    """
    queries = F.normalize(queries, dim=1)
    k = min(neighbours, len(bank))
    best = queries.new_full((len(queries), k), -torch.inf)
    where = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), bank_block):
        # Block by block, because a normalised copy of the whole bank could be too large.
        block = F.normalize(bank[start : start + bank_block], dim=1)
        for first in range(0, len(queries), query_block):
            rows = slice(first, first + query_block)
            values, at = find_largest(queries[rows] @ block.T, min(k, len(block)))
            if start == 0 and len(block) >= k:
                best[rows], where[rows] = values, at
                continue
            both = torch.cat([best[rows], values], dim=1)
            best[rows], order = both.topk(k, dim=1)
            where[rows] = torch.cat([where[rows], at + start], dim=1).gather(1, order)
    return best, where


def find_largest(scores: Tensor, k: int, *, width: int = 8) -> tuple[Tensor, Tensor]:
    """Compute `scores.topk(k, dim=1)` of [M, N] in half the time.

    Columns are grouped by `width`. The k largest values lie in the k groups with the largest
    maxima. Columns of a group lie N / width apart, so the maxima are computed over whole slices.
    """
    groups = scores.shape[1] // width
    if groups <= 2 * k:
        return scores.topk(k, dim=1)
    grouped = scores[:, : width * groups].unflatten(1, (width, groups))
    first = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    columns = torch.arange(scores.shape[1], device=scores.device)
    at = (first[:, None] + columns[: width * groups : groups, None]).flatten(1)
    # Columns that belong to no group.
    at = torch.cat([at, columns[width * groups :].expand(len(scores), -1)], dim=1)
    values, which = scores.gather(1, at).topk(k, dim=1)
    return values, at.gather(1, which)
