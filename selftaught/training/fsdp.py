"""Sharding of weights, gradients and optimizer state over the processes (FSDP2)."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selftaught import distributed, files
from selftaught.errors import FileError
from selftaught.method import Encoder
from selftaught.models.teacher import Teacher
from selftaught.training import checkpoint
from selftaught.training.step import Step

BLOCK = re.compile(r"(.*\.)?blocks\.\d+")  # timm's names of the blocks of ViTs and others


def shard(step: Step, device: torch.device) -> None:
    """Shard every parameter of `step`, including teachers, over the processes, in place.

    Parameters of a unit are gathered together. Units are the blocks of a backbone, the rest of the
    backbone, and heads. Losses and gradients equal those of one process.
    """
    distributed.synchronise_norms(step, device)
    encoders = [m for m in step.modules() if isinstance(m, Encoder)]
    units: list[nn.Module] = []
    for encoder in encoders:
        units += [
            m
            for name, m in encoder.named_modules()
            if BLOCK.fullmatch(name) and any(True for _ in m.parameters())
        ]
        units.append(encoder)
    units += heads(step)
    distributed.shard(step, dict.fromkeys(units), device)


def heads(module: nn.Module) -> Iterator[nn.Module]:
    """Modules with parameters outside of the backbones, each of which is called as a whole."""
    for child in module.children():
        if isinstance(child, Encoder):
            continue
        is_container = isinstance(child, nn.ModuleList | nn.ModuleDict | Teacher)
        if is_container or any(isinstance(m, Encoder) for m in child.modules()):
            yield from heads(child)
        elif any(True for _ in child.parameters()):
            yield child


def save(step: Step, optimizer: torch.optim.Optimizer, state: dict[str, Any], file: Path) -> None:
    """Save the shards to a folder beside `file`, then a checkpoint `file` that names the folder.

    The folder's name contains `state["next"]`. The previous folder is deleted last, so a crash
    leaves a `file` that names a complete folder. Every rank calls it.
    """
    folder = f"{file.stem}-{state['next']}"
    if distributed.broadcast_object(_names(file) == folder):
        return
    try:
        with files.convert_write_errors(file.parent / folder):
            distributed.save_shards(step, optimizer, file.parent / folder)
        if distributed.rank() == 0:
            checkpoint.save_checkpoint(file, {**state, "shards": folder})
    except FileError:  # raised on all ranks, so no rank uses the folder
        if distributed.rank() == 0:
            shutil.rmtree(file.parent / folder, ignore_errors=True)
        raise
    if distributed.rank() == 0:
        for other in file.parent.glob(f"{file.stem}-*"):
            if other.is_dir() and other.name != folder:
                shutil.rmtree(other, ignore_errors=True)


def _names(file: Path) -> str | None:
    """The folder that a checkpoint names; None if the checkpoint is missing or damaged."""
    with contextlib.suppress(FileError):
        folder: str | None = checkpoint.load_checkpoint(file).get("shards")
        return folder
    return None


def restore(
    step: Step, optimizer: torch.optim.Optimizer, state: dict[str, Any], place: Path
) -> None:
    """Restore a checkpoint in `place`, sharded or whole, into a step that is sharded or whole.

    The number of processes may differ from that of the checkpoint.
    """
    if "shards" in state:
        distributed.load_shards(step, optimizer, place / state["shards"])
        return
    own = step.state_dict()
    step.load_state_dict(
        {name: distributed.shard_like(value, own[name]) for name, value in state["step"].items()}
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {name: _shard_moment(value, parameters[i]) for name, value in of.items()}
        for i, of in state["optimizer"]["state"].items()
    }
    # This optimizer's own kernels stay: the fused kernels of a whole network do not take shards.
    groups = [
        {**group, **{name: value for name, value in own.items() if name in ("fused", "foreach")}}
        for group, own in zip(
            state["optimizer"]["param_groups"], optimizer.param_groups, strict=True
        )
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _shard_moment(moment: Any, parameter: Tensor) -> Any:
    fits = isinstance(moment, Tensor) and moment.shape == parameter.shape
    return distributed.shard_like(moment, parameter) if fits else moment
