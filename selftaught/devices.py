"""Conversions of tensors: to a device without synchronisation, and to full precision."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device`; from the CPU to a GPU the copy is asynchronous.

    Memory is pinned first, because a copy from pageable memory waits for all work of the GPU.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def upcast(x: Tensor) -> Tensor:
    """Convert bfloat16 and float16, the results of autocast, to float32; others are unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
