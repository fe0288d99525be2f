"""Momentum contrast, its relatives, and CPC: losses against their papers in plain loops, and what
is particular to each.
"""

import dataclasses
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from selftaught.config.stage import method_of
from selftaught.errors import UserError
from selftaught.losses import most_similar, pick_nce
from selftaught.method import Setting, Setup, detach
from selftaught.methods import METHODS
from selftaught.methods.contrastive.cpc import CPC
from selftaught.methods.contrastive.densecl import DenseCL
from selftaught.methods.contrastive.moco import enqueue
from selftaught.methods.contrastive.moco_v1 import MoCoV1
from selftaught.methods.contrastive.moco_v2 import MoCoV2
from selftaught.methods.contrastive.moco_v3 import MoCoV3, _patch_projection
from selftaught.methods.contrastive.simclr import SimCLR
from selftaught.methods.contrastive.simclr_v2 import SimCLRV2
from selftaught.methods.parts.patches import Context, automatic_side, cut, drop_colours
from selftaught.methods.supervised.supervised import Supervised
from selftaught.models import backbone as backbone_module
from selftaught.optim import OPTIMIZERS
from tests.formulas import (
    answer,
    close,
    cosine,
    data64,
    double,
    drifted,
    few,
    loss_of,
    normal,
    plain_info_nce,
    seeds,
    unit,
)
from tests.laws.toys import IMAGES, Toy, batch, build, config, rng

sizes, widths = st.integers(1, 6), st.integers(2, 5)
temperatures = st.floats(0.05, 2.0)
SETTING = Setting(images=5000, batch=128, steps=2000, features=512)


# Picking a key from candidates


@few
@given(sizes, sizes, widths, temperatures, seeds)
def test_pick_nce_is_its_formula(n: int, m: int, d: int, temperature: float, seed: int) -> None:
    query, candidates = unit(n, d, seed=seed), unit(m, d, seed=seed + 1)
    key = torch.randint(m, (n,), generator=rng(seed))
    rows = candidates.tolist()
    formula = [
        plain_info_nce(q, rows[k], rows[:k] + rows[k + 1 :], temperature)
        for q, k in zip(query.tolist(), key.tolist(), strict=True)
    ]
    close(pick_nce(query, candidates, key, temperature), sum(formula) / n)


def test_pick_nce_has_the_numerical_gradient() -> None:
    query, candidates = normal(4, 3, seed=0).requires_grad_(), normal(5, 3, seed=1).requires_grad_()
    loss = lambda q, c: pick_nce(q, c, torch.tensor([0, 4, 4, 2]), 0.3)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (query, candidates))


# MoCo v1, beside v2


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["moco-v1", "moco-v2"])
def test_moco_is_its_formula(name: str, symmetric: bool) -> None:
    """He et al., 2019, equation 1. `symmetric`: the mean of both ways, and the keys of both views
    go into the queue.
    """
    method, data = double(name, symmetric=symmetric, temperature=0.3), data64(5)
    drifted(method.teacher)
    q1, q2 = (method.network(view).tolist() for view in data.views)
    k1, k2 = (method.teacher.network(view) for view in data.views)
    before, negatives = method.queue.clone(), method.queue.tolist()
    ways = [(q1, k2), (q2, k1)] if symmetric else [(q1, k2)]
    costs = [
        plain_info_nce(q, k, negatives, 0.3)
        for qs, ks in ways
        for q, k in zip(qs, ks.tolist(), strict=True)
    ]
    predictions, targets = answer(method, data)
    close(method.loss(predictions, targets), sum(costs) / len(costs))
    assert not any(t.requires_grad for t in targets)
    method.after_step(data, detach(predictions), targets)
    keys = torch.cat([k for _, k in ways])
    close(method.queue, torch.cat([keys, before[len(keys) :]]))
    assert int(method.oldest) == len(keys)


