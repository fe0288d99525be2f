"""Heads, teachers and small shared parts of networks."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.devices import full_precision


def mlp(*widths: int, batch_norm: bool = True, last_bias: bool = True) -> nn.Sequential:
    """Linear -> BN -> ReLU between widths, ending in a plain linear layer (whose bias a loss may not see)."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths[:-1]):
        norm = [nn.BatchNorm1d(o)] if batch_norm else []
        layers += [nn.Linear(i, o, bias=not batch_norm), *norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=last_bias))


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """Of length 1 along `dim`, in full precision: similarities need the digits."""
    return F.normalize(full_precision(x), dim=dim)


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
    """A number of steps or epochs, saved with the rest. No tensor: reading one on a GPU waits for all that it has to do."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.value = start

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.value)

    def set_extra_state(self, state: Tensor) -> None:
        self.value = int(state)


class Teacher(nn.Module):
    """A copy of `student` that follows it by exponential moving average."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.network(x))

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1 - momentum)


def teacher_momentum(published: float, steps: int, memories: int = 50) -> float:
    """A short training needs a teacher that follows sooner: one that forgets `memories` times within it, yet remembers as
    many steps; so a training of fewer than `memories` squared steps sees it forget less often.
    """
    return min(max(1 - memories / max(steps, 1), 1 - 1 / memories), published)


def rising(momentum: float, progress: float) -> float:
    """From `momentum` to 1 along a cosine, as training goes from 0 to 1."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * progress)) / 2


class Expert(Teacher):
    """A teacher that learns no more: it always judges by what its batch norms remember."""

    def __init__(self, taught: nn.Module) -> None:
        super().__init__(taught)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def batch_norms(network: nn.Module) -> Iterator[tuple[nn.Module, str, _BatchNorm]]:
    """Every batch norm outside a teacher, once, with the module that holds it and its name there."""
    taught = {part for m in network.modules() if isinstance(m, Teacher) for part in m.modules()}
    for holder in network.modules():  # each once, though methods hold their backbone twice
        for name, child in holder.named_children():
            if isinstance(child, _BatchNorm) and holder not in taught:
                yield holder, name, child


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics, but its running ones remember nothing of it."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    kept: list[tuple[nn.Module, str, Tensor]] = []
    for norm in norms:
        if isinstance(norm, nn.SyncBatchNorm):  # without running statistics its CUDA kernel refuses bf16: it gets others
            for name, buffer in list(norm.named_buffers(recurse=False)):
                kept.append((norm, name, buffer))
                setattr(norm, name, buffer.clone())
        else:
            norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for holder, name, buffer in kept:
            setattr(holder, name, buffer)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """What every batch norm remembers of the batches that it saw."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return [b for norm in norms for b in (norm.running_mean, norm.running_var, norm.num_batches_tracked) if b is not None]


@contextmanager
def swapped(network: nn.Module, others: nn.ModuleList) -> Iterator[None]:
    """Let `others` stand in for the network's batch norms, one for each in the order of `batch_norms`."""
    places = list(batch_norms(network))
    try:
        for (holder, name, _), other in zip(places, others, strict=True):
            setattr(holder, name, other)
        yield
    finally:
        for holder, name, norm in places:
            setattr(holder, name, norm)
