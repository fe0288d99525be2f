"""What the contract of methods promises, of every method."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from selftaught.config import serialization
from selftaught.config.stage import Data, Stage
from selftaught.errors import UserError
from selftaught.method import Setting, Setup, leaves, map_tensors
from selftaught.methods import METHODS
from selftaught.ranges import Range, check_ranges, ranges_of
from selftaught.training import session
from tests.laws.toys import HARD, IMAGES, TWO_PLAYER, batch, build, config, setup

methods = pytest.mark.parametrize("name", METHODS)
# whose loss of a constant is not known, depends on the constant, or is where training begins
UNKNOWN = {
    "bigan",
    "bigbigan",
    "colorization",
    "context-encoder",
    "denoising-autoencoder",
    "distillation",
    "feature-distillation",
    "mae",
    "simmim",
    "spotting-artifacts",
    "supervised",
}
SETTINGS = [
    Setting(images=images, batch=size, steps=steps, features=features, pretrained=begun, classes=2)
    for images, size in ((2, 2), (3, 2), (100, 64), (50_000, 256), (5_000_000, 4096))
    for steps in (0, 1, 1_000_000)
    for features in (1, 2048)
    for begun in (False, True)
]


@methods
def test_a_constant_network_has_the_collapsed_loss(name: str) -> None:
    """The constant is 0, at which all scores are equal; where embeddings must be of unit norm, it
    is a vector of such, that a teacher, if there is one, says too.
    """
    method = build(name, dtype=torch.float64)
    if hasattr(config(name), "loss"):  # the exact loss of a memory, over all of its rows
        change: Any = dataclasses.replace(config(name), loss="softmax", negatives=IMAGES)
        method = METHODS[name](change, setup(name)).double()
        method.before_epoch(
            [batch(16, seed=s, first=16 * s, dtype=torch.float64) for s in range(4)]
        )
    data = batch(IMAGES, dtype=torch.float64)
    predictions = method.predict(method.inputs(data))
    method.loss(predictions, method.targets(data, predictions))  # CPC counts its patches
    expected = method.collapsed_loss(IMAGES)
    assert (expected is None) == (name in UNKNOWN)
    if expected is None:
        return

    unit = expected == 0 or name == "margin-contrastive"

    def constant(x: Tensor) -> Tensor:
        return torch.full_like(x, x.shape[-1] ** -0.5 if unit else 0.0)

    same = map_tensors(constant, predictions)
    targets = method.targets(data, same)
    targets = map_tensors(constant, targets) if unit else targets
    assert method.loss(same, targets).item() == pytest.approx(expected, rel=1e-2, abs=1e-6)


@methods
def test_a_config_survives_json(name: str) -> None:
    for setting in SETTINGS[::7]:
        instance = METHODS[name].Config().defaults(setting).config
        stage = Stage(data=Data(roots=("unread",)), size=32, method=instance)
        assert (
            serialization.from_json(json.loads(json.dumps(serialization.to_json(stage)))) == stage
        )


@pytest.mark.parametrize("name", [*TWO_PLAYER])
def test_a_method_of_two_players_takes_no_hard_examples(name: str) -> None:
    fields = {"data": Data(roots=("unread",)), "size": 32, "method": config(name)}
    for hard in HARD.values():
        with pytest.raises(UserError, match="--hard"):
            Stage(**fields, hard=(hard,))
    Stage(**fields, hard=(dataclasses.replace(hard, weight=0.0),))


@methods
def test_defaults_keep_every_field_in_its_range(name: str) -> None:
    for setting in SETTINGS:
        instance = METHODS[name].Config().defaults(setting)
        check_ranges(instance.config, "method")
        assert instance.lr > 0
        assert instance.clip >= 0


@methods
def test_every_number_has_a_range(name: str) -> None:
    numbers = {
        f.name
        for f in dataclasses.fields(METHODS[name].Config)
        if isinstance(getattr(METHODS[name].Config(), f.name), int | float)
        and not isinstance(getattr(METHODS[name].Config(), f.name), bool)
    }
    assert numbers == set(ranges_of(METHODS[name].Config))


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1, math.nan)),
        (Range(0, open_low=True), (1e-9, 7), (0, -1)),
        (Range(0, 1, open_high=True), (0, 0.9), (1,)),
    ],
)
def test_ranges(limits: Range, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)


@methods
def test_parts_of_a_method_are_parts_of_its_parameters(name: str) -> None:
    method = build(name)
    names = [key for key, _ in method.named_parameters()]
    for part in method.parameter_groups():
        assert any(key == part or key.startswith(f"{part}.") for key in names)


# Random choices


def test_random_numbers_are_the_same_however_a_batch_is_split() -> None:
    data = batch(12)
    whole = data.random((3, 2), "a")
    for cuts in ([slice(0, 5), slice(5, 12)], [slice(i, i + 1) for i in range(12)]):
        parts = [data.map(lambda x, s=s: x[s]).random((3, 2), "a") for s in cuts]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(data.random((3, 2), "a"), whole)
    assert not torch.equal(data.random((3, 2), "b"), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_random_numbers_are_the_same_on_a_gpu() -> None:
    data = batch(12)
    there = data.map(lambda x: x.cuda()).random((7,), "a")
    assert torch.equal(there.cpu(), data.random((7,), "a"))


def test_random_numbers_are_uniform_and_independent() -> None:
    numbers = batch(20_000).random((4,), "a").double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 50, 0, 1)
    assert ((counts - 1600).square() / 1600).sum() < 100  # chi-square of 49: 1e-5 of all
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.03
    following = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))
    assert following[0, 1].abs() < 0.03


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_draw_what_one_draws(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(rank: int, world: int, accumulate: int = 1, first: int = 0) -> Tensor:
        """Of an epoch of 32 images in steps of 8: [steps, images a process]."""
        monkeypatch.setattr(session, "rank", lambda: rank)
        monkeypatch.setattr(session, "world_size", lambda: world)
        size = 8 // world // accumulate
        epoch = lambda number, skip: [SimpleNamespace(index=range(size))] * (4 * accumulate - skip)  # noqa: E731
        fake: Any = SimpleNamespace(
            stage=SimpleNamespace(seed=5, accumulate=accumulate),
            batches=SimpleNamespace(epoch=epoch),
            device=torch.device("cpu"),
            waited=0.0,
            batch=lambda raw, seed, seeds: seeds,
        )
        result = [x for x in session.Session.epochs(fake, 3, first)]
        return torch.stack(result).view(-1, 8 // world)

    alone = seeds(0, 1)
    assert torch.equal(torch.cat([seeds(r, world) for r in range(world)], dim=1), alone)
    assert torch.equal(seeds(0, 1, accumulate=2), alone)
    assert torch.equal(seeds(0, 1, first=2), alone[2:])  # a resumed run
    assert len(alone.unique()) == 32


def test_a_batch_maps_all_that_it_holds() -> None:
    data = dataclasses.replace(batch(4), extras={"times": torch.arange(4)})
    half = data.map(lambda x: x[:2])
    assert [len(x) for x in (*half.views, half.index, half.label, half.seed)] == [2] * 5
    assert half.extras["times"].tolist() == [0, 1]
    assert len(leaves(half.views)) == 2


def test_what_a_method_is_built_on() -> None:
    instance = Setup(setup("simclr").backbone, 64)
    assert (instance.classes, instance.previous) == (0, None)
    assert METHODS["simclr"](config("simclr"), instance).judged() is instance.backbone