def test_versions_differ_in_head_and_temperature_alone() -> None:
    one, two = MoCoV1.Config(), MoCoV2.Config()
    assert (one.temperature, two.temperature) == (0.07, 0.2)
    assert dataclasses.asdict(one) | {"temperature": 0.2, "hidden": 2048} == dataclasses.asdict(two)
    assert isinstance(build("moco-v1").network[1], nn.Linear)
    assert [type(part) for part in build("moco-v2").network[1]] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_configuration_knows_its_method() -> None:
    for name in METHODS:
        assert method_of(METHODS[name].Config()) is METHODS[name]


@given(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_queue_forgets_its_oldest_keys(room: int, batches: list[int]) -> None:
    queue, oldest, written = torch.full((room, 1), -1.0), torch.tensor(0), 0
    kept: list[float] = []
    for size in batches:
        keys = torch.arange(written, written + size).float()[:, None]
        written += size
        oldest = enqueue(queue, keys, oldest)
        kept = (kept + keys[:room, 0].tolist())[-room:]
        assert sorted(queue[queue >= 0].tolist()) == sorted(kept)
    assert int(oldest) < room


@pytest.mark.parametrize("name", ["moco-v1", "densecl"])
def test_a_queue_longer_than_the_data_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="negatives of themselves"):
        METHODS[name](METHODS[name].Config(queue=100), Setup(Toy(norm=True), 99))


# MoCo v3


def test_moco_v3_is_algorithm_1() -> None:
    """Chen et al., 2021: ctr(q1, k2) + ctr(q2, k1), where ctr = 2 * temperature * cross entropy
    over the batch.
    """
    method, data = double("moco-v3", temperature=0.3), data64(5)
    drifted(method.teacher)
    predictions, targets = answer(method, data)
    assert not any(t.requires_grad for t in targets)
    q1, q2 = (method.predictor[0](method.network(v)) for v in data.views)
    k1, k2 = (method.teacher.network[0](v) for v in data.views)

    def ctr(query: Tensor, key: Tensor) -> float:
        q, k = (F.normalize(x, dim=1).tolist() for x in (query, key))
        costs = [plain_info_nce(q[i], k[i], k[:i] + k[i + 1 :], 0.3) for i in range(5)]
        return 2 * 0.3 * sum(costs) / 5

    close(method.loss(predictions, targets), ctr(q1, k2) + ctr(q2, k1))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_a_vits_patch_projection_stays_as_it_began(freeze: bool, optimizer: str) -> None:
    """A stage lets all of a backbone learn after the method was made; decay must not move it
    either.
    """
    torch.manual_seed(0)
    backbone = backbone_module.create("test_vit", image_size=32)
    method = MoCoV3(MoCoV3.Config(hidden=16, dim=8, freeze_patches=freeze), Setup(backbone, IMAGES))
    backbone_module.set_trainable(backbone, "all")
    before = {k: p.clone() for k, p in backbone.named_parameters()}
    built = OPTIMIZERS[optimizer](lr=0.1, weight_decay=0.1).build(method.named_parameters())
    for group in built.param_groups:
        group["lr"] = 0.1
    for _ in range(2):
        built.zero_grad(set_to_none=True)
        loss_of(method, batch(4, size=32)).backward()
        method.after_backward()
        built.step()
    still = {k for k, p in backbone.named_parameters() if torch.equal(p, before[k])}
    projection = {f"network.patch_embed.proj.{part}" for part in ("weight", "bias")}
    assert still == (projection if freeze else set())


def test_other_networks_patches_learn() -> None:
    with torch.device("meta"):
        swin = backbone_module.create("swin_tiny_patch4_window7_224", image_size=224)
    assert not _patch_projection(swin)


# SimCLR v2


def test_simclr_v2_has_three_layers_with_batch_norm_between() -> None:
    layers = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(part) for part in build("simclr-v2").network[1]] == [*layers, *layers, nn.Linear]
    assert [type(part) for part in build("simclr").network[1]] == [*layers, nn.Linear]
    assert dataclasses.asdict(SimCLR.Config(layers=3)) == dataclasses.asdict(SimCLRV2.Config())


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_fine_tuning_goes_on_from_a_middle_layer(layers: int) -> None:
    method = build("simclr-v2")
    previous = nn.Sequential(method.backbone, method.head)
    setup = Setup(method.backbone, IMAGES, 5, previous)
    tuned = Supervised(Supervised.Config(head_layers=layers), setup).eval()
    pixels = batch().views[0]
    expected = method.backbone(pixels)
    for layer in method.head.eval()[: 3 * layers]:  # linear, batch norm, ReLU
        expected = layer(expected)
    close(tuned.predict(pixels), tuned.classifier[-1](expected))


