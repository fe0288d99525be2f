"""Batch norms: listed, exchanged, and kept from remembering."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.models.teacher import Teacher


def batch_norms(network: nn.Module) -> Iterator[tuple[nn.Module, str, _BatchNorm]]:
    """Every batch norm outside a teacher, once, with the module that holds it and its name
    there.
    """
    taught = {part for m in network.modules() if isinstance(m, Teacher) for part in m.modules()}
    for holder in network.modules():  # each once, though methods hold their backbone twice
        for name, child in holder.named_children():
            if isinstance(child, _BatchNorm) and holder not in taught:
                yield holder, name, child


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics, but its running ones remember nothing of it."""
    norms = [
        m
        for m in network.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.training
    ]
    kept: list[tuple[nn.Module, str, Tensor]] = []
    for norm in norms:
        if isinstance(
            norm, nn.SyncBatchNorm
        ):  # without running statistics its CUDA kernel refuses bf16: it gets others
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
    return [
        b
        for norm in norms
        for b in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        if b is not None
    ]


@contextmanager
def swapped(network: nn.Module, others: nn.ModuleList) -> Iterator[None]:
    """Let `others` stand in for the network's batch norms, one for each in the order of
    `batch_norms`.
    """
    places = list(batch_norms(network))
    try:
        for (holder, name, _), other in zip(places, others, strict=True):
            setattr(holder, name, other)
        yield
    finally:
        for holder, name, norm in places:
            setattr(holder, name, norm)
