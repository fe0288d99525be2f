"""BYOL, SimSiam, DirectPred, Barlow Twins and VICReg: each against its paper, in plain loops."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.hard import CutMix
from selftaught.hard.base import objective
from selftaught.losses import barlow, spread_loss, squared_covariance
from selftaught.method import detach, leaves
from selftaught.methods.decorrelation.vicreg import VICReg
from selftaught.methods.self_distillation.directpred import DirectPred, direct_predictor
from selftaught.optim import OPTIMIZERS, Cosine, Optimizer
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import (
    Rows,
    answer,
    close,
    cosine,
    data64,
    dot,
    double,
    drifted,
    few,
    loss_of,
    make,
    normal,
    plain_byol,
    rotation,
    same_gradients,
    seeds,
)
from tests.laws.toys import batch, build

several, widths = st.integers(2, 7), st.integers(1, 12)


# The papers' formulas, sample by sample


def plain_barlow(x: Rows, y: Rows, redundancy: float) -> float:
    """Zbontar et al., 2021, equations 1 and 2, of standardised columns (their algorithm 1 has batch
    norm before).
    """

    def columns(rows: Rows) -> Rows:
        result = []
        for values in zip(*rows, strict=True):
            mean = sum(values) / len(values)
            length = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
            result.append([(v - mean) / length for v in values])
        return result

    total = 0.0
    for i, a in enumerate(columns(x)):
        for j, b in enumerate(columns(y)):
            c = dot(a, b) / len(x)
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


def plain_variance(x: Rows) -> float:
    """Bardes et al., 2021, equations 1 and 2; the variance is the unbiased one, as in the authors'
    code.
    """
    total = 0.0
    for values in zip(*x, strict=True):
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        total += max(0.0, 1 - math.sqrt(variance + 1e-4))
    return total / len(x[0])


def plain_covariance(x: Rows) -> float:
    """Bardes et al., 2021, equations 3 and 4."""
    n = len(x)
    columns = [[v - sum(values) / n for v in values] for values in zip(*x, strict=True)]
    pairs = [(a, b) for i, a in enumerate(columns) for j, b in enumerate(columns) if i != j]
    return sum((dot(a, b) / (n - 1)) ** 2 for a, b in pairs) / len(columns)


def plain_vicreg(x: Rows, y: Rows, config: VICReg.Config) -> float:
    """Bardes et al., 2021, equations 5 and 6; distances and both views' variances are means, as in
    the authors' code.
    """
    apart = [(p - q) ** 2 for a, b in zip(x, y, strict=True) for p, q in zip(a, b, strict=True)]
    narrow = (plain_variance(x) + plain_variance(y)) / 2
    total = config.invariance * sum(apart) / len(apart) + config.variance * narrow
    return total + config.covariance * (plain_covariance(x) + plain_covariance(y))


def plain_simsiam(p1: Rows, p2: Rows, z1: Rows, z2: Rows) -> float:
    """Chen & He, 2020, equations 1 and 2, and 1 more."""
    ways = [cosine(p, z) for p, z in zip([*p1, *p2], [*z2, *z1], strict=True)]
    return 1 - sum(ways) / len(ways)


@few
@given(several, widths, st.floats(0, 2), seeds)
def test_losses_are_their_formulas(b: int, d: int, scale: float, seed: int) -> None:
    """With fewer dimensions than images, and with more, where no D x D matrix is made."""
    x, y = normal(b, d, seed=seed), normal(b, d, seed=seed + 1)
    close(barlow(x, y, scale), plain_barlow(x.tolist(), y.tolist(), scale))
    x = (0.1 + scale) * x
    close(spread_loss(x), plain_variance(x.tolist()))
    close(squared_covariance(x), plain_covariance(x.tolist()))


# Gradients, and the size of what is computed


@pytest.mark.parametrize(("b", "d"), [(4, 3), (3, 5)])
def test_gradients_are_the_numerical_ones(b: int, d: int) -> None:
    x, y = normal(b, d, seed=0).requires_grad_(), normal(b, d, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: barlow(x, y, 0.3), (x, y))
    assert torch.autograd.gradcheck(squared_covariance, (x,))
    assert torch.autograd.gradcheck(lambda x: spread_loss(0.3 * x), (x,))


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        self.numbers = max([self.numbers, *(t.numel() for t in outputs if isinstance(t, Tensor))])
        return out


@pytest.mark.parametrize("loss", [lambda x: barlow(x, x.flip(0), 0.1), squared_covariance])
@pytest.mark.parametrize(("b", "d"), [(4, 50), (50, 4)])
def test_no_matrix_is_larger_than_the_embeddings(
    loss: Callable[[Tensor], Tensor], b: int, d: int
) -> None:
    x = normal(b, d, seed=0).requires_grad_()
    with Largest() as seen:
        loss(x).backward()
    assert seen.numbers == b * d


# A peer's losses


@pytest.mark.parametrize("name", ["barlow-twins", "vicreg", "simsiam", "byol"])
def test_methods_are_lightlys(name: str) -> None:
    """The loss and its gradient: with both views as targets of each other, or held still."""
    peer = pytest.importorskip("lightly.loss")
    method, data = build(name, norm=False, dtype=torch.float64), data64()
    # embeddings of some spread: every term of the loss has a say
    method.network[1][-1].weight.data.mul_(300)
    predictions, targets = answer(method, data)
    mine, alike = method.loss(predictions, targets), peer.NegativeCosineSimilarity()
    if name == "barlow-twins":
        theirs = peer.BarlowTwinsLoss(lambda_param=0.0051)(*predictions) / predictions[0].shape[1]
    elif name == "vicreg":
        theirs = peer.VICRegLoss()(*predictions)
    elif name == "simsiam":
        (p1, z1), (p2, z2) = predictions
        theirs = 1 + (alike(p1, z2.detach()) + alike(p2, z1.detach())) / 2
    else:
        (q1, q2), (t1, t2) = predictions, (method.teacher(view) for view in data.views)
        theirs = 4 + 2 * (alike(q1, t2) + alike(q2, t1))  # squared distances, of both ways together
    close(mine, theirs)
    same_gradients(mine, theirs, method.parameters())


# VICReg


def test_vicreg_is_its_formula() -> None:
    """Each term with a weight of its own, on embeddings of which every term has something to
    say.
    """
    method, data = double("vicreg", invariance=3.0, variance=5.0, covariance=7.0), data64()
    method.network[1][-1].weight.data.mul_(100)
    x, y = (method.network(view).tolist() for view in data.views)
    assert 0 < plain_variance(x) < 1
    close(loss_of(method, data), plain_vicreg(x, y, method.config))


# BYOL


def test_byol_is_its_formula() -> None:
    """Grill et al., 2020, section 3.1: each view predicts the teacher's projection of the other;
    both ways are added up.
    """
    method, data = double("byol"), data64(5)
    drifted(method.teacher)
    q1, q2 = (method.predictor(method.network(view)).tolist() for view in data.views)
    z1, z2 = (method.teacher.network(view).tolist() for view in data.views)
    close(loss_of(method, data), plain_byol(q1, z2) + plain_byol(q2, z1))


def test_no_gradient_reaches_byols_teacher() -> None:
    """Nor passes through it, to the views: targets stand still, and all that predicts them
    learns.
    """
    method, data = double("byol"), data64()
    data = dataclasses.replace(data, views=tuple(view.requires_grad_() for view in data.views))
    predictions, targets = answer(method, data)
    assert not any(t.requires_grad for t in targets)
    method.loss(predictions, targets).backward()
    taught = set(method.teacher.parameters())
    assert all(p.grad is None and not p.requires_grad for p in taught)
    assert all(p.grad is not None and p.grad.any() for p in method.parameters() if p not in taught)


@pytest.mark.parametrize(
    ("name", "progress", "momentum"),
    [
        *((n, 0.5, 0.9) for n in ("moco-v1", "densecl")),
        *(
            (name, *point)
            for name in ("byol", "directpred", "moco-v3")
            for point in ((0.0, 0.9), (1 / 3, 0.925), (0.5, 0.95), (1.0, 1.0))
        ),
    ],
)
def test_the_teacher_follows(name: str, progress: float, momentum: float) -> None:
    """By a constant momentum, or one that rises along a cosine. Grill et al., 2020:
    1 - (1 - m) (cos(pi k / K) + 1) / 2. After a third, a straight line would lie elsewhere.
    """
    method, data = double(name, momentum=0.9), data64()
    method.progress = progress
    predictions, targets = detach(answer(method, data))
    drifted(method.network)
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(data, predictions, targets)
    for old, new, student in zip(
        before, method.teacher.parameters(), method.network.parameters(), strict=True
    ):
        close(new, momentum * old + (1 - momentum) * student)
        assert torch.equal(new, old) == (progress == 1)


# SimSiam


def test_simsiam_is_its_formula() -> None:
    method, data = double("simsiam"), data64(5)
    z = [method.network(view) for view in data.views]
    p = [method.predictor(x) for x in z]
    close(loss_of(method, data), plain_simsiam(*(x.tolist() for x in (*p, *z))))


def test_simsiam_ends_in_a_norm_without_parameters() -> None:
    """And its linear layer has no bias, which that norm would undo."""
    *_, norm = make("simsiam").network
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.affine
    linear = [m for m in make("simsiam").network[1] if isinstance(m, nn.Linear)]
    assert len(linear) == 3
    assert linear[-1].bias is None


def test_simsiam_stops_the_gradient_of_targets_alone() -> None:
    method = build("simsiam", norm=False)
    predictions, targets = answer(method, batch())
    assert not any(t.requires_grad for t in targets)
    torch.testing.assert_close(targets, (predictions[1][1].detach(), predictions[0][1].detach()))
    (gradient,) = torch.autograd.grad(method.loss(predictions, targets), leaves(predictions)[0])
    assert gradient.any()


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_predictors_rate_stays_at_its_peak(kind: type[Optimizer]) -> None:
    step = Step(build("simsiam"), (CutMix(norm="auxiliary"),))
    optimizer = kind(lr=0.02).build(step.named_parameters(), step.parameter_groups())
    steady = {id(p) for g in optimizer.param_groups if g["steady"] for p in g["params"]}
    assert steady == {id(p) for p in step.method.predictor.parameters()}
    every = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(every) == sorted(id(p) for p in step.parameters() if p.requires_grad)
    schedule = Cosine(warmup=0.5)
    loop = Loop(steps=4, steps_per_epoch=4, schedule=schedule)
    batches = [batch(seed=s) for s in range(4)]
    for report in fit(step, step.method, lambda *_: batches, optimizer, loop):
        rate = 0.02 * schedule((report.step + 0.5) / 4)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.02 if group["steady"] else rate)
        assert report.lr == pytest.approx(rate)


def test_other_methods_have_one_rate() -> None:
    assert build("byol").parameter_groups() == {}  # it has a predictor too


# DirectPred


def correlation(seed: int = 0) -> Tensor:
    z = normal(20, 6, seed=seed) * torch.tensor([3, 2, 1, 0.5, 0.1, 0.01])
    return z.T @ z / 20


@pytest.mark.parametrize(
    ("kind", "alpha", "power"), [("directpred", 0.9, 0.5), ("directset", 0.7, 0.7)]
)
def test_the_predictor_has_the_correlations_eigenvectors(
    kind: Any, alpha: float, power: float
) -> None:
    """Tian et al., 2021, equation 18, one eigenvector at a time; the largest eigenvalue counts as
    1.
    """
    f = correlation()
    w = direct_predictor(f, DirectPred.Config(predictor=kind, alpha=alpha, eps=0.05))
    values, vectors = torch.linalg.eigh(f)
    for s, u in zip(values, vectors.T, strict=True):
        close(w @ u, ((s / values[-1]) ** power + 0.05) * u)


def test_directcopy_is_the_correlation_itself() -> None:
    f, c = correlation(), DirectPred.Config(predictor="directcopy", eps=0.05)
    length = math.sqrt(sum(v * v for v in f.flatten().tolist()))
    close(direct_predictor(f, c), f / length + 0.05 * torch.eye(6).double())


@few
@given(st.sampled_from(["directpred", "directset", "directcopy"]), st.floats(1e-6, 1e6), seeds)
def test_the_predictor_knows_no_scale_and_turns_with_the_embeddings(
    kind: Any, scale: float, seed: int
) -> None:
    f, c, turn = correlation(seed), DirectPred.Config(predictor=kind), rotation(6, seed)
    w = direct_predictor(f, c)
    close(direct_predictor(scale * f, c), w, 1e-6)
    close(direct_predictor(turn.T @ f @ turn, c), turn.T @ w @ turn, 1e-6)


def test_the_correlation_is_a_moving_average_and_the_predictor_waits_its_turn() -> None:
    method = make("directpred", frequency=2, rho=0.25)
    f, was = torch.zeros(8, 8, dtype=torch.float64), method.predictor.clone()
    assert torch.equal(was, torch.eye(8).double())
    for step in range(4):
        data = data64(seed=step)
        z, targets = detach(answer(method, data))
        method.after_step(data, z, targets)
        outer = [torch.outer(row, row) for view in z for row in view]
        f = 0.25 * f + 0.75 * torch.stack(outer).mean(0)
        close(method.correlation, f)
        if step % 2:
            was = direct_predictor(f, method.config)
        close(method.predictor, was)


def test_directpred_is_byol_with_that_predictor() -> None:
    method, data = double("directpred"), data64()
    method.predictor.copy_(normal(8, 8, seed=0))
    drifted(method.teacher)
    z, t = ([part(v) for v in data.views] for part in (method.network, method.teacher))
    ways = ((z[0] @ method.predictor, t[1]), (z[1] @ method.predictor, t[0]))
    expected = sum(plain_byol(x.tolist(), y.tolist()) for x, y in ways)
    close(loss_of(method, data), expected)


@pytest.mark.parametrize(("field", "value"), [("eps", 0.0), ("rho", 1.0)])
def test_no_direction_may_be_lost_for_good(field: str, value: float) -> None:
    with pytest.raises(Exception, match=field):
        DirectPred.Config(**{field: value})


# Of all of them


@pytest.mark.parametrize("name", ["barlow-twins", "vicreg"])
def test_hard_views_are_compared_with_clean_ones(name: str) -> None:
    """Both hard views learn, and each from the other view's clean embedding."""
    method = double(name)
    clean, targets = detach(answer(method, data64()))
    hard = tuple((z + 0.1 * normal(*z.shape, seed=5)).requires_grad_() for z in clean)
    objective(method, hard, targets).backward()
    assert all(z.grad is not None and z.grad.any() for z in hard)
    close(targets[0], clean[1])
