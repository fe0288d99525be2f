"""Groups of parameters with options of their own."""

import pytest
import torch
from torch import nn

from selftaught.optim import SGD, AdamW, Optimizer, groups


def network() -> nn.Module:
    made = nn.Module()
    made.head, made.head2 = nn.Linear(3, 2), nn.Linear(2, 2)
    return made


def test_a_part_has_its_own_rate_decay_and_betas() -> None:
    parts = {"head": {"lr_factor": 0.1, "weight_decay": 0.5, "betas": (0.5, 0.9)}}
    made = network()
    optimizer = AdamW(lr=1e-2, weight_decay=0.1).build(made.named_parameters(), parts)
    found = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    weight, bias = found[id(made.head.weight)], found[id(made.head.bias)]
    assert (weight["peak"], weight["weight_decay"], weight["betas"]) == (1e-3, 0.5, (0.5, 0.9))
    assert (bias["peak"], bias["weight_decay"]) == (1e-3, 0.0)
    other = found[id(made.head2.weight)]  # a name that begins alike is another part
    assert (other["peak"], other["weight_decay"], other["betas"]) == (1e-2, 0.1, (0.9, 0.999))
    assert not other["steady"]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_every_parameter_has_its_moments_from_the_start(kind: type[Optimizer]) -> None:
    """A part without gradients has none otherwise, and sharded checkpoints need them all."""
    made = network()
    optimizer = kind(lr=0.1).build(made.named_parameters())
    assert len(optimizer.state) == 4
    before = made.head2.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    made.head(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(made.head2.weight, before)  # no decay either


def test_a_part_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="neck"):
        groups(network().named_parameters(), SGD(), {"neck": {"constant_lr": True}})


def test_groups_without_parts_are_weights_and_the_rest() -> None:
    found = groups(network().named_parameters(), SGD(weight_decay=0.1))
    assert [g["weight_decay"] for g in found] == [0.1, 0.0]
    assert [len(g["params"]) for g in found] == [2, 2]
    assert torch.optim.SGD(found, lr=0.1)
