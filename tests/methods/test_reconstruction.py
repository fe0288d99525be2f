"""Context encoder and denoising autoencoder: against their formulas in plain loops, what damage
hides, and controls of what can be known.
"""

import dataclasses
import math
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.config.stage import Data, Stage
from selftaught.errors import UserError
from selftaught.hard import Adversarial, CutMix
from selftaught.hard.mixed import blend, partner
from selftaught.method import Batch, Setup, detach, leaves
from selftaught.methods import METHODS
from selftaught.methods.generative.context_encoder import ContextEncoder
from selftaught.methods.parts.reconstruction import damage
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import answer, close, data64, double, loss_of
from tests.laws.toys import IMAGES, Toy, batch, config, rng
from tests.methods.controls import held_out_grade

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("context-encoder", {"hole": "centre"}),
    ("context-encoder", {"hole": "random"}),
    ("denoising-autoencoder", {"noise": "masking"}),
    ("denoising-autoencoder", {"noise": "gaussian"}),
    ("denoising-autoencoder", {"noise": "salt-and-pepper"}),
]
kinds = pytest.mark.parametrize(
    ("name", "fields"), KINDS, ids=[str(next(iter(f.values()))) for _, f in KINDS]
)


def plain_weights(keep: list[list[float]], rim: float) -> list[list[float]]:
    """1 in the hole, `rim` at most one pixel beside it (of 16), 0 elsewhere."""
    side = range(len(keep))

    def near(y: int, x: int) -> bool:
        around = [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return any(keep[v][u] == 0 for v, u in around if v in side and u in side)

    return [[1.0 if not keep[y][x] else rim * near(y, x) for x in side] for y in side]


def plain_error(picture: Tensor, view: Tensor, weights: list[list[float]]) -> float:
    total = above = 0.0
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            for one, other in zip(picture[:, y, x].tolist(), view[:, y, x].tolist(), strict=True):
                above += weight * (one - other) ** 2
                total += weight
    return above / total


@kinds
def test_a_loss_is_its_formula(name: str, fields: dict[str, Any]) -> None:
    """Pathak et al., 2016, equation 1, with the ring of section 3.2; Vincent et al., 2008, equation
    5, with the squared error.
    """
    method, data, total = double(name, **fields), data64(4), 0.0
    predictions, (_, keeps, _) = answer(method, data)
    for picture, view, keep in zip(predictions, data.views[0], keeps, strict=True):
        ring = name == "context-encoder"
        weights = plain_weights(keep[0].tolist(), 10.0) if ring else [[1.0] * 16] * 16
        total += plain_error(picture, view, weights)
    close(loss_of(method, data), total / 4)


# The discriminator of fills

HOLES = pytest.mark.parametrize("hole", ["centre", "random"])


def plain_fill(picture: Tensor, keep: Tensor, hole: str) -> Tensor:
    """What a discriminator sees of a picture [3, 16, 16]; keep [1, 16, 16]."""
    if hole == "centre":
        return picture[:, 4:12, 4:12]
    return torch.where(keep == 0, picture, 0.5)


@HOLES
def test_the_adversarial_loss_is_its_formula(hole: str) -> None:
    """Pathak et al., 2016, equations 2 and 3, with the loss of a generator that does not saturate
    (Goodfellow et al., 2014, section 3).
    """
    method = double("context-encoder", hole=hole, adversarial=0.3).eval()
    data, total = data64(4), 0.0
    predictions, targets = answer(method, data)
    for picture, view, keep in zip(predictions, data.views[0], targets[1], strict=True):
        scores = [method.discriminator(plain_fill(x, keep, hole)[None]) for x in (view, picture)]
        real, fake = (1 / (1 + math.exp(-score.item())) for score in scores)
        total += -math.log(real) - math.log(1 - fake) - 0.3 * math.log(fake)
        total += plain_error(picture, view, plain_weights(keep[0].tolist(), 10.0))
    close(method.loss(predictions, targets), total / 4)


@HOLES
def test_each_side_learns_from_its_own_loss(hole: str) -> None:
    method = double("context-encoder", hole=hole, adversarial=0.3).eval()
    data, softplus = data64(4), torch.nn.functional.softplus
    loss_of(method, data).backward()
    predictions, targets = answer(method, data)
    real, fake = (
        method.discriminator(
            torch.stack([plain_fill(*one, hole) for one in zip(x, targets[1], strict=True)])
        )
        for x in (data.views[0], predictions)
    )
    first = softplus(-real).mean() + softplus(fake).mean()
    second = method.error(predictions, targets) + 0.3 * softplus(-fake).mean()
    for key, parameter in method.named_parameters():
        loss = first if key.startswith("discriminator.") else second
        close(parameter.grad, torch.autograd.grad(loss, parameter, retain_graph=True)[0])


@HOLES
def test_a_discriminator_sees_no_seam(hole: str) -> None:
    """What lies around the hole has no influence."""
    method, data = double("context-encoder", hole=hole, adversarial=0.3), data64(4)
    view, keep, _ = method.targets(data, ())
    fill = method.cut_fill(view, keep)
    assert torch.equal(fill, method.cut_fill(torch.where(keep > 0, 1 - view, view), keep))
    assert not torch.equal(fill, method.cut_fill(1 - view, keep))


def test_without_its_weight_there_is_no_discriminator() -> None:
    """And hard examples go with it."""
    method, other = double("context-encoder"), double("context-encoder", adversarial=0.1)
    assert not any("discriminator" in key for key in method.state_dict())
    assert method.parameter_groups() == {}
    assert set(other.parameter_groups()) == {"discriminator"}
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    for adversarial in (0.0, 0.001):
        change = ContextEncoder.Config(adversarial=adversarial)
        with pytest.raises(UserError, match="--hard") if adversarial else nullcontext():
            Stage(data=Data(roots=("unread",)), size=32, method=change, hard=(CutMix(),))


@HOLES
def test_a_discriminator_keeps_the_laws(hole: str) -> None:
    """Parts of a batch are the whole batch, and a rebuilt method goes on exactly."""

    def train(parts: int, *cuts: int) -> dict[str, Tensor]:
        step = Step(double("context-encoder", hole=hole, adversarial=0.1))
        loop = Loop(steps=4, steps_per_epoch=4, schedule=lambda p: 1.0, accumulate=parts)
        batches = [
            data64(8, seed).map(lambda x, k=k: x.chunk(parts)[k])
            for seed in range(4)
            for k in range(parts)
        ]
        for first, last in pairwise([0, *cuts, 4]):
            state = step.state_dict()
            step = Step(double("context-encoder", hole=hole, adversarial=0.1))
            step.load_state_dict(state)
            optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 0.05}], lr=0)
            epochs = lambda _, first: batches[first * parts :]  # noqa: E731
            for report in fit(step, step.method, epochs, optimizer, loop, first):
                if report.step + 1 == last:
                    break
        return step.state_dict()

    whole = train(1)
    for key, value in train(2).items():
        torch.testing.assert_close(value, whole[key], rtol=1e-7, atol=1e-10)
    for key, value in train(1, 1, 3).items():
        assert torch.equal(value, whole[key])


