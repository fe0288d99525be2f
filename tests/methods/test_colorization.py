"""Colorization: against the paper's formulas in plain loops, and two controls of what it learns."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from selftaught.errors import UserError
from selftaught.hard import CutMix
from selftaught.hard.mixed import partner, spread
from selftaught.method import Batch, Encoder, Setup
from selftaught.methods.parts import colour_bins
from selftaught.methods.parts.colour_bins import ColourBins, bins_of_rgb
from selftaught.methods.parts.decoder import Decoder
from selftaught.methods.parts.lab import colours, lightness, paint
from selftaught.methods.pretext.colorization import Colorization
from tests.formulas import (
    answer,
    close,
    data64,
    double,
    few,
    loss_of,
    normal,
    seeds,
    surprise,
    whole,
)
from tests.laws.toys import IMAGES, Toy, batch, build, config, rng
from tests.methods.controls import held_out_grade

Place = tuple[float, float]


def ready(**fields: object) -> Colorization:
    """In double precision, without batch norm, with measured bins."""
    method = double("colorization", **fields)
    method.before_epoch(whole())
    return method


def new(network: Encoder | None = None) -> Colorization:
    return Colorization(config("colorization"), Setup(network or Toy(norm=True), IMAGES))


def places(view: Tensor, stride: int = 4) -> list[Place]:
    """The mean a and b of each square of an image [3, H, W], row by row."""
    squares = colours(view[None])[0].unfold(1, stride, stride).unfold(2, stride, stride)
    return [tuple(pair) for pair in squares.mean((3, 4)).flatten(1).T.tolist()]


def squared(one: Place, other: Place) -> float:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2


def plain_code(place: Place, bins: list[Place]) -> dict[Place, float]:
    """Section 2.1: the five nearest bins, weighted by a Gaussian of 5."""
    near = sorted(bins, key=lambda centre: squared(place, centre))[:5]
    gauss = [math.exp(-squared(place, centre) / (2 * 5**2)) for centre in near]
    return {centre: g / sum(gauss) for centre, g in zip(near, gauss, strict=True)}


def plain_weights(data: list[Place], rebalance: float) -> dict[Place, float]:
    """Section 2.2, equation 4, of the bins that hold one in ten thousand of the colours."""
    everything: list[Place] = [(float(a), float(b)) for a, b in bins_of_rgb()]
    counts = dict.fromkeys(everything, 0)
    for place in data:
        counts[min(everything, key=lambda centre: squared(place, centre))] += 1
    bins = [centre for centre, count in counts.items() if count and count >= 1e-4 * len(data)]
    frequency = dict.fromkeys(bins, 0.0)
    for place in data:
        for centre, share in plain_code(place, bins).items():
            frequency[centre] += share / len(data)
    raw = {c: 1 / ((1 - rebalance) * f + rebalance / len(bins)) for c, f in frequency.items()}
    expected = sum(frequency[centre] * raw[centre] for centre in bins)
    return {centre: weight / expected for centre, weight in raw.items()}


# The loss


@pytest.mark.parametrize("rebalance", [0.5, 1.0])
def test_colorization_is_its_formula(rebalance: float) -> None:
    """Zhang et al., 2016, equation 2: cross entropy of soft codes, rare colours weighted up."""
    method, data = ready(rebalance=rebalance), data64(4)
    weights = plain_weights([p for b in whole() for v in b.views[0] for p in places(v)], rebalance)
    bins, everything, costs = list(weights), bins_of_rgb(), []
    for view, logits in zip(data.views[0], method.predict(method.inputs(data)), strict=True):
        for place, row in zip(places(view), logits.flatten(1).T.tolist(), strict=True):
            reference = [row[everything.index(c)] for c in bins]
            code = plain_code(place, bins)
            weight = weights[max(code, key=lambda c: code[c])]
            costs.append(
                weight * sum(s * surprise(reference, bins.index(c)) for c, s in code.items())
            )
    # weights are kept in the precision of the data; the logits of other bins are not minus infinity
    close(loss_of(method, data), sum(costs) / len(costs), rtol=1e-6)


def test_regression_is_the_mean_square() -> None:
    method, data, errors = ready(regression=True), data64(4), []
    predictions, targets = answer(method, data)
    for view, text in zip(data.views[0], predictions, strict=True):
        for place, row in zip(places(view), text.flatten(1).T.tolist(), strict=True):
            errors += [(p - t / 110) ** 2 for p, t in zip(row, place, strict=True)]
    close(method.loss(predictions, targets), sum(errors) / len(errors))
    assert method.grade(predictions, targets) is None


def test_colours_far_from_every_bin_have_a_code() -> None:
    bins = ColourBins()
    bins.occupied.zero_()
    bins.occupied[:2] = True  # fewer than the five of a code
    code = bins.encode(torch.tensor([[[[90.0]], [[90.0]]]]))
    assert torch.isfinite(code).all()
    close(code.sum(1), torch.ones(1, 1, 1))
    assert not code[:, 2:].any()


def test_bins_are_those_of_rgb() -> None:
    bins = torch.tensor(bins_of_rgb())
    assert bins.shape == (261, 2)
    assert not (bins % 10).any()
    pixels = torch.rand(1, 3, 64, 64, generator=rng(), dtype=torch.float64)
    nearest = (colours(pixels) / 10).round().long() * 10
    reference = set(bins_of_rgb())
    assert all((int(a), int(b)) in reference for a, b in nearest[0].flatten(1).T.tolist())


# Lab


@few
@given(seeds)
def test_lightness_and_colours_make_the_image_again(seed: int) -> None:
    pixels = torch.rand(2, 3, 5, 5, generator=rng(seed), dtype=torch.float64)
    torch.testing.assert_close(paint(lightness(pixels), colours(pixels)), pixels, rtol=0, atol=1e-4)
    other = lightness(pixels)
    assert torch.equal(other[:, 0], other[:, 2])


def test_colours_are_those_of_lab() -> None:
    convert = pytest.importorskip("skimage.color").rgb2lab
    pixels = torch.rand(2, 3, 9, 9, generator=rng(), dtype=torch.float64)
    theirs = torch.from_numpy(convert(pixels.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
    torch.testing.assert_close(colours(pixels), theirs[:, 1:], rtol=0, atol=2e-2)


def test_an_annealed_mean_is_between_mean_and_mode() -> None:
    bins = ColourBins().double()
    logits = normal(1, len(bins), 1, 1, seed=3)
    powers = [math.exp(x / 0.38) for x in logits.flatten().tolist()]
    for axis in (0, 1):
        mean = sum(p * c for p, c in zip(powers, bins.centres[:, axis].tolist(), strict=True))
        close(bins.annealed_mean(logits, 0.38)[0, axis, 0, 0], mean / sum(powers))
    mode = bins.centres[logits.argmax(1)[0, 0, 0]]
    close(bins.annealed_mean(logits, 1e-3)[0, :, 0, 0], mode, rtol=1e-6)


# What the network sees


def test_colour_that_is_written_into_the_input_is_not_seen() -> None:
    method, data = ready(), data64(4)
    grey = method.inputs(data)
    tint = torch.tensor([0.1, -0.2, 0.1], dtype=torch.float64)[:, None, None]
    close(method.predict(grey + tint), method.predict(grey))


def test_a_cut_and_mixed_place_has_the_code_of_its_own_image() -> None:
    method, data = ready(), data64(4)
    own = method.targets(data, ())
    mask = torch.zeros(16, 16, dtype=torch.float64)
    mask[4:12, :8] = 1
    mixed = method.mix_targets(own, partner(own), mask)
    close(mixed, torch.where(spread(mask[::4, ::4], own) > 0, own, partner(own)))
    assert torch.isfinite(CutMix().loss(method, method.inputs(data), own, rng(), None))


def grey(data: Batch) -> Batch:
    return dataclasses.replace(data, views=(data.views[0][:, :1].expand_as(data.views[0]),))


@pytest.mark.parametrize("colours", [0, 1])
def test_images_without_colour_are_refused(colours: int) -> None:
    one = torch.tensor([0.8, 0.3, 0.2])[:, None, None].expand(8, 3, 16, 16)
    data = dataclasses.replace(batch(), views=(one,)) if colours else grey(batch())
    with pytest.raises(UserError, match="colorization"):
        new().before_epoch([data])


def test_a_grey_view_teaches_nothing_and_is_no_answer() -> None:
    method, data = build("colorization"), batch(4)
    data.views[0][0] = data.views[0][0, :1].clone()
    predictions, targets = answer(method, data)
    (slope,) = torch.autograd.grad(method.loss(predictions, targets), predictions)
    assert slope.flatten(1).any(1).tolist() == [False, True, True, True]
    assert method.grade(predictions, targets)[0].item() == method.chance()


def test_a_network_without_a_map_is_refused() -> None:
    network = Toy(norm=True)
    network.has_map = False
    with pytest.raises(UserError, match="maps"):
        Decoder(network, 8, 2)
    network.has_map = True
    with pytest.raises(UserError, match="--size"):
        Decoder(network, 8, 2)(torch.zeros(2, 6), torch.zeros(2, 6, 1, 1), (4, 4))


def test_only_the_first_images_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour_bins, "IMAGES", 20)
    method = new()
    batches = iter([batch(16, seed=s) for s in range(4)])
    method.before_epoch(batches)
    assert len(list(batches)) == 2
    weights = method.bins.weights.clone()
    method.before_epoch(iter([batch(16, seed=9)]))
    assert torch.equal(method.bins.weights, weights)


# The accuracy of the task


def test_the_accuracy_is_the_share_of_the_best_constant_predictions_loss() -> None:
    method = ready()
    everything = torch.cat([method.targets(b, ()) for b in whole()])
    share = everything.sum((0, 2, 3)) / everything.sum()
    close(method.bins.marginal, share, rtol=1e-5)  # in single precision
    constant = method.bins.marginal.clamp_min(1e-9).log()[None, :, None, None]
    constant = constant.expand_as(everything)
    assert method.chance() == 0
    noise = torch.randn(everything.shape, dtype=torch.float64, generator=rng(0))
    for predictions in (constant, noise, constant + noise, everything.clamp_min(1e-9).log()):
        expected = 1 - method.loss(predictions, everything) / method.loss(constant, everything)
        grade = method.grade(predictions, everything).mean().item()
        assert grade == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert expected > 0.5


class Loud(Toy):
    """A toy whose features show the lightness of a view."""

    def map(self, x: Tensor) -> Tensor:
        return super().map(4 * (x - 0.5))


def tied(seed: int) -> Batch:
    """Bright images are orange, dark ones are blue."""
    data = batch(32, seed=seed)
    bright = (torch.rand(32, 1, 1, 1, generator=rng(seed)) > 0.5).float()
    tint = torch.tensor([0.15, 0.0, -0.15])[:, None, None]
    view = 0.25 + 0.4 * bright + (2 * bright - 1) * tint + 0.1 * (data.views[0] - 0.5)
    return dataclasses.replace(data, views=(view.clamp(0, 1),))


@pytest.mark.parametrize(("roll", "low", "high"), [(0, 0.2, 1.0), (1, -9.0, 0.02)])
def test_colours_that_follow_the_lightness_are_learnt_and_those_of_others_are_not(
    roll: int, low: float, high: float
) -> None:
    torch.manual_seed(0)
    method = new(Loud(norm=True))
    assert low < held_out_grade(method, tied, 40, lambda t: t.roll(roll, 0)) < high


def test_pictures_have_the_lightness_of_the_truth() -> None:
    method, data = build("colorization").eval(), batch(3)
    with torch.no_grad():
        shown = method.illustrate(data, *answer(method, data))
    for one, view in zip(shown, data.views[0], strict=True):
        assert list(one.pictures) == ["input", "prediction", "truth"]
        assert torch.equal(one.pictures["truth"], view)
        assert all(x.min() >= 0 and x.max() <= 1 + 1e-5 for x in one.pictures.values())
