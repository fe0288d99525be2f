"""The distance of a backbone from its start, as a part of the loss."""

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from selftaught.errors import UserError
from selftaught.method import record_calls
from selftaught.methods import METHODS
from selftaught.models.anchor import Anchor, AnchorLoss
from selftaught.models.backbone import create
from selftaught.training.compile import compile_backbones
from selftaught.training.step import Step
from tests.formulas import cosine
from tests.laws.toys import Toy, batch, build, hards, hards_of, rng


def moved(seed: int = 7, like: type[Toy] = Toy) -> Toy:
    """A start that differs from the toy methods' backbone."""
    torch.manual_seed(seed)
    return like(norm=True)


def test_pooled_is_the_mean_cosine_distance_of_every_view() -> None:
    method, start = build("simclr"), moved()
    step = Step(copy.deepcopy(method), anchor=AnchorLoss(Anchor(weight=3.0), start))
    outcome = step(batch(), rng())
    views = torch.cat(batch().views)
    # one call on both views, in training mode
    features = method.backbone(views).tolist()
    start.eval()
    theirs = [start(view[None])[0].tolist() for view in views]
    distances = [1 - cosine(x, y) for x, y in zip(features, theirs, strict=True)]
    expected = sum(distances) / len(distances)
    clean, anchor = (outcome.parts[part].item() for part in ("clean", "anchor"))
    assert anchor == pytest.approx(expected, rel=1e-5)
    assert outcome.loss.item() == pytest.approx(clean + 3 * expected, rel=1e-5)


def test_gram_is_the_mean_squared_difference_of_the_cosines_between_places() -> None:
    method, start = build("simclr"), moved()
    small = batch(n=2, size=9)
    step = Step(copy.deepcopy(method), anchor=AnchorLoss(Anchor(kind="gram"), start))
    outcome = step(small, rng())
    maps = [
        network.with_map(torch.cat(small.views))[1].flatten(2).mT.tolist()
        for network in (method.backbone, start.eval())
    ]
    differences = [
        (cosine(mine[i], mine[j]) - cosine(theirs[i], theirs[j])) ** 2
        for mine, theirs in zip(*maps, strict=True)
        for i, j in product(range(len(mine)), repeat=2)
    ]
    expected = sum(differences) / len(differences)
    assert outcome.parts["anchor"].item() == pytest.approx(expected, rel=1e-4)


def test_l2_sp_is_half_the_squared_distance_of_the_trained_weights() -> None:
    method, start = build("simclr"), moved()
    method.backbone.get_parameter("norm.bias").requires_grad_(False)
    outcome = Step(method, anchor=AnchorLoss(Anchor(kind="l2-sp"), start))(batch(), rng())
    pairs = [
        pair
        for name, own in method.backbone.named_parameters()
        if name != "norm.bias"
        for pair in zip(own.flatten(), start.get_parameter(name).flatten(), strict=True)
    ]
    expected = sum((mine.item() - theirs.item()) ** 2 / 2 for mine, theirs in pairs)
    assert outcome.parts["anchor"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "pooled") for name in METHODS),
        ("densecl", "gram"),
        ("ibot", "gram"),
        ("byol", "l2-sp"),
    ],
)
def test_every_method_can_be_held(name: str, kind: Any) -> None:
    """Its gradient moves the backbone, also with hard examples, which see no anchor."""
    gradients, parts = [], []
    start = moved(like=type(build(name).backbone))
    for anchor in (None, AnchorLoss(Anchor(kind=kind, weight=5.0), start)):
        step = Step(build(name), hards_of(name, "adversarial", "cutmix"), anchor=anchor)
        outcome = step(batch(), rng())
        outcome.loss.backward()
        parts.append(outcome.parts)
        gradients.append(step.method.backbone.get_parameter("conv.weight").grad)
        assert step.method.backbone.recorder is None
    assert parts[1].pop("anchor") > 0
    assert parts[0] == parts[1]
    assert not torch.allclose(*gradients)


def test_its_weight_does_not_depend_on_the_hard_examples() -> None:
    """The loss is the mean of clean and hard parts, and the anchor comes on top."""
    plain, held = (
        Step(build("simclr"), hards("cutmix"), "mean", anchor)(batch(), rng())
        for anchor in (None, AnchorLoss(Anchor(weight=4.0), moved()))
    )
    expected = 4 * held.parts["anchor"].item()
    assert (held.loss - plain.loss).item() == pytest.approx(expected, rel=1e-4)


def test_the_start_is_no_part_of_the_state_and_stays_as_it_is() -> None:
    method = build("simclr")
    before = copy.deepcopy(method.backbone.state_dict())
    anchor = AnchorLoss(Anchor(), method.backbone)
    step = Step(method, anchor=anchor).train()
    assert step.state_dict().keys() == Step(build("simclr")).state_dict().keys()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    for _ in range(3):
        step(batch(), rng()).loss.backward()
        optimizer.step()
    for name, value in anchor.start.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(method.backbone.get_parameter("conv.weight"), before["conv.weight"])
    with torch.no_grad():  # without gradients nothing is compared
        assert "anchor" not in step(batch(), rng()).parts


def test_a_compiled_backbone_is_recorded_only_inside() -> None:
    """A hook of torch would be compiled, and stay when it is removed."""
    backbone = create("test_resnet")
    compile_backbones(nn.Sequential(backbone), torch.device("cpu"), backend="eager")
    pixels = torch.rand(2, 3, 32, 32)
    backbone(pixels)
    with record_calls(backbone, maps=True) as calls:
        features = backbone(pixels)
    backbone(pixels)
    (call,) = calls
    assert call.features is features
    assert call.places is not None
    assert call.places.mean(dim=2).shape == features.shape


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="--anchor"):  # a method without a call
        AnchorLoss(Anchor(), moved()).distance(moved(), [])
    for weight in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match=r"--anchor\.weight"):
            Anchor(weight=weight)
