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
from selftaught.methods.parts.reconstruction import Reconstruction, damage, error_avoided
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import close, double
from tests.laws.toys import IMAGES, Toy, batch, config, rng

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


def make(name: str, **fields: Any) -> Reconstruction:
    method = double(name, **fields)
    assert isinstance(method, Reconstruction)
    return method


def data64(n: int = 4, seed: int = 1) -> Batch:
    return batch(n, seed, dtype=torch.float64)


# The losses


def plain_weights(keep: list[list[float]], rim: float) -> list[list[float]]:
    """1 in the hole, `rim` at most one pixel beside it (of 16), 0 elsewhere."""
    side = range(len(keep))

    def near(y: int, x: int) -> bool:
        around = [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return any(keep[v][u] == 0 for v, u in around if v in side and u in side)

    return [[1.0 if not keep[y][x] else rim * near(y, x) for x in side] for y in side]


def plain_error(answer: Tensor, view: Tensor, weights: list[list[float]]) -> float:
    total = above = 0.0
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            for one, other in zip(answer[:, y, x].tolist(), view[:, y, x].tolist(), strict=True):
                above += weight * (one - other) ** 2
                total += weight
    return above / total


@kinds
def test_a_loss_is_its_formula(name: str, fields: dict[str, Any]) -> None:
    """Pathak et al., 2016, equation 1, with the ring of section 3.2; Vincent et al., 2008, equation
    5, with the squared error.
    """
    method, data = make(name, **fields), data64()
    predictions = method.predict(method.inputs(data))
    total = 0.0
    for answer, view, keep in zip(
        predictions, data.views[0], method.targets(data, ())[1], strict=True
    ):
        weights = [[1.0] * 16] * 16
        if name == "context-encoder":
            weights = plain_weights(keep[0].tolist(), 10.0)
        total += plain_error(answer, view, weights)
    close(method.loss(predictions, method.targets(data, predictions)), total / 4)


# The discriminator of fills

HOLES = pytest.mark.parametrize("hole", ["centre", "random"])


def plain_fill(picture: Tensor, keep: Tensor, hole: str) -> Tensor:
    """What a discriminator sees of a picture [3, 16, 16]; keep [1, 16, 16]."""
    if hole == "centre":
        return picture[:, 4:12, 4:12]
    rows = [
        [picture[:, y, x] if not keep[0, y, x] else 0 * picture[:, y, x] + 0.5 for x in range(16)]
        for y in range(16)
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


@HOLES
def test_the_adversarial_loss_is_its_formula(hole: str) -> None:
    """Pathak et al., 2016, equations 2 and 3, with the loss of a generator that does not saturate
    (Goodfellow et al., 2014, section 3).
    """
    method, data = make("context-encoder", hole=hole, adversarial=0.3).eval(), data64()
    targets = method.targets(data, ())
    predictions = method.predict(method.inputs(data))
    total = 0.0
    for answer, view, keep in zip(predictions, data.views[0], targets[1], strict=True):
        real, made = (
            1 / (1 + math.exp(-method.discriminator(plain_fill(x, keep, hole)[None]).item()))
            for x in (view, answer)
        )
        total += -math.log(real) - math.log(1 - made) - 0.3 * math.log(made)
        total += plain_error(answer, view, plain_weights(keep[0].tolist(), 10.0))
    close(method.loss(predictions, targets), total / 4)


@HOLES
def test_each_side_learns_from_its_own_loss(hole: str) -> None:
    method, data = make("context-encoder", hole=hole, adversarial=0.3).eval(), data64()
    targets = method.targets(data, ())
    method.loss(method.predict(method.inputs(data)), targets).backward()
    found = {key: p.grad for key, p in method.named_parameters()}
    predictions = method.predict(method.inputs(data))
    real, made = (
        torch.stack([plain_fill(*one, hole) for one in zip(x, targets[1], strict=True)])
        for x in (data.views[0], predictions)
    )
    scores = [method.discriminator(fills) for fills in (real, made)]
    softplus = torch.nn.functional.softplus
    first = softplus(-scores[0]).mean() + softplus(scores[1]).mean()
    second = method.error(predictions, targets) + 0.3 * softplus(-scores[1]).mean()
    for key, parameter in method.named_parameters():
        loss = first if key.startswith("discriminator.") else second
        close(found[key], torch.autograd.grad(loss, parameter, retain_graph=True)[0])


@HOLES
def test_a_discriminator_sees_no_seam(hole: str) -> None:
    """What lies around the hole has no influence."""
    method, data = make("context-encoder", hole=hole, adversarial=0.3), data64()
    assert isinstance(method, ContextEncoder)
    keep = method.targets(data, ())[1]
    view = data.views[0]
    other = torch.where(keep > 0, 1 - view, view)
    assert torch.equal(method.cut_fill(view, keep), method.cut_fill(other, keep))
    assert not torch.equal(method.cut_fill(view, keep), method.cut_fill(1 - view, keep))


def test_without_its_weight_there_is_no_discriminator() -> None:
    method, other = make("context-encoder"), make("context-encoder", adversarial=0.1)
    assert not any("discriminator" in key for key in method.state_dict())
    assert method.parameter_groups() == {}
    assert set(other.parameter_groups()) == {"discriminator"}
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


@HOLES
def test_a_discriminator_keeps_the_laws(hole: str) -> None:
    """Parts of a batch are the whole batch, and a rebuilt method goes on exactly."""

    def train(parts: int, *cuts: int) -> dict[str, Tensor]:
        step = Step(make("context-encoder", hole=hole, adversarial=0.1))
        loop = Loop(steps=4, steps_per_epoch=4, schedule=lambda p: 1.0, accumulate=parts)
        batches = [
            data64(8, seed).map(lambda x, k=k: x.chunk(parts)[k])  # type: ignore[misc]
            for seed in range(4)
            for k in range(parts)
        ]
        for first, last in pairwise([0, *cuts, 4]):
            state = step.state_dict()
            step = Step(make("context-encoder", hole=hole, adversarial=0.1))
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


@pytest.mark.parametrize("adversarial", [0.0, 0.001])
def test_hard_examples_do_not_go_with_a_discriminator(adversarial: float) -> None:
    fields: dict[str, Any] = {
        "data": Data(roots=("unread",)),
        "size": 32,
        "method": ContextEncoder.Config(adversarial=adversarial),
        "hard": (CutMix(),),
    }
    with pytest.raises(UserError, match="--hard") if adversarial else nullcontext():
        Stage(**fields)


# The damage


def test_the_hole_is_the_middle_quarter() -> None:
    keep, add = make("context-encoder").draw_damage(data64())
    for y in range(16):
        for x in range(16):
            hole = 4 <= y < 12 and 4 <= x < 12
            assert (keep[:, :, y, x] == (not hole)).all()
            assert (add[:, :, y, x] == 0.5 * hole).all()


def test_random_holes_are_a_quarter_and_differ() -> None:
    method, data = make("context-encoder", hole="random"), data64(16)
    assert isinstance(method, ContextEncoder)
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
    keep, add = make("denoising-autoencoder", share=0.4).draw_damage(data)
    lost = damage(view, keep, add)
    assert set(lost.unique().tolist()) == {0.0, 0.5}
    assert (lost == 0).double().mean() == pytest.approx(0.4, abs=tolerance)
    assert torch.equal(lost[:, 0], lost[:, 2])  # a whole pixel
    keep, add = make("denoising-autoencoder", noise="salt-and-pepper").draw_damage(data)
    lost = damage(view, keep, add)
    for value, share in ((0.0, 0.125), (0.5, 0.75), (1.0, 0.125)):
        assert (lost == value).double().mean() == pytest.approx(share, abs=tolerance)
    keep, add = make("denoising-autoencoder", noise="gaussian", sigma=0.1).draw_damage(data)
    assert (keep == 1).all()
    number = add.numel()
    assert add.mean().item() == pytest.approx(0, abs=0.4 / math.sqrt(number))
    assert add.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * number))
    within = (add.abs() < 0.1).double().mean().item()
    assert within == pytest.approx(0.6827, abs=4 * math.sqrt(0.22 / number))


