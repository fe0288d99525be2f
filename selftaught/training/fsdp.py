"""Networks too large for one process: each keeps its share of weights, gradients and the
optimizer's memory (FSDP2).
"""

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

BLOCK = re.compile(r"(.*\.)?blocks\.\d+")  # as timm names the equal parts of ViTs and others


def shard(step: Step, device: torch.device) -> None:
    """Share out every parameter of `step`, the teachers' too, over the processes, in place.

    What is brought together at once is a block of the backbone, the rest of the backbone, or a
    head. Losses, gradients and memories stay those of one process (a law holds every method to
    that).
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
    """The parts beside the backbones that are called as a whole."""
    for child in module.children():
        if isinstance(child, Encoder):
            continue
        several = isinstance(child, nn.ModuleList | nn.ModuleDict | Teacher)
        if several or any(isinstance(m, Encoder) for m in child.modules()):
            yield from heads(child)
        elif any(True for _ in child.parameters()):
            yield child


def save(step: Step, optimizer: torch.optim.Optimizer, state: dict[str, Any], file: Path) -> None:
    """Every rank's share into a folder beside `file`, which names it, after what `state` says comes
    next. The folder that it named before goes last: whenever the power fails, `file` names a whole
    one.
    """
    folder = f"{file.stem}-{state['next']}"
    if distributed.broadcast_object(_names(file) == folder):
        return
    try:
        with files.writing(file.parent / folder):
            distributed.save_shards(step, optimizer, file.parent / folder)
        if distributed.rank() == 0:
            checkpoint.save_checkpoint(file, {**state, "shards": folder})
    except FileError:  # no process has got further
        if distributed.rank() == 0:
            shutil.rmtree(file.parent / folder, ignore_errors=True)
        raise
    if distributed.rank() == 0:
        for other in file.parent.glob(f"{file.stem}-*"):
            if other.is_dir() and other.name != folder:
                shutil.rmtree(other, ignore_errors=True)


def _names(file: Path) -> str | None:
    """The folder that a checkpoint names; None where there is none, or it is damaged."""
    with contextlib.suppress(FileError):
        folder: str | None = checkpoint.load_checkpoint(file).get("shards")
        return folder
    return None


def restore(
    step: Step, optimizer: torch.optim.Optimizer, state: dict[str, Any], place: Path
) -> None:
    """Go on with a checkpoint in `place`, shards or whole; into shards, of any number of processes,
    or whole.
    """
    if "shards" in state:
        distributed.load_shards(step, optimizer, place / state["shards"])
        return
    own = step.state_dict()
    step.load_state_dict(
        {name: distributed.cut_like(value, own[name]) for name, value in state["step"].items()}
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {name: _cut(value, parameters[i]) for name, value in of.items()}
        for i, of in state["optimizer"]["state"].items()
    }
    # with their own kernels: the fused ones that a whole network is learnt by know no shards
    groups = [
        {**group, **{name: value for name, value in own.items() if name in ("fused", "foreach")}}
        for group, own in zip(
            state["optimizer"]["param_groups"], optimizer.param_groups, strict=True
        )
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _cut(moment: Any, parameter: Tensor) -> Any:
    fits = isinstance(moment, Tensor) and moment.shape == parameter.shape
    return distributed.cut_like(moment, parameter) if fits else moment
