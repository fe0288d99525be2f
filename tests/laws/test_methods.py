"""What every method does, alone and with every hard example."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from selftaught.hard import CutMix, MixUp
from selftaught.hard.base import HardExample, objective, part_name
from selftaught.method import Batch, detach, leaves
from selftaught.methods import METHODS
from selftaught.models.batch_norm import frozen_statistics
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.laws.toys import (
    HARD,
    IMAGES,
    PAIRS,
    TWO_PLAYER,
    WITH_HARD,
    batch,
    build,
    hards,
    hards_of,
    rng,
    setup,
)

methods = pytest.mark.parametrize("name", METHODS)
with_hard = pytest.mark.parametrize("name", WITH_HARD)
pairs = pytest.mark.parametrize(
    ("name", "hard"), [(n, HARD[h]) for n, h in PAIRS], ids=["-".join(p) for p in PAIRS]
)
CASES = [(name, (hard,)) for name, hard in PAIRS] + [(name, ()) for name in METHODS]
cases = pytest.mark.parametrize(
    ("name", "hard"), [(n, hards(*h)) for n, h in CASES], ids=["-".join([n, *h]) for n, h in CASES]
)
ATTACKS = [p for p in PAIRS if p[1].startswith("adv")]
attacks = pytest.mark.parametrize(
    ("name", "hard"), [(n, HARD[h]) for n, h in ATTACKS], ids=["-".join(p) for p in ATTACKS]
)


@methods
def test_learns_one_batch_with_every_hard_example(name: str) -> None:
    hard = hards_of(name, "adversarial", "cutmix", "mixup")
    step = Step(build(name), hard)
    optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 0.05}], lr=0, momentum=0.5)
    loop = Loop(steps=20, steps_per_epoch=20, schedule=lambda p: 1.0)
    losses = []
    for report in fit(step, step.method, lambda epoch, first: [batch(16)] * 20, optimizer, loop):
        assert set(report.losses) == {"clean", *map(part_name, hard)}
        assert not report.skipped
        losses.append(report.losses["clean"].item())
    assert all(torch.isfinite(p).all() for p in step.parameters())
    if name in TWO_PLAYER:
        return  # what one loss falls the other rises
    # A queue starts random and its loss low: it is harder once the first step has filled it with
    # keys. A teacher's center starts at 0, with one prototype for all images.
    queue = any(
        key.endswith(("queue", "center"))
        for key, buffer in step.method.named_buffers()
        if buffer.numel()
    )
    assert min(losses[-5:]) < (max(losses) if queue else losses[0])


@cases
def test_is_deterministic(name: str, hard: tuple[HardExample, ...]) -> None:
    def run() -> torch.Tensor:
        step = Step(build(name), hard)
        torch.manual_seed(3)
        return step(batch(), rng()).loss

    assert torch.equal(run(), run())


@pairs
def test_hard_examples_leave_no_trace_in_the_statistics(name: str, hard: HardExample) -> None:
    """The running statistics are those of clean images; an attack leaves no gradient behind."""
    plain, other = Step(build(name)), Step(build(name), (hard,))
    plain(batch(), rng()), other(batch(), rng())
    for (key, mine), theirs in zip(
        plain.method.state_dict().items(), other.method.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), key
    assert all(p.grad is None for p in other.parameters())
    assert all(p.requires_grad for k, p in other.named_parameters() if "teacher" not in k)


@attacks
def test_an_attack_raises_the_loss_inside_its_ball(name: str, hard: HardExample) -> None:
    method = build(name)
    inputs = method.inputs(batch())
    predictions = method.predict(inputs)
    targets = detach(method.targets(batch(), predictions))
    attacked = hard.attack(method, inputs, targets, rng())
    for x, moved in zip(leaves(inputs), leaves(attacked), strict=True):
        assert (x - moved).abs().max() <= hard.eps / 255 + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
    with frozen_statistics(method):
        assert objective(method, method.predict(attacked), targets) > objective(
            method, predictions, targets
        )


@with_hard
def test_the_reused_gradient_is_the_attacks_own(name: str) -> None:
    """One step from the clean pass's gradient equals one step with a pass of its own (targets held
    fixed).
    """
    hard = HARD["adversarial"]
    step = Step(build(name, norm=False, dtype=torch.float64), (hard,))
    reused = step(batch(dtype=torch.float64), rng()).parts["adversarial"]
    method = step.method
    inputs = method.inputs(batch(dtype=torch.float64))
    targets = detach(method.targets(batch(dtype=torch.float64), method.predict(inputs)))
    attacked = hard.attack(method, inputs, targets, rng())
    torch.testing.assert_close(reused, objective(method, method.predict(attacked), targets))


class Frozen:
    """Targets without their gradient: SimCLR's own carry one, which attacks hold fixed."""

    def __init__(self, method: object, of: Batch) -> None:
        self.value = detach(method.targets(of, method.predict(method.inputs(of))))

    def __call__(self, *_: object) -> object:
        return self.value


