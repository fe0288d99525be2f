"""Weighted k-nearest neighbours (Wu et al., 2018, https://arxiv.org/abs/1805.01978), in blocks, for
banks of any length.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.errors import UserError
from selftaught.features.protocol import FeatureProtocol, Features, Scores, class_count


@dataclass(frozen=True, kw_only=True)
class KNN(FeatureProtocol):
    """Each of the `neighbours` nearest training images (cosine) votes for its classes with weight
    exp(cosine / temperature).

    Fewer training images than `neighbours`: all of them vote. The scores are shares of the vote, so
    a row of them sums to one (each lies in [0, 1] for several classes an image).
    """

    neighbours: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0:
            raise UserError("kNN needs at least one neighbour and a temperature above zero")

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
        # the largest weight of a query is 1: nothing overflows at small temperatures, the shares
        # are the same
        weight = ((similarity - similarity[:, :1]) / self.temperature).exp()
        weight = weight / weight.sum(1, keepdim=True)
        classes = class_count(train.labels)
        values = weight.new_zeros(len(test), classes)
        if train.multi_label:
            for rows in torch.arange(len(test), device=test.device).split(
                4096
            ):  # bounds [rows, k, C]
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
    """The k = min(neighbours, N) rows of `bank` [N, D] nearest to each query [M, D] -> cosine [M,
    k] falling, position [M, k].

    Memory: one similarity block [query_block, bank_block], one normalised block of the bank, and
    the result.
    """
    queries = F.normalize(queries, dim=1)
    k = min(neighbours, len(bank))
    best = queries.new_full((len(queries), k), -torch.inf)
    where = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), bank_block):
        # never a normalised copy of the whole bank
        block = F.normalize(bank[start : start + bank_block], dim=1)
        for first in range(0, len(queries), query_block):
            rows = slice(first, first + query_block)
            found, at = largest(queries[rows] @ block.T, min(k, len(block)))
            if start == 0 and len(block) >= k:
                best[rows], where[rows] = found, at
                continue
            both = torch.cat([best[rows], found], dim=1)
            best[rows], kept = both.topk(k, dim=1)
            where[rows] = torch.cat([where[rows], at + start], dim=1).gather(1, kept)
    return best, where


def largest(scores: Tensor, k: int, *, width: int = 8) -> tuple[Tensor, Tensor]:
    """`scores.topk(k, dim=1)` of [M, N] in half the time: the k largest are in the k groups of
    `width` whose largest are.

    (Columns that lie N / width apart are a group, so that the groups' largest are found many
    columns at a time.)
    """
    groups = scores.shape[1] // width
    if groups <= 2 * k:
        return scores.topk(k, dim=1)
    grouped = scores[:, : width * groups].unflatten(1, (width, groups))
    first = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    columns = torch.arange(scores.shape[1], device=scores.device)
    at = (first[:, None] + columns[: width * groups : groups, None]).flatten(1)
    # those that are left over
    at = torch.cat([at, columns[width * groups :].expand(len(scores), -1)], dim=1)
    found, which = scores.gather(1, at).topk(k, dim=1)
    return found, at.gather(1, which)
