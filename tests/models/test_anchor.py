"""The distance of a backbone from its start, as a part of the loss."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import record_calls
from selftaught.methods import METHODS
from selftaught.models.anchor import Anchor, AnchorLoss
from selftaught.models.backbone import create
from selftaught.training.compile import compile_backbones
from selftaught.training.step import Step
from tests.laws.toys import Toy, batch, build, hards, hards_of, rng


def moved(seed: int = 7, like: type[Toy] = Toy) -> Toy:
    """A start that differs from the toy methods' backbone."""
    torch.manual_seed(seed)
    return like(norm=True)


def cosine(a: Tensor, b: Tensor) -> float:
    one, other = a.tolist(), b.tolist()
    dot, left, right = (
        sum(x * y for x, y in zip(p, q, strict=True))
        for p, q in ((one, other), (one, one), (other, other))
    )
    return dot / math.sqrt(left * right)


def test_pooled_is_the_mean_cosine_distance_of_every_view() -> None:
    method, start = build("simclr"), moved()
    step = Step(copy.deepcopy(method), anchor=AnchorLoss(Anchor(weight=3.0), start))
    outcome = step(batch(), rng())
    views = [*batch().views[0], *batch().views[1]]
    # one call on both views, in training mode
    features = method.backbone(torch.cat(batch().views))
    start.eval()
    distances = [
        1 - cosine(f, start(view[None])[0]) for f, view in zip(features, views, strict=True)
    ]
    expected = sum(distances) / len(distances)
    assert outcome.parts["anchor"].item() == pytest.approx(expected, rel=1e-5)
    assert outcome.loss.item() == pytest.approx(
        outcome.parts["clean"].item() + 3 * expected, rel=1e-5
    )


def test_gram_is_the_mean_squared_difference_of_the_cosines_between_places() -> None:
    method, start = build("simclr"), moved()
    small = batch(n=2, size=9)
    step = Step(copy.deepcopy(method), anchor=AnchorLoss(Anchor(kind="gram"), start))
    outcome = step(small, rng())
    _, own = method.backbone.with_map(torch.cat(small.views))
    _, old = start.eval().with_map(torch.cat(small.views))
    differences = [
        (cosine(mine[:, i], mine[:, j]) - cosine(theirs[:, i], theirs[:, j])) ** 2
        for mine, theirs in zip(own.flatten(2), old.flatten(2), strict=True)
        for i in range(mine.shape[1])
        for j in range(mine.shape[1])
    ]
    expected = sum(differences) / len(differences)
    assert outcome.parts["anchor"].item() == pytest.approx(expected, rel=1e-4)


def test_l2_sp_is_half_the_squared_distance_of_the_trained_weights() -> None:
    method, start = build("simclr"), moved()
    method.backbone.get_parameter("norm.bias").requires_grad_(False)
    outcome = Step(method, anchor=AnchorLoss(Anchor(kind="l2-sp"), start))(batch(), rng())
    expected = 0.0
    for name, own in method.backbone.named_parameters():
        if name != "norm.bias":
            old = start.get_parameter(name)
            for mine, theirs in zip(own.flatten().tolist(), old.flatten().tolist(), strict=True):
                expected += (mine - theirs) ** 2 / 2
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
    for part, loss in parts[0].items():
        assert torch.equal(loss, parts[1][part]), part
    assert not torch.allclose(*gradients)


def test_its_weight_does_not_depend_on_the_hard_examples() -> None:
    """The loss is the mean of clean and hard parts, and the anchor comes on top."""
    outcomes = [
        Step(build("simclr"), hards("cutmix"), "mean", anchor)(batch(), rng())
        for anchor in (None, AnchorLoss(Anchor(weight=4.0), moved()))
    ]
    assert (outcomes[1].loss - outcomes[0].loss).item() == pytest.approx(
        4 * outcomes[1].parts["anchor"].item(), rel=1e-4
    )


def test_the_start_is_no_part_of_the_state_and_stays_as_it_is() -> None:
    method = build("simclr")
    before = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    anchor = AnchorLoss(Anchor(), method.backbone)
    step = Step(method, anchor=anchor)
    assert step.state_dict().keys() == Step(build("simclr")).state_dict().keys()
    step.train()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    for _ in range(3):
        step(batch(), rng()).loss.backward()
        optimizer.step()
    for name, value in anchor.start.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(method.backbone.get_parameter("conv.weight"), before["conv.weight"])


def test_without_gradients_nothing_is_compared() -> None:
    step = Step(build("simclr"), anchor=AnchorLoss(Anchor(), moved()))
    with torch.no_grad():
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


def test_a_method_without_a_call_is_refused() -> None:
    with pytest.raises(UserError, match="--anchor"):
        AnchorLoss(Anchor(), moved()).distance(moved(), [])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"--anchor\.weight"):
        Anchor(weight=weight)
