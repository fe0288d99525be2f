"""Batches: one order for all processes, exact resumption in mid-epoch, and nothing random in the
workers.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selftaught.data.loading.images import Images
from selftaught.data.loading.loader import Batches, Raw
from selftaught.errors import UserError
from tests.data.image_files import same_batches

N = 23


def the_images(folder: Path, in_memory: bool) -> Images:
    """Image i is all of the grey level i, and i + 1 pixels wide."""
    paths = [folder / f"{i:02}.png" for i in range(N)]
    for i, path in enumerate(paths):
        Image.new("L", (i + 1, 4), i).save(path)
    return Images(paths, torch.tensor([[4, i + 1] for i in range(N)]), 4, in_memory)


@pytest.fixture(scope="module", params=[True, False], ids=["held", "read"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Images:
    return the_images(tmp_path_factory.mktemp("images"), request.param)


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return the_images(tmp_path_factory.mktemp("held"), True)


POSITIONS = torch.arange(1, N, 2)  # eleven of them
LABELS = torch.arange(N) * 10


def check(raw: Raw) -> None:
    """Every field speaks of the image that is shown."""
    sources = raw.pixels[:, 0, 0, 0].long()
    assert torch.equal(raw.pixels, sources.byte().view(-1, 1, 1, 1).expand(-1, 3, 4, 4))
    assert torch.equal(POSITIONS[raw.index], sources)
    assert torch.equal(raw.label, LABELS[sources])
    assert torch.equal(raw.aspect, (sources + 1) / 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_shows_whole_batches_and_each_image_once(images: Images, workers: int) -> None:
    batches = Batches(images, POSITIONS, LABELS, batch=3, seed=1, workers=workers)
    assert batches.steps_per_epoch == 3
    before = torch.get_rng_state()
    epochs = [list(batches.epoch(e)) for e in range(3)]
    for epoch in epochs:
        assert [len(raw.index) for raw in epoch] == [3, 3, 3]
        for raw in epoch:
            check(raw)
        assert len({int(i) for raw in epoch for i in raw.index}) == 9
    orders = [torch.cat([raw.index for raw in epoch]).tolist() for epoch in epochs]
    assert orders[0] != orders[1] != orders[2]
    assert torch.equal(torch.get_rng_state(), before)  # no chance but the batches' own
    assert same_batches(list(batches.epoch(1)), epochs[1])
    assert same_batches(list(batches.epoch(1, 1)), epochs[1][1:])
    alone = Batches(images, POSITIONS, LABELS, batch=3, seed=1)
    assert same_batches(list(alone.epoch(1)), epochs[1])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(b, w) for b in range(1, 5) for w in range(1, 4) if b * w <= 11]),
    seed=st.integers(0, 9),
    number=st.integers(0, 3),
    data=st.data(),
)
def test_any_start_and_any_number_of_processes(
    in_memory: Images, shape: tuple[int, int], seed: int, number: int, data: st.DataObject
) -> None:
    batch, world = shape
    make = partial(Batches, in_memory, POSITIONS, LABELS, seed=seed)
    one = make(batch=batch * world)
    ranks = [make(batch=batch, rank=r, world=world) for r in range(world)]
    assert {b.steps_per_epoch for b in [one, *ranks]} == {len(POSITIONS) // (batch * world)}
    whole = list(one.epoch(number))
    start = data.draw(st.integers(0, one.steps_per_epoch))
    assert same_batches(list(one.epoch(number, start)), whole[start:])
    for raws, raw in zip(zip(*(b.epoch(number) for b in ranks), strict=True), whole, strict=True):
        assert torch.cat([r.index for r in raws]).tolist() == raw.index.tolist()
        assert torch.equal(torch.cat([r.pixels for r in raws]), raw.pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_their_own_sizes_where_that_is_asked_for(
    images: Images, workers: int
) -> None:
    batches = Batches(images, POSITIONS, LABELS, batch=4, seed=3, workers=workers, own_size=True)
    squares = Batches(images, POSITIONS, LABELS, batch=4, seed=3).epoch(0)
    for raw, square in zip(batches.epoch(0), squares, strict=True):
        assert torch.equal(raw.index, square.index)
        assert torch.equal(raw.aspect, square.aspect)
        for i, image in enumerate(raw.pixels):
            sources = int(square.pixels[i, 0, 0, 0])
            assert image.shape == ((3, 4, 4) if images.in_memory else (3, 4, sources + 1))
            assert bool((image == sources).all())


def test_orders_differ_between_seeds_and_epochs(in_memory: Images) -> None:
    epochs = [
        Batches(in_memory, torch.arange(N), None, batch=N, seed=seed).epoch(number)
        for seed in range(5)
        for number in range(5)
    ]
    orders = {tuple(next(iter(epoch)).index.tolist()) for epoch in epochs}
    assert len(orders) == 25  # also seed 1 of epoch 2 and seed 2 of epoch 1


def test_without_labels_and_with_several(in_memory: Images) -> None:
    raw = next(iter(Batches(in_memory, POSITIONS, None, batch=2, seed=0).epoch(0)))
    assert raw.label.tolist() == [-1, -1]
    assert raw.label.dtype == torch.int64
    several = torch.eye(N, dtype=torch.uint8)
    raw = next(iter(Batches(in_memory, POSITIONS, several, batch=2, seed=0).epoch(0)))
    assert torch.equal(raw.label, several[POSITIONS[raw.index]])


def test_a_broken_off_epoch_leaves_the_next_one_whole(images: Images) -> None:
    batches = Batches(images, POSITIONS, LABELS, batch=2, seed=1, workers=1)
    expected = list(batches.epoch(1))
    first = batches.epoch(0)
    next(first)
    second = batches.epoch(1)
    got = [next(second)]
    if not images.in_memory:
        with pytest.raises(RuntimeError, match="another epoch"):
            next(first)
    assert same_batches([*got, *second], expected)
    assert not list(batches.epoch(2, batches.steps_per_epoch))
    assert len(list(batches.epoch(3))) == 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_lost_image_is_stood_in_for(tmp_path: Path, workers: int, in_memory: bool) -> None:
    images = the_images(tmp_path, False)
    for i in (5, 21, 8):  # 21 is the last position, and 8 is none
        images.paths[i].unlink()
    if in_memory:
        images = Images(images.paths, torch.tensor([[4, i + 1] for i in range(N)]), 4, True)
    batches = Batches(images, POSITIONS, LABELS, batch=11, seed=1, workers=workers)
    raws = list(batches.epoch(0))
    index, label, aspect = (
        torch.cat([getattr(raw, field) for raw in raws]) for field in ("index", "label", "aspect")
    )
    order = index.argsort()
    assert index[order].tolist() == list(range(11))
    sources = torch.cat([raw.pixels[:, 0, 0, 0] for raw in raws]).long()[order]
    expected = [1, 3, 7, 7, 9, 11, 13, 15, 17, 19, 1]  # the next of the positions, going round
    assert sources.tolist() == expected
    assert torch.equal(label[order], LABELS[sources])
    assert aspect[order].tolist() == [(i + 1) / 4 for i in expected]
    names = {Path(path).name for path, reason in images.lost if reason == "no such file"}
    assert names == {"05.png", "21.png"} | ({"08.png"} if in_memory else set())


@pytest.mark.parametrize("workers", [0, 1])
def test_all_lost_is_one_clear_line(tmp_path: Path, workers: int) -> None:
    images = the_images(tmp_path, False)
    for path in images.paths:
        path.unlink()
    with pytest.raises(UserError, match="no image can be read any more") as caught:
        list(Batches(images, POSITIONS, LABELS, batch=4, seed=1, workers=workers).epoch(0))
    assert "\n" not in str(caught.value)


def test_fewer_images_than_a_batch_and_nonsense_are_refused(in_memory: Images) -> None:
    with pytest.raises(UserError, match=r"11 images .* batch of 12; .* at most 11"):
        Batches(in_memory, POSITIONS, None, batch=12, seed=0).epoch(0)
    few = Batches(in_memory, POSITIONS, None, batch=6, seed=0, world=2)
    with pytest.raises(UserError, match=r"6 in each of 2 processes.*at most 5"):
        _ = few.steps_per_epoch
    with pytest.raises(ValueError, match="labels for 23 images"):
        Batches(in_memory, POSITIONS, LABELS[POSITIONS], batch=2, seed=0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Batches(in_memory, POSITIONS, None, batch=2, seed=0, rank=2, world=2)
    batches = Batches(in_memory, POSITIONS, None, batch=2, seed=0)
    for number, start in ((-1, 0), (0, -1), (0, 6)):
        with pytest.raises(ValueError, match="5 steps"):
            batches.epoch(number, start)


@pytest.mark.parametrize("in_memory", [True, False])
def test_square_images_are_the_middles_of_the_images(tmp_path: Path, in_memory: bool) -> None:
    """Both axes are resized by one factor; a squashed image is sharper along its short side."""
    rng = np.random.default_rng(0)
    wide, tall = (rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((8, 14), (15, 8)))
    files = [tmp_path / "wide.png", tmp_path / "tall.png"]
    for file, pixels in zip(files, (wide, tall), strict=True):
        Image.fromarray(pixels).save(file)
    sizes = torch.tensor([[8, 14], [15, 8]])
    images = Images(files, sizes, 8, in_memory, square=True)
    expected = torch.from_numpy(np.stack([wide[:, 3:11], tall[3:11]])).permute(0, 3, 1, 2)
    assert torch.equal(images.read(torch.arange(2))[0], expected)
    assert images.aspect.tolist() == [1.0, 1.0]
    if not in_memory:
        originals, _ = images.read_originals(torch.arange(2), torch.arange(2))
        assert all(torch.equal(one, part) for one, part in zip(originals, expected, strict=True))
