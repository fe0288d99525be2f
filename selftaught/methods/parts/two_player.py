"""Calls for a game of two networks in one step: each learns from its own loss alone.

A generator makes pictures, and a discriminator tells them from real ones (Goodfellow et al., 2014,
https://arxiv.org/abs/1406.2661). One backward pass serves both losses:

    d = call_pure(discriminator, real, fake.detach())  # for the discriminator's loss
    g = call_detached(discriminator, fake)  # for the generator's loss
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from selftaught.method import GroupOptions, pause_recording

# Of AdamW, for networks that play: with the usual momentum they circle around each other (Radford
# et al., 2015, section 3). BETAS is for an encoder, which keeps its weight decay.
BETAS: GroupOptions = {"betas": (0.5, 0.999)}
ADAM: GroupOptions = {**BETAS, "weight_decay": 0.0}


def call_pure(network: nn.Module, *inputs: Any) -> Any:
    """Call a network whose buffers then stay as they are.

    Spectral norms are thus the same in every call of a step, and in every part of a batch. The
    network learns; `update_spectral_norms` changes its buffers once a step.
    """
    return torch.func.functional_call(network, _copy_buffers(network), inputs)


def call_detached(network: nn.Module, *inputs: Any) -> Any:
    """Call a network that does not learn: gradients reach its inputs alone.

    Its buffers stay as they are, so a batch norm in it counts no picture twice. An anchor takes no
    notice of the call: it holds weights, and not pictures.
    """
    weights = {name: p.detach() for name, p in network.named_parameters()}
    with pause_recording(network):
        return torch.func.functional_call(network, {**weights, **_copy_buffers(network)}, inputs)


@torch.no_grad()
def update_spectral_norms(network: nn.Module) -> None:
    """Take one power iteration in each spectral norm of a network in training mode.

    `after_step` calls it.
    """
    for module in network.modules():
        if is_parametrized(module, "weight"):
            _ = module.weight  # torch takes the iteration whenever the weight is read


def _copy_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}
