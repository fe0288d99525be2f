"""A run's head, in a file beside its backbone: what a later stage may go on from, or be taught
by.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from selftaught import files
from selftaught.distributed import rank
from selftaught.errors import UserError
from selftaught.models.layers import mlp
from selftaught.models.weights import io as weights_io
from selftaught.models.weights.matching import check_values

FILE = "head.safetensors"
# what can be taught on may be anything
UNLABELLED = ", or leave the labels out by --labels-from none"


@dataclass(frozen=True)
class Trained:
    """A network that a run left: its backbone, and the head behind it, which is an `mlp`."""

    network: nn.Sequential  # backbone, head
    classes: tuple[str, ...]  # what the outputs stand for; none where they are no classes
    several: bool  # an image may have several of them


def save_head(head: nn.Sequential, classes: tuple[str, ...], several: bool, file: Path) -> Path:
    """Write a head; atomic. What it takes to build it again stands beside the weights. Of several
    processes all call it, and rank 0 writes.
    """
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    metadata = {
        "widths": json.dumps([*(layer.in_features for layer in linear), linear[-1].out_features]),
        "classes": json.dumps(classes),
        "several": json.dumps(several),
    }
    state = weights_io.portable(head.state_dict())
    if rank() != 0:
        return file
    return files.atomic(
        file, lambda draft: draft.write_bytes(weights_io.serialise(state, metadata))
    )


def load_head(run: str | Path) -> Trained:
    """What a run left; random numbers elsewhere are not disturbed. Raises UserError where there is
    no head.
    """
    folder = Path(run)
    file = folder / FILE
    if not file.is_file():
        raise UserError(
            f"{run} has no head to go on from: give the folder of a finished run of supervised,"
            " distillation, simclr or simclr-v2"
        )
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            said = opened.metadata()
            state: dict[str, Tensor] = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        widths, classes, several = (
            json.loads(said[key]) for key in ("widths", "classes", "several")
        )
        with torch.random.fork_rng(devices=[]):
            head = mlp(*widths)
        fresh = head.state_dict()
        head.load_state_dict(state)
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"{file} is no readable head ({' '.join(str(error).split())}): train {run} again"
        ) from error
    check_values(state, str(file), fresh)
    return Trained(
        nn.Sequential(weights_io.load_backbone(folder / "backbone.safetensors"), head),
        tuple(classes),
        several,
    )


def classifier(run: str | Path) -> Trained:
    """The same of a run whose outputs are classes."""
    found = load_head(run)
    if not found.classes:
        raise UserError(
            f"{run} has a head, but tells no classes: give a run of supervised or distillation"
        )
    return found


def refuse_other(
    name: str | Path, told: tuple[str, ...], labelled: tuple[str, ...], way_out: str = ""
) -> None:
    """What tells other classes than images are labelled with."""
    if set(told) != set(labelled):
        raise UserError(
            f"{name} tells {_named(told)}, and these images are labelled {_named(labelled)}: "
            f"take images of its classes{way_out}"
        )


def _named(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes ({shown})"
