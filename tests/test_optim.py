"""Groups of parameters with options of their own."""

import pytest
import torch
from torch import nn

from selftaught.optim import SGD, AdamW, Optimizer, groups


def network() -> nn.Module:
    module = nn.Module()
    module.head, module.head2 = nn.Linear(3, 2), nn.Linear(2, 2)
    return module


def test_a_part_has_its_own_rate_decay_and_betas() -> None:
    parts = {"head": {"lr_factor": 0.1, "weight_decay": 0.5, "betas": (0.5, 0.9)}}
    module = network()
    optimizer = AdamW(lr=1e-2, weight_decay=0.1).build(module.named_parameters(), parts)
    result = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    weight, bias = result[id(module.head.weight)], result[id(module.head.bias)]
    assert (weight["peak"], weight["weight_decay"], weight["betas"]) == (1e-3, 0.5, (0.5, 0.9))
    assert (bias["peak"], bias["weight_decay"]) == (1e-3, 0.0)
    other = result[id(module.head2.weight)]  # a name that begins alike is another part
    assert (other["peak"], other["weight_decay"], other["betas"]) == (1e-2, 0.1, (0.9, 0.999))
    assert not other["steady"]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_every_parameter_has_its_moments_from_the_start(kind: type[Optimizer]) -> None:
    """A part without gradients has none otherwise, and sharded checkpoints need them all."""
    module = network()
    optimizer = kind(lr=0.1).build(module.named_parameters())
    assert len(optimizer.state) == 4
    before = module.head2.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    module.head(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(module.head2.weight, before)  # no decay either


def test_a_part_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="neck"):
        groups(network().named_parameters(), SGD(), {"neck": {"constant_lr": True}})


def test_groups_without_parts_are_weights_and_the_rest() -> None:
    result = groups(network().named_parameters(), SGD(weight_decay=0.1))
    assert [g["weight_decay"] for g in result] == [0.1, 0.0]
    assert [len(g["params"]) for g in result] == [2, 2]
    assert torch.optim.SGD(result, lr=0.1)
