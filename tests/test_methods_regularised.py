"""SimSiam, DirectPred, Barlow Twins, VICReg, DeepCluster and PCL: each against its paper, in plain loops."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.clustering import kmeans, table, whiten
from selftaught.fit import Loop, fit
from selftaught.hard import CutMix
from selftaught.losses import barlow, concentration, proto_nce, spread_loss, squared_covariance
from selftaught.method import Batch, Method, Setting, detach, leaves
from selftaught.methods import METHODS
from selftaught.methods.directpred import DirectPred, direct_predictor
from selftaught.methods.pcl import PCL
from selftaught.optim import OPTIMIZERS, SGD, Cosine, Optimizer
from selftaught.step import Step, objective
from tests.laws.toys import IMAGES, Toy, batch, build, config, rng

Rows = list[list[float]]
several, widths, seeds = st.integers(2, 7), st.integers(1, 12), st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


def shuffle(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=rng(seed))


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def close(mine: Tensor, theirs: float | Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(mine, torch.as_tensor(theirs, dtype=mine.dtype), rtol=rtol, atol=1e-9)


def make(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> Method:
    """As the laws' `build`, but before the first epoch, and with other fields."""
    torch.manual_seed(0)
    return METHODS[name](dataclasses.replace(config(name), **fields), Toy(norm=False), IMAGES).to(dtype)


def whole(dtype: torch.dtype = torch.float64) -> list[Batch]:
    """An epoch: every image once."""
    return [batch(n=16, seed=s, first=16 * s, dtype=dtype) for s in range(4)]


# The papers' formulas, sample by sample


def plain_barlow(x: Rows, y: Rows, redundancy: float) -> float:
    """Zbontar et al., 2021, equations 1 and 2, of standardised columns (their algorithm 1 has batch norm before)."""

    def columns(rows: Rows) -> Rows:
        found = []
        for values in zip(*rows, strict=True):
            mean = sum(values) / len(values)
            length = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
            found.append([(v - mean) / length for v in values])
        return found

    first, second = columns(x), columns(y)
    c = [[dot(a, b) / len(x) for b in second] for a in first]
    each = range(len(c))
    return sum((1 - c[i][i]) ** 2 for i in each) + redundancy * sum(c[i][j] ** 2 for i in each for j in each if i != j)


def plain_variance(x: Rows) -> float:
    """Bardes et al., 2021, equations 1 and 2; the variance is the unbiased one, as in the authors' code."""
    total = 0.0
    for values in zip(*x, strict=True):
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        total += max(0.0, 1 - math.sqrt(variance + 1e-4))
    return total / len(x[0])


def plain_covariance(x: Rows) -> float:
    """Bardes et al., 2021, equations 3 and 4."""
    n, each = len(x), range(len(x[0]))
    mean = [sum(row[j] for row in x) / n for j in each]
    c = [[sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in x) / (n - 1) for j in each] for i in each]
    return sum(c[i][j] ** 2 for i in each for j in each if i != j) / len(each)


def plain_proto_nce(query: Rows, prototypes: Rows, phi: list[float], label: list[int], others: list[int]) -> float:
    """Li et al., 2020, the second sum of equation 11, for one clustering."""
    total = 0.0
    for q, s in zip(query, label, strict=True):
        if s < 0:
            continue
        positive = math.exp(dot(q, prototypes[s]) / phi[s])
        rest = sum(math.exp(dot(q, prototypes[j]) / phi[j]) for j in others if j != s)
        total -= math.log(positive / (positive + rest))
    return total / len(query)