@kinds
def test_damage_depends_on_the_image_alone(name: str, fields: dict[str, Any]) -> None:
    method, data = make(name, **fields), data64(8)
    parts = [data.map(lambda x, s=s: x[s]) for s in (slice(0, 3), slice(3, 8))]  # type: ignore[misc]
    halves = [method.draw_damage(part) for part in parts]
    for whole, *pieces in zip(method.draw_damage(data), *halves, strict=True):
        assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[2], KINDS[4]], ids=lambda k: str(k[1]))
def test_hidden_pixels_have_no_influence(kind: tuple[str, dict[str, Any]]) -> None:
    method, data = make(kind[0], **kind[1]), data64()
    view, keep, add = method.inputs(data)
    other = torch.where(keep.value > 0, view, 1 - view)
    assert torch.equal(method.predict((other, keep, add)), method.predict((view, keep, add)))
    targets = detach(method.targets(data, ()))
    attacked = Adversarial(eps=8).attack(method, (view, keep, add), targets, rng())
    moved = leaves(attacked)[0] != view
    assert moved.any()
    assert not (moved & (keep.value == 0)).any()


@kinds
def test_mixed_views_have_exact_targets(name: str, fields: dict[str, Any]) -> None:
    method, data = make(name, **fields), data64()
    inputs, targets = method.inputs(data), method.targets(data, ())
    mask = CutMix().mask(rng(), (16, 16))
    partners = tuple(partner(x) for x in targets)
    view, *own = method.mix_targets(targets, partners, mask)
    close(view, leaves(blend(inputs, mask))[0])
    assert all(torch.equal(x, y) for x, y in zip(own, targets[1:], strict=True))


