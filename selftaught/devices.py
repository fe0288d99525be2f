"""Small tensors reach a device without a wait."""

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`. From plain memory, a copy to a GPU first waits for all that this was asked to do."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
