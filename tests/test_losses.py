"""Every loss against its paper's formula in plain loops, its gradient, its invariances, and a peer's implementation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selftaught.losses import cosine_distance, info_nce, nt_xent, sinkhorn, soft_cross_entropy
from selftaught.method import Batch
from tests.laws.toys import batch, build

Rows = list[list[float]]
sizes, widths, seeds = st.integers(1, 7), st.integers(2, 6), st.integers(0, 2**31)
temperatures = st.floats(0.05, 2.0)
few = settings(max_examples=25, deadline=None)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def shuffle(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def close(mine: Tensor, theirs: float | Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(mine, torch.as_tensor(theirs, dtype=mine.dtype), rtol=rtol, atol=1e-10)


# The papers' formulas, sample by sample


def plain_info_nce(query: Rows, key: Rows, negatives: Rows, temperature: float) -> float:
    """He et al., 2020, equation 1."""
    total = 0.0
    for q, k in zip(query, key, strict=True):
        positive = math.exp(dot(q, k) / temperature)
        total -= math.log(positive / (positive + sum(math.exp(dot(q, n) / temperature) for n in negatives)))
    return total / len(query)


def plain_nt_xent(first: Rows, second: Rows, temperature: float) -> float:
    """Chen et al., 2020 (SimCLR), equation 1 and algorithm 1: the views of an image stand beside each other."""
    z = [view for pair in zip(first, second, strict=True) for view in pair]

    def one(i: int, j: int) -> float:
        others = sum(math.exp(dot(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(dot(z[i], z[j]) / temperature) / others)

    return sum(one(2 * k, 2 * k + 1) + one(2 * k + 1, 2 * k) for k in range(len(first))) / len(z)


def plain_byol(x: Rows, y: Rows) -> float:
    """Grill et al., 2020, equation 2."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        long_a, long_b = math.sqrt(dot(a, a)), math.sqrt(dot(b, b))
        total += sum((p / long_a - q / long_b) ** 2 for p, q in zip(a, b, strict=True))
    return total / len(x)


def plain_sinkhorn(scores: Rows, epsilon: float, iterations: int) -> Rows:
    """Caron et al., 2020, appendix A.1: prototypes to 1 / K, then samples to 1 / B, and the samples last of all."""
    samples, prototypes = range(len(scores)), range(len(scores[0]))
    q = [[math.exp(scores[b][k] / epsilon) for b in samples] for k in prototypes]
    everything = sum(map(sum, q))
    q = [[value / everything for value in row] for row in q]
    for _ in range(iterations):
        for k in prototypes:
            used = sum(q[k])
            q[k] = [value / used / len(prototypes) for value in q[k]]
        for b in samples:
            given_out = sum(q[k][b] for k in prototypes)
            for k in prototypes:
                q[k][b] /= given_out * len(samples)
    return [[q[k][b] / sum(q[i][b] for i in prototypes) for k in prototypes] for b in samples]


def plain_cross_entropy(logits: Rows, target: Rows) -> float:
    total = 0.0
    for row, code in zip(logits, target, strict=True):
        whole = sum(map(math.exp, row))
        total -= sum(c * math.log(math.exp(x) / whole) for x, c in zip(row, code, strict=True))
    return total / len(logits)


@few
@given(sizes, widths, st.integers(0, 9), temperatures, seeds)
def test_info_nce_is_its_formula(b: int, d: int, k: int, temperature: float, seed: int) -> None:
    query, key, negatives = unit(b, d, seed=seed), unit(b, d, seed=seed + 1), unit(k, d, seed=seed + 2)
    formula = plain_info_nce(query.tolist(), key.tolist(), negatives.tolist(), temperature)
    close(info_nce(query, key, negatives, temperature), formula)


@few
@given(sizes, widths, temperatures, seeds)
def test_nt_xent_both_ways_is_its_formula(b: int, d: int, temperature: float, seed: int) -> None:
    x, y = unit(b, d, seed=seed), unit(b, d, seed=seed + 1)
    both = (nt_xent(x, y, temperature) + nt_xent(y, x, temperature)) / 2
    close(both, plain_nt_xent(x.tolist(), y.tolist(), temperature))


@few
@given(sizes, widths, seeds)
def test_cosine_distance_is_its_formula(b: int, d: int, seed: int) -> None:
    x, y = normal(b, d, seed=seed), normal(b, d, seed=seed + 1)
    close(cosine_distance(x, y), plain_byol(x.tolist(), y.tolist()))


