"""How often a training step reads a value back: on a GPU each time waits for all that was asked of
it.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.methods import METHODS
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.laws.toys import batch, build

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
STEPS = 3
# Their memory picks rows by a mask, whose number must be known.
MASKED = {"cmc", "instance-discrimination", "pirl"}


class Reads(TorchDispatchMode):
    """Counts operations whose result, or its shape, the program has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        name = str(function)
        masked = name == "aten.index.Tensor" and any(
            i is not None and i.dtype == torch.bool for i in arguments[1]
        )
        self.found[name] += masked or any(read in name for read in READS)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_nothing_but_whether_its_gradients_are_finite(name: str) -> None:
    step = Step(build(name))
    optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 0.01}], lr=0)
    same = batch(16)
    loop = Loop(steps=STEPS + 1, steps_per_epoch=STEPS + 1, schedule=lambda progress: 1)
    reports = fit(step, step.method, lambda *_: iter([same] * (STEPS + 1)), optimizer, loop)
    next(reports)
    with Reads() as reads:
        for _ in range(STEPS):
            next(reports)
    result = {name: count for name, count in reads.found.items() if count}
    if name in MASKED:
        assert sum(result.values()) > STEPS, f"{name} does not read any more: take it from the list"
    else:
        assert result == {"aten._local_scalar_dense.default": STEPS}