# DenseCL


@few
@given(sizes, widths, sizes, sizes, seeds)
def test_places_match_the_most_similar_ones(b: int, c: int, s: int, t: int, seed: int) -> None:
    x, y = normal(b, c, s, seed=seed), normal(b, c, t, seed=seed + 1)
    for own, others, result in zip(x.mT.tolist(), y.mT.tolist(), most_similar(x, y), strict=True):
        for place, match in zip(own, result.tolist(), strict=True):
            alike = [cosine(place, other) for other in others]
            assert alike[match] >= max(alike) - 1e-12


def plain_densecl(query: tuple[Tensor, ...], key: tuple[Tensor, ...], method: DenseCL) -> float:
    """Wang et al., 2020, equations 1 to 3 and 5, a place at a time."""
    t, weight = method.config.temperature, method.config.dense
    negatives, dense_negatives = method.queue.tolist(), method.dense_queue.tolist()
    total = 0.0
    for q, places, own, k, key_places, others in zip(
        *(x.mT.tolist() if x.ndim == 3 else x.tolist() for x in (*query, *key)), strict=True
    ):
        costs = []
        for place, result in zip(places, own, strict=True):
            alike = [cosine(result, other) for other in others]
            match = key_places[alike.index(max(alike))]
            costs.append(plain_info_nce(place, match, dense_negatives, t))
        total += (1 - weight) * plain_info_nce(q, k, negatives, t)
        total += weight * sum(costs) / len(costs)
    return total / len(query[0])


@pytest.mark.parametrize("symmetric", [False, True])
def test_densecl_is_its_formula(symmetric: bool) -> None:
    method = double("densecl", symmetric=symmetric, dense=0.3)
    drifted(method.teacher)
    predictions, targets = answer(method, data64(3, size=8))
    assert len(predictions) == 1 + symmetric
    formula = [plain_densecl(q, k, method) for q, k in zip(predictions, targets, strict=True)]
    close(method.loss(predictions, targets), sum(formula) / len(formula))
    for q, places, result in predictions:
        assert q.requires_grad
        assert places.requires_grad
        assert not result.requires_grad  # the map is matched by, and not learnt through


def test_densecls_gradient_is_the_numerical_one() -> None:
    """It flows through whole views and places of the query, also where two places match one."""
    method = double("densecl", dense=0.3)
    key, key_places, result, key_found = (
        unit(2, *shape, seed=s) for s, shape in enumerate([(8,), (8, 4), (6, 4), (6, 4)])
    )
    key_found[:, :, 3] = -key_found[:, :, 1]  # far from most places: some match is chosen twice
    query, places = normal(2, 8, seed=5).requires_grad_(), normal(2, 8, 4, seed=6).requires_grad_()

    def loss(query: Tensor, places: Tensor) -> Tensor:
        return method.loss(((query, places, result),), ((key, key_places, key_found),))

    assert len(set(most_similar(result, key_found)[0].tolist())) < 4
    assert torch.autograd.gradcheck(loss, (query, places))
    slopes = torch.autograd.grad(loss(query, places), (query, places))
    assert all(slope.flatten(1).any(1).all() for slope in slopes)


def test_places_count_from_their_start_on() -> None:
    method, losses = double("densecl", dense_start=0.2), []
    predictions, targets = answer(method, data64())
    for method.progress in (0.1, 0.2):
        losses.append(method.loss(predictions, targets))
    close(losses[0], double("densecl", dense=0.0).loss(predictions, targets))
    assert losses[0] != losses[1]
    losses[0].backward()  # and every parameter still takes part, as many processes demand
    assert all(p.grad is not None for p in method.network.parameters())


