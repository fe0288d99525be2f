"""Many processes: the only file that names torch.distributed. Everything here is a no-op in a single process."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Which of the processes on this machine this is: which GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes, when torchrun started several; leave them in the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def wrap(step: nn.Module, device: torch.device, sync_norm: bool = True) -> nn.Module:
    """`step`, so that a backward pass averages its gradients over the processes."""
    if world_size() == 1:
        return step
    on_gpu = device.type == "cuda"
    if on_gpu and sync_norm:
        step = convert_sync_batchnorm(step)  # timm's: torch's own drops the activations that timm's norms hold
    with warnings.catch_warnings():  # newer releases have another word for the same
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        # The methods keep their memories equal themselves; the norms' running statistics serve rank 0 alone.
        return DistributedDataParallel(step, device_ids=[device.index] if on_gpu else None, broadcast_buffers=False)


@contextmanager
def unsynchronised(step: nn.Module, really: bool = True) -> Iterator[None]:
    """Leave the gradients of this backward pass local: the next one will send their sum."""
    if really and isinstance(step, DistributedDataParallel):
        with step.no_sync():
            yield
    else:
        yield


def gather(x: Tensor) -> Tensor:
    """[B, ...] on every rank -> [world * B, ...]; gradients return to their owners."""
    return x if world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()  # autograd may hold the same tensor elsewhere
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def own(x: Tensor) -> Tensor:
    """[world * B, ...], the same on every rank -> this rank's [B, ...]."""
    return x.chunk(world_size())[rank()]


@torch.no_grad()
def deal(x: Tensor) -> Tensor:
    """Deal the global batch out like cards, so that batch norm meets other company (He et al., 2020, section 3.3)."""
    return x if world_size() == 1 else gather(x)[rank() :: world_size()]


@torch.no_grad()
def collect(x: Tensor) -> Tensor:
    """Undo `deal` on what was computed from the dealt batch."""
    if world_size() == 1:
        return x
    return own(gather(x).unflatten(0, (world_size(), len(x))).transpose(0, 1).flatten(0, 1))


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def shared(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return flag if world_size() == 1 else bool(total(torch.tensor([float(flag)], device=_device())).item())


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
