"""Tools for batch norm: list the layers, swap them, and freeze their running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught.models.teacher import Teacher


def batch_norms(network: nn.Module) -> Iterator[tuple[nn.Module, str, _BatchNorm]]:
    """List every batch norm outside of teachers once, as (parent module, name in it, layer)."""
    in_teacher = {part for m in network.modules() if isinstance(m, Teacher) for part in m.modules()}
    for parent in network.modules():  # each once, though methods hold their backbone twice
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and parent not in in_teacher:
                yield parent, name, child


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch norm uses batch statistics and does not update its running statistics."""
    norms = [
        m
        for m in network.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.training
    ]
    originals: list[tuple[nn.Module, str, Tensor]] = []
    for norm in norms:
        # The CUDA kernel of SyncBatchNorm refuses bf16 without running statistics, so it gets
        # copies of its buffers.
        if isinstance(norm, nn.SyncBatchNorm):
            for name, buffer in list(norm.named_buffers(recurse=False)):
                originals.append((norm, name, buffer))
                setattr(norm, name, buffer.clone())
        else:
            norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for parent, name, buffer in originals:
            setattr(parent, name, buffer)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The running mean, running variance and counter of every batch norm."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return [
        b
        for norm in norms
        for b in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        if b is not None
    ]


@contextmanager
def swap_batch_norms(network: nn.Module, others: nn.ModuleList) -> Iterator[None]:
    """Inside, `others` replace the network's batch norms, in the order of `batch_norms`.

    They use running statistics where those that they replace do.
    """
    places = list(batch_norms(network))
    try:
        for (parent, name, norm), other in zip(places, others, strict=True):
            setattr(parent, name, other.train(norm.training))
        yield
    finally:
        for parent, name, norm in places:
            setattr(parent, name, norm)
