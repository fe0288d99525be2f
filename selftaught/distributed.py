"""Distributed training: the only module that imports torch.distributed.

Every function is a no-op in a single process.
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
    """The number of this process; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Initialise the process group if torchrun started several processes; destroy it at exit."""
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
    """Wait until rank 0 calls this function, for up to seven days.

    Collectives time out after some minutes, so this waits on the store instead.
    """
    if world_size() == 1:
        return
    store, name = dist.distributed_c10d._get_default_store(), f"selftaught {next(_waits)}"
    if rank() == 0:
        store.set(name, "here")
    else:
        store.wait([name], PATIENCE)


def wrap(step: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `step` so that a backward pass averages its gradients over the processes."""
    if world_size() == 1 or is_sharded(step.parameters()):
        return step
    on_gpu = device.type == "cuda"
    synchronise_norms(step, device)
    with warnings.catch_warnings():  # newer releases renamed broadcast_buffers
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        # Methods keep their memory banks equal themselves. Running statistics are used on rank 0
        # only.
        return DistributedDataParallel(
            step, device_ids=[device.index] if on_gpu else None, broadcast_buffers=False
        )


def synchronise_norms(step: nn.Module, device: torch.device) -> None:
    """Replace batch norm by SyncBatchNorm, in place.

    On CPUs, and where a module has `local_batch_norm`, batch norm stays local to each process.
    """
    if device.type == "cuda" and not any(
        getattr(module, "local_batch_norm", False) for module in step.modules()
    ):
        # timm's function keeps the activations inside timm's norms; torch's own drops them. Each
        # norm is converted once, because a second conversion drops the activation. Methods hold
        # their backbone twice.
        for holder in list(step.modules()):
            for name, child in holder.named_children():
                if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                    setattr(holder, name, convert_sync_batchnorm(child))


@contextmanager
def no_sync(step: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Keep the gradients of this backward pass local; the next pass reduces their sum."""
    if enabled and isinstance(step, DistributedDataParallel):
        with step.no_sync():
            yield
    elif enabled and isinstance(step, FSDPModule):
        step.set_requires_gradient_sync(False)
        yield
        step.set_requires_gradient_sync(True)
    else:
        yield


def gather(x: Tensor) -> Tensor:
    """Gather [B, ...] of every rank to [world * B, ...]; gradients flow back to each rank."""
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
        grad = grads[0].contiguous().clone()  # autograd may share this tensor
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def local_chunk(x: Tensor) -> Tensor:
    """This rank's chunk [B, ...] of x [world * B, ...], which is equal on every rank."""
    return x.chunk(world_size())[rank()]


def local_share(x: Tensor) -> Tensor:
    """This rank's share [ceil(N / world), ...] of x [N, ...], which is equal on every rank.

    The last entry is repeated where N is no multiple. The first N entries of the gathered shares
    are x again.
    """
    if world_size() == 1 or not len(x):
        return x
    share = -(-len(x) // world_size())
    return x[torch.arange(rank() * share, (rank() + 1) * share).clamp(max=len(x) - 1)]


@torch.no_grad()
def shuffle_batch(x: Tensor) -> Tensor:
    """Shuffle the global batch over the ranks (He et al., 2020, section 3.3).

    Batch norm of a rank then sees other samples than those of its own queries. x [B, ...] -> [B,
    ...]: every world-th sample of the gathered batch.
    """
    return x if world_size() == 1 else gather(x)[rank() :: world_size()]


@torch.no_grad()
def unshuffle_batch(x: Tensor) -> Tensor:
    """Undo `shuffle_batch` on outputs [B, ...] that were computed from the shuffled batch."""
    if world_size() == 1:
        return x
    return local_chunk(gather(x).unflatten(0, (world_size(), len(x))).transpose(0, 1).flatten(0, 1))


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum x over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def broadcast_object(value: Any) -> Any:
    """Return rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather_values(value: Any) -> list[Any]:
    """Return the `value` of every rank on every rank, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's values to every rank, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    if world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor([float(flag)], device=_device())).item())


# Shards (FSDP2)


def shard(root: nn.Module, units: Iterable[nn.Module], device: torch.device) -> None:
    """Shard every parameter of `root` over the processes, in place (FSDP2).

    The parameters of a unit are gathered while it computes, then freed. A unit inside another unit
    must come before it in `units`.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for unit in (*units, root):
        unit.to(memory_format=torch.contiguous_format)  # FSDP supports no other
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    # A class token is a view of all tokens. No code here writes into one in place.
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    # FSDP takes the module that is called first for the root. Features are extracted before the
    # first step, so the root is initialised here.
    # pyrefly: ignore[missing-attribute]
    fully_shard.state(root)._lazy_init()


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any of the parameters is sharded."""
    return any(isinstance(p, DTensor) for p in parameters)


@torch.no_grad()
def full_tensor(x: Tensor) -> Tensor:
    """Gather a sharded parameter on every rank; other tensors are returned as they are."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local_shard(x: Tensor) -> Tensor:
    """This rank's shard of a sharded parameter; other tensors are returned as they are."""
    return x.to_local() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor as `like` is sharded; return it as it is if `like` is whole."""
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x, like.device_mesh, like.placements)


def save_shards(step: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write the shard of every rank to `folder`; a failure on one rank is raised on all."""
    with _unwrap_failure():
        save(_states(step, optimizer)[0], checkpoint_id=folder)


def load_shards(step: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read shards from `folder`, for any number of processes, sharded or whole."""
    states, names = _states(step, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        with _unwrap_failure():
            load(states, checkpoint_id=folder)
    weights = {name: states["step"][first] for name, first in names.items()}
    state_dict.set_state_dict(
        step, optimizer, model_state_dict=weights, optim_state_dict=states["optimizer"]
    )


@contextmanager
def _unwrap_failure() -> Iterator[None]:
    """Replace torch's CheckpointException, which is no Exception, by the first rank's failure."""
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from None


def _states(
    step: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, str]]:
    """The state of weights and optimizer, and the first name of each weight.

    A weight can have several names, because methods hold their backbone twice.
    """
    weights, moments = state_dict.get_state_dict(step, optimizer)
    first: dict[int, str] = {}
    tensors = [
        *step.named_parameters(remove_duplicate=False),
        *step.named_buffers(remove_duplicate=False),
    ]
    first_names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
    names = {name: first_names.get(name, name) for name in weights}
    return {"step": {name: weights[name] for name in names.values()}, "optimizer": moments}, names


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