# The damage


def test_the_hole_is_the_middle_quarter() -> None:
    keep, add = double("context-encoder", hole="centre").draw_damage(data64(4))
    hole = torch.zeros(16, 16, dtype=torch.float64)
    hole[4:12, 4:12] = 1
    assert (keep == 1 - hole).all()
    assert (add == 0.5 * hole).all()


def test_random_holes_are_a_quarter_and_differ() -> None:
    method, data = double("context-encoder", hole="random"), data64(16)
    holes = method.draw_holes(data)
    assert (holes.sum((1, 2)) == 64).all()
    assert len({tuple(hole.flatten().tolist()) for hole in holes}) == 16
    neighbours = (holes[:, 1:] == holes[:, :-1]).double().mean()
    assert neighbours > 0.8  # regions, not single pixels: of those it would be .625
    mean = holes.double().mean((1, 2))
    close(mean, torch.full_like(mean, 0.25))


def test_noise_has_its_distribution() -> None:
    data = dataclasses.replace(data64(64), views=(torch.full((64, 3, 16, 16), 0.5),))
    view, tolerance = data.views[0], 4 * math.sqrt(0.25 / (64 * 256))
    keep, add = double("denoising-autoencoder", share=0.4).draw_damage(data)
    lost = damage(view, keep, add)
    assert set(lost.unique().tolist()) == {0.0, 0.5}
    assert (lost == 0).double().mean() == pytest.approx(0.4, abs=tolerance)
    assert torch.equal(lost[:, 0], lost[:, 2])  # a whole pixel
    keep, add = double("denoising-autoencoder", noise="salt-and-pepper").draw_damage(data)
    lost = damage(view, keep, add)
    for value, share in ((0.0, 0.125), (0.5, 0.75), (1.0, 0.125)):
        assert (lost == value).double().mean() == pytest.approx(share, abs=tolerance)
    keep, add = double("denoising-autoencoder", noise="gaussian", sigma=0.1).draw_damage(data)
    assert (keep == 1).all()
    number = add.numel()
    assert add.mean().item() == pytest.approx(0, abs=0.4 / math.sqrt(number))
    assert add.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * number))
    within = (add.abs() < 0.1).double().mean().item()
    assert within == pytest.approx(0.6827, abs=4 * math.sqrt(0.22 / number))


