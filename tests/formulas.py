"""Papers' formulas in plain loops that several tests ask, the words they are written in, and
numbers to try them on.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selftaught.method import Batch, Method
from selftaught.methods import METHODS
from tests.laws.toys import backbone_of, batch, config, rng, setup

Row = list[float]
Rows = list[Row]
seeds = st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)


# Numbers


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def shuffle(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=rng(seed))


def close(mine: Tensor, theirs: float | Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(
        mine, torch.as_tensor(theirs, dtype=mine.dtype), rtol=rtol, atol=1e-10
    )


# Methods in double precision, so that a formula and a method agree in nine digits


def make(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> Method:
    """As the laws' `build`, but before the first epoch, and with other fields."""
    torch.manual_seed(0)
    of = setup(name, backbone_of(name, norm=False))
    return METHODS[name](dataclasses.replace(config(name), **fields), of).to(dtype)


def double(name: str, **fields: Any) -> Method:
    """The same in the middle of training, and without batch norm: what it says of an image is that
    image's alone.
    """
    method = make(name, **fields)
    method.progress = 0.5
    for module in method.modules():
        for child, part in list(module.named_children()):
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                setattr(module, child, nn.Identity())
    return method


def answer(method: Method, data: Batch) -> tuple[Any, Any]:
    """The predictions and targets of a batch."""
    predictions = method.predict(method.inputs(data))
    return predictions, method.targets(data, predictions)


def loss_of(method: Method, data: Batch) -> Tensor:
    return method.loss(*answer(method, data))


def data64(n: int = 8, seed: int = 1, size: int = 16) -> Batch:
    return batch(n, seed, dtype=torch.float64, size=size)


def same_gradients(
    mine: Tensor, theirs: Tensor, parameters: Iterable[Tensor], rtol: float = 1e-6
) -> None:
    of = [p for p in parameters if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(mine, of, retain_graph=True),
        torch.autograd.grad(theirs, of),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol / 100)


def drifted(network: nn.Module) -> None:
    """Move every parameter: a teacher and its student then differ."""
    with torch.no_grad():
        for p in network.parameters():
            p *= 1.3


def multi_crop(n: int = 8, small: int = 2, seed: int = 1, first: int = 0) -> Batch:
    """Two large views and some small ones."""
    data, crops = (
        batch(n, seed, first, torch.float64),
        batch(n, seed + 100, first, torch.float64, size=9),
    )
    return dataclasses.replace(data, views=(*data.views, *crops.views[:small]))


def whole(dtype: torch.dtype = torch.float64) -> list[Batch]:
    """An epoch: every image once."""
    return [batch(n=16, seed=s, first=16 * s, dtype=dtype) for s in range(4)]


# Formulas, sample by sample


def dot(x: Row, y: Row) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def cosine(x: Row, y: Row) -> float:
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def surprise(logits: Row, label: int) -> float:
    """-log softmax, at the label."""
    return math.log(sum(map(math.exp, logits))) - logits[label]


def plain_info_nce(query: Row, key: Row, negatives: Rows, temperature: float) -> float:
    """van den Oord et al., 2018, equation 4; He et al., 2020, equation 1: of one query, whose key
    is no negative.
    """
    positive = math.exp(dot(query, key) / temperature)
    return -math.log(
        positive / (positive + sum(math.exp(dot(query, n) / temperature) for n in negatives))
    )


def plain_byol(x: Rows, y: Rows) -> float:
    """Grill et al., 2020, equation 2."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        long_a, long_b = math.sqrt(dot(a, a)), math.sqrt(dot(b, b))
        total += sum((p / long_a - q / long_b) ** 2 for p, q in zip(a, b, strict=True))
    return total / len(x)


def plain_sinkhorn(scores: Rows, epsilon: float, iterations: int) -> Rows:
    """Caron et al., 2020, appendix A.1: prototypes to 1 / K, then samples to 1 / B, and the samples
    last of all.
    """
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
        total += sum(c * surprise(row, k) for k, c in enumerate(code))
    return total / len(logits)