@few
@given(sizes, widths, st.floats(0.05, 1.0), st.integers(1, 5), seeds)
def test_sinkhorn_is_its_algorithm(b: int, k: int, epsilon: float, iterations: int, seed: int) -> None:
    scores = unit(b, 4, seed=seed) @ unit(k, 4, seed=seed + 1).T
    close(sinkhorn(scores, epsilon, iterations), torch.tensor(plain_sinkhorn(scores.tolist(), epsilon, iterations)), 1e-6)


@few
@given(sizes, widths, seeds)
def test_soft_cross_entropy_is_its_formula(b: int, k: int, seed: int) -> None:
    logits, target = 3 * normal(b, k, seed=seed), normal(b, k, seed=seed + 1).softmax(1)
    close(soft_cross_entropy(logits, target), plain_cross_entropy(logits.tolist(), target.tolist()))


def test_hard_labels_are_a_case_of_soft_ones() -> None:
    logits, label = normal(5, 4, seed=0), torch.tensor([0, 3, 1, 1, 2])
    close(soft_cross_entropy(logits, F.one_hot(label, 4).double()), F.cross_entropy(logits, label))


# Gradients


def test_gradients_are_the_numerical_ones() -> None:
    x, y, z = (normal(4, 3, seed=s).requires_grad_() for s in range(3))
    code = normal(4, 3, seed=3).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, n: info_nce(q, k, n, 0.3), (x, y, z))
    assert torch.autograd.gradcheck(lambda q, k: nt_xent(q, k, 0.3), (x, y))
    assert torch.autograd.gradcheck(cosine_distance, (x, y))
    assert torch.autograd.gradcheck(soft_cross_entropy, (x, code))


def test_assignments_take_no_gradient() -> None:
    assert not sinkhorn(normal(4, 3, seed=0).requires_grad_(), 0.05, 3).requires_grad


# Invariances


@few
@given(sizes, widths, temperatures, seeds)
def test_the_order_of_the_batch_does_not_matter(b: int, d: int, temperature: float, seed: int) -> None:
    x, y, z = (unit(b, d, seed=seed + s) for s in range(3))
    p = shuffle(b, seed)
    close(info_nce(x[p], y[p], z[p.flip(0)], temperature), info_nce(x, y, z, temperature))
    close(nt_xent(x[p], y[p], temperature), nt_xent(x, y, temperature))
    close(cosine_distance(x[p], y[p]), cosine_distance(x, y))
    close(soft_cross_entropy(x[p], y.softmax(1)[p]), soft_cross_entropy(x, y.softmax(1)))
    close(sinkhorn(x[p], 0.2, 3), sinkhorn(x, 0.2, 3)[p], 1e-6)
    turn = shuffle(d, seed)
    close(sinkhorn(x[:, turn], 0.2, 3), sinkhorn(x, 0.2, 3)[:, turn], 1e-6)


@few
@given(sizes, widths, temperatures, seeds)
def test_turning_all_embeddings_changes_nothing(b: int, d: int, temperature: float, seed: int) -> None:
    x, y, z, turn = unit(b, d, seed=seed), unit(b, d, seed=seed + 1), unit(5, d, seed=seed + 2), rotation(d, seed + 3)
    close(info_nce(x @ turn, y @ turn, z @ turn, temperature), info_nce(x, y, z, temperature))
    close(nt_xent(x @ turn, y @ turn, temperature), nt_xent(x, y, temperature))
    close(cosine_distance(x @ turn, y @ turn), cosine_distance(x, y))


@few
@given(sizes, widths, st.floats(0.01, 100), seeds)
def test_cosine_distance_knows_no_length(b: int, d: int, length: float, seed: int) -> None:
    x, y = normal(b, d, seed=seed), normal(b, d, seed=seed + 1)
    close(cosine_distance(length * x, y / length), cosine_distance(x, y), 1e-6)
    close(cosine_distance(x, length * x), 0.0)
    close(cosine_distance(x, -length * x), 4.0)


@few
@given(sizes, widths, st.floats(-1e3, 1e3), seeds)
def test_a_shift_of_all_scores_changes_no_assignment(b: int, k: int, shift: float, seed: int) -> None:
    scores = unit(b, k, seed=seed)
    close(sinkhorn(scores + shift, 0.05, 3), sinkhorn(scores, 0.05, 3), 1e-6)


