"""BiGAN and BigBiGAN: losses against their formulas in plain loops, who learns what and when, and
the measure of their reconstructions.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.method import Batch
from selftaught.methods.parts.bidirectional import BidirectionalGAN, rank_own
from selftaught.optim import AdamW
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import close, double, normal
from tests.laws.toys import batch, build

names = pytest.mark.parametrize("name", ["bigan", "bigbigan"])


def make(name: str, **fields: Any) -> BidirectionalGAN:
    method = double(name, **fields)
    assert isinstance(method, BidirectionalGAN)
    return method


def data64(n: int = 4, seed: int = 1) -> Batch:
    return batch(n, seed, dtype=torch.float64)


# The losses


def scores_alone(method: BidirectionalGAN, data: Batch) -> tuple[list[list[float]], ...]:
    """The scores of images and of pictures, one at a time."""
    view, codes, noise = method.inputs(data)
    real, made = [], []
    for x, z, e in zip(view, codes.value, noise.value, strict=True):
        outputs = method.encoder(method.backbone(x[None]))[0].tolist()
        n = method.config.dim
        code = outputs[:n]
        if len(outputs) > n:  # a mean and a deviation, which softplus makes positive
            pairs = zip(code, outputs[n:], e.tolist(), strict=True)
            code = [mean + math.log(1 + math.exp(s)) * noise for mean, s, noise in pairs]
        code = torch.tensor([code], dtype=torch.float64)
        picture = method.generator(z[None], (16, 16))
        real.append(method.discriminator(x[None], code)[0].tolist())
        made.append(method.discriminator(picture, z[None])[0].tolist())
    return real, made


def log_loss(real: float, made: float) -> float:
    """-log D(real) - log(1 - D(made)), of scores."""
    chance = [1 / (1 + math.exp(-score)) for score in (real, made)]
    return -math.log(chance[0]) - math.log(1 - chance[1])


def test_bigan_is_its_formula() -> None:
    """Donahue et al., 2017, equation 2, and section 3.4 for encoder and generator."""
    method, data = make("bigan").eval(), data64()
    real, made = scores_alone(method, data)
    total = 0.0
    for (own,), (other,) in zip(real, made, strict=True):
        total += log_loss(own, other) + log_loss(other, own)
    close(method.loss(method.predict(method.inputs(data)), data.views[0]), total / 4)


def test_bigbigan_is_its_formula() -> None:
    """Donahue & Simonyan, 2019, section 2."""
    method, data = make("bigbigan").eval(), data64()
    real, made = scores_alone(method, data)
    total = 0.0
    for own, other in zip(real, made, strict=True):
        assert len(own) == 3
        for sign, scores in ((1, own), (-1, other)):
            for score in scores:
                total += max(0.0, 1 - sign * score) + sign * score
    close(method.loss(method.predict(method.inputs(data)), data.views[0]), total / 4)


@names
def test_each_side_learns_from_its_own_loss(name: str) -> None:
    """The gradients are those of two losses, each with the other side held still."""
    method, data = make(name).eval(), data64()  # plain calls then change no spectral norm
    predictions = method.predict(method.inputs(data))
    method.loss(predictions, data.views[0]).backward()
    found = {key: p.grad for key, p in method.named_parameters()}
    view, codes, noise = method.inputs(data)
    own = method.find_codes(method.encoder(method.backbone(view)), noise.value)
    picture = method.generator(codes.value, (16, 16))
    real, made = method.discriminator(view, own), method.discriminator(picture, codes.value)
    softplus, relu = torch.nn.functional.softplus, torch.relu
    first = softplus(-real).mean() + softplus(made).mean()
    second = softplus(real).mean() + softplus(-made).mean()
    if name == "bigbigan":
        first = (relu(1 - real) + relu(1 + made)).sum(1).mean()
        second = (real - made).sum(1).mean()
    for key, parameter in method.named_parameters():
        loss = first if key.startswith("discriminator.") else second
        close(found[key], torch.autograd.grad(loss, parameter, retain_graph=True)[0])


# Random numbers


@names
def test_codes_have_their_distribution(name: str) -> None:
    method = make(name, dim=50)
    _, codes, noise = method.inputs(data64(200))
    tolerance = 4 / 100  # of 10,000 numbers
    assert codes.value.mean().item() == pytest.approx(0, abs=tolerance)
    std = 1.0 if name == "bigbigan" else 1 / math.sqrt(3)
    assert codes.value.std().item() == pytest.approx(std, abs=tolerance)
    assert noise.value.std().item() == pytest.approx(1, abs=tolerance)
    assert abs(torch.corrcoef(torch.stack([codes.value, noise.value]).flatten(1))[0, 1]) < tolerance
    if name == "bigan":
        assert codes.value.min() >= -1
        assert codes.value.max() < 1


def test_only_bigbigans_codes_of_images_are_random() -> None:
    outputs = {"bigan": normal(5, 8, seed=1), "bigbigan": normal(5, 16, seed=1)}
    for name, values in outputs.items():
        method, noise = make(name, dim=8), normal(5, 8, seed=2)
        mean = method.find_codes(values, 0 * noise)
        assert torch.equal(mean, values[:, :8])
        assert torch.equal(method.find_codes(values, noise), mean) == (name == "bigan")


# Turns


@names
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_encoder_and_generator_take_every_nth_step(name: str, steps: int) -> None:
    method = build(name)
    assert isinstance(method, BidirectionalGAN)
    method.config = dataclasses.replace(method.config, discriminator_steps=steps)
    step = Step(method)
    optimizer = AdamW(lr=0.01, weight_decay=0.1).build(
        step.named_parameters(), step.parameter_groups()
    )
    loop = Loop(steps=4, steps_per_epoch=4, schedule=lambda p: 1.0)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    for report in fit(step, method, lambda *_: [batch(seed=s) for s in range(4)], optimizer, loop):
        for key, p in method.named_parameters():
            moves = key.startswith("discriminator.") or report.step % steps == 0
            assert torch.equal(p, before[key]) != moves, (report.step, key)
        before = {key: p.detach().clone() for key, p in method.named_parameters()}


@names
def test_spectral_norms_move_once_a_step(name: str) -> None:
    method, data = build(name), batch()
    buffers = dict(method.discriminator.named_buffers())
    before = {key: buffer.clone() for key, buffer in buffers.items()}
    predictions = method.predict(method.inputs(data))
    assert all(torch.equal(buffer, before[key]) for key, buffer in buffers.items())
    method.after_step(data, predictions, method.targets(data, predictions))
    after = dict(method.discriminator.named_buffers())
    assert any(not torch.equal(buffer, before[key]) for key, buffer in after.items())


# The accuracy of the task


def plain_rank(pictures: Tensor, images: Tensor) -> list[float]:
    ranks = []
    for i, picture in enumerate(pictures):
        gaps = [
            sum((a - b) ** 2 for a, b in zip(picture.flatten(), image.flatten(), strict=True))
            for image in images
        ]
        others = [gap for j, gap in enumerate(gaps) if j != i]
        ranks.append(sum((gap > gaps[i]) + 0.5 * (gap == gaps[i]) for gap in others) / len(others))
    return [float(rank) for rank in ranks]


def test_a_grade_counts_the_images_that_are_farther() -> None:
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    pictures = images.flip(0) * 0.3 + images * 0.7
    close(rank_own(pictures, images), torch.tensor(plain_rank(pictures, images)))
    close(rank_own(images, images), torch.ones(6))
    assert rank_own(images.roll(1, 0), images).max() < 0.81  # another one of the five is nearer
    close(rank_own(images[:1], images[:1]), torch.tensor([0.5]))


def test_one_picture_of_all_images_is_chance() -> None:
    images = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    grade = rank_own(images[:1].expand(7, -1, -1, -1) + 0.1, images)
    close(grade.mean(), torch.tensor(0.5))
    close(rank_own(images, images[:1].expand(7, -1, -1, -1)), torch.full((7,), 0.5))


@names
def test_pictures_are_of_the_mean_codes(name: str) -> None:
    method, data = make(name), data64(3)
    assert len(method.predict(method.inputs(data))) == 4
    method.eval()
    view, codes, noise = method.inputs(data)
    predictions = method.predict((view, codes, noise))
    outputs = method.encoder(method.backbone(view))[:, : method.config.dim]
    close(predictions[4], method.generator(outputs, (16, 16)))
    grade = method.grade(predictions, view)
    close(grade, rank_own(predictions[4], view))
    shown = method.illustrate(data, predictions, method.targets(data, predictions))
    for one, image, picture in zip(shown, view, predictions[4], strict=True):
        assert list(one.pictures) == ["input", "prediction"]
        assert torch.equal(one.pictures["input"], image)
        assert torch.equal(one.pictures["prediction"], picture)
