"""Jigsaw and context prediction: the tiles they are cut from, each against its paper's formula in
plain loops, and controls of what they can know of held-out images.
"""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selftaught.cli.main import main
from selftaught.data import demo_images
from selftaught.errors import UserError
from selftaught.hard.mixed import partner
from selftaught.method import Batch, image_seeds
from selftaught.methods.parts.tile_orders import list_orders
from selftaught.methods.parts.tiles import (
    crop_tiles,
    draw_tiles,
    normalize_tiles,
    remove_green,
    tile_side,
)
from selftaught.methods.pretext.context_prediction import NEIGHBOURS, ContextPrediction
from selftaught.methods.pretext.jigsaw import Jigsaw
from selftaught.models import backbone
from selftaught.visualize import snapshots
from tests.formulas import close, double, surprise
from tests.laws.toys import Toy, batch

Pixels = list[list[float]]
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
    channels: list[Pixels] = []
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


def test_sizes_without_tiles_are_refused() -> None:
    with pytest.raises(UserError, match="--size 24 "):
        tile_side(23, 0, Toy(norm=False))


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
        data = batch(2, dtype=torch.float64, size=size)
        predictions = method.predict(method.inputs(data))
        assert method.loss(predictions, method.targets(data, predictions)).isfinite()


def test_tiles_keep_their_gaps_and_use_all_places() -> None:
    rows = torch.arange(96.0)[:, None].expand(400, 3, 96, 96)
    data = dataclasses.replace(batch(400), views=(rows,))
    tops = draw_tiles(data, Jigsaw.Config(channel_shift=0.0), Toy(norm=False))[:, :, 0, 0, 0]
    offsets = tops.view(400, 3, 3) - torch.tensor([0.0, 32.0, 64.0])[:, None]
    assert Counter(offsets.flatten().tolist()).keys() == set(range(2, 9))  # 4 to 16 pixels of gap
    shifted = draw_tiles(data, Jigsaw.Config(), Toy(norm=False))[:, :, :, 0, 0]
    assert (shifted[:, :, 0] - shifted[:, :, 1]).abs().max() == 2  # 1 each


def test_colours_are_removed() -> None:
    data = batch(4, size=48)
    network = Toy(norm=False)
    kept = draw_tiles(data, Jigsaw.Config(channel_shift=0.0), network)
    dropped = draw_tiles(data, ContextPrediction.Config(), network)
    channels = set()
    for full, single in zip(kept.flatten(0, 1), dropped.flatten(0, 1), strict=True):
        assert torch.equal(single[0], single[1])
        assert torch.equal(single[0], single[2])
        channels.add(next(c for c in range(3) if torch.equal(full[c], single[0])))
    assert channels == {0, 1, 2}
    projected = draw_tiles(data, ContextPrediction.Config(colours="project"), network)
    assert torch.equal(projected, remove_green(kept))


@pytest.mark.parametrize(
    ("colour", "rest"),
    [
        ((0.4, 0.4, 0.4), (0.4, 0.4, 0.4)),
        ((0.0, 0.6, 0.0), (0.2, 0.2, 0.2)),
        ((0.6, 0.0, 0.6), (0.4, 0.4, 0.4)),
        ((0.8, 0.5, 0.2), (0.8, 0.5, 0.2)),
    ],
)
def test_green_and_magenta_become_grey(colour: Any, rest: Any) -> None:
    torch.testing.assert_close(
        remove_green(torch.tensor(colour)[:, None, None])[:, 0, 0], torch.tensor(rest)
    )


