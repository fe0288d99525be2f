"""Many processes: the only file that names torch.distributed. Everything here is a no-op in a
single process.

Over 200 lines, because it is the only one: gradients, tensors, values and shards have their
collectives here.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(days=7)
_waits = count()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Which of the processes on this machine this is: which GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: str) -> Iterator[None]:
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


def wait_for_rank0() -> None:
    """For rank 0, however long it takes: collectives give up after some minutes."""
    if world_size() == 1:
        return
    store, name = dist.distributed_c10d._get_default_store(), f"selftaught {next(_waits)}"
    if rank() == 0:
        store.set(name, "here")
    else:
        store.wait([name], PATIENCE)


def wrap(step: nn.Module, device: torch.device) -> nn.Module:
    """`step`, so that a backward pass averages its gradients over the processes."""
    if world_size() == 1 or is_sharded(step.parameters()):
        return step
    on_gpu = device.type == "cuda"
    synchronise_norms(step, device)
    with warnings.catch_warnings():  # newer releases have another word for the same
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        # The methods keep their memories equal themselves; the norms' running statistics serve rank
        # 0 alone.
        return DistributedDataParallel(
            step, device_ids=[device.index] if on_gpu else None, broadcast_buffers=False
        )


def synchronise_norms(step: nn.Module, device: torch.device) -> None:
    """Batch norm over all GPUs, in place; on CPUs it stays each process's own, and where a part has
    `local_batch_norm`.
    """
    if device.type == "cuda" and not any(
        getattr(module, "local_batch_norm", False) for module in step.modules()
    ):
        # timm's function, as torch's own drops the activations that timm's norms hold; and each
        # norm once, as it drops them itself from one that it has made before, and methods hold
        # their backbone twice.
        for holder in list(step.modules()):
            for name, child in holder.named_children():
                if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                    setattr(holder, name, convert_sync_batchnorm(child))


@contextmanager
def no_sync(step: nn.Module, really: bool = True) -> Iterator[None]:
    """Leave the gradients of this backward pass local: the next one will send their sum."""
    if really and isinstance(step, DistributedDataParallel):
        with step.no_sync():
            yield
    elif really and isinstance(step, FSDPModule):
        step.set_requires_gradient_sync(False)
        yield
        step.set_requires_gradient_sync(True)
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


def local_chunk(x: Tensor) -> Tensor:
    """[world * B, ...], the same on every rank -> this rank's [B, ...]."""
    return x.chunk(world_size())[rank()]


def local_share(x: Tensor) -> Tensor:
    """[N, ...] of any length, the same on every rank -> this rank's [ceil(N / world), ...]; the
    last entry stands in where there are too few. The first N of what `gather` makes of them are
    all, in their order.
    """
    if world_size() == 1 or not len(x):
        return x
    share = -(-len(x) // world_size())
    return x[torch.arange(rank() * share, (rank() + 1) * share).clamp(max=len(x) - 1)]


@torch.no_grad()
def shuffle_batch(x: Tensor) -> Tensor:
    """Deal the global batch out like cards, so that batch norm meets other company (He et al.,
    2020, section 3.3).
    """
    return x if world_size() == 1 else gather(x)[rank() :: world_size()]


@torch.no_grad()
def unshuffle_batch(x: Tensor) -> Tensor:
    """Undo `shuffle_batch` on what was computed from the dealt batch."""
    if world_size() == 1:
        return x
    return local_chunk(gather(x).unflatten(0, (world_size(), len(x))).transpose(0, 1).flatten(0, 1))


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather_values(value: Any) -> list[Any]:
    """The `value` of every rank, on every rank, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Let every rank have rank 0's values, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return (
        flag
        if world_size() == 1
        else bool(all_reduce_sum(torch.tensor([float(flag)], device=_device())).item())
    )


# --------------------------------------------------------------------------------------------------
# shards


def shard(root: nn.Module, units: Iterable[nn.Module], device: torch.device) -> None:
    """Leave each process its share of every parameter of `root`, in place (FSDP2).

    A unit's parameters are brought together while it computes and let go again; units within units
    come first.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for unit in (*units, root):
        unit.to(memory_format=torch.contiguous_format)  # FSDP takes no other
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    # A class token is a view of all tokens; nothing here writes into one in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    # Whatever is called first would take itself for the root of all: features are looked at before
    # the first step.
    fully_shard.state(root)._lazy_init()  # type: ignore[attr-defined]


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    return any(isinstance(p, DTensor) for p in parameters)


@torch.no_grad()
def full_tensor(x: Tensor) -> Tensor:
    """A parameter brought together from its shards, on every rank; other tensors as they are."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local(x: Tensor) -> Tensor:
    """This rank's shard of a parameter; other tensors as they are."""
    return x.to_local() if isinstance(x, DTensor) else x


def cut_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, as `like` is sharded; where that is whole, as it is."""
    return (
        distribute_tensor(x, like.device_mesh, like.placements) if isinstance(like, DTensor) else x
    )


def save_shards(step: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Every rank writes its own share. What fails on one of them is raised on all."""
    with _first_failure():
        save(_states(step, optimizer)[0], checkpoint_id=folder)


def load_shards(step: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Each rank reads its own share, into any number of processes, or all of it where nothing is
    sharded.
    """
    states, names = _states(step, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        with _first_failure():
            load(states, checkpoint_id=folder)
    weights = {name: states["step"][first] for name, first in names.items()}
    state_dict.set_state_dict(
        step, optimizer, model_state_dict=weights, optim_state_dict=states["optimizer"]
    )


@contextmanager
def _first_failure() -> Iterator[None]:
    """torch collects what failed on each rank in an exception that is no Exception: raise what
    failed first instead.
    """
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from None


def _states(
    step: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, str]]:
    """Weights and moments, and for each weight the first of the names that it has: methods hold
    their backbone twice.
    """
    weights, moments = state_dict.get_state_dict(step, optimizer)
    first: dict[int, str] = {}
    tensors = [
        *step.named_parameters(remove_duplicate=False),
        *step.named_buffers(remove_duplicate=False),
    ]
    known = {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
    names = {name: known.get(name, name) for name in weights}
    return {"step": {name: weights[name] for name in names.values()}, "optimizer": moments}, names


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
