"""The training loop: learning rates, decay, clipping, accumulation, bad steps, resuming, and
seeds.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.hard import CutMix
from selftaught.method import Batch
from selftaught.methods import METHODS
from selftaught.optim import LARS, OPTIMIZERS, SGD, AdamW, Cosine, Optimizer
from selftaught.seeding import key
from selftaught.training.loop import MOST_SKIPS, Loop, Report, fit
from selftaught.training.step import Step
from tests.laws.toys import HARD, batch, build, hards_of

few = settings(max_examples=40, deadline=None)
optimizers = pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
Epochs = Callable[[int, int], Iterable[Batch]]


def flat(progress: float) -> float:
    return 1.0


def parts(data: Batch, n: int) -> list[Batch]:
    return [data.map(lambda x, k=k: x.chunk(n)[k]) for k in range(n)]


def spoilt(data: Batch) -> Batch:
    """No pixel of one image is a number; a single one can lie where a method does not look."""
    views = tuple(v.clone() for v in data.views)
    for view in views:
        view[0] = math.nan
    return Batch(views, data.index, data.label, data.seed)


def state(step: Step, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that learns."""
    result = {k: v.clone() for k, v in step.state_dict().items()}
    for i, p in enumerate(step.parameters()):
        for k, v in optimizer.state.get(p, {}).items():
            result[f"{k} of {i}"] = torch.as_tensor(v).clone()
    return result


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for k, v in mine.items():
        assert torch.equal(v, theirs[k]), k


# The learning rate's course


def test_cosine_at_its_landmarks() -> None:
    course = Cosine(warmup=0.1, final=0.2)
    expected = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.6, 1.0: 0.2}
    expected[0.325] = 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2
    for progress, factor in expected.items():
        assert course(progress) == pytest.approx(factor), progress
    assert Cosine(warmup=0.0)(0.0) == 1.0
    assert Cosine()(1.0) == pytest.approx(0.0)


@few
@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_cosine_rises_then_falls_and_stays_a_share(
    warmup: float, final: float, progress: list[float]
) -> None:
    course = Cosine(warmup=warmup, final=final)
    progress = sorted(progress)
    factors = [course(p) for p in progress]
    assert all(-1e-12 <= f <= 1 + 1e-12 for f in factors)
    before = [f for p, f in zip(progress, factors, strict=True) if p < warmup]
    after = [f for p, f in zip(progress, factors, strict=True) if p >= warmup]
    assert before == sorted(before)
    assert all(a >= b - 1e-12 for a, b in pairwise(after))
    assert all(f >= final - 1e-12 for f in after)


@optimizers
def test_every_group_follows_the_course_up_to_its_peak(kind: type[Optimizer]) -> None:
    step = Step(build("simclr"))
    optimizer = kind(lr=0.02).build(step.named_parameters())
    course = Cosine(warmup=0.25, final=0.1)
    seen = []
    loop = Loop(steps=20, steps_per_epoch=20, schedule=course)
    for report in fit(step, step.method, lambda e, f: [batch()] * 20, optimizer, loop):
        expected = 0.02 * course((report.step + 0.5) / 20)
        assert report.lr == pytest.approx(expected)
        assert all(group["lr"] == pytest.approx(expected) for group in optimizer.param_groups)
        assert all(group["peak"] == 0.02 for group in optimizer.param_groups)
        seen.append(report.lr)
    assert 0 < seen[0] < 0.02
    assert max(seen) == pytest.approx(0.02, rel=0.02)
    assert seen[-1] == pytest.approx(0.002, rel=0.1)


# What decays