def test_tiles_have_one_mean_and_deviation() -> None:
    tiles = 0.2 + 0.3 * torch.rand(2, 9, 3, 8, 8, dtype=torch.float64)
    normal = normalize_tiles(tiles)
    close(normal.mean((-2, -1)), torch.full((2, 9, 3), 0.5))
    close(normal.std((-2, -1), correction=0), torch.full((2, 9, 3), 0.25), rtol=0.02)
    flat = torch.full((1, 9, 3, 8, 8), 0.7, requires_grad=True)
    normal = normalize_tiles(flat)
    torch.testing.assert_close(normal, torch.full_like(flat, 0.5), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(normal[..., 0, 0].sum(), flat)
    assert gradient.isfinite().all()


def test_tiles_are_cropped_channel_by_channel() -> None:
    view = torch.rand(2, 3, 30, 30)
    offsets = torch.randint(0, 5, (2, 9, 3, 2))
    tiles = crop_tiles(view, 6, offsets)
    for i in range(2):
        for number in range(9):
            for c in range(3):
                down, right = offsets[i, number, c].tolist()
                y, x = 10 * (number // 3) + down, 10 * (number % 3) + right
                assert torch.equal(tiles[i, number, c], view[i, c, y : y + 6, x : x + 6])


# Formulas


def test_jigsaw_is_its_formula() -> None:
    """Noroozi & Favaro, 2016, section 3: tiles are seen one by one, and then all nine together."""
    method = double("jigsaw", tile=10, channel_shift=0.2)
    data = batch(4, dtype=torch.float64, size=48)
    orders, network = list_orders(64), method.network
    total = 0.0
    for view, seed in zip(data.views[0], data.seed.tolist(), strict=True):
        draw = Batch((), *(torch.tensor([seed]) for _ in range(3))).random((1,), "order")
        number = int(draw.item() * 64)
        seen = []
        for tile in orders[number]:
            pixels = tile_in_loops(view, seed, tile, side=10, reach=2)
            seen.append(network.each(pixels[None])[0])
        total += surprise(network.together(torch.cat(seen)[None])[0].tolist(), number)
    predictions = method.predict(method.inputs(data))
    close(method.loss(predictions, method.targets(data, predictions)), total / 4)


def test_context_prediction_is_its_formula() -> None:
    """Doersch et al., 2015, section 3: a patch, one of eight neighbours, and which one it is."""
    method = double("context-prediction", tile=10, colours="keep", normalize=False)
    data = batch(4, dtype=torch.float64, size=48)
    total = 0.0
    for view, seed in zip(data.views[0], data.seed.tolist(), strict=True):
        features = [
            method.backbone(tile_in_loops(view, seed, k, 10, reach=0, normalize=False)[None])[0]
            for k in range(9)
        ]
        for place, tile in enumerate([0, 1, 2, 3, 5, 6, 7, 8]):
            pair = torch.cat([features[4], features[tile]])
            total += surprise(method.pairs(pair[None])[0].tolist(), place)
    predictions = method.predict(method.inputs(data))
    close(method.loss(predictions, method.targets(data, predictions)), total / 32)


def test_partners_have_other_answers() -> None:
    """Two images of one answer would mix into one of the same answer: nothing is harder."""
    for name, share in (("jigsaw", 63 / 64), ("context-prediction", 7 / 8)):
        targets = double(name).targets(batch(4000), ())
        apart = (targets != partner(targets)).double().mean().item()
        assert apart == pytest.approx(share, abs=0.03)


@methods
def test_answers_depend_on_the_image_alone(name: str) -> None:
    method, data = double(name), batch(8)
    whole, targets = method.inputs(data), method.targets(data, ())
    for s in (slice(0, 3), slice(3, 8)):
        part = data.map(lambda x, s=s: x[s])  # type: ignore[misc]
        assert torch.equal(method.inputs(part), whole[s])
        assert torch.equal(method.targets(part, ()), targets[s])
    other = dataclasses.replace(data, seed=image_seeds(9, 0, 8))
    assert not torch.equal(method.targets(other, ()), targets)


@methods
def test_a_flat_image_has_no_answer(name: str) -> None:
    """After their means are removed, tiles that are bright and dark are all the same."""
    method = double(name)
    cells = torch.rand(4, 3, 3, 3, dtype=torch.float64).repeat_interleave(5, 2)
    view = torch.nn.functional.pad(cells.repeat_interleave(5, 3), (0, 1, 0, 1))
    data = dataclasses.replace(batch(4), views=(view,))
    tiles = method.inputs(data)
    assert tiles.flatten(1).std(1).min() > 0
    logits = method.predict(tiles).flatten(0, -2)
    close(logits, logits[:1].expand_as(logits))


# Grades and pictures


def test_their_grades() -> None:
    jigsaw, context = double("jigsaw"), double("context-prediction")
    logits = torch.eye(64, dtype=torch.float64)[[3, 5]]
    assert jigsaw.grade(logits, torch.tensor([3, 4])).tolist() == [1.0, 0.0]  # type: ignore[union-attr]
    assert (jigsaw.chance(), context.chance()) == (1 / 64, 1 / 8)
    targets = torch.stack([torch.arange(8), torch.arange(8).roll(1)])
    logits = torch.eye(8, dtype=torch.float64).expand(2, 8, 8)
    assert context.grade(logits, targets).tolist() == [1.0, 0.0]  # type: ignore[union-attr]
    assert jigsaw.collapsed_loss(8) == pytest.approx(math.log(64))
    assert context.collapsed_loss(8) == pytest.approx(math.log(8))


def test_jigsaw_shows_the_puzzle_before_and_after() -> None:
    method, data = double("jigsaw"), batch(6, size=30)
    targets = method.targets(data, ())
    wrong = (targets[:3] + 1) % 64
    answers = torch.nn.functional.one_hot(torch.cat([wrong, targets[3:]]), 64)
    shown = method.illustrate(data, answers, targets)
    assert [one.correct for one in shown] == [False] * 3 + [True] * 3
    for one in shown:
        pictures = one.pictures
        assert list(pictures) == ["input", "prediction", "truth"]
        assert torch.equal(pictures["prediction"], pictures["truth"]) == one.correct
        assert pictures["input"].shape == (3, 18, 18)
    # the truth is the image itself: its tiles in the order of reading
    for one, view in zip(shown, data.views[0], strict=True):
        corner = one.pictures["truth"][:, 1:5, 1:5]
        windows = view[:, :10, :10].unfold(1, 4, 1).unfold(2, 4, 1)
        assert (windows == corner[:, None, None]).all(-1).all(-1).all(0).any()


def test_context_prediction_shows_both_places() -> None:
    method, data = double("context-prediction"), batch(2, size=30)
    targets = torch.tensor([[0, *range(1, 8)], [7, *range(7)]])
    answers = torch.nn.functional.one_hot(torch.zeros(2, 8, dtype=torch.long), 8)
    right, wrong = method.illustrate(data, answers, targets)
    assert (right.correct, wrong.correct) == (True, False)
    assert list(NEIGHBOURS)[7] in wrong.text
    assert torch.equal(right.pictures["prediction"], right.pictures["truth"])
    patch, truth = wrong.pictures["input"], wrong.pictures["truth"]
    assert torch.equal(truth[:, 13:17, 13:17], patch)  # below and to the right
    assert torch.equal(wrong.pictures["prediction"][:, 1:5, 1:5], patch)
    assert not torch.equal(truth[:, 7:11, 7:11], torch.full((3, 4, 4), 0.5))


# Controls: what a network may not know, it does not know of held-out images

CHANCE = {"jigsaw": 1 / 64, "context-prediction": 1 / 8}
ANSWERS = {"jigsaw": 1, "context-prediction": 8}  # of an image


def textures(root: Path, marked: bool, count: int = 160, side: int = 48) -> Path:
    """Images of independent uniform noise; if marked, each row and column has waves of its own."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    place = np.arange(side)
    waves = np.sin(2 * np.pi * place / np.array([9.0, 5.0, 3.0])[place * 3 // side])
    for i in range(count):
        pixels = rng.uniform(0, 255, (side, side, 3))
        if marked:
            pixels = 128 + 40 * (waves[:, None, None] + waves[None, :, None]) + pixels / 8
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{i:03}.png")
    return root


def accuracy(
    name: str, images: Path, out: Path, size: int = 48, steps: int = 24, *more: str
) -> tuple[float, int]:
    """Held-out accuracy of a run at its end, and the number of answers."""
    flags = ["--method", name, "--backbone", "test_resnet", "--size", str(size)]
    flags += ["--batch", "16", "--precision", "fp32", "--workers", "0", "--steps", str(steps)]
    flags += ["--optimizer", "adamw", "--optimizer.lr", "0.003", "--on-collapse", "warn", *more]
    assert main(["pretrain", "--data", str(images), "--out", str(out), *flags]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert facts["pretext_chance"] == CHANCE[name]
    return facts["pretext"], facts["data"]["held_out"] * ANSWERS[name]


def limits(name: str, count: int) -> tuple[float, float]:
    """Chance, less and more four standard errors of `count` answers."""
    error = math.sqrt(CHANCE[name] * (1 - CHANCE[name]) / count)
    return CHANCE[name] - 4 * error, CHANCE[name] + 4 * error


@pytest.fixture
def no_album(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "draw", lambda session, folder: None)


def move_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the targets be those of other images."""
    for kind, own in ((Jigsaw, Jigsaw.targets), (ContextPrediction, ContextPrediction.targets)):
        monkeypatch.setattr(kind, "targets", lambda self, b, p, own=own: own(self, b, p).roll(1, 0))


@methods
@pytest.mark.usefixtures("no_album")
def test_of_noise_nothing_can_be_known(name: str, tmp_path: Path) -> None:
    """What exceeds chance would be a leak of the pipeline: borders, resampling, padding."""
    reached, count = accuracy(name, textures(tmp_path / "noise", marked=False), tmp_path / "run")
    low, high = limits(name, count)
    assert low < reached < high


@pytest.mark.parametrize(
    ("name", "steps"),
    [("context-prediction", 24), pytest.param("jigsaw", 60, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("no_album")
def test_marked_places_are_found_and_those_of_other_images_are_not(
    name: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = textures(tmp_path / "marked", marked=True)
    whole = ["--views.scale", "1", "1", "--views.flip", "0"]
    reached, count = accuracy(name, images, tmp_path / "right", 48, steps, *whole)
    assert reached > 3 * limits(name, count)[1]
    move_answers(monkeypatch)
    reached, count = accuracy(name, images, tmp_path / "moved", 48, steps, *whole)
    low, high = limits(name, count // ANSWERS[name])
    assert low < reached < high


@methods
@pytest.mark.slow
@pytest.mark.usefixtures("no_album")
@pytest.mark.parametrize("side", [48, 100])
def test_of_noise_nothing_is_known_after_long_training(
    name: str, side: int, tmp_path: Path
) -> None:
    images = textures(tmp_path / "noise", marked=False, count=640, side=side)
    reached, count = accuracy(name, images, tmp_path / "run", 48, 400)
    low, high = limits(name, count)
    assert low < reached < high


@pytest.mark.slow
@pytest.mark.usefixtures("no_album")
def test_real_images_are_known_and_answers_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "context-prediction"  # a jigsaw of 64 orders needs a larger network and more steps
    images = demo_images.write(tmp_path / "images", size=64, train_per_class=60, test_per_class=20)
    reached, count = accuracy(name, images, tmp_path / "right", 64, 600)
    assert reached > limits(name, count)[1]
    move_answers(monkeypatch)
    reached, count = accuracy(name, images, tmp_path / "moved", 64, 300)
    low, high = limits(name, count // ANSWERS[name])
    assert low < reached < high