def plain_concentration(points: Rows, centroids: Rows, label: list[int], mean: float, alpha: float) -> list[float]:
    """Li et al., 2020, equation 12, and what the authors' code does to its outliers."""
    width: list[float | None] = []
    for k, c in enumerate(centroids):
        members = [p for p, a in zip(points, label, strict=True) if a == k]
        distance = sum(math.sqrt(sum((a - b) ** 2 for a, b in zip(p, c, strict=True))) for p in members)
        width.append(distance / (len(members) * math.log(len(members) + alpha)) if len(members) > 1 else None)
    known = [w for w in width if w is not None]
    full = [max(known) if w is None else w for w in width]

    def percentile(share: float) -> float:
        place = share * (len(full) - 1)
        low = sorted(full)[math.floor(place)]
        return low + (place % 1) * (sorted(full)[math.ceil(place)] - low)

    low, high = percentile(0.1), percentile(0.9)
    cut = [min(max(w, low), high) for w in full]
    return [mean * w / (sum(cut) / len(cut)) for w in cut]


@few
@given(several, widths, st.floats(0, 2), seeds)
def test_barlow_is_its_formula(b: int, d: int, redundancy: float, seed: int) -> None:
    """With fewer dimensions than images, and with more, where no D x D matrix is made."""
    x, y = normal(b, d, seed=seed), normal(b, d, seed=seed + 1)
    close(barlow(x, y, redundancy), plain_barlow(x.tolist(), y.tolist(), redundancy))


@few
@given(several, widths, st.floats(0.1, 2), seeds)
def test_the_parts_of_vicreg_are_their_formulas(b: int, d: int, scale: float, seed: int) -> None:
    x = scale * normal(b, d, seed=seed)
    close(spread_loss(x), plain_variance(x.tolist()))
    close(squared_covariance(x), plain_covariance(x.tolist()))


