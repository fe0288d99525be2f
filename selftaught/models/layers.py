"""Layers that methods share: heads of fully connected layers, normalisation, counters."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.devices import upcast


def mlp(*widths: int, batch_norm: bool = True, last_bias: bool = True) -> nn.Sequential:
    """Linear -> BN -> ReLU between widths, ending in a plain linear layer (whose bias a loss may
    not see).
    """
    layers: list[nn.Module] = []
    for i, o in pairwise(widths[:-1]):
        norm = [nn.BatchNorm1d(o)] if batch_norm else []
        layers += [nn.Linear(i, o, bias=not batch_norm), *norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=last_bias))


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Of length 1 along `dim`, in full precision: similarities need the digits."""
    return F.normalize(upcast(x), dim=dim)


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


def on_views(network: nn.Module, views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One forward pass for the consecutive views that share a resolution."""
    outputs: list[Tensor] = []
    start = 0
    for end in range(1, len(views) + 1):
        if end == len(views) or views[end].shape != views[start].shape:
            outputs += network(torch.cat(views[start:end])).chunk(end - start)
            start = end
    return tuple(outputs)


class Counter(nn.Module):
    """A number of steps or epochs, saved with the rest. No tensor: reading one on a GPU waits for
    all that it has to do.
    """

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.value = start

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.value)

    def set_extra_state(self, state: Tensor) -> None:
        self.value = int(state)
