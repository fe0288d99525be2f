"""Spherical k-means against plain loops, and what it must do where clusters empty or are plain to
see.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selftaught.methods.parts.kmeans import block, kmeans
from tests.formulas import Row, Rows, close, dot, few, seeds, unit
from tests.laws.toys import rng


def start(points: Tensor, clusters: int, seed: int) -> Tensor:
    """The points that `kmeans` starts from."""
    return points[torch.randperm(len(points), generator=rng(seed))[:clusters]]


def nearest(point: Row, centroids: Rows) -> int:
    alike = [dot(point, c) for c in centroids]
    return alike.index(max(alike))


def plain_kmeans(
    points: Tensor, clusters: int, iterations: int, seed: int
) -> tuple[Rows, list[int]]:
    data, centroids = points.tolist(), start(points, clusters, seed).tolist()
    for _ in range(iterations):
        assignment = [nearest(point, centroids) for point in data]
        for k in range(clusters):
            members = [point for point, a in zip(data, assignment, strict=True) if a == k]
            if members:
                total = [sum(values) for values in zip(*members, strict=True)]
                centroids[k] = [v / math.sqrt(dot(total, total)) for v in total]
    return centroids, [nearest(point, centroids) for point in data]


@few
@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 6), st.integers(1, 6), seeds)
def test_it_is_the_plain_algorithm(
    n: int, d: int, clusters: int, iterations: int, seed: int
) -> None:
    """The points stay as they are, and the size of a chunk changes nothing."""
    clusters, points = min(clusters, n), unit(n, d, seed=seed)
    centroids, assignment = kmeans(points, clusters, iterations, rng(seed))
    theirs, where = plain_kmeans(unit(n, d, seed=seed), clusters, iterations, seed)
    close(centroids, torch.tensor(theirs, dtype=torch.float64), 1e-7)
    assert assignment.tolist() == where
    assert assignment.dtype == torch.long
    again, same = kmeans(points, clusters, iterations, rng(seed), chunk=seed % n + 1)
    close(again, centroids, 1e-7)
    assert torch.equal(same, assignment)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    """Of equal centroids the first takes all the points."""
    points = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 1]]
    for seed in range(6):
        centroids, assignment = kmeans(points, 3, 10, rng(seed))
        empty = [k for k in range(3) if k not in assignment.tolist()]
        assert empty
        assert torch.equal(centroids[empty], start(points, 3, seed)[empty])
        assert torch.isfinite(centroids).all()


def test_it_finds_clusters_that_are_plain_to_see() -> None:
    """Where no two centroids start in one cluster: k-means is a local search."""
    truth = torch.arange(60) % 3
    points = F.normalize(torch.eye(8)[truth] + 0.1 * torch.randn(60, 8, generator=rng(0)), dim=1)
    result = 0
    for seed in range(60):
        if len(start(truth, 3, seed).unique()) == 3:
            centroids, assignment = kmeans(points, 3, 10, rng(seed))
            pairs = set(zip(truth.tolist(), assignment.tolist(), strict=True))
            assert len(pairs) == 3
            assert all(centroids[a, k] > 0.95 for k, a in pairs)
            result += 1
    assert result > 5


def test_as_many_clusters_as_points_gives_each_its_own() -> None:
    points = unit(5, 4, seed=0)
    centroids, assignment = kmeans(points, 5, 3, rng())
    assert sorted(assignment.tolist()) == list(range(5))
    torch.testing.assert_close(centroids[assignment], points)
    with pytest.raises(ValueError, match="6 clusters for 5 points"):
        kmeans(points, 6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("clusters", [10, 3000, 100_000])
def test_clusters_are_compared_in_blocks_that_fit(device: str, clusters: int) -> None:
    """Blocks of 65,536 points took 26 GB for the 100,000 clusters that PCL makes of ImageNet."""
    assert clusters <= clusters * block(torch.device(device), clusters) <= 2**28