def test_the_dense_queue_holds_the_mean_place_of_each_key() -> None:
    method, data = double("densecl"), data64(8)
    keys = method.teacher(data.views[1])
    method.after_step(data, *answer(method, data))
    close(method.queue[:8], keys[0])
    close(method.dense_queue[:8], F.normalize(keys[1].mean(2), dim=1))
    assert int(method.oldest) == 8


@pytest.mark.parametrize(
    ("size", "stem", "side"), [(64, "imagenet", 2), (32, "cifar", 4), (32, "imagenet", 1)]
)
def test_a_resnets_places(size: int, stem: str, side: int) -> None:
    network = backbone_module.create("test_resnet", stem=stem)
    method = DenseCL(config("densecl"), Setup(network, IMAGES))
    with pytest.raises(UserError, match="larger views") if side == 1 else nullcontext():
        assert method.network(batch(2, size=size).views[0])[1].shape == (2, 8, side * side)


def test_a_weight_above_one_is_refused() -> None:
    with pytest.raises(UserError, match="dense must be"):
        DenseCL.Config(dense=1.5)


# CPC


def turned(place: tuple[int, int], turns: int, side: int) -> tuple[int, int]:
    """Where a place of the grid, turned `turns` times by 90 degrees against the clock, was
    before.
    """
    for _ in range(turns):
        place = (place[1], side - 1 - place[0])
    return place


@pytest.mark.parametrize(("nearest", "farthest"), [(1, 5), (2, 3), (2, 2)])
@pytest.mark.parametrize("directions", [1, 4])
def test_cpc_is_its_formula(nearest: int, farthest: int, directions: int) -> None:
    """Hénaff et al., 2019, equation 1: each prediction must pick its patch among all patches of the
    batch.
    """
    method = double("cpc", directions=directions, nearest=nearest, farthest=farthest, side=4)
    (text, patches), targets = predictions, _ = answer(method, data64(2))
    side = patches.shape[1]
    assert side == 7
    candidates, terms = patches.flatten(0, 2).tolist(), []
    for image, turns, below in product(range(2), range(directions), range(nearest, farthest + 1)):
        for i, j in product(range(side - below), range(side)):
            row, column = turned((i + below, j), turns, side)
            own = (image * side + row) * side + column
            guess = text[image, turns, below - nearest, i, j].tolist()
            others = candidates[:own] + candidates[own + 1 :]
            terms.append(plain_info_nce(guess, candidates[own], others, 0.1))
    close(method.loss(predictions, targets), sum(terms) / len(terms))
    assert targets.requires_grad


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("blocks", [1, 5])
def test_what_is_said_of_patches_was_not_seen(turns: int, blocks: int) -> None:
    """A change of one patch reaches what its own row and those after it say, and no row before."""
    method, side = double("cpc", directions=4, blocks=blocks, side=4, colour_drop=0.0), 7
    patches = method.inputs(data64(1))
    text = method.predict(patches)[0]
    for i in range(side):
        row, column = turned((i, 3), turns, side)
        changed = patches.clone()
        changed[0, row, column] = 1 - changed[0, row, column]
        moved = (method.predict(changed)[0] != text)[0, turns].any(-1).any(0)
        assert not moved[:i].any()
        assert moved[i : i + 2].any(1).all()


def test_a_layer_norm_looks_at_one_place_and_a_batch_norm_at_all() -> None:
    grid = normal(2, 6, 5, 5, seed=0).float()
    other = grid.clone()
    other[:, :, 4] += 1
    for norm, alone in (("layer", True), ("batch", False)):
        torch.manual_seed(0)
        context = Context(6, 8, 2, norm, 2, 4)
        assert torch.equal(context(grid)[:, :, :4], context(other)[:, :, :4]) == alone


