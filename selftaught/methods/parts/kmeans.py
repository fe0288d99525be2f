"""Spherical k-means over all processes, on the device of the points, and its preprocessing."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.devices import upcast
from selftaught.distributed import all_reduce_sum, gather, rank, world_size
from selftaught.errors import UserError

UNSEEN = -1  # the cluster of an image that no clustering has included yet


@torch.no_grad()
def kmeans(
    points: Tensor,
    clusters: int,
    iterations: int = 10,
    rng: torch.Generator | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cluster points [N, D]: return centroids [K, D] of unit norm, and the assignment [N].

    Points have unit norm and are the same on every rank. The first centroids are random points:
    `rng`, or the global generator, must have the same state on every rank. An empty cluster keeps
    its centroid, as in DeepCluster-v2. Each process assigns its share of the points. Raises
    ValueError for more clusters than points.
    """
    if clusters > len(points):
        raise ValueError(f"{clusters} clusters for {len(points)} points")
    chunk = chunk or block(points.device, clusters)
    # bf16 is too coarse to distinguish near centroids
    with torch.autocast(points.device.type, enabled=False):
        return _lloyd(points, clusters, iterations, rng, chunk)


def block(device: torch.device, clusters: int) -> int:
    """Return the number of points to compare with all clusters at once.

    On a CPU they fit its cache; elsewhere the comparison takes 1 GiB at most.
    """
    return 1024 if device.type == "cpu" else max(1, min(65536, 2**28 // clusters))


def _lloyd(
    points: Tensor, clusters: int, iterations: int, rng: torch.Generator | None, chunk: int
) -> tuple[Tensor, Tensor]:
    centroids = points[torch.randperm(len(points), generator=rng)[:clusters].to(points.device)]
    share = -(-len(points) // world_size())
    local_points = points[rank() * share : (rank() + 1) * share]
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), centroids.new_zeros(clusters)
        for part in local_points.split(chunk):
            nearest = closest(part, centroids)
            sums.index_add_(0, nearest, part)
            counts += torch.bincount(nearest, minlength=clusters)
        all_reduce_sum(sums), all_reduce_sum(counts)
        centroids = F.normalize(torch.where(counts[:, None] > 0, sums, centroids), dim=1)
    nearest = torch.cat(
        [closest(part, centroids) for part in local_points.split(chunk)]
        or [counts.new_zeros(0).long()]
    )
    nearest = F.pad(nearest, (0, share - len(nearest)))  # the last ranks' shares may be short
    return centroids, gather(nearest)[: len(points)]


def closest(points: Tensor, centroids: Tensor) -> Tensor:
    """points [N, D], centroids [K, D] -> index [N] of the most similar centroid."""
    return (points @ centroids.T).max(1).indices  # on a CPU twice as fast as argmax


def check_clusters(clusters: int, images: int) -> None:
    """Raise UserError where there are more clusters than images."""
    if clusters > images:
        raise UserError(
            f"{clusters} clusters need as many images, and there are {images}: lower"
            " --method.clusters"
        )


@torch.no_grad()
def table(parts: Iterable[tuple[Tensor, Tensor]], images: int) -> tuple[Tensor, Tensor]:
    """Gather the features of all ranks' batches: return image indices [S] and features [S, D].

    `parts`: (index [B], features [B, D]) of this process's batches. The result is sorted by index,
    and is the same on every rank.
    """
    rows, filled = torch.empty(0), torch.empty(0, dtype=torch.bool)
    for index, features in parts:
        index, features = gather(index), gather(upcast(features))
        if not len(rows):
            rows = features.new_zeros(images, features.shape[1])
            filled = index.new_zeros(images, dtype=torch.bool)
        rows[index], filled[index] = features, True
    indices = filled.nonzero()[:, 0]
    return indices, rows[indices]


@torch.no_grad()
def whiten(points: Tensor, dim: int) -> Tensor:
    """points [N, D] -> [N, dim] of unit norm: the first principal components.

    Each component has variance 1 before the points are normalised.
    """
    with torch.autocast(points.device.type, enabled=False):
        centred = points - points.mean(0)
        variance, axes = torch.linalg.eigh(centred.T @ centred / len(points))  # ascending
        variance, axes = variance[-dim:], axes[:, -dim:]
        # variance below the floor is rounding noise
        floor = max(1e-6 * variance[-1].item(), torch.finfo(points.dtype).tiny)
        return F.normalize(centred @ axes / variance.clamp_min(floor).sqrt(), dim=1)
