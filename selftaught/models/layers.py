"""Layers that methods share: MLP heads, normalisation and counters."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.devices import to_device, upcast


def mlp(*widths: int, batch_norm: bool = True, last_bias: bool = True) -> nn.Sequential:
    """An MLP: Linear -> BN -> ReLU between `widths`, and a last linear layer.

    `last_bias=False` is for losses that do not depend on that bias.
    """
    layers: list[nn.Module] = []
    for i, o in pairwise(widths[:-1]):
        norm = [nn.BatchNorm1d(o)] if batch_norm else []
        layers += [nn.Linear(i, o, bias=not batch_norm), *norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=last_bias))


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Normalise x to length 1 along `dim`, in float32, because similarities need the precision."""
    return F.normalize(upcast(x), dim=dim)


class Normalize(nn.Module):
    """`unit` as a module: rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return unit(x)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize x [B, C, h, w] bilinearly, with antialiasing; x itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    # In the other memory format torch 2 computes results of one column and several rows wrongly.
    x = upcast(x).contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True)


def mix_areas(own: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    """Mix two tensors [B, C] or [B, C, h, w] by the share of each place's area that is own.

    mask: [H, W] or [1, 1], the share at each pixel. Of [B, C] the share is that of the whole image.
    """
    grid = tuple(own.shape[2:])
    height, width = grid or (1, 1)
    share = F.adaptive_avg_pool2d(mask[None, None], (height, width)).view(1, 1, *grid)
    return torch.lerp(partner, own, to_device(share.to(own.dtype), own.device))


def on_views(network: Callable[[Tensor], Tensor], views: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Apply `network` to views [B, 3, H, W], in one pass for consecutive views of one size."""
    outputs: list[Tensor] = []
    start = 0
    for end in range(1, len(views) + 1):
        if end == len(views) or views[end].shape != views[start].shape:
            outputs += network(torch.cat(views[start:end])).chunk(end - start)
            start = end
    return tuple(outputs)


class Counter(nn.Module):
    """A number of steps or epochs that is saved in the state dict.

    It is no tensor, because reading a tensor on a GPU synchronises.
    """

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.value = start

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.value)

    def set_extra_state(self, state: Tensor) -> None:
        self.value = int(state)
