"""Spherical k-means against plain loops, and what it must do where clusters empty or are plain to
see.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selftaught.methods.parts.kmeans import block, kmeans
from tests.laws.toys import rng

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def sphere(n: int, d: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=rng(seed), dtype=torch.float64), dim=1)


def start(points: Tensor, clusters: int, seed: int) -> Tensor:
    """The points that `kmeans` starts from."""
    return points[torch.randperm(len(points), generator=rng(seed))[:clusters]]


def nearest(point: list[float], centroids: list[list[float]]) -> int:
    alike = [sum(a * b for a, b in zip(point, c, strict=True)) for c in centroids]
    return alike.index(max(alike))


def plain_kmeans(
    points: Tensor, clusters: int, iterations: int, seed: int
) -> tuple[list[list[float]], list[int]]:
    data, centroids = points.tolist(), start(points, clusters, seed).tolist()
    for _ in range(iterations):
        assignment = [nearest(point, centroids) for point in data]
        for k in range(clusters):
            members = [point for point, a in zip(data, assignment, strict=True) if a == k]
            if members:
                total = [sum(values) for values in zip(*members, strict=True)]
                length = sum(v * v for v in total) ** 0.5
                centroids[k] = [v / length for v in total]
    return centroids, [nearest(point, centroids) for point in data]


@few
@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 6), st.integers(1, 6), seeds)
def test_it_is_the_plain_algorithm(
    n: int, d: int, clusters: int, iterations: int, seed: int
) -> None:
    clusters = min(clusters, n)
    points = sphere(n, d, seed)
    centroids, assignment = kmeans(points, clusters, iterations, rng(seed))
    theirs, where = plain_kmeans(points, clusters, iterations, seed)
    torch.testing.assert_close(
        centroids, torch.tensor(theirs, dtype=torch.float64), rtol=1e-7, atol=1e-9
    )
    assert assignment.tolist() == where


@few
@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 8), seeds)
def test_centroids_lie_on_the_sphere_and_points_go_to_the_nearest(
    n: int, d: int, clusters: int, seed: int
) -> None:
    points = sphere(n, d, seed)
    centroids, assignment = kmeans(points, min(clusters, n), rng=rng(seed))
    torch.testing.assert_close(
        centroids.norm(dim=1), torch.ones(len(centroids), dtype=torch.float64)
    )
    assert assignment.dtype == torch.long
    assert torch.equal(assignment, (points @ centroids.T).argmax(1))


@few
@given(st.integers(2, 40), st.integers(2, 6), seeds)
def test_iterations_only_bring_the_centroids_nearer(n: int, clusters: int, seed: int) -> None:
    points = sphere(n, 4, seed)
    closeness = -1.0
    for iterations in (1, 2, 4, 8):
        centroids, assignment = kmeans(points, min(clusters, n), iterations, rng(seed))
        now = (points * centroids[assignment]).sum(1).mean().item()
        assert now >= closeness - 1e-12
        closeness = now


@few
@given(st.integers(1, 20), seeds)
def test_the_size_of_a_chunk_changes_nothing(chunk: int, seed: int) -> None:
    points = sphere(20, 4, seed)
    whole, in_parts = kmeans(points, 4, 5, rng(seed)), kmeans(points, 4, 5, rng(seed), chunk=chunk)
    torch.testing.assert_close(in_parts[0], whole[0])
    assert torch.equal(in_parts[1], whole[1])


def test_an_empty_cluster_keeps_its_centroid() -> None:
    """Of equal centroids the first takes all the points."""
    points = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 1]]
    for seed in range(6):
        centroids, assignment = kmeans(points, 3, 10, rng(seed))
        begun = start(points, 3, seed)
        empty = [k for k in range(3) if k not in assignment.tolist()]
        assert empty
        for k in empty:
            assert torch.equal(centroids[k], begun[k])
        assert torch.isfinite(centroids).all()


def test_it_finds_clusters_that_are_plain_to_see() -> None:
    truth = torch.arange(60) % 3
    points = F.normalize(torch.eye(8)[truth] + 0.1 * torch.randn(60, 8, generator=rng(0)), dim=1)
    found = 0
    for seed in range(60):
        if len(set(truth[torch.randperm(60, generator=rng(seed))[:3]].tolist())) < 3:
            # k-means is a local search: it may fail where two centroids start in one cluster
            continue
        centroids, assignment = kmeans(points, 3, 10, rng(seed))
        pairs = set(zip(truth.tolist(), assignment.tolist(), strict=True))
        assert len(pairs) == 3
        for k, a in pairs:
            assert centroids[a, k] > 0.95
        found += 1
    assert found > 5


def test_as_many_clusters_as_points_gives_each_its_own() -> None:
    points = sphere(5, 4, 0)
    centroids, assignment = kmeans(points, 5, 3, rng())
    assert sorted(assignment.tolist()) == list(range(5))
    torch.testing.assert_close(centroids[assignment], points)


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match="6 clusters for 5 points"):
        kmeans(sphere(5, 4, 0), 6)


def test_the_seed_decides_and_the_points_stay_as_they_are() -> None:
    points = sphere(30, 4, 0)
    before = points.clone()
    one, two = kmeans(points, 6, rng=rng(1)), kmeans(points, 6, rng=rng(1))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert torch.equal(points, before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("clusters", [10, 3000, 100_000])
def test_clusters_are_compared_in_blocks_that_fit(device: str, clusters: int) -> None:
    """Blocks of 65,536 points took 26 GB for the 100,000 clusters that PCL makes of ImageNet."""
    assert clusters <= clusters * block(torch.device(device), clusters) <= 2**28
