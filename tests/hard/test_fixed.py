"""What hard examples leave as it is: a leaf of the inputs that is `Fixed`."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.hard.base import HardExample
from selftaught.method import Batch, Fixed, Method, Setup, detach, leaves, map_tensors, zip_tensors
from selftaught.training.step import Step
from tests.laws.toys import HARD, Toy, batch, rng


class Channels(Method):
    """Say by which of three orders the channels of an image were shuffled, which it is told, too:
    `predict` must get the orders as they were drawn.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        pass

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.classifier = nn.Linear(setup.backbone.features, 3)
        self.told: list[Tensor] = []

    def inputs(self, batch: Batch) -> tuple[Tensor, Fixed]:
        order = (batch.random((), "order") * 3).long()
        view = torch.stack([v.roll(int(o), 0) for v, o in zip(batch.views[0], order, strict=True)])
        return view, Fixed(order)

    def predict(self, inputs: tuple[Tensor, Fixed]) -> Tensor:
        view, order = inputs
        self.told.append(order.value)
        return self.classifier(self.backbone(view)) + F.one_hot(order.value, 3)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return (batch.random((), "order") * 3).long()

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(predictions, targets)


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_a_hard_example_leaves_it_as_it_is(hard: HardExample) -> None:
    torch.manual_seed(0)
    method = Channels(Channels.Config(), Setup(Toy(norm=True), 64))
    step, data = Step(method, (hard,)), batch(8)
    outcome = step(data, rng())
    outcome.loss.backward()
    assert len(outcome.parts) == 2
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    order = method.targets(data, Tensor())
    assert len(method.told) >= 2
    assert all(torch.equal(seen, order) for seen in method.told)


def test_the_functions_on_trees_pass_it_on() -> None:
    fixed, x = Fixed(torch.arange(3)), torch.ones(3, requires_grad=True)
    tree = (x, (fixed, 2 * x))
    doubled = map_tensors(lambda t: 2 * t, tree)
    assert doubled[1][0] is fixed
    assert torch.equal(doubled[0], 2 * x)
    summed = zip_tensors(torch.add, tree, doubled)
    assert summed[1][0] is fixed
    assert torch.equal(summed[1][1], 6 * x)
    assert len(leaves(tree)) == 2
    assert detach(tree)[1][0] is fixed
    assert not detach(tree)[0].requires_grad
