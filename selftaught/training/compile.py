"""Compilation of backbones by torch.compile, in place; names and weights stay the same."""

import torch
from torch import nn

from selftaught.errors import UserError
from selftaught.models.backbone import Backbone

# torch's limit is eight compiled graphs; above it, torch runs uncompiled. Each combination of
# gradient mode, view size and frozen statistics needs one.
GRAPHS = 64


def compile_backbones(step: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compile every backbone of `step` in place, including teachers.

    torch guards the state of layers at each call, so batch norms can be frozen or swapped later.
    Shapes are static, because views have few sizes and batches are always full; dynamic shapes
    would be slower. Raises UserError where torch.compile does not work.
    """
    check(device, backend)
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    for part in step.modules():
        if isinstance(part, Backbone):
            part.compile(dynamic=False, backend=backend)


def check(device: torch.device, backend: str) -> None:
    """Compile one addition; raise UserError where a C++ compiler or Triton is missing."""
    try:
        torch.compile(_addition, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # torch raises many types when a compiler is missing
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"torch.compile does not work here ({reason}): correct that, or omit --compile"
        ) from error


def _addition(x: torch.Tensor) -> torch.Tensor:
    return x + 1