@kinds
def test_damage_depends_on_the_image_alone(name: str, fields: dict[str, Any]) -> None:
    method, data = double(name, **fields), data64(8)
    parts = [data.map(lambda x, s=s: x[s]) for s in (slice(0, 3), slice(3, 8))]
    halves = [method.draw_damage(part) for part in parts]
    for whole, *pieces in zip(method.draw_damage(data), *halves, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[2], KINDS[4]], ids=lambda k: str(k[1]))
def test_hidden_pixels_have_no_influence(kind: tuple[str, dict[str, Any]]) -> None:
    method, data = double(kind[0], **kind[1]), data64(4)
    inputs = view, keep, add = method.inputs(data)
    other = torch.where(keep.value > 0, view, 1 - view)
    assert torch.equal(method.predict((other, keep, add)), method.predict(inputs))
    attacked = Adversarial(eps=8).attack(method, inputs, detach(method.targets(data, ())), rng())
    moved = leaves(attacked)[0] != view
    assert moved.any()
    assert not (moved & (keep.value == 0)).any()


@kinds
def test_mixed_views_have_exact_targets(name: str, fields: dict[str, Any]) -> None:
    method, data = double(name, **fields), data64(4)
    inputs, targets = method.inputs(data), method.targets(data, ())
    mask = CutMix().mask(rng(), (16, 16))
    partners = tuple(partner(x) for x in targets)
    view, *own = method.mix_targets(targets, partners, mask)
    close(view, leaves(blend(inputs, mask))[0])
    assert all(torch.equal(x, y) for x, y in zip(own, targets[1:], strict=True))


# The accuracy of the task


@kinds
def test_a_grade_is_the_error_that_is_avoided(name: str, fields: dict[str, Any]) -> None:
    method, data = double(name, **fields), data64(4)
    targets = method.targets(data, ())
    view, keep, _ = targets
    left = damage(*targets) * keep
    guess = left.sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True)
    ones = torch.ones(4, dtype=torch.float64)
    close(method.grade(view, targets), ones)
    close(method.grade(guess, targets), 0 * ones)
    close(method.grade((view + guess) / 2, targets), 0.75 * ones)
    close(method.grade(2 * guess - view + 9, targets), 0 * ones)
    if not (keep == 1).all():  # what is left can be copied
        close(method.grade(torch.where(keep > 0, guess, view), targets), ones)
    assert method.chance() == 0


# Controls


def slopes(seed: int) -> Batch:
    """Images whose brightness changes evenly from side to side: a hole follows from its border."""
    slope = 2 * torch.rand(32, 1, 1, 1, generator=rng(seed)) - 1
    view = 0.5 + 0.5 * slope * (torch.arange(16) - 7.5) / 8
    return dataclasses.replace(batch(32, seed=seed), views=(view.expand(-1, 3, 16, -1),))


@pytest.mark.parametrize(
    ("name", "fields", "noise", "roll", "low", "high"),
    [
        ("context-encoder", {"hole": "centre"}, False, 0, 0.35, 1.0),
        ("context-encoder", {"hole": "centre"}, False, 1, -9.0, 0.1),
        ("context-encoder", {"hole": "centre"}, True, 0, -9.0, 0.02),
        ("context-encoder", {"hole": "random"}, False, 0, 0.35, 1.0),
        ("context-encoder", {"hole": "random"}, False, 1, -9.0, 0.1),
        ("context-encoder", {"hole": "random"}, True, 0, -9.0, 0.02),
        ("denoising-autoencoder", {"noise": "gaussian"}, False, 0, 0.35, 1.0),
        ("denoising-autoencoder", {"noise": "gaussian"}, False, 1, -9.0, 0.1),
    ],
)
def test_what_follows_from_the_rest_is_learnt(
    name: str, fields: dict[str, Any], noise: bool, roll: int, low: float, high: float
) -> None:
    """But not the pixels of the `roll`-th next image, nor noise."""
    torch.manual_seed(0)
    changed = dataclasses.replace(config(name), **fields)
    method = METHODS[name](changed, Setup(Toy(norm=True), IMAGES))
    images = (lambda seed: batch(32, seed=seed)) if noise else slopes
    grade = held_out_grade(method, images, 60, lambda t: (t[0].roll(roll, 0), *t[1:]))
    assert low < grade < high


@HOLES
def test_pictures_keep_what_is_seen(hole: str) -> None:
    method, data = double("context-encoder", hole=hole), data64(3)
    shown = method.illustrate(data, *answer(method, data))
    keep, _ = method.draw_damage(data)
    for one, view, kept, weight in zip(
        shown, data.views[0], keep[:, 0], method.weigh(keep)[:, 0], strict=True
    ):
        assert list(one.pictures) == ["input", "prediction", "truth"]
        seen = weight == 0  # neither the hole nor the ring around it
        assert seen.any()
        assert all(torch.equal(x[:, seen], view[:, seen]) for x in one.pictures.values())
        assert (one.pictures["input"][:, kept == 0] == 0.5).all()
