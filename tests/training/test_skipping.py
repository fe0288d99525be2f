"""A step that is not finite leaves no trace, in batch norm's memory either."""

import copy

import pytest
import torch

from selftaught.errors import UserError
from selftaught.hard import Adversarial, CutMix
from selftaught.method import Batch
from selftaught.methods import METHODS
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.laws.toys import WITH_HARD, batch, build


@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_is_not_finite_leaves_no_trace(name: str) -> None:
    step = Step(build(name), (Adversarial(), CutMix()) if name in WITH_HARD else ())
    good, bad = batch(16), batch(16)
    bad = Batch(
        (bad.views[0].clone().fill_(torch.nan), *bad.views[1:]), bad.index, bad.label, bad.seed
    )
    optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 0.01}], lr=0)
    loop = Loop(steps=3, steps_per_epoch=3, schedule=lambda p: 1)
    reports = fit(step, step.method, lambda *_: iter([good, bad, good]), optimizer, loop)
    next(reports)
    before = copy.deepcopy(step.state_dict())
    assert next(reports).skipped
    assert all(torch.equal(value, before[key]) for key, value in step.state_dict().items())
    assert not next(reports).skipped


def test_a_kind_of_hard_example_is_given_once() -> None:
    with pytest.raises(UserError, match="cutmix"):
        Step(build("simclr"), (CutMix(), CutMix(weight=2)))