@optimizers
def test_norms_and_biases_do_not_decay(kind: type[Optimizer]) -> None:
    """Where no gradient pulls, decay alone moves the weights."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2)
    )
    for p in network.parameters():
        nn.init.uniform_(p, 0.5, 1.0)
        p.grad = torch.zeros_like(p)
    before = copy.deepcopy(dict(network.named_parameters()))
    optimizer = kind(lr=0.1, weight_decay=0.3).build(network.named_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for name, p in network.named_parameters():
        if name in ("0.weight", "4.weight"):
            torch.testing.assert_close(p, before[name] * (1 - 0.1 * 0.3), msg=name)
        else:
            assert torch.equal(p, before[name]), name


@optimizers
def test_what_is_frozen_is_not_optimised(kind: type[Optimizer]) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network[0].requires_grad_(False)
    optimizer = kind().build(network.named_parameters())
    [group] = optimizer.param_groups  # an empty group would be one more
    assert {id(p) for p in group["params"]} == {id(p) for p in network[1].parameters()}
    # nothing moves before the loop has set it
    assert all(g["lr"] == 0 for g in optimizer.param_groups)


def test_one_step_of_sgd_is_its_formula() -> None:
    step = Step(build("supervised", norm=False, dtype=torch.float64))
    data, twin = batch(dtype=torch.float64), copy.deepcopy(step)
    twin(data, torch.Generator()).loss.backward()
    optimizer = SGD(lr=0.1, weight_decay=0.3).build(step.named_parameters())
    loop = Loop(steps=1, steps_per_epoch=1, schedule=lambda p: 0.5)
    list(fit(step, step.method, lambda e, f: [data], optimizer, loop))
    for p, q in zip(step.parameters(), twin.parameters(), strict=True):
        assert q.grad is not None
        decay = 0.3 * q if q.ndim > 1 else 0.0
        torch.testing.assert_close(p, q - 0.05 * (q.grad + decay))


def test_lars_takes_the_plain_rate_for_biases_and_a_layers_own_for_weights() -> None:
    layer = nn.Linear(4, 4).double()
    before = copy.deepcopy(layer)
    for p in layer.parameters():
        p.grad = torch.ones_like(p)
    optimizer = LARS(lr=1.0, weight_decay=0.1, trust=0.01).build(layer.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()
    torch.testing.assert_close(layer.bias, before.bias - 1)
    pull, length = torch.ones_like(before.weight), before.weight.norm()
    trust = 0.01 * length / (pull.norm() + 0.1 * length)  # You et al., 2017, equation 6
    torch.testing.assert_close(
        layer.weight, before.weight - trust * (pull + 0.1 * before.weight), rtol=1e-6, atol=1e-9
    )


# Clipping


def length_of_one_step(clip: float, hard: tuple[CutMix, ...] = ()) -> Tensor:
    """How far one step of plain gradient descent, at rate 1, goes over all that it trains."""
    step = Step(build("simclr"), hard)
    before = copy.deepcopy(list(step.parameters()))
    optimizer = SGD(lr=1.0, weight_decay=0.0, momentum=0.0).build(step.named_parameters())
    loop = Loop(steps=1, steps_per_epoch=1, schedule=flat, clip=clip)
    list(fit(step, step.method, lambda e, f: [batch()], optimizer, loop))
    moved = [(p - q).flatten() for p, q in zip(step.parameters(), before, strict=True)]
    return torch.cat(moved).norm().detach()


@pytest.mark.parametrize("hard", [(), (CutMix(norm="auxiliary"),)], ids=["clean", "auxiliary"])
def test_clipping_bounds_the_whole_gradient(hard: tuple[CutMix, ...]) -> None:
    free = length_of_one_step(0.0, hard)
    assert free > 0.01
    bound = free.item() / 7
    torch.testing.assert_close(
        length_of_one_step(bound, hard), torch.tensor(bound), rtol=1e-3, atol=0
    )
    # what is short enough stays bitwise as it is
    assert length_of_one_step(2 * free.item(), hard) == free


# Accumulation


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.couples_samples])
def test_accumulating_is_the_large_batch(name: str) -> None:
    """Weights, teachers, queues and memories after several epochs."""

    def trained(n: int) -> tuple[Step, list[Report]]:  # in batches of 8 / n
        step = Step(build(name, norm=False, dtype=torch.float64))
        optimizer = AdamW(lr=0.01).build(step.named_parameters())
        loop = Loop(steps=5, steps_per_epoch=2, schedule=Cosine(), accumulate=n, clip=0.5)

        def epochs(epoch: int, first: int) -> list[Batch]:
            whole = [
                batch(8, seed=9 * epoch + i, first=8 * i, dtype=torch.float64)
                for i in range(first, 2)
            ]
            return [part for data in whole for part in parts(data, n)]

        return step, list(fit(step, step.method, epochs, optimizer, loop))

    (once, reports), (often, others) = trained(1), trained(4)
    assert [r.step for r in others] == [0, 1, 2, 3, 4]
    assert [r.epoch for r in others] == [0, 0, 1, 1, 2]
    for a, b in zip(reports, others, strict=True):
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-8, atol=1e-12)
    for (k, p), q in zip(once.state_dict().items(), often.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=lambda m, k=k: f"{k}: {m}")


# Steps that are not finite


@pytest.mark.parametrize(
    ("name", "kind"), list(zip(METHODS, itertools.cycle(OPTIMIZERS.values()), strict=False))
)
def test_a_step_that_is_not_finite_teaches_nothing(name: str, kind: type[Optimizer]) -> None:
    """Not weights or norms, not the optimizer's buffers, not a teacher, queue or memory."""
    step = Step(build(name), hards_of(name, "adversarial", "cutmix"))
    optimizer = kind(lr=0.01).build(step.named_parameters())
    stream = [batch(seed=0), spoilt(batch(seed=1)), spoilt(batch(seed=2)), batch(seed=3)]
    loop = Loop(steps=4, steps_per_epoch=4, schedule=flat)
    reports = fit(step, step.method, lambda e, f: stream, optimizer, loop)
    assert not next(reports).skipped
    good = state(step, optimizer)
    for _ in range(2):
        report = next(reports)
        assert report.skipped
        assert not torch.isfinite(report.loss)
        same(state(step, optimizer), good)
    assert not next(reports).skipped
    after = state(step, optimizer)
    assert any(not torch.equal(v, good[k]) for k, v in after.items())
    assert all(torch.isfinite(v).all() for v in after.values())


