"""BiGAN and BigBiGAN: losses against their formulas in plain loops, who learns what and when, and
the measure of their reconstructions.
"""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.method import Batch
from selftaught.methods.parts.bidirectional import BidirectionalGAN, rank_own
from selftaught.methods.parts.gan_networks import PairDiscriminator
from selftaught.methods.parts.two_player import call_pure, update_spectral_norms
from selftaught.optim import AdamW
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.formulas import answer, close, data64, double, loss_of
from tests.laws.toys import batch, build, rng

names = pytest.mark.parametrize("name", ["bigan", "bigbigan"])


def scores_alone(method: BidirectionalGAN, data: Batch) -> list[tuple[list[float], list[float]]]:
    """The scores of each image and of its picture, one at a time."""
    view, codes, noise = method.inputs(data)
    n, pairs = method.config.dim, []
    for x, z, e in zip(view, codes.value, noise.value, strict=True):
        code, *spread = method.encoder(method.backbone(x[None]))[0].split(n)
        if spread:  # a mean and a deviation, which softplus makes positive
            code = code + (1 + spread[0].exp()).log() * e
        picture = method.generator(z[None], (16, 16))
        real, made = (
            method.discriminator(x[None], code[None]),
            method.discriminator(picture, z[None]),
        )
        pairs.append((real[0].tolist(), made[0].tolist()))
    return pairs


def log_loss(real: float, made: float) -> float:
    """-log D(real) - log(1 - D(made)), of scores."""
    chance = [1 / (1 + math.exp(-score)) for score in (real, made)]
    return -math.log(chance[0]) - math.log(1 - chance[1])


def test_bigan_is_its_formula() -> None:
    """Donahue et al., 2017, equation 2, and section 3.4 for encoder and generator."""
    method, data = double("bigan").eval(), data64(4)
    total = 0.0
    for (own,), (other,) in scores_alone(method, data):
        total += log_loss(own, other) + log_loss(other, own)
    close(loss_of(method, data), total / 4)


def test_bigbigan_is_its_formula() -> None:
    """Donahue & Simonyan, 2019, section 2."""
    method, data = double("bigbigan").eval(), data64(4)
    total = 0.0
    for own, other in scores_alone(method, data):
        assert len(own) == 3
        for score in (*own, *(-score for score in other)):
            total += max(0.0, 1 - score) + score
    close(loss_of(method, data), total / 4)


@names
def test_each_side_learns_from_its_own_loss(name: str) -> None:
    """The gradients are those of two losses, each with the other side held still."""
    method, data = double(name).eval(), data64(4)  # plain calls then change no spectral norm
    predictions = method.predict(method.inputs(data))
    method.loss(predictions, data.views[0]).backward()
    result = {key: p.grad for key, p in method.named_parameters()}
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
        close(result[key], torch.autograd.grad(loss, parameter, retain_graph=True)[0])


@names
def test_the_discriminator_sees_whether_a_code_fits_its_picture(name: str) -> None:
    """Colours and codes of colours: only the pair tells a code from another picture's."""
    torch.manual_seed(0)
    discriminator = PairDiscriminator(3, 32, alone=name == "bigbigan")
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3, betas=(0.0, 0.999))
    losses = []
    for _ in range(150):
        codes, others = 2 * torch.rand(2, 64, 3) - 1
        pictures = (codes[:, :, None, None] + 1).expand(-1, -1, 8, 8) / 2
        right, wrong = (call_pure(discriminator, pictures, c)[:, -1] for c in (codes, others))
        loss = F.softplus(-right).mean() + F.softplus(wrong).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update_spectral_norms(discriminator)
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 1  # chance is 2 ln 2, 1.39


# Random numbers


@names
def test_codes_have_their_distribution(name: str) -> None:
    method, tolerance = double(name, dim=50), 4 / 100  # of 10,000 numbers
    codes, noise = (x.value for x in method.inputs(data64(200))[1:])
    std = 1.0 if name == "bigbigan" else 1 / math.sqrt(3)
    for result, expected in ((codes.mean(), 0), (codes.std(), std), (noise.std(), 1)):
        assert result.item() == pytest.approx(expected, abs=tolerance)
    assert abs(torch.corrcoef(torch.stack([codes, noise]).flatten(1))[0, 1]) < tolerance
    assert (codes.abs().max() <= 1) == (name == "bigan")


# Turns


@names
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_encoder_and_generator_take_every_nth_step(name: str, steps: int) -> None:
    method = build(name)
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
    before = {key: buffer.clone() for key, buffer in method.discriminator.named_buffers()}

    def moved() -> bool:
        now = dict(method.discriminator.named_buffers())
        return any(not torch.equal(buffer, before[key]) for key, buffer in now.items())

    predictions, targets = answer(method, data)
    assert not moved()
    method.after_step(data, predictions, targets)
    assert moved()


# The accuracy of the task


def plain_rank(pictures: Tensor, images: Tensor) -> list[float]:
    ranks = []
    for i, picture in enumerate(pictures):
        own, *gaps = (
            (picture - x).square().sum() for x in (images[i], *images[:i], *images[i + 1 :])
        )
        ranks.append(sum(float(gap > own) + 0.5 * float(gap == own) for gap in gaps) / len(gaps))
    return ranks


def test_a_grade_counts_the_images_that_are_farther() -> None:
    images = torch.rand(6, 3, 4, 4, generator=rng(), dtype=torch.float64)
    pictures, one = images.flip(0) * 0.3 + images * 0.7, images[:1].expand(6, -1, -1, -1)
    close(rank_own(pictures, images), torch.tensor(plain_rank(pictures, images)))
    close(rank_own(images, images), torch.ones(6))
    assert rank_own(images.roll(1, 0), images).max() < 0.81  # another one of the five is nearer
    # a batch of one image, one picture of all images, and equal images, are chance
    close(rank_own(images[:1], images[:1]), torch.tensor([0.5]))
    close(rank_own(one + 0.1, images).mean(), torch.tensor(0.5))
    close(rank_own(images, one), torch.full((6,), 0.5))


@names
def test_pictures_are_of_the_mean_codes(name: str) -> None:
    method, data = double(name), data64(3)
    assert len(method.predict(method.inputs(data))) == 4
    predictions, view = answer(method.eval(), data)
    outputs = method.encoder(method.backbone(data.views[0]))[:, : method.config.dim]
    close(predictions[4], method.generator(outputs, (16, 16)))
    close(method.grade(predictions, view), rank_own(predictions[4], view))
    shown = method.illustrate(data, predictions, view)
    for one, image, picture in zip(shown, view, predictions[4], strict=True):
        assert list(one.pictures) == ["input", "prediction"]
        assert torch.equal(one.pictures["input"], image)
        assert torch.equal(one.pictures["prediction"], picture)
