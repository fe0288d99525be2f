"""Jigsaw and context prediction: the tiles they are cut from, each against its paper's formula in
plain loops, and controls of what they can know of held-out images.
"""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.errors import UserError
from selftaught.method import Batch
from selftaught.methods.parts.tile_orders import list_orders
from selftaught.methods.parts.tiles import draw_tiles, normalize_tiles, remove_green, tile_side
from selftaught.methods.pretext.context_prediction import NEIGHBOURS, ContextPrediction
from selftaught.methods.pretext.jigsaw import Jigsaw
from selftaught.models import backbone
from tests.formulas import close, data64, double, loss_of, surprise
from tests.laws.toys import Toy, batch

methods = pytest.mark.parametrize("name", ["jigsaw", "context-prediction"])

# Orders


@pytest.mark.parametrize(("count", "distance"), [(2, 8), (64, 8), (72, 8), (100, 7), (1000, 6)])
def test_orders_differ_in_many_places(count: int, distance: int) -> None:
    orders = np.array(list_orders(count))
    assert (np.sort(orders) == np.arange(9)).all()
    apart = (orders[:, None] != orders[None]).sum(2)[np.triu_indices(count, 1)]
    assert apart.min() >= distance
    # every tile is at every place equally often
    for place in range(9):
        often = np.bincount(orders[:, place], minlength=9)
        assert often.max() - often.min() <= 1


def test_orders_have_an_end() -> None:
    assert len(set(list_orders(1512))) == 1512
    with pytest.raises(UserError, match=r"--method\.orders"):
        list_orders(1513)


# Tiles


def tile_in_loops(
    view: Tensor, seed: int, number: int, side: int, reach: int, normalize: bool = True
) -> Tensor:
    """Tile `number` of a view [3, S, S], at its random place, of the same mean and deviation."""
    cell = view.shape[-1] // 3
    free = cell - side
    margin = free // 5
    data = Batch((view[None],), *(torch.tensor([seed]) for _ in range(3)))
    where = data.random((9, 1, 2), "offsets")[0, number, 0].tolist()
    moved = data.random((9, 3, 2), "shifts")[0, number].tolist()
    channels = []
    for channel, shifts in zip(view.tolist(), moved, strict=True):
        corner = []
        for first, at, shift in zip(divmod(number, 3), where, shifts, strict=True):
            offset = margin + int(at * (free - 2 * margin + 1))
            offset += int(shift * (2 * reach + 1)) - reach
            corner.append(first * cell + min(max(offset, 0), free))
        rows = [row[corner[1] : corner[1] + side] for row in channel[corner[0] : corner[0] + side]]
        flat = [value for row in rows for value in row]
        mean = sum(flat) / len(flat)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in flat) / len(flat) + 1e-4)
        if normalize:
            rows = [[0.5 + 0.25 * (v - mean) / deviation for v in row] for row in rows]
        channels.append(rows)
    return torch.tensor(channels, dtype=view.dtype)


