"""Tensors as they are wanted: small ones on a device without a wait, half ones in full
precision.
"""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. From plain memory, a copy to a GPU first waits for all that
    this was asked to do.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def upcast(x: Tensor) -> Tensor:
    """What autocast left in 16 bits, in float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