def train_on(finite: list[bool], skipped: list[bool], lr: float = 0.03) -> None:
    """Write down in `skipped` which steps were, until it is over."""
    step = Step(build("moco-v2", norm=False))
    optimizer = SGD(lr=lr).build(step.named_parameters())
    stream = [batch(4) if good else spoilt(batch(4)) for good in finite]
    loop = Loop(steps=len(stream), steps_per_epoch=len(stream), schedule=flat)
    skipped.extend(
        report.skipped for report in fit(step, step.method, lambda e, f: stream, optimizer, loop)
    )


@pytest.mark.parametrize(("lr", "advice"), [(0.3, "0.03"), (6.4, "0.64"), (1e-4, "1e-05")])
def test_too_many_in_a_row_end_the_training_with_advice(lr: float, advice: str) -> None:
    skipped: list[bool] = []
    words = rf"for {MOST_SKIPS} steps \(at step {MOST_SKIPS}\).* try --optimizer.lr {advice}$"
    with pytest.raises(UserError, match=words):
        train_on([True] + [False] * (MOST_SKIPS + 5), skipped, lr)
    assert skipped == [False] + [True] * MOST_SKIPS  # the last one is reported too


def test_skips_count_in_a_row_only() -> None:
    almost = [False] * (MOST_SKIPS - 1)
    stream, skipped = [*almost, True, *almost], list[bool]()
    train_on(stream, skipped)
    assert skipped == [not good for good in stream]


# Resuming


@pytest.mark.parametrize("name", METHODS)
def test_resuming_is_going_on(name: str) -> None:
    """With momentum, at every cut: in the middle of an epoch and at its end."""
    hard = hards_of(name, "adversarial-random", "cutmix-all-auxiliary")
    loop = Loop(steps=5, steps_per_epoch=3, schedule=Cosine(warmup=0.3), seed=5)
    states = dict[int, Any]()

    def epochs(epoch: int, first: int) -> list[Batch]:
        return [batch(16, seed=10 * epoch + i, first=16 * i) for i in range(first, 3)]

    def go(step: Step, optimizer: torch.optim.Optimizer, start: int) -> list[float]:
        losses = []
        for report in fit(step, step.method, epochs, optimizer, loop, start):
            losses.append(report.loss.item())
            assert report.step == start + len(losses) - 1
            if start == 0 and report.step + 1 in (1, 3, 4):
                states[report.step + 1] = copy.deepcopy((step.state_dict(), optimizer.state_dict()))
        return losses

    def fresh(seed: int) -> tuple[Step, torch.optim.Optimizer]:
        step = Step(build(name, seed=seed), hard)
        return step, AdamW(lr=0.01).build(step.named_parameters())

    once = fresh(0)
    whole = go(*once, 0)
    for cut, (weights, moments) in states.items():
        again = fresh(7)
        again[0].load_state_dict(weights)
        again[1].load_state_dict(moments)
        assert go(*again, cut) == whole[cut:]
        same(state(*again), state(*once))


def test_nothing_is_left_after_the_last_step() -> None:
    step = Step(build("simclr"))
    optimizer = SGD().build(step.named_parameters())
    loop = Loop(steps=3, steps_per_epoch=3, schedule=flat)
    assert list(fit(step, step.method, lambda e, f: [batch()] * 3, optimizer, loop, start=3)) == []


def test_hard_examples_begin_in_the_course_of_training() -> None:
    late = dataclasses.replace(HARD["cutmix"], start=0.5)
    step = Step(build("simclr"), (late,))
    optimizer = SGD().build(step.named_parameters())
    loop = Loop(steps=6, steps_per_epoch=2, schedule=flat)
    reports = fit(step, step.method, lambda e, f: [batch()] * 2, optimizer, loop)
    assert ["cutmix" in report.losses for report in reports] == [False] * 3 + [True] * 3


# Seeds

events = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4).map(tuple)


@few
@given(events, events)
def test_a_key_belongs_to_its_event_alone(
    one: tuple[object, ...], other: tuple[object, ...]
) -> None:
    assert (key(*one) == key(*other)) == (one == other)
    assert 0 <= key(*one) < 2**63
    torch.manual_seed(key(*one))


def test_keys_are_the_same_on_every_machine_and_day() -> None:
    assert key(0, "step", 1, 0) == 4753066281469103452
    assert key() == 1665333220245342802
