"""Steps with hard examples."""

import pytest
import torch

from selftaught.errors import UserError
from selftaught.hard import Adversarial, CutMix
from selftaught.method import Setup
from selftaught.methods.contrastive.simclr import SimCLR
from selftaught.optim import SGD
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.laws.toys import batch, build


def test_norms_of_their_own_may_come_in_later() -> None:
    """torch's fused SGD wants a momentum of all parameters of a group or of none."""
    step = Step(build("moco-v2"), (CutMix(norm="auxiliary", start=0.5),))
    optimizer = SGD(lr=0.01).build(step.named_parameters())
    stream = [batch(8, seed=i) for i in range(6)]
    loop = Loop(steps=6, steps_per_epoch=6, schedule=lambda progress: 1)
    reports = list(fit(step, step.method, lambda *_: stream, optimizer, loop))
    assert ["cutmix" in report.losses for report in reports] == [False] * 3 + [True] * 3


def test_an_attack_passes_over_inputs_that_nothing_is_predicted_from() -> None:
    """`inputs` gives all views unless a method says otherwise."""

    class First(SimCLR):
        def predict(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return super().predict((inputs[0], inputs[0]))

    method = First(SimCLR.Config(hidden=16, dim=8), Setup(build("simclr").backbone, 64))
    losses = Step(method, (Adversarial(steps=3, stride=1),))(
        batch(), torch.Generator().manual_seed(0)
    ).parts
    assert set(losses) == {"clean", "adversarial"}


def test_a_kind_of_hard_example_is_given_once() -> None:
    with pytest.raises(UserError, match="cutmix"):
        Step(build("simclr"), (CutMix(), CutMix(weight=2)))
