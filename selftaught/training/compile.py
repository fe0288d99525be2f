"""The networks of a step made faster by torch.compile, in place: names, copies and saved weights
stay as they are.
"""

import torch
from torch import nn

from selftaught.errors import UserError
from selftaught.models.backbone import Backbone

# There is one for each way that backbones are used: with and without gradients, sizes of views,
# norms that look away. At the ninth torch would go on uncompiled.
GRAPHS = 64


def compile_backbones(step: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compile every backbone within, teachers' copies too (copying leaves a module's compilation
    behind).

    What a backbone's layers do now is checked at each call, so norms may look away or be exchanged
    at any time. A view's size is one of few, and the batch is always whole: nothing is left open,
    which would cost speed.
    """
    check(device, backend)
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    for part in step.modules():
        if isinstance(part, Backbone):
            part.compile(dynamic=False, backend=backend)


def check(device: torch.device, backend: str) -> None:
    """Compile one addition: what lacks (a C++ compiler, Triton) is told before training and in one
    line.
    """
    try:
        torch.compile(_addition, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # torch's own, or whatever a compiler's absence leads to
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"torch.compile does not work here ({reason}): mend that, or leave out --compile"
        ) from error


def _addition(x: torch.Tensor) -> torch.Tensor:
    return x + 1