@few
@given(st.integers(2, 16), widths, st.sampled_from([torch.float32, torch.float64]), seeds)
def test_assignments_sum_to_one_and_use_prototypes_more_and_more_equally(
    b: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    scores = (unit(b, 4, seed=seed) @ unit(k, 4, seed=seed + 1).T).to(dtype)
    previous = math.inf
    for iterations in (1, 3, 10, 30):
        q = sinkhorn(scores, 0.05, iterations)
        assert (q >= 0).all()
        torch.testing.assert_close(q.sum(1), torch.ones(b, dtype=dtype))
        uneven = (q.sum(0) - b / k).abs().sum().item()
        assert uneven <= previous + 1e-4
        previous = uneven


def test_prototypes_are_used_equally_in_the_end() -> None:
    scores = unit(32, 8, seed=0) @ unit(5, 8, seed=1).T
    scores[:, 0] += 0.5  # everyone's favourite
    assert (scores / 0.1).softmax(1).sum(0).max() > 2 * 32 / 5
    torch.testing.assert_close(sinkhorn(scores, 0.1, 50).sum(0), torch.full((5,), 32 / 5).double(), rtol=0.01, atol=0)


@pytest.mark.parametrize("n", [2, 5])
def test_one_point_for_all_images_costs_what_chance_costs(n: int) -> None:
    """The loss that the guard takes for collapse: `chance` of the methods."""
    same = unit(1, 4, seed=0).expand(n, -1)
    close(info_nce(same, same, same, 0.2), math.log(n + 1))
    close(nt_xent(same, same, 0.2), math.log(2 * n - 1))
    close(cosine_distance(same, same), 0.0)
    flat = torch.zeros(n, 6, dtype=torch.float64)
    close(soft_cross_entropy(flat, sinkhorn(flat, 0.05, 3)), math.log(6))


# A peer's losses (an oracle for development; the package never imports it)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_lightlys(temperature: float) -> None:
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    x, y = unit(6, 4, seed=0), unit(6, 4, seed=1)
    close((nt_xent(x, y, temperature) + nt_xent(y, x, temperature)) / 2, theirs(x, y))


def test_simclr_is_lightlys() -> None:
    method, data = build("simclr", norm=False, dtype=torch.float64), batch(dtype=torch.float64)
    predictions = method.predict(method.inputs(data))
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(temperature=method.temperature)
    close(method.loss(predictions, method.targets(data, predictions)), theirs(*predictions))


def test_moco_is_lightlys_step_after_step() -> None:
    """The loss, its gradient, and the queue of keys, which goes round within five batches."""
    method = build("moco-v2", norm=False)
    queue = method.queue.clone()
    theirs = pytest.importorskip("lightly.loss").NTXentLoss(
        temperature=method.config.temperature, memory_bank_size=tuple(queue.shape)
    )
    theirs.memory_bank.bank = queue.clone()
    for step in range(5):
        data = batch(8, seed=step)
        predictions = method.predict(method.inputs(data))
        targets = method.targets(data, predictions)
        mine, peers = method.loss(predictions, targets), theirs(predictions[0], targets[0])
        close(mine, peers, 1e-5)
        parameters = [p for p in method.parameters() if p.requires_grad]
        for a, b in zip(
            torch.autograd.grad(mine, parameters, retain_graph=True), torch.autograd.grad(peers, parameters), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        method.after_step(data, predictions, targets)
        torch.testing.assert_close(method.queue, theirs.memory_bank.bank)
    assert not (method.queue == queue).all(1).any()


def test_cosine_distance_is_lightlys() -> None:
    theirs = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    x, y = normal(6, 4, seed=0), normal(6, 4, seed=1)
    close(cosine_distance(x, y), 2 + 2 * theirs(x, y))


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_is_lightlys(epsilon: float) -> None:
    theirs = pytest.importorskip("lightly.loss.swav_loss").sinkhorn
    scores = unit(9, 4, seed=0) @ unit(5, 4, seed=1).T
    close(sinkhorn(scores, epsilon, 3), theirs(scores, iterations=3, epsilon=epsilon))


@pytest.mark.parametrize("small", [0, 2])
def test_swav_is_lightlys(small: int) -> None:
    """With and without small views: every view predicts the codes of both large ones, but its own."""
    method, data = build("swav", norm=False, dtype=torch.float64), batch(dtype=torch.float64)
    crops = tuple(batch(seed=5, dtype=torch.float64, size=9).views)[:small]
    data = Batch((*data.views, *crops), data.index, data.label, data.noise)
    predictions = method.predict(method.inputs(data))
    c = method.config
    theirs = pytest.importorskip("lightly.loss").SwaVLoss(c.temperature, c.iterations, c.epsilon)
    scores = [method.scores(z) for z in predictions]
    peers = theirs(scores[:2], scores[2:])
    close(method.loss(predictions, method.targets(data, predictions)), peers.squeeze())