@pytest.mark.parametrize(
    ("size", "side"), [(24, 6), (32, 7), (64, 14), (96, 22), (128, 29), (224, 51)]
)
def test_the_side_of_a_tile(size: int, side: int) -> None:
    network = Toy(norm=False)
    assert tile_side(size, 0, network) == side
    with pytest.raises(UserError, match=r"--size.*--method\.tile"):
        tile_side(size, size // 3, network)
    assert tile_side(size, size // 3 - 1, network) == size // 3 - 1
    with pytest.raises(UserError, match="--size 24 "):
        tile_side(23, 0, network)


def test_tiles_of_a_vit_are_whole_patches() -> None:
    network = backbone.create("test_vit", image_size=160)  # patches of 16 pixels
    sides = {size: tile_side(size, 0, network) for size in (64, 96, 160)}
    assert sides == {64: 16, 96: 16, 160: 32}
    with pytest.raises(UserError, match="--size 64 "):
        tile_side(48, 0, network)
    with pytest.raises(UserError, match=r"--method\.tile 16"):
        tile_side(160, 20, network)


@methods
@pytest.mark.parametrize("normalize", [True, False])
def test_every_default_size_fits(name: str, normalize: bool) -> None:
    for size in (32, 64, 96, 128, 224):
        method = double(name, tile=0, normalize=normalize)
        assert loss_of(method, data64(2, size=size)).isfinite()


def test_tiles_keep_their_gaps_and_use_all_places() -> None:
    rows = torch.arange(96.0)[:, None].expand(400, 3, 96, 96)
    data = dataclasses.replace(batch(400), views=(rows,))
    tops = draw_tiles(data, Jigsaw.Config(channel_shift=0.0), Toy(norm=False))[:, :, 0, 0, 0]
    offsets = tops.view(400, 3, 3) - torch.tensor([0.0, 32.0, 64.0])[:, None]
    assert Counter(offsets.flatten().tolist()).keys() == set(range(2, 9))  # 4 to 16 pixels of gap
    shifted = draw_tiles(data, Jigsaw.Config(), Toy(norm=False))[:, :, :, 0, 0]
    assert (shifted[:, :, 0] - shifted[:, :, 1]).abs().max() == 2  # 1 each


def test_colours_are_removed() -> None:
    data, network = batch(4, size=48), Toy(norm=False)
    kept = draw_tiles(data, Jigsaw.Config(channel_shift=0.0), network).flatten(0, 1)
    dropped = draw_tiles(data, ContextPrediction.Config(), network).flatten(0, 1)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    own = (dropped == kept).flatten(2).all(2)  # of each tile, the channel that is left
    assert own.any(1).all()
    assert own.any(0).all()
    projected = draw_tiles(data, ContextPrediction.Config(colours="project"), network)
    assert torch.equal(projected.flatten(0, 1), remove_green(kept))


def test_green_and_magenta_become_grey() -> None:
    colours = [(0.4, 0.4, 0.4), (0.0, 0.6, 0.0), (0.6, 0.0, 0.6), (0.8, 0.5, 0.2)]
    expected = torch.tensor([colours[0], (0.2, 0.2, 0.2), (0.4, 0.4, 0.4), colours[3]])
    result = remove_green(torch.tensor(colours)[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(result, expected)


def test_flat_tiles_are_grey() -> None:
    flat = torch.full((1, 9, 3, 8, 8), 0.7, requires_grad=True)
    normal = normalize_tiles(flat)
    torch.testing.assert_close(normal, torch.full_like(flat, 0.5), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(normal[..., 0, 0].sum(), flat)
    assert gradient.isfinite().all()


# Formulas


def test_jigsaw_is_its_formula() -> None:
    """Noroozi & Favaro, 2016, section 3: tiles are seen one by one, and then all nine together."""
    method, data = double("jigsaw", tile=10, channel_shift=0.2), data64(4, size=48)
    network, total = method.network, 0.0
    for view, seed in zip(data.views[0], data.seed.tolist(), strict=True):
        draw = Batch((), *(torch.tensor([seed]) for _ in range(3))).random((1,), "order")
        number = int(draw.item() * 64)
        tiles = [tile_in_loops(view, seed, k, 10, reach=2) for k in list_orders(64)[number]]
        seen = torch.cat([network.each(tile[None])[0] for tile in tiles])
        total += surprise(network.together(seen[None])[0].tolist(), number)
    close(loss_of(method, data), total / 4)


def test_context_prediction_is_its_formula() -> None:
    """Doersch et al., 2015, section 3: a patch, one of eight neighbours, and which one it is."""
    method = double("context-prediction", tile=10, colours="keep", normalize=False)
    data, total = data64(4, size=48), 0.0
    for view, seed in zip(data.views[0], data.seed.tolist(), strict=True):
        tiles = [tile_in_loops(view, seed, k, 10, reach=0, normalize=False) for k in range(9)]
        middle, *others = (method.backbone(tiles[k][None])[0] for k in (4, 0, 1, 2, 3, 5, 6, 7, 8))
        for place, feature in enumerate(others):
            pair = torch.cat([middle, feature])
            total += surprise(method.pairs(pair[None])[0].tolist(), place)
    close(loss_of(method, data), total / 32)


@methods
def test_a_flat_image_has_no_answer(name: str) -> None:
    """After their means are removed, tiles that are bright and dark are all the same."""
    method = double(name)
    cells = torch.rand(4, 3, 3, 3, dtype=torch.float64).repeat_interleave(5, 2)
    view = F.pad(cells.repeat_interleave(5, 3), (0, 1, 0, 1))
    tiles = method.inputs(dataclasses.replace(batch(4), views=(view,)))
    assert tiles.flatten(1).std(1).min() > 0
    logits = method.predict(tiles).flatten(0, -2)
    close(logits, logits[:1].expand_as(logits))


# Grades and pictures


@pytest.mark.parametrize(
    ("name", "logits", "targets", "chance"),
    [
        ("jigsaw", torch.eye(64)[[3, 5]], torch.tensor([3, 4]), 1 / 64),
        (
            "context-prediction",
            torch.eye(8).expand(2, 8, 8),
            torch.stack([torch.arange(8), torch.arange(8).roll(1)]),
            1 / 8,
        ),
    ],
)
def test_their_grades(name: str, logits: Tensor, targets: Tensor, chance: float) -> None:
    method = double(name)
    assert method.grade(logits.double(), targets).tolist() == [1.0, 0.0]
    assert method.chance() == chance


def test_jigsaw_shows_the_puzzle_before_and_after() -> None:
    method, data = double("jigsaw"), batch(6, size=30)
    targets = method.targets(data, ())
    answers = F.one_hot(torch.cat([(targets[:3] + 1) % 64, targets[3:]]), 64)
    shown = method.illustrate(data, answers, targets)
    assert [one.correct for one in shown] == [False] * 3 + [True] * 3
    for one, view in zip(shown, data.views[0], strict=True):
        pictures = one.pictures
        assert list(pictures) == ["input", "prediction", "truth"]
        assert torch.equal(pictures["prediction"], pictures["truth"]) == one.correct
        assert pictures["input"].shape == (3, 18, 18)
        # the truth is the image itself: its tiles in the order of reading
        corner = pictures["truth"][:, 1:5, 1:5]
        windows = view[:, :10, :10].unfold(1, 4, 1).unfold(2, 4, 1)
        assert (windows == corner[:, None, None]).flatten(3).all(3).all(0).any()


def test_context_prediction_shows_both_places() -> None:
    method, data = double("context-prediction"), batch(2, size=30)
    targets = torch.tensor([[0, *range(1, 8)], [7, *range(7)]])
    answers = F.one_hot(torch.zeros(2, 8, dtype=torch.long), 8)
    right, wrong = method.illustrate(data, answers, targets)
    assert (right.correct, wrong.correct) == (True, False)
    assert list(NEIGHBOURS)[7] in wrong.text
    assert torch.equal(right.pictures["prediction"], right.pictures["truth"])
    patch, truth = wrong.pictures["input"], wrong.pictures["truth"]
    assert torch.equal(truth[:, 13:17, 13:17], patch)  # below and to the right
    assert torch.equal(wrong.pictures["prediction"][:, 1:5, 1:5], patch)
    assert not torch.equal(truth[:, 7:11, 7:11], torch.full((3, 4, 4), 0.5))
