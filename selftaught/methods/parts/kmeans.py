"""Spherical k-means, over all processes, on whichever device the points are; and how points are got
ready for it.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.devices import upcast
from selftaught.distributed import all_reduce_sum, gather, rank, world_size
from selftaught.errors import UserError

UNSEEN = -1  # in place of a cluster: an image that no clustering has met yet


@torch.no_grad()
def kmeans(
    points: Tensor,
    clusters: int,
    iterations: int = 10,
    rng: torch.Generator | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """points [N, D] of unit norm, the same on every rank -> centroids [K, D] of unit norm,
    assignment [N].

    Starts from random points (`rng`, or the global generator, must be in one state on every rank);
    a cluster that empties keeps its centroid, as in DeepCluster-v2. Each process assigns its share
    of the points.
    """
    if clusters > len(points):
        raise ValueError(f"{clusters} clusters for {len(points)} points")
    chunk = chunk or block(points.device, clusters)
    with torch.autocast(
        points.device.type, enabled=False
    ):  # near centroids differ in digits that bf16 lacks
        return _lloyd(points, clusters, iterations, rng, chunk)


def block(device: torch.device, clusters: int) -> int:
    """How many points are compared with all clusters at once: what a CPU's cache holds, and
    elsewhere 1 GiB at most.
    """
    return 1024 if device.type == "cpu" else max(1, min(65536, 2**28 // clusters))


def _lloyd(
    points: Tensor, clusters: int, iterations: int, rng: torch.Generator | None, chunk: int
) -> tuple[Tensor, Tensor]:
    centroids = points[torch.randperm(len(points), generator=rng)[:clusters].to(points.device)]
    share = -(-len(points) // world_size())
    mine = points[rank() * share : (rank() + 1) * share]
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), centroids.new_zeros(clusters)
        for part in mine.split(chunk):
            nearest = closest(part, centroids)
            sums.index_add_(0, nearest, part)
            counts += torch.bincount(nearest, minlength=clusters)
        all_reduce_sum(sums), all_reduce_sum(counts)
        centroids = F.normalize(torch.where(counts[:, None] > 0, sums, centroids), dim=1)
    nearest = torch.cat(
        [closest(part, centroids) for part in mine.split(chunk)] or [counts.new_zeros(0).long()]
    )
    nearest = F.pad(nearest, (0, share - len(nearest)))  # the last ranks' shares may be short
    return centroids, gather(nearest)[: len(points)]


def closest(points: Tensor, centroids: Tensor) -> Tensor:
    return (points @ centroids.T).max(1).indices  # on a CPU twice as fast as argmax


def check_clusters(clusters: int, images: int) -> None:
    if clusters > images:
        raise UserError(
            f"{clusters} clusters need as many images, and there are {images}: lower"
            " --method.clusters"
        )


@torch.no_grad()
def table(parts: Iterable[tuple[Tensor, Tensor]], images: int) -> tuple[Tensor, Tensor]:
    """(index [B], features [B, D]) of this process's batches -> which images were seen [S], and
    features [S, D] of each.

    On every rank: those of all ranks, in the order of the images.
    """
    rows, seen = torch.empty(0), torch.empty(0, dtype=torch.bool)
    for index, features in parts:
        index, features = gather(index), gather(upcast(features))
        if not len(rows):
            rows, seen = (
                features.new_zeros(images, features.shape[1]),
                index.new_zeros(images, dtype=torch.bool),
            )
        rows[index], seen[index] = features, True
    found = seen.nonzero()[:, 0]
    return found, rows[found]


@torch.no_grad()
def whiten(points: Tensor, dim: int) -> Tensor:
    """points [N, D] -> [N, dim] of unit norm: the first principal components, each with variance 1
    before the last.
    """
    with torch.autocast(points.device.type, enabled=False):
        centred = points - points.mean(0)
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(points))  # the largest last
        variance, axes = variance[-dim:], axes[:, -dim:]
        # below it lies noise
        floor = max(1e-6 * variance[-1].item(), torch.finfo(points.dtype).tiny)
        return F.normalize(centred @ axes / variance.clamp_min(floor).sqrt(), dim=1)