@with_hard
@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_known_gradients_are_the_true_ones(name: str, combine: str) -> None:
    """Handing out the clean pass's gradients later changes none: with eps 0 the loss is as if
    counted twice.
    """
    still = dataclasses.replace(HARD["adversarial"], eps=0, stride=0, weight=0.5)
    data = batch(dtype=torch.float64)
    mine = Step(build(name, norm=False, dtype=torch.float64), (still,), combine)
    mine.method.targets = Frozen(mine.method, data)
    mine(data, rng()).loss.backward()
    plain = Step(build(name, norm=False, dtype=torch.float64))
    plain.method.targets = Frozen(plain.method, data)
    (plain(data, rng()).loss * (1.0 if combine == "mean" else 1.5)).backward()
    for (key, p), q in zip(mine.named_parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, key=key: f"{key}: {m}")


@with_hard
@pytest.mark.parametrize("kind", [CutMix, MixUp])
def test_mixing_with_a_share_of_one_changes_nothing(name: str, kind: type) -> None:
    class Whole(kind):
        def mask(self, rng: torch.Generator, size: tuple[int, ...]) -> torch.Tensor:
            return torch.ones(1, 1)

    method = build(name, norm=False)
    inputs = method.inputs(batch())
    predictions = method.predict(inputs)
    targets = method.targets(batch(), predictions)
    torch.testing.assert_close(
        Whole().loss(method, inputs, targets, rng(), None), objective(method, predictions, targets)
    )


@cases
def test_accumulating_is_the_large_batch(name: str, hard: tuple[HardExample, ...]) -> None:
    """Two half batches give the gradient of the whole, where the loss does not compare samples."""
    if METHODS[name].couples_samples:
        pytest.skip("its targets or losses compare the samples of one batch")
    if any(getattr(h, "random_start", 0) for h in hard):
        pytest.skip("noise is drawn for each batch")

    def gradients(parts: int) -> dict[str, torch.Tensor]:
        step = Step(build(name, norm=False, dtype=torch.float64), hard)
        data = batch(8, dtype=torch.float64)
        for piece in range(parts):
            s = slice(piece * 8 // parts, (piece + 1) * 8 // parts)
            part = data.map(lambda x, s=s: x[s])
            (step(part, rng()).loss / parts).backward()
        return {k: p.grad for k, p in step.named_parameters() if p.grad is not None}

    once, twice = gradients(1), gradients(2)
    for key, gradient in once.items():
        torch.testing.assert_close(
            twice[key], gradient, rtol=1e-7, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}"
        )


@methods
def test_every_parameter_learns(name: str) -> None:
    """At some time: a part can learn first, and others from then on."""
    step = Step(build(name))
    silent = {k for k, p in step.named_parameters() if p.requires_grad}
    for progress in (0.1, 0.5):
        step.method.progress = progress
        step.zero_grad()
        step(batch(16), rng()).loss.backward()
        step.method.after_backward()
        silent &= {k for k, p in step.named_parameters() if p.grad is None or not p.grad.any()}
    assert not silent


@methods
def test_half_precision_changes_a_gradient_little(name: str) -> None:
    """bf16 with a reused gradient: the direction is that of full precision."""

    def gradient(bf16: bool) -> torch.Tensor:
        step = Step(build(name), hards_of(name, "adversarial", "cutmix"))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outcome = step(batch(16), rng())
        assert outcome.loss.dtype == torch.float32
        outcome.loss.backward()
        return torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None])

    assert nn.functional.cosine_similarity(gradient(True), gradient(False), dim=0) > 0.9


@methods
def test_defaults_fit_small_and_large_data(name: str) -> None:
    from selftaught.method import Setting

    for images, size in ((IMAGES, 16), (5_000, 128), (5_000_000, 1024)):
        method = METHODS[name]
        suited = method.Config().defaults(
            Setting(images=images, batch=size, steps=images // size * 50, features=6)
        )
        suited = suited.config
        if name == "supervised":
            continue
        if images < 10_000:
            method(
                dataclasses.replace(suited, hidden=16) if hasattr(suited, "hidden") else suited,
                setup(name, images=images),
            )
        json.dumps(dataclasses.asdict(suited))
