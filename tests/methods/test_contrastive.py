"""Memories of all images, margins and jigsaws: losses against their papers in plain loops, and what
is each one's own.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from selftaught.errors import UserError
from selftaught.losses import info_nce, margin_contrastive, nce, triplet
from selftaught.method import Batch, Method, Setting, Setup
from selftaught.methods import METHODS
from selftaught.methods.contrastive.cmc import CMC
from selftaught.methods.contrastive.infomin import InfoMin
from selftaught.methods.contrastive.margin_contrastive import MarginContrastive
from selftaught.methods.contrastive.pirl import PIRL
from selftaught.methods.contrastive.triplet import Triplet
from selftaught.methods.parts.jigsaw_head import (
    JigsawNetwork,
    draw_order,
    joint_embedding,
    shuffled_pieces,
)
from selftaught.methods.parts.lab import has_colour, light_and_colour
from selftaught.methods.parts.memory_bank import MemoryBank, MemoryConfig
from tests.formulas import (
    Rows,
    answer,
    close,
    data64,
    dot,
    double,
    few,
    normal,
    plain_info_nce,
    seeds,
    unit,
    whole,
)
from tests.laws.toys import IMAGES, Toy, batch, build, config, rng

sizes, widths = st.integers(2, 7), st.integers(2, 6)
REMEMBERING = ["instance-discrimination", "pirl", "cmc"]


def memory_method(name: str, **change: Any) -> Method:
    torch.manual_seed(0)
    changed = dataclasses.replace(config(name), negatives=IMAGES, **change)
    return METHODS[name](changed, Setup(Toy(norm=True), IMAGES))


# The papers' formulas, sample by sample


def plain_nce(probability: list[float], of_noise: Rows, images: int) -> float:
    """Wu et al., 2018, equations 6 and 7, for probabilities P(i|v)."""
    total = 0.0
    for p, others in zip(probability, of_noise, strict=True):
        uniform = len(others) / images  # m P_n
        total -= math.log(p / (p + uniform))
        total -= sum(math.log(1 - q / (q + uniform)) for q in others)
    return total / len(probability)


def plain_margin(x: Rows, y: Rows, margin: float) -> float:
    """Hadsell et al., 2006, equation 4; the mean over partners and the mean over other pairs.

    Others count as .001 apart at least: at 0 the slope is infinite.
    """
    pull = [math.dist(a, b) ** 2 / 2 for a, b in zip(x, y, strict=True)]
    apart = [max(math.dist(a, b), 1e-3) for i, a in enumerate(x) for j, b in enumerate(y) if i != j]
    push = [max(0.0, margin - d) ** 2 / 2 for d in apart]
    return sum(pull) / len(pull) + sum(push) / len(push)


def plain_triplet(x: Rows, y: Rows, margin: float) -> float:
    """Schroff et al., 2015, equations 3 and 4."""
    total = 0.0
    for i, anchor in enumerate(x):
        partner = math.dist(anchor, y[i]) ** 2
        others = [math.dist(anchor, b) ** 2 for j, b in enumerate(y) if j != i]
        beyond = [d for d in others if d > partner]
        total += max(0.0, partner - (min(beyond) if beyond else max(others)) + margin)
    return total / len(x)


@few
@given(sizes, st.integers(1, 5), st.integers(5, 90), seeds)
def test_nce_is_its_formula(b: int, k: int, images: int, seed: int) -> None:
    own, noise = normal(b, seed=seed) - 3, normal(b, k, seed=seed + 1) - 3
    close(nce(own, noise, images), plain_nce(own.exp().tolist(), noise.exp().tolist(), images))


@few
@given(sizes, widths, st.floats(0.05, 2.0), seeds)
def test_losses_of_margins_are_their_formulas(b: int, d: int, margin: float, seed: int) -> None:
    x, y = unit(b, d, seed=seed), unit(b, d, seed=seed + 1)
    for loss, formula in ((margin_contrastive, plain_margin), (triplet, plain_triplet)):
        close(loss(x, y, margin), formula(x.tolist(), y.tolist(), margin), 1e-7)


def test_gradients_are_the_numerical_ones() -> None:
    x, y = (normal(4, 3, seed=s).requires_grad_() for s in range(2))
    own, noise = normal(4, seed=2).requires_grad_(), normal(4, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, n: nce(p, n, 30), (own, noise))
    for loss in (margin_contrastive, triplet):
        assert torch.autograd.gradcheck(
            lambda a, b, loss=loss: loss(F.normalize(a, dim=1), F.normalize(b, dim=1), 1.2), (x, y)
        )


@pytest.mark.parametrize(
    ("name", "formula"), [("margin-contrastive", plain_margin), ("triplet", plain_triplet)]
)
def test_both_views_are_asked_and_both_move(name: str, formula: Any) -> None:
    method = double(name)
    predictions, targets = answer(method, data64())
    assert all(t.requires_grad for t in targets)
    first, second = (p.detach().tolist() for p in predictions)
    both = [formula(x, y, method.margin) for x, y in ((first, second), (second, first))]
    close(method.loss(predictions, targets), sum(both) / 2, 1e-6)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (MarginContrastive, "margin", 2.5),
        (MarginContrastive, "margin", 0.0),
        (Triplet, "margin", 0.0),
        (PIRL, "jigsaw", 1.5),
        (InfoMin, "jigsaw", 1.5),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(
    kind: type[Method], field: str, value: float
) -> None:
    with pytest.raises(UserError, match=rf"--method\.{field}"):
        kind(kind.Config(**{field: value}), Setup(Toy(norm=False), 10**6))


# The memory


def memory(images: int = 12, seen: int = 9, **change: object) -> MemoryBank:
    """In double precision; images from `seen` on were never shown."""
    torch.manual_seed(0)
    values = {"dim": 4, "negatives": 5, "loss": "softmax", "temperature": 0.3, **change}
    it = MemoryBank(MemoryConfig(**values), images).double()
    it.fill([(torch.arange(seen), unit(seen, 4, seed=7))])
    return it


def test_rows_move_as_the_paper_says() -> None:
    it, new = memory(momentum=0.7), unit(3, 4, seed=1)
    rows = it.rows.clone()
    it.remember(torch.tensor([2, 0, 10]), new)
    for row, moved in (
        (2, 0.7 * rows[2] + 0.3 * new[0]),
        (0, 0.7 * rows[0] + 0.3 * new[1]),
        (10, new[2]),  # which was never seen
    ):
        rows[row] = moved / moved.norm()
    close(it.rows, rows)
    assert it.seen.tolist() == [True] * 9 + [False, True, False]
    it.remember(torch.tensor([-1, -1]), unit(2, 4, seed=1))  # no image
    close(it.rows, rows)
    assert it.seen.tolist() == [True] * 9 + [False, True, False]


@few
@given(st.integers(1, 30), seeds)
def test_negatives_are_rows_that_were_seen(negatives: int, seed: int) -> None:
    it = memory(negatives=negatives)
    it.turn.value = seed
    others = it.others()
    assert len(others) == (negatives if negatives < 12 else 9)
    assert others.max() < 9
    assert negatives < 12 or others.tolist() == list(range(9))  # all there are, once


def test_negatives_stay_for_a_step_and_owe_nothing_to_other_random_numbers() -> None:
    it = memory(negatives=8)
    first = it.others()
    torch.manual_seed(99)
    assert torch.equal(it.others(), first)
    it.remember(torch.tensor([0]), unit(1, 4, seed=1))
    assert not torch.equal(it.others(), first)


def test_negatives_are_uniform() -> None:
    it, counts = memory(negatives=8), torch.zeros(9)
    for _ in range(400):
        counts += torch.bincount(it.others(), minlength=9)
        it.turn.value += 1
    assert ((counts / counts.sum() - 1 / 9).abs() < 0.02).all()  # five standard deviations


@few
@given(st.sampled_from([3, 5, 12, 40]), st.floats(0.07, 1.0), seeds)
def test_the_softmax_is_its_formula(negatives: int, temperature: float, seed: int) -> None:
    """Wu et al., 2018, equation 2, over the rows that take part; an image is never its own
    negative.
    """
    it, embedding = memory(negatives=negatives, temperature=temperature), unit(4, 4, seed=seed)
    index, rows, others = [3, 8, 0, 3], it.rows.tolist(), it.others().tolist()
    costs = [
        plain_info_nce(v, rows[i], [rows[j] for j in others if j != i], temperature)
        for v, i in zip(embedding.tolist(), index, strict=True)
    ]
    close(it.loss(embedding, torch.tensor(index)), sum(costs) / 4)


@few
@given(st.sampled_from([3, 5, 12, 40]), st.floats(0.1, 1.0), seeds)
def test_noise_contrastive_estimation_is_its_formula(
    negatives: int, temperature: float, seed: int
) -> None:
    """Wu et al., 2018, equations 2 to 7: P(i|v) = exp(v_i f / T) / Z, Z from the first batch, and
    constant.
    """
    it = memory(negatives=negatives, temperature=temperature, loss="nce")
    start = unit(9, 4, seed=7).tolist()  # what it was filled with
    z = 12 * sum(math.exp(dot(f, v) / temperature) for f in start for v in start) / 81
    it.remember(torch.tensor([4]), unit(1, 4, seed=seed + 1))
    close(it.log_z, math.log(z))
    index, embedding = [3, 8, 4], unit(3, 4, seed=seed)
    p = ((embedding @ it.rows.T / temperature).exp() / z).tolist()
    own = [row[i] for row, i in zip(p, index, strict=True)]
    of_noise = [[row[j] for j in it.others().tolist()] for row in p]
    close(it.loss(embedding, torch.tensor(index)), plain_nce(own, of_noise, 12))


def test_half_precision_leaves_the_constant_of_nce_as_it_is() -> None:
    """It is found once, before the first epoch, under autocast."""
    result = []
    for bf16 in (False, True):
        it = MemoryBank(MemoryConfig(dim=4, loss="nce", temperature=0.07), 64)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            it.fill([(torch.arange(64), unit(64, 4, seed=3).float())])
        result.append(it.log_z)
    torch.testing.assert_close(*result)


@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_what_nobody_saw_counts_nothing(loss: str) -> None:
    it, embedding = memory(loss=loss), unit(4, 4, seed=1).requires_grad_()
    half = it.loss(embedding, torch.tensor([3, -1, 10, 0]))  # no image, and one never seen
    close(half, it.loss(embedding[[0, 3]], torch.tensor([3, 0])) / 2)
    (slope,) = torch.autograd.grad(half, embedding)
    assert slope.any(1).tolist() == [True, False, False, True]
    nothing = it.loss(embedding, torch.tensor([-1, 9, 10, 11]))
    assert nothing == 0
    # but its gradient is there, for processes that wait for it
    assert not torch.autograd.grad(nothing, embedding)[0].any()
    index, free = torch.tensor([3, -1, 0]), normal(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: it.loss(e, index), free)


def test_it_is_filled_once() -> None:
    def never() -> Any:
        raise AssertionError("a pass over the data that nobody needs")
        yield

    memory().fill(never())


def tinted(first: int, seed: int, tint: float) -> Batch:
    """16 images, each of a colour of its own, in two views."""
    plain = batch(16, seed, first)
    colour = torch.rand(IMAGES, 3, 1, 1, generator=rng())[first : first + 16]
    views = tuple(tint * colour + (1 - tint) * view for view in plain.views)
    return dataclasses.replace(plain, views=views)


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_images_become_easier_to_tell_apart(name: str, loss: str) -> None:
    method, result = memory_method(name, loss=loss), []
    optimizer = torch.optim.SGD(method.parameters(), lr=0.03, momentum=0.5)
    tint = 0.8 if name == "cmc" else 0.2  # which lightness must be guessed from
    method.before_epoch([tinted(16 * s, s, tint) for s in range(4)])
    rows = method.lights.rows if name == "cmc" else method.memory.rows
    for step in range(80):
        data = tinted(16 * (step % 4), step, tint)
        predictions, targets = answer(method, data)
        optimizer.zero_grad()
        method.loss(predictions, targets).backward()
        optimizer.step()
        method.after_step(data, predictions, targets)
        # the pieces, or the colours
        asking = predictions if isinstance(predictions, Tensor) else predictions[1]
        alike = asking @ rows.T
        own = alike.gather(1, data.index[:, None])
        # of 64, how many rows are nearer than the image's own
        result.append((alike > own).sum(1).float().mean().item())
    assert sum(result[-8:]) < 0.9 * sum(result[:8])


@pytest.mark.parametrize("name", REMEMBERING)
def test_small_data_are_compared_with_all_of_themselves(name: str) -> None:
    c = METHODS[name].Config()
    assert (c.loss, c.momentum, c.temperature, c.dim) == ("nce", 0.5, 0.07, 128)
    for images, negatives in ((900, 900), (10**7, 65536)):
        setting = Setting(images=images, batch=128, steps=999, features=9)
        suited = c.defaults(setting).config
        assert (suited.negatives, suited.loss) == (negatives, "softmax")
    assert memory_method(name, loss="softmax").collapsed_loss(8) is not None
    assert memory_method(name, loss="nce").collapsed_loss(8) is None  # it depends on Z


def test_an_image_is_its_own_class() -> None:
    method, data = build("instance-discrimination"), batch(first=8)
    predictions, targets = answer(method, data)
    assert predictions.norm(dim=1).allclose(torch.ones(8))
    assert torch.equal(targets, data.index)
    rows = method.memory.rows.clone()
    method.after_step(data, predictions, targets)
    rows[8:16] = F.normalize(rows[8:16] + predictions.detach(), dim=1)
    torch.testing.assert_close(method.memory.rows, rows)


# The jigsaw


@pytest.mark.parametrize(
    ("size", "side"), [(224, 64), (96, 32), (64, 16), (32, 10), (16, 5), (8, 2)]
)
def test_pieces_are_the_middles_of_nine_cells(size: int, side: int) -> None:
    where = torch.arange(size**2, dtype=torch.float32).view(1, 1, size, size).expand(2, 3, -1, -1)
    noise = torch.arange(9.0).expand(2, -1)  # rising: in reading order
    pieces = shuffled_pieces(where, noise)
    assert pieces.shape == (2, 9, 3, side, side)
    cell = size // 3
    for number in range(9):
        row, column = divmod(number, 3)
        top, left = (place * cell + (cell - side) // 2 for place in (row, column))
        assert torch.equal(pieces[0, number], where[0, :, top : top + side, left : left + side])


def test_each_image_has_an_order_of_its_own() -> None:
    view, noise = torch.rand(6, 3, 33, 33, generator=rng()), torch.rand(6, 9, generator=rng())
    plain = shuffled_pieces(view, torch.arange(9.0).expand(6, -1))
    shuffled, orders = shuffled_pieces(view, noise), noise.argsort(1)
    for own, pieces, order in zip(plain, shuffled, orders, strict=True):
        assert torch.equal(pieces, own[order])
    assert len(orders.unique(dim=0)) == 6
    # whatever else is in the batch
    assert torch.equal(shuffled_pieces(view[2:4], noise[2:4]), shuffled[2:4])


def test_pieces_are_seen_one_by_one_and_then_together() -> None:
    torch.manual_seed(0)
    backbone, head = Toy(norm=False), torch.nn.Linear(6, 4)
    network, pieces = JigsawNetwork(backbone, head, joint_embedding(4)), torch.rand(2, 9, 3, 5, 5)
    each = [head(backbone(pieces[:, k])) for k in range(9)]
    torch.testing.assert_close(network(pieces), network.together(torch.cat(each, 1)))
    assert network(pieces).norm(dim=1).allclose(torch.ones(2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pirl_weighs_the_whole_and_its_pieces(share: float) -> None:
    """Misra & van der Maaten, 2019, equation 5: lambda weighs the pieces."""
    torch.manual_seed(0)
    method = PIRL(PIRL.Config(dim=8, jigsaw=share, negatives=16), Setup(Toy(norm=False), IMAGES))
    data, same = batch(), torch.testing.assert_close
    method.before_epoch([data, batch(first=8, seed=2)])
    (whole, pieces), targets = predictions, _ = answer(method, data)
    same(pieces, method.jigsaw(shuffled_pieces(data.views[1], draw_order(data))))
    same(whole, method.network(data.views[0]))
    assert torch.equal(targets, data.index)
    parts = [method.memory.loss(text, data.index) for text in predictions]
    same(method.loss(predictions, targets), (1 - share) * parts[0] + share * parts[1])
    rows = method.memory.rows.clone()
    method.after_step(data, predictions, targets)
    same(method.memory.rows[:8], F.normalize(rows[:8] + whole.detach(), dim=1))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_infomin_is_moco_with_pieces_step_after_step(symmetric: bool, share: float) -> None:
    """Tian et al., 2020: (1 - beta) InfoNCE + beta InfoNCE of the pieces, against the same keys and
    queue.
    """
    method = double("infomin", jigsaw=share, symmetric=symmetric, temperature=0.15)
    moco = double("moco-v2", symmetric=symmetric, temperature=0.15)
    moco.load_state_dict(method.moco.state_dict())
    for step in range(3):
        data = data64(seed=step)
        (predictions, targets), (peers, theirs) = answer(method, data), answer(moco, data)
        assert len(targets) == len(theirs) == 1 + symmetric
        torch.testing.assert_close(targets, theirs)
        pieces = method.jigsaw(shuffled_pieces(data.views[0], draw_order(data)))
        close(predictions[-1], pieces)
        of_pieces = info_nce(pieces, theirs[0], moco.queue, 0.15)
        expected = (1 - share) * moco.loss(peers, theirs) + share * of_pieces
        close(method.loss(predictions, targets), expected)
        method.after_step(data, predictions, targets)
        moco.after_step(data, peers, theirs)
        close(method.moco.queue, moco.queue)
    assert method.collapsed_loss(8) == moco.collapsed_loss(8)


# Lightness and colour


def lab(pixels: Tensor) -> Tensor:
    convert = pytest.importorskip("skimage.color").rgb2lab
    return torch.from_numpy(convert(pixels.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)


@few
@given(seeds)
def test_light_and_colour_are_those_of_lab(seed: int) -> None:
    """Of colours that RGB has at every middling lightness."""
    noise = torch.rand(2, 3, 9, 9, generator=rng(seed), dtype=torch.float64) - 0.5
    pixels = 0.5 + 0.12 * noise
    light, colour = light_and_colour(pixels)
    expected = lab(pixels)
    assert torch.equal(light, light[:, :1].expand_as(light))
    torch.testing.assert_close(lab(light)[:, 0], expected[:, 0], rtol=0, atol=1e-6)
    expected[:, 0] = 60
    torch.testing.assert_close(lab(colour), expected, rtol=0, atol=1e-2)


def test_any_image_gives_two_images() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.02, 0.5, 1.0])] * 3).T.reshape(1, 3, 8, 8)
    light, colour = light_and_colour(corners)
    for image in (light, colour):
        assert (image.shape, image.dtype) == (corners.shape, torch.float32)
        assert image.min() >= 0
        assert image.max() <= 1 + 1e-6
    expected = lab(corners.double())[:, 0]
    torch.testing.assert_close(lab(light.double())[:, 0], expected, rtol=0, atol=1e-3)


def test_grey_has_no_colour() -> None:
    grey = torch.rand(3, 1, 9, 9, generator=rng()).expand(-1, 3, -1, -1)
    light, colour = light_and_colour(grey)
    torch.testing.assert_close(light, grey, rtol=0, atol=1e-5)
    assert colour.std() < 1e-4
    both = torch.cat([grey, torch.rand(1, 3, 9, 9, generator=rng())])
    assert has_colour(both).tolist() == [False] * 3 + [True]


def some_grey(start: int, step: int) -> Batch:
    data = batch()
    view = data.views[0].clone()
    view[start::step] = view[start::step, :1]
    return dataclasses.replace(data, views=(view,))


def test_each_asks_the_memory_of_the_other() -> None:
    method, data = double("cmc"), data64()
    method.before_epoch(whole())
    (light, colour), targets = predictions, _ = answer(method, data)
    close(light, method.light_head(method.backbone(light_and_colour(data.views[0])[0])))
    parts = method.colours.loss(light, data.index), method.lights.loss(colour, data.index)
    close(method.loss(predictions, targets), sum(parts) / 2)
    banks = (method.lights, method.colours)
    rows = [m.rows[:8].clone() for m in banks]
    method.after_step(data, predictions, targets)
    for bank, old, text in zip(banks, rows, predictions, strict=True):
        close(bank.rows[:8], F.normalize(old + text.detach(), dim=1))


def test_a_view_without_colour_teaches_nothing() -> None:
    method, data = build("cmc"), some_grey(0, 2)
    predictions, targets = answer(method, data)
    assert targets.tolist() == [-1, 1, -1, 3, -1, 5, -1, 7]
    for slope in torch.autograd.grad(method.loss(predictions, targets), predictions):
        assert slope.any(1).tolist() == [False, True] * 4
    rows = method.lights.rows.clone()
    method.after_step(data, predictions, targets)
    assert (method.lights.rows != rows).any(1)[:8].tolist() == [False, True] * 4


def test_images_without_colour_are_refused() -> None:
    with pytest.raises(UserError, match="cmc"):
        CMC(config("cmc"), Setup(Toy(norm=True), IMAGES)).before_epoch([some_grey(0, 1)])
