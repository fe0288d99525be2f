"""k processes give the gradient of one, take its step and leave its memories, for every method and
every hard example; whether each holds all weights or its share of them.
"""

import os
from functools import cache
from typing import Any

import pytest
import torch

from selftaught import files
from selftaught.distributed import full_tensor, shuffle_batch, unshuffle_batch, wrap
from selftaught.methods import METHODS
from selftaught.models.anchor import Anchor, AnchorLoss
from selftaught.optim import SGD
from selftaught.training.fsdp import shard
from selftaught.training.loop import clip_gradients
from selftaught.training.step import Step
from tests.laws.toys import HARD, PAIRS, TWO_PLAYER, Deep, batch, build, mine, rng
from tests.several import WORLD, load_results, spawned

CASES = [(name, ()) for name in METHODS] + [
    (name, (hard,))
    for name, hard in PAIRS
    if hard != "adversarial-random"  # its noise is each batch's own
]
# An anchor adds a mean over images to any loss, so few methods are enough.
CASES += [
    ("simclr", ("pooled", "adversarial", "cutmix")),
    ("simclr", ("gram",)),
    ("cmc", ("pooled",)),
    ("ibot", ("pooled",)),
]
ANCHORS = ("pooled", "gram")
# Weights that are sharded are gathered in the same way for all hard examples of one kind.
UNSHARDED = {("adversarial-3",), ("mixup",), ("cutmix-all-auxiliary",)}
RUNS = [(case, sharded) for case in CASES for sharded in (False, True)]
RUNS = [
    ((name, hard), sharded)
    for (name, hard), sharded in RUNS
    if not (sharded and (hard in UNSHARDED or name in TWO_PLAYER))
]


def outcome(name: str, hard: tuple[str, ...], sharded: bool = False) -> dict[str, Any]:
    """Gradients of one global batch, and the weights and memories after the step."""
    anchors = [
        AnchorLoss(
            Anchor(kind=kind),
            build(name, seed=9, norm=False, dtype=torch.float64, toy=Deep).backbone,
        )
        for kind in ANCHORS
        if kind in hard
    ]
    step = Step(
        build(name, norm=False, dtype=torch.float64, toy=Deep),
        tuple(HARD[h] for h in hard if h in HARD),
        anchor=anchors[0] if anchors else None,
    )
    if sharded:
        shard(step, torch.device("cpu"))
    optimizer = SGD(lr=0.1).build(step.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    wrapped = wrap(step, torch.device("cpu"))
    data = mine(batch(8, dtype=torch.float64))
    result = wrapped(data, rng())
    result.loss.backward()
    step.method.after_backward()
    gradients = {
        k: full_tensor(p.grad).clone() for k, p in step.named_parameters() if p.grad is not None
    }
    norm = clip_gradients(list(step.parameters()), clip=0.1)
    optimizer.step()
    step.method.after_step(data, result.predictions, result.targets)
    weights = {k: full_tensor(p.detach()) for k, p in step.named_parameters()}
    return {
        "gradients": gradients,
        "norm": {"": norm},
        "weights": weights,
        "buffers": dict(step.method.named_buffers()),
    }


def all_outcomes() -> dict[str, Any]:
    cards = mine(batch(8)).views[0]
    assert torch.equal(unshuffle_batch(shuffle_batch(cards)), cards)
    assert not torch.equal(shuffle_batch(cards), cards)
    return {f"{case} {sharded}": outcome(*case, sharded) for case, sharded in RUNS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The outcomes of each rank, computed once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes"
    folder.mkdir(exist_ok=True)
    with files.locked(folder / "lock"):
        if not (folder / "done").exists():
            results = spawned(all_outcomes, folder)
            (folder / "done").touch()
            return results
    return load_results(folder)


@cache
def outcome_alone(case: tuple[str, tuple[str, ...]]) -> dict[str, Any]:
    """The outcome of one process, which whole and sharded weights are compared with."""
    return outcome(*case)


@pytest.mark.parametrize(
    ("case", "sharded"),
    RUNS,
    ids=["-".join([c[0], *c[1], "sharded" if sharded else "whole"]) for c, sharded in RUNS],
)
def test_many_processes_are_one(
    case: tuple[str, tuple[str, ...]], sharded: bool, results: list[dict[str, Any]]
) -> None:
    alone = outcome_alone(case)
    for rank in range(WORLD):
        for what in alone:
            together = results[rank][f"{case} {sharded}"][what]
            assert together.keys() == alone[what].keys()
            for key, value in alone[what].items():
                torch.testing.assert_close(
                    together[key],
                    value,
                    rtol=1e-7,
                    atol=1e-10,
                    msg=lambda m, key=key: f"{key}: {m}",
                )