@pytest.mark.parametrize(
    ("size", "side", "rows"), [(32, 16, 3), (64, 32, 3), (96, 32, 5), (128, 32, 7), (224, 56, 7)]
)
def test_patches_suit_the_view(size: int, side: int, rows: int) -> None:
    assert automatic_side(size) == side
    patches = cut(torch.zeros(1, 3, size, size), side, side // 2)
    assert patches.shape == (1, rows, rows, 3, side, side)


def test_patches_of_any_view_leave_something_to_predict() -> None:
    for size in range(8, 260, 7):
        side = automatic_side(size)
        stride = max(side // 2, 1)
        assert cut(torch.zeros(1, 3, size, size), side, stride).shape[1] >= 3
        # what is predicted shares no pixel with what it is predicted from
        assert side % 2 or CPC.Config().nearest * stride >= side


def test_patches_lie_where_they_were() -> None:
    view = batch(2).views[0]
    patches = cut(view, 8, 4)
    assert patches.shape[1:3] == (3, 3)
    for row, column in product(range(3), range(3)):
        expected = view[:, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8]
        assert torch.equal(patches[:, row, column], expected)


@given(st.floats(0, 1), seeds)
@few
def test_a_share_of_patches_loses_its_colours(share: float, seed: int) -> None:
    generator = rng(seed)
    patches = torch.rand(64, 7, 7, 3, 2, 2, generator=generator)
    dropped = drop_colours(patches, torch.rand(64, 7, 7, generator=generator), share)
    grey = (dropped == dropped[:, :, :, :1]).flatten(3).all(3)
    assert abs(grey.float().mean().item() - share) < 0.08
    assert torch.equal(dropped[~grey], patches[~grey])
    kept = (dropped[grey] == patches[grey]).flatten(2).all(2)  # of each patch, which channel
    assert kept.any(1).all()
    # each channel is kept about as often
    assert share <= 0.2 or kept.float().mean(0).min() > 0.2


def test_views_that_make_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="take smaller patches"):
        loss_of(double("cpc", side=8, stride=8), data64())
    with pytest.raises(UserError, match="do not fit"):
        double("cpc", side=17).inputs(data64())
    with pytest.raises(UserError, match="farthest"):
        CPC.Config(nearest=4)


def test_rows_that_a_view_lacks_leave_no_parameter_out() -> None:
    """Three rows, but predictors for up to five rows below: many processes demand a gradient of
    each parameter.
    """
    method = double("cpc", farthest=5)
    predictions, targets = answer(method, data64())
    assert predictions[1].shape[1] == 3
    method.loss(predictions, targets).backward()
    assert all(p.grad is not None for p in method.parameters())


# Defaults


@pytest.mark.parametrize(
    ("kind", "pretrained", "fields"),
    [
        (MoCoV1, False, {"queue": 1024, "momentum": 0.99}),
        (DenseCL, False, {"queue": 1024, "momentum": 0.99, "hidden": 512}),
        (MoCoV3, False, {"hidden": 1024, "momentum": 0.98}),
        (SimCLRV2, False, {"hidden": 512, "stop_gradient": True}),
        (SimCLRV2, True, {"hidden": 512}),
        (CPC, False, {}),
    ],
)
def test_defaults_follow_small_data(kind: Any, pretrained: bool, fields: Any) -> None:
    setting = dataclasses.replace(SETTING, pretrained=pretrained)
    assert kind.Config().defaults(setting).config == kind.Config(**fields)


@pytest.mark.parametrize(
    ("changes", "queue"),
    [
        ({}, 1024),  # 128 * 100 / 10 keys: a tenth of the steps that a momentum of .99 remembers
        ({"images": 10**6, "batch": 256, "steps": 10**6}, 16384),  # 256 * 1000 / 10
        ({"images": 1000}, 256),  # half an epoch, as a power of two
        ({"batch": 4096}, 4096),  # a batch of keys comes in whole
        ({"pretrained": True}, 2048),
        ({"images": 10**6, "pretrained": True}, MoCoV2.Config.queue),
    ],
)
def test_queues_hold_keys_that_are_young_or_whose_encoder_moves_little(
    changes: dict[str, Any], queue: int
) -> None:
    setting = dataclasses.replace(SETTING, **changes)
    assert MoCoV2.Config().defaults(setting).config.queue == queue
