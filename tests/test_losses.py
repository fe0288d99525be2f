"""Every loss against its paper's formula in plain loops, its gradient and invariances."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from selftaught.losses import cosine_distance, info_nce, nt_xent, sinkhorn, soft_cross_entropy
from tests.formulas import (
    Rows,
    answer,
    close,
    data64,
    dot,
    double,
    few,
    loss_of,
    normal,
    plain_byol,
    plain_cross_entropy,
    plain_info_nce,
    plain_sinkhorn,
    same_gradients,
    seeds,
    unit,
)
from tests.laws.toys import batch, build, rng

sizes, widths = st.integers(1, 7), st.integers(2, 6)
temperatures = st.floats(0.05, 2.0)


# The papers' formulas, sample by sample


def plain_nt_xent(first: Rows, second: Rows, temperature: float) -> float:
    """Chen et al., 2020 (SimCLR), equation 1 and algorithm 1, with the views interleaved."""
    z = [view for pair in zip(first, second, strict=True) for view in pair]

    def one(i: int, j: int) -> float:
        others = sum(math.exp(dot(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(dot(z[i], z[j]) / temperature) / others)

    return sum(one(2 * k, 2 * k + 1) + one(2 * k + 1, 2 * k) for k in range(len(first))) / len(z)


@few
@given(sizes, widths, st.integers(0, 9), temperatures, seeds)
def test_contrastive_losses_are_their_formulas(
    b: int, d: int, k: int, temperature: float, seed: int
) -> None:
    x, y, negatives = (unit(n, d, seed=seed + s) for s, n in enumerate((b, b, k)))
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    costs = [plain_info_nce(q, own, negatives.tolist(), temperature) for q, own in pairs]
    close(info_nce(x, y, negatives, temperature), sum(costs) / b)
    both = (nt_xent(x, y, temperature) + nt_xent(y, x, temperature)) / 2
    close(both, plain_nt_xent(x.tolist(), y.tolist(), temperature))


@few
@given(sizes, widths, seeds)
def test_cosine_distance_is_its_formula(b: int, d: int, seed: int) -> None:
    x, y = normal(b, d, seed=seed), normal(b, d, seed=seed + 1)
    close(cosine_distance(x, y), plain_byol(x.tolist(), y.tolist()))


@few
@given(sizes, widths, st.floats(0.05, 1.0), st.integers(1, 5), st.floats(-1e3, 1e3), seeds)
def test_sinkhorn_is_its_algorithm(
    b: int, k: int, epsilon: float, iterations: int, shift: float, seed: int
) -> None:
    """A shift of all scores changes no assignment."""
    scores = unit(b, 4, seed=seed) @ unit(k, 4, seed=seed + 1).T
    formula = torch.tensor(plain_sinkhorn(scores.tolist(), epsilon, iterations))
    close(sinkhorn(scores, epsilon, iterations), formula, 1e-6)
    close(sinkhorn(scores + shift, epsilon, iterations), formula, 1e-6)


@few
@given(sizes, widths, seeds)
def test_soft_cross_entropy_is_its_formula(b: int, k: int, seed: int) -> None:
    """Hard labels are a case of soft ones."""
    logits, target = 3 * normal(b, k, seed=seed), normal(b, k, seed=seed + 1).softmax(1)
    close(soft_cross_entropy(logits, target), plain_cross_entropy(logits.tolist(), target.tolist()))
    label = target.argmax(1)
    hard = F.one_hot(label, k).double()
    close(soft_cross_entropy(logits, hard), F.cross_entropy(logits, label))


# With labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_supervised_is_its_formula(smoothing: float) -> None:
    """Szegedy et al., 2015, section 7: the label has 1 - s, and all classes share s."""
    method, data = double("supervised", smoothing=smoothing), data64()
    target = (1 - smoothing) * F.one_hot(data.label, 5).double() + smoothing / 5
    formula = plain_cross_entropy(method.network(data.views[0]).tolist(), target.tolist())
    close(loss_of(method, data), formula)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_with_several_labels_an_image_each_class_is_asked_for_itself(smoothing: float) -> None:
    """One logistic loss a class, averaged over images and classes; s is shared by yes and no."""
    label = torch.randint(2, (8, 5), generator=rng(), dtype=torch.int8)
    method = double("supervised", smoothing=smoothing)
    data = dataclasses.replace(data64(), label=label)
    logits = method.network(data.views[0]).flatten().tolist()
    costs = [
        (smoothing / 2 + (1 - smoothing) * share) * math.log(1 + math.exp(sign * logit))
        for logit, there in zip(logits, label.flatten().tolist(), strict=True)
        for sign, share in ((-1, there), (1, 1 - there))
    ]
    close(loss_of(method, data), sum(costs) / 40)


# Gradients


def test_gradients_are_the_numerical_ones() -> None:
    x, y, z = (normal(4, 3, seed=s).requires_grad_() for s in range(3))
    code = normal(4, 3, seed=3).softmax(1).requires_grad_()
    for loss, inputs in (
        (lambda q, k, n: info_nce(q, k, n, 0.3), (x, y, z)),
        (lambda q, k: nt_xent(q, k, 0.3), (x, y)),
        (cosine_distance, (x, y)),
        (soft_cross_entropy, (x, code)),
    ):
        assert torch.autograd.gradcheck(loss, inputs)
    assert not sinkhorn(x, 0.05, 3).requires_grad  # assignments


@few
@given(st.integers(2, 16), widths, st.sampled_from([torch.float32, torch.float64]), seeds)
def test_assignments_sum_to_one_and_use_prototypes_more_and_more_equally(
    b: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    scores = (unit(b, 4, seed=seed) @ unit(k, 4, seed=seed + 1).T).to(dtype)
    assignments = [sinkhorn(scores, 0.05, iterations) for iterations in (1, 3, 10, 30)]
    for q in assignments:
        assert (q >= 0).all()
        torch.testing.assert_close(q.sum(1), torch.ones(b, dtype=dtype))
    uneven = [(q.sum(0) - b / k).abs().sum().item() for q in assignments]
    assert all(after <= before + 1e-4 for before, after in pairwise(uneven))


# A peer's losses (an oracle for development; the package never imports it)


def test_simclr_without_its_keys_gradient() -> None:
    """It is the gradient of equation 1 with the other view's embeddings as constants; what is
    beside a query moves.
    """
    method, data = double("simclr"), data64()
    x, y = method.predict(method.inputs(data))
    t = method.temperature
    expected = (nt_xent(x, y.detach(), t) + nt_xent(y, x.detach(), t)) / 2
    method.stop_gradient = True
    loss = loss_of(method, data)
    close(loss, expected)
    same_gradients(loss, expected, method.parameters())


@pytest.mark.parametrize("name", ["simclr", "simclr-v2"])
def test_simclr_is_lightlys(name: str) -> None:
    method, data = double(name), data64()
    predictions, targets = answer(method, data)
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(temperature=method.temperature)
    close(method.loss(predictions, targets), theirs(*predictions))


@pytest.mark.parametrize("name", ["moco-v1", "moco-v2"])
def test_moco_is_lightlys_step_after_step(name: str) -> None:
    """The loss, its gradient, and the queue of keys, which goes round within five batches."""
    method = build(name, norm=False)
    queue = method.queue.clone()
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(
        temperature=method.config.temperature, memory_bank_size=tuple(queue.shape)
    )
    theirs.memory_bank.bank = queue.clone()
    for step in range(5):
        data = batch(8, seed=step)
        predictions, targets = answer(method, data)
        mine, peers = method.loss(predictions, targets), theirs(predictions[0], targets[0])
        close(mine, peers, 1e-5)
        same_gradients(mine, peers, method.parameters(), 1e-4)
        method.after_step(data, predictions, targets)
        torch.testing.assert_close(method.queue, theirs.memory_bank.bank)
    assert not (method.queue == queue).all(1).any()