@few
@given(several, st.integers(2, 5), st.integers(1, 9), seeds)
def test_proto_nce_is_its_formula(b: int, d: int, k: int, seed: int) -> None:
    query, prototypes, phi = unit(b, d, seed=seed), unit(k, d, seed=seed + 1), normal(k, seed=seed + 2).abs() + 0.1
    label = torch.randint(-1, k, (b,), generator=rng(seed))
    others = shuffle(k, seed)[: max(k // 2, 1)]
    formula = plain_proto_nce(query.tolist(), prototypes.tolist(), phi.tolist(), label.tolist(), others.tolist())
    close(proto_nce(query, prototypes, phi, label, others), formula)


@few
@given(st.integers(3, 30), st.integers(1, 6), st.floats(0.05, 1), st.floats(1, 20), seeds)
def test_concentration_is_its_formula(n: int, k: int, mean: float, alpha: float, seed: int) -> None:
    points, centroids = unit(n, 3, seed=seed), unit(k, 3, seed=seed + 1)
    label = torch.randint(k, (n,), generator=rng(seed))
    label[1] = label[0]  # one cluster of two at the least
    formula = plain_concentration(points.tolist(), centroids.tolist(), label.tolist(), mean, alpha)
    close(concentration(points, centroids, label, mean, alpha), torch.tensor(formula, dtype=torch.float64))


# Gradients, and the size of what is computed


def test_gradients_are_the_numerical_ones() -> None:
    for b, d in ((4, 3), (3, 5)):
        x, y = normal(b, d, seed=0).requires_grad_(), normal(b, d, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: barlow(x, y, 0.3), (x, y))
        assert torch.autograd.gradcheck(squared_covariance, (x,))
        assert torch.autograd.gradcheck(spread_loss, ((0.3 * x).detach().requires_grad_(),))
    query, phi = normal(4, 3, seed=2).requires_grad_(), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    prototypes, label = unit(3, 3, seed=3), torch.tensor([0, 2, -1, 0])
    assert torch.autograd.gradcheck(lambda q: proto_nce(q, prototypes, phi, label, torch.arange(3)), (query,))


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else (out,)
        self.numbers = max([self.numbers, *(t.numel() for t in made if isinstance(t, Tensor))])
        return out


@pytest.mark.parametrize("loss", [lambda x: barlow(x, x.flip(0), 0.1), squared_covariance], ids=["barlow", "vicreg"])
@pytest.mark.parametrize(("b", "d"), [(4, 50), (50, 4)])
def test_no_matrix_is_larger_than_the_embeddings(loss: Callable[[Tensor], Tensor], b: int, d: int) -> None:
    x = normal(b, d, seed=0).requires_grad_()
    with Largest() as seen:
        loss(x).backward()
    assert seen.numbers == b * d


# Invariances


@few
@given(several, widths, seeds)
def test_the_order_of_the_batch_and_of_the_dimensions_does_not_matter(b: int, d: int, seed: int) -> None:
    x, y, p, turn = normal(b, d, seed=seed), normal(b, d, seed=seed + 1), shuffle(b, seed), shuffle(d, seed)
    for xs, ys in ((x[p], y[p]), (x[:, turn], y[:, turn]), (y, x)):
        close(barlow(xs, ys, 0.1), barlow(x, y, 0.1))
    for xs in (x[p], x[:, turn], x + 3, -x):
        close(spread_loss(xs), spread_loss(x))
        close(squared_covariance(xs), squared_covariance(x))
    close(squared_covariance(2 * x), 16 * squared_covariance(x))


@few
@given(several, widths, st.floats(1, 50), st.floats(-5, 5), seeds)
def test_barlow_knows_no_scale_and_no_mean(b: int, d: int, scale: float, shift: float, seed: int) -> None:
    x, y = 300 * normal(b, d, seed=seed), 300 * normal(b, d, seed=seed + 1)  # beside which the 1e-5 is nothing
    close(barlow(scale * x + shift, y, 0.1), barlow(x, y, 0.1), 1e-4)


def test_barlow_is_zero_for_equal_views_of_independent_dimensions() -> None:
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    close(barlow(x, x, 1.0), 0.0)
    assert barlow(x, x[:, [0, 0]], 1.0) > 0.9  # one dimension copied: its own place and another's are both wrong


@few
@given(several, st.integers(2, 5), st.integers(2, 9), seeds)
def test_proto_nce_turns_with_everything_and_knows_no_order(b: int, d: int, k: int, seed: int) -> None:
    query, prototypes, phi = unit(b, d, seed=seed), unit(k, d, seed=seed + 1), normal(k, seed=seed + 2).abs() + 0.1
    label, others, turn = (
        torch.randint(k, (b,), generator=rng(seed)),
        torch.arange(k),
        torch.linalg.qr(normal(d, d, seed=seed))[0],
    )
    loss, p = proto_nce(query, prototypes, phi, label, others), shuffle(b, seed)
    close(proto_nce(query @ turn, prototypes @ turn, phi, label, others), loss)
    close(proto_nce(query[p], prototypes, phi, label[p], others.flip(0)), loss)
    logits = query @ prototypes.T / phi
    close(loss, F.cross_entropy(logits, label))  # with all prototypes to tell it from


@few
@given(st.integers(4, 30), st.integers(1, 6), seeds)
def test_concentrations_have_the_mean_that_was_asked_for(n: int, k: int, seed: int) -> None:
    points, centroids = unit(n, 3, seed=seed), unit(k, 3, seed=seed + 1)
    phi = concentration(points, centroids, torch.randint(k, (n,), generator=rng(seed)), 0.2, 10)
    assert (phi > 0).all()
    close(phi.mean(), 0.2)


def test_concentrations_of_points_in_one_place_are_all_alike() -> None:
    points = unit(1, 3, seed=0).expand(8, -1)
    close(concentration(points, points[:3], torch.zeros(8).long(), 0.2, 10), torch.full((3,), 0.2, dtype=torch.float64))


def test_a_looser_cluster_is_softer() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    points = F.normalize(axes[[0] * 9 + [1] * 9] + torch.tensor([[0.01]] * 9 + [[0.3]] * 9) * normal(18, 3, seed=0), dim=1)
    tight, loose = concentration(points, axes[:2], torch.tensor([0] * 9 + [1] * 9), 0.2, 10)
    assert loose > 2 * tight


# A peer's losses


def test_barlow_is_lightlys() -> None:
    theirs = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=0.0051)
    for b, d in ((9, 5), (5, 9)):
        x, y = normal(b, d, seed=0), normal(b, d, seed=1)
        close(barlow(x, y, 0.0051), theirs(x, y))


@pytest.mark.parametrize("name", ["barlow-twins", "vicreg", "simsiam"])
def test_methods_are_lightlys(name: str) -> None:
    """The loss and its gradient: with both views as targets of each other, or held still."""
    peer = pytest.importorskip("lightly.loss")
    method, data = build(name, norm=False, dtype=torch.float64), batch(dtype=torch.float64)
    method.network[1][-1].weight.data.mul_(300)  # embeddings of some spread: every term of the loss has a say
    predictions = method.predict(method.inputs(data))
    mine = method.loss(predictions, method.targets(data, predictions))
    if name == "barlow-twins":
        theirs = peer.BarlowTwinsLoss(lambda_param=0.0051)(*predictions) / predictions[0].shape[1]
    elif name == "vicreg":
        theirs = peer.VICRegLoss()(*predictions)
    else:
        (p1, z1), (p2, z2) = predictions
        alike = peer.NegativeCosineSimilarity()
        theirs = 1 + (alike(p1, z2.detach()) + alike(p2, z1.detach())) / 2
    close(mine, theirs)
    parameters = list(method.parameters())
    for a, b in zip(
        torch.autograd.grad(mine, parameters, retain_graph=True), torch.autograd.grad(theirs, parameters), strict=True
    ):
        close(a, b, 1e-6)


# What a network costs that says the same of every image: the loss by which the guard knows a collapse


@pytest.mark.parametrize("name", ["barlow-twins", "vicreg", "simsiam", "directpred"])
def test_one_point_for_all_images_costs_what_chance_costs(name: str) -> None:
    method, data = make(name), batch(dtype=torch.float64)
    same = method.predict(method.inputs(data))
    for leaf in leaves(same):
        leaf.data.copy_(unit(1, leaf.shape[1], seed=0))
    chance = method.chance()
    assert chance is not None
    targets = method.targets(data, same) if name != "directpred" else same
    close(method.loss(same, targets), chance)


# SimSiam


def test_simsiam_ends_in_a_norm_without_parameters() -> None:
    """And its linear layer has no bias, which that norm would undo."""
    *_, norm = make("simsiam").network
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.affine
    linear = [m for m in make("simsiam").network[1] if isinstance(m, nn.Linear)]
    assert len(linear) == 3
    assert linear[-1].bias is None


def test_simsiam_stops_the_gradient_of_targets_alone() -> None:
    method, data = build("simsiam", norm=False), batch()
    predictions = method.predict(method.inputs(data))
    targets = method.targets(data, predictions)
    assert not any(t.requires_grad for t in targets)
    torch.testing.assert_close(targets[0], predictions[1][1])
    torch.testing.assert_close(targets[1], predictions[0][1])
    gradient = torch.autograd.grad(method.loss(predictions, targets), leaves(predictions)[0])
    assert gradient[0].any()


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_predictors_rate_stays_at_its_peak(kind: type[Optimizer]) -> None:
    step = Step(build("simsiam"), (CutMix(norm="auxiliary"),))
    optimizer = kind(lr=0.02).build(step.named_parameters(), [f"method.{part}." for part in step.method.steady])
    steady = {id(p) for g in optimizer.param_groups if g["steady"] for p in g["params"]}
    assert steady == {id(p) for p in step.method.predictor.parameters()}
    every = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(every) == sorted(id(p) for p in step.parameters() if p.requires_grad)
    schedule = Cosine(warmup=0.5)
    loop = Loop(steps=4, steps_per_epoch=4, schedule=schedule)
    for report in fit(step, step.method, lambda e, f: [batch(seed=s) for s in range(4)], optimizer, loop):
        for group in optimizer.param_groups:
            expected = 0.02 * (1 if group["steady"] else schedule((report.step + 0.5) / 4))
            assert group["lr"] == pytest.approx(expected)
        assert report.lr == pytest.approx(0.02 * schedule((report.step + 0.5) / 4))


def test_other_methods_have_one_rate() -> None:
    step = Step(build("byol"))  # it has a predictor too
    assert not any(g["steady"] for g in SGD().build(step.named_parameters()).param_groups)


# DirectPred


def correlation(seed: int = 0) -> Tensor:
    z = normal(20, 6, seed=seed) * torch.tensor([3, 2, 1, 0.5, 0.1, 0.01])
    return z.T @ z / 20


@pytest.mark.parametrize(("kind", "alpha", "power"), [("directpred", 0.9, 0.5), ("directset", 0.7, 0.7)])
def test_the_predictor_has_the_correlations_eigenvectors(kind: Any, alpha: float, power: float) -> None:
    """Tian et al., 2021, equation 18, one eigenvector at a time; the largest eigenvalue counts as 1."""
    f, c = correlation(), DirectPred.Config(predictor=kind, alpha=alpha, eps=0.05)
    w = direct_predictor(f, c)
    values, vectors = torch.linalg.eigh(f)
    for s, u in zip(values, vectors.T, strict=True):
        close(w @ u, ((s / values[-1]) ** power + 0.05) * u)


def test_directcopy_is_the_correlation_itself() -> None:
    f, c = correlation(), DirectPred.Config(predictor="directcopy", eps=0.05)
    length = math.sqrt(sum(v * v for row in f.tolist() for v in row))
    expected = [[v / length + 0.05 * (i == j) for j, v in enumerate(row)] for i, row in enumerate(f.tolist())]
    close(direct_predictor(f, c), torch.tensor(expected, dtype=torch.float64))


@few
@given(st.sampled_from(["directpred", "directset", "directcopy"]), st.floats(1e-6, 1e6), seeds)
def test_the_predictor_knows_no_scale_and_turns_with_the_embeddings(kind: Any, scale: float, seed: int) -> None:
    f, c, turn = correlation(seed), DirectPred.Config(predictor=kind), torch.linalg.qr(normal(6, 6, seed=seed))[0]
    w = direct_predictor(f, c)
    close(direct_predictor(scale * f, c), w, 1e-6)
    close(direct_predictor(turn.T @ f @ turn, c), turn.T @ w @ turn, 1e-6)


def test_the_correlation_is_a_moving_average_and_the_predictor_waits_its_turn() -> None:
    method = make("directpred", frequency=2, rho=0.25)
    f = torch.zeros(8, 8, dtype=torch.float64)
    was = method.predictor.clone()
    assert torch.equal(was, torch.eye(8).double())
    for step in range(4):
        data = batch(seed=step, dtype=torch.float64)
        z = method.predict(method.inputs(data))
        method.after_step(data, detach(z), method.targets(data, z))
        outer = [torch.outer(row, row) for view in z for row in view.detach()]
        f = 0.25 * f + 0.75 * torch.stack(outer).mean(0)
        close(method.correlation, f)
        if step % 2:
            was = direct_predictor(f, method.config)
        close(method.predictor, was)


def test_directpred_is_byol_with_that_predictor() -> None:
    method, data = build("directpred", norm=False, dtype=torch.float64), batch(dtype=torch.float64)
    method.predictor.copy_(normal(8, 8, seed=0))
    z, t = method.predict(method.inputs(data)), tuple(method.teacher(v) for v in data.views)
    expected = sum(2 - 2 * F.cosine_similarity(z[i] @ method.predictor, t[1 - i], dim=1).mean() for i in (0, 1))
    close(method.loss(z, method.targets(data, z)), expected)


def test_no_direction_may_be_lost_for_good() -> None:
    with pytest.raises(Exception, match="eps"):
        DirectPred.Config(eps=0.0)
    with pytest.raises(Exception, match="rho"):
        DirectPred.Config(rho=1.0)


# DeepCluster


def test_a_table_holds_what_was_seen_in_the_order_of_the_images() -> None:
    parts = [(torch.tensor([4, 1]), torch.tensor([[4.0], [1.0]])), (torch.tensor([3]), torch.tensor([[0.0]]))]
    seen, rows = table(iter(parts), 6)
    assert seen.tolist() == [1, 3, 4]  # 3 was seen, though its features are 0
    assert rows.tolist() == [[1], [0], [4]]


@few
@given(st.integers(8, 40), st.integers(2, 6), st.integers(1, 6), seeds)
def test_whitening_makes_each_principal_component_count_alike(n: int, d: int, dim: int, seed: int) -> None:
    """Against the singular vectors of the centred points: those of unit variance, up to signs."""
    points, dim = normal(n, d, seed=seed) * torch.arange(1, d + 1) + 5, min(dim, d)
    mine = whiten(points, dim)
    u = torch.linalg.svd(points - points.mean(0), full_matrices=False)[0][:, :dim]
    theirs = F.normalize(u, dim=1)
    close(mine @ mine.T, theirs @ theirs.T, 1e-6)  # dots between points are all that k-means sees
    close(mine.norm(dim=1), torch.ones(n).double())


def test_whitening_bears_dead_units() -> None:
    points = normal(20, 4, seed=0)
    points[:, 2] = 0
    assert torch.isfinite(whiten(points, 4)).all()
    assert torch.isfinite(whiten(torch.ones(5, 4), 3)).all()


def test_clusters_are_those_of_whitened_features() -> None:
    method = make("deepcluster")
    torch.manual_seed(5)
    method.before_epoch(whole())
    torch.manual_seed(5)
    features = torch.cat([method.backbone(b.views[0]) for b in whole()]).detach()
    seed = int(torch.randint(2**31, ()))
    _, expected = kmeans(whiten(features, 6), 5, 20, rng(seed))
    assert torch.equal(method.assigned, expected)
    assert len(expected.unique()) == 5


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_cluster_counts_alike_whatever_its_size(symmetric: bool) -> None:
    """Over a whole epoch the loss is the mean over clusters of each one's mean: section 3.3's uniform sampling."""
    method = make("deepcluster", symmetric=symmetric)
    method.before_epoch(whole())
    nn.init.normal_(method.classifier.weight)
    loss, costs = 0.0, {}
    for data in whole():
        predictions = method.predict(method.inputs(data))
        assert len(predictions) == 1 + symmetric
        loss += method.loss(predictions, method.targets(data, predictions)).item() / 4
        for logits in predictions:
            for row, label in zip(logits.tolist(), method.assigned[data.index].tolist(), strict=True):
                costs.setdefault(label, []).append(math.log(sum(map(math.exp, row))) - row[label])
    sizes = {len(c) for c in costs.values()}
    assert len(sizes) > 1
    assert loss == pytest.approx(sum(sum(c) / len(c) for c in costs.values()) / len(costs))


def test_each_epoch_has_a_new_classifier_and_images_it_does_not_show_count_nothing() -> None:
    method = make("deepcluster")
    method.before_epoch(whole())
    assert (method.assigned >= 0).all()
    method.classifier.weight.data.fill_(7.0)
    method.before_epoch(whole()[:3])
    assert method.classifier.weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert not method.classifier.bias.any()
    assert (method.assigned[:48] >= 0).all()
    assert (method.assigned[48:] == -1).all()
    unseen, half = whole()[3], batch(16, first=40, dtype=torch.float64)
    gone = method.predict(method.inputs(unseen))
    assert method.loss(gone, method.targets(unseen, gone)) == 0
    (p,) = method.predict(method.inputs(half))
    alone = method.loss((p[:8],), method.targets(half, (p,))[:8])
    close(method.loss((p,), method.targets(half, (p,))), alone / 2)  # the mean is over all of the batch


def test_clusters_stay_for_as_many_epochs_as_asked() -> None:
    method, heads = make("deepcluster", every=3), []
    for _ in range(7):
        method.before_epoch(whole())
        heads.append(method.classifier.weight.detach().clone())
    assert [torch.equal(a, b) for a, b in pairwise(heads)] == [True, True, False, True, True, False]


@pytest.mark.parametrize(
    ("images", "steps", "every"), [(1280, 5000, 20), (1280, 150, 3), (51_200, 40_000, 1), (1280, 10, 1)]
)
def test_a_new_classifier_gets_time_to_learn(images: int, steps: int, every: int) -> None:
    setting = Setting(images=images, batch=128 if images < 10_000 else 256, steps=steps, features=6)
    assert METHODS["deepcluster"].Config().suited(setting).every == every


def test_deepclusters_chance_is_that_of_the_clusters_in_use() -> None:
    method = make("deepcluster")
    assert method.chance() is None
    method.before_epoch(whole())
    used = len(method.assigned.unique())
    assert method.chance() == pytest.approx(math.log(used))
    method.classifier.weight.data.zero_()
    losses = []
    for data in whole():
        flat = method.predict(method.inputs(data))
        losses.append(method.loss(flat, method.targets(data, flat)))
    assert torch.stack(losses).mean().item() == pytest.approx(math.log(5))


def test_clustering_leaves_the_running_statistics_alone() -> None:
    for name in ("deepcluster", "pcl"):
        method = METHODS[name](config(name), Toy(norm=True), IMAGES)
        method.progress = 0.5
        before = {k: v.clone() for k, v in method.state_dict().items() if "running" in k or "tracked" in k}
        method.before_epoch(whole(torch.float32))
        assert before
        assert all(torch.equal(v, method.state_dict()[k]) for k, v in before.items())
        assert all(m.training for m in method.modules())


# PCL


def pcl(**fields: Any) -> PCL:
    method = make("pcl", **fields)
    assert isinstance(method, PCL)
    return method


def test_pcl_begins_as_moco() -> None:
    method, data = pcl(warmup=0.4), batch(dtype=torch.float64)
    for method.progress in (0.0, 0.39):
        method.before_epoch(iter(()))  # it does not even look at the images
        predictions = method.predict(method.inputs(data))
        targets = method.targets(data, predictions)
        assert method.loss(predictions, targets) == method.moco.loss(predictions, targets[0])
        assert method.chance() == pytest.approx(math.log(17))
    method.progress = 0.4
    method.before_epoch(whole())
    assert (method.assigned >= 0).all()
    assert method.chance() == pytest.approx(math.log(17) + (math.log(5) + math.log(2) + math.log(1)) / 3)


def test_pcl_adds_a_softmax_over_each_clusterings_prototypes() -> None:
    method, data = pcl(clusters=12), batch(dtype=torch.float64)
    method.progress = 0.5
    method.before_epoch(whole())
    assert method.sizes == [12, 6, 3]
    predictions = method.predict(method.inputs(data))
    keys, labels = method.targets(data, predictions)
    each = zip(method.prototypes.split([12, 6, 3]), method.concentrations.split([12, 6, 3]), labels.T, strict=True)
    proto = [F.cross_entropy(predictions[0] @ c.T / phi, label) for c, phi, label in each]
    close(method.loss(predictions, (keys, labels)), method.moco.loss(predictions, keys) + sum(proto) / 3)


def test_pcl_clusters_what_the_key_encoder_says() -> None:
    method = pcl()
    method.progress = 0.5
    for p in method.moco.network.parameters():
        p.data.mul_(-1.7)  # not what the teacher says any more
    torch.manual_seed(5)
    method.before_epoch(whole())
    torch.manual_seed(5)
    points = torch.cat([method.moco.teacher(b.views[0]) for b in whole()])
    for m, (size, c, phi) in enumerate(
        zip(method.sizes, method.prototypes.split(method.sizes), method.concentrations.split(method.sizes), strict=True)
    ):
        centroids, label = kmeans(points, size, 20, rng(int(torch.randint(2**31, ()))))
        close(c, centroids)
        assert torch.equal(method.assigned[:, m], label)
        close(phi, concentration(points, centroids, label, method.config.temperature, 10.0))
        close(phi.mean(), 0.2)


def test_pcls_negative_prototypes_are_drawn_once_a_step() -> None:
    method, data = pcl(clusters=40, clusterings=1, negatives=3), batch(dtype=torch.float64)
    method.progress = 0.5
    method.before_epoch(whole())
    predictions = method.predict(method.inputs(data))
    targets = method.targets(data, predictions)
    losses = []
    for _ in range(6):
        loss = method.loss(predictions, targets).item()
        torch.manual_seed(len(losses))  # whatever the state of the global generator, which differs between ranks
        assert method.loss(predictions, targets).item() == loss
        losses.append(loss)
        method.steps.value += 1
    assert len(set(losses)) == 6
    everything = dataclasses.replace(method.config, negatives=40)
    method.config = everything
    assert method.loss(predictions, targets).item() > max(losses)


def test_pcl_keeps_its_queue_as_moco_does_and_counts_steps() -> None:
    method = pcl()
    before = method.moco.queue.clone()
    for step in range(3):
        data = batch(6, seed=step, dtype=torch.float64)
        predictions = method.predict(method.inputs(data))
        targets = method.targets(data, predictions)
        method.after_step(data, detach(predictions), detach(targets))
        place = (6 * step + torch.arange(6)) % 16
        close(method.moco.queue[place], targets[0][0])
        before[place] = targets[0][0]
        close(method.moco.queue, before)
    assert method.steps.value == 3


@pytest.mark.parametrize(("version", "layers"), [("v1", 1), ("v2", 2)])
def test_pcls_versions_differ_in_the_head(version: Any, layers: int) -> None:
    head = pcl(version=version).moco.network[1]
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == layers


def test_images_that_an_epoch_does_not_show_have_no_prototype() -> None:
    method = pcl()
    method.progress = 0.5
    method.before_epoch(whole())
    method.before_epoch(whole()[:3])
    unseen = whole()[3]
    predictions = method.predict(method.inputs(unseen))
    targets = method.targets(unseen, predictions)
    assert (targets[1] == -1).all()
    assert method.loss(predictions, targets) == method.moco.loss(predictions, targets[0])


# Of all of them


@pytest.mark.parametrize("name", ["deepcluster", "pcl"])
def test_more_clusters_than_images_are_refused(name: str) -> None:
    with pytest.raises(Exception, match=r"65 clusters need more than 64 images: lower --method\.clusters"):
        make(name, clusters=65)
    method = make(name, clusters=60)
    method.progress = 0.5
    with pytest.raises(Exception, match="60 clusters need more than 48 images"):
        method.before_epoch(whole()[:3])


@pytest.mark.parametrize("name", ["barlow-twins", "vicreg"])
def test_hard_views_are_compared_with_clean_ones(name: str) -> None:
    """Both hard views learn, and each from the other view's clean embedding."""
    method, data = build(name, norm=False, dtype=torch.float64), batch(dtype=torch.float64)
    clean = detach(method.predict(method.inputs(data)))
    targets = method.targets(data, clean)
    hard = tuple((z + 0.1 * normal(*z.shape, seed=5)).requires_grad_() for z in clean)
    objective(method, hard, targets).backward()
    assert all(z.grad is not None and z.grad.any() for z in hard)
    assert not any(t.requires_grad for t in targets)
    close(targets[0], clean[1])