# The accuracy of the task


@kinds
def test_a_grade_is_the_error_that_is_avoided(name: str, fields: dict[str, Any]) -> None:
    method, data = make(name, **fields), data64()
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


def test_the_guess_is_the_mean_of_what_is_left() -> None:
    method, data = make("context-encoder"), data64()
    view = data.views[0][1]
    places = [(y, x) for y in range(16) for x in range(16)]
    hole = [(y, x) for y, x in places if 4 <= y < 12 and 4 <= x < 12]
    means = [
        sum(view[c, y, x].item() for y, x in places if (y, x) not in hole) / (256 - 64)
        for c in range(3)
    ]
    error = sum((view[c, y, x].item() - means[c]) ** 2 for y, x in hole for c in range(3)) / 192
    ours = sum((view[c, y, x].item() - 0.5) ** 2 for y, x in hole for c in range(3)) / 192
    grey = torch.full_like(data.views[0], 0.5)
    close(error_avoided(grey, method.targets(data, ()))[1], 1 - ours / error)


# Controls


def slopes(seed: int) -> Batch:
    """Images whose brightness changes evenly from side to side: a hole follows from its border."""
    data = batch(32, seed=seed)
    slope = 2 * torch.rand(32, 1, 1, 1, generator=rng(seed)) - 1
    place = (torch.arange(16) - 7.5) / 8
    return dataclasses.replace(data, views=((0.5 + 0.5 * slope * place).expand(-1, 3, 16, -1),))


def noise(seed: int) -> Batch:
    return batch(32, seed=seed)


def held_out_grade(name: str, images: Any, roll: int = 0, **fields: Any) -> float:
    """The grade of other images after a brief training on targets of the `roll`-th next image."""
    torch.manual_seed(0)
    changed = dataclasses.replace(config(name), **fields)
    method: Any = METHODS[name](changed, Setup(Toy(norm=True), IMAGES))
    answers = method.targets
    step = Step(method)
    optimizer = torch.optim.Adam([{"params": step.parameters(), "peak": 0.01}], lr=0)
    loop = Loop(steps=60, steps_per_epoch=60, schedule=lambda p: 1.0)

    def moved(data: Batch, said: Tensor) -> Any:
        view, *rest = answers(data, said)
        return view.roll(roll, 0), *rest

    method.targets = moved
    for _ in fit(step, method, lambda *_: [images(s) for s in range(60)], optimizer, loop):
        pass
    method.eval()
    data = images(99)
    with torch.no_grad():
        grade: Tensor = method.grade(method.predict(method.inputs(data)), answers(data, ()))
    return grade.mean().item()


@pytest.mark.parametrize(
    ("name", "fields"), [("context-encoder", {}), ("denoising-autoencoder", {"noise": "gaussian"})]
)
def test_what_follows_from_the_rest_is_learnt(name: str, fields: dict[str, Any]) -> None:
    assert held_out_grade(name, slopes, **fields) > 0.35
    assert held_out_grade(name, slopes, roll=1, **fields) < 0.1


def test_of_noise_no_hole_can_be_filled() -> None:
    assert held_out_grade("context-encoder", noise) < 0.02


def test_pictures_keep_what_is_seen() -> None:
    method, data = make("context-encoder"), data64(3)
    predictions = method.predict(method.inputs(data))
    targets = method.targets(data, predictions)
    for one, view in zip(method.illustrate(data, predictions, targets), data.views[0], strict=True):
        assert list(one.pictures) == ["input", "prediction", "truth"]
        assert all(torch.equal(x[:, :3], view[:, :3]) for x in one.pictures.values())
        assert (one.pictures["input"][:, 4:12, 4:12] == 0.5).all()
