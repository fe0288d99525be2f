"""The head of a run, in a file beside its backbone, for a later stage or a distillation."""

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
# A remedy for distillation, which can use images of any classes.
UNLABELLED = ", or leave the labels out by --labels-from none"


@dataclass(frozen=True)
class Trained:
    """The network of a run: its backbone and its head, which is an `mlp`."""

    network: nn.Sequential  # backbone, head
    classes: tuple[str, ...]  # names of the outputs; empty where these are no classes
    several: bool  # whether an image may have several classes


def save_head(head: nn.Sequential, classes: tuple[str, ...], several: bool, file: Path) -> Path:
    """Write a head to a safetensors file, atomically, and return the path.

    The metadata states the widths of its layers. All processes call it; rank 0 writes.
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
    """Load backbone and head of a finished run; raise UserError where there is no head.

    The state of torch's random generator does not change.
    """
    folder = Path(run)
    file = folder / FILE
    if not file.is_file():
        raise UserError(
            f"{run} has no head to go on from: give the folder of a finished run of supervised,"
            " distillation, simclr or simclr-v2"
        )
    try:
        with safetensors.safe_open(file, framework="pt") as reader:
            metadata = reader.metadata()
            state: dict[str, Tensor] = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
        widths, classes, several = (
            json.loads(metadata[key]) for key in ("widths", "classes", "several")
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
    """Load the network of a run whose outputs are classes; raise UserError for any other run."""
    trained = load_head(run)
    if not trained.classes:
        raise UserError(
            f"{run} has a head but no classes: give a run of supervised or distillation"
        )
    return trained


def refuse_other(
    name: str | Path, outputs: tuple[str, ...], labels: tuple[str, ...], remedy: str = ""
) -> None:
    """Raise UserError where the classes of a network's outputs differ from those of the labels."""
    if set(outputs) != set(labels):
        raise UserError(
            f"{name} predicts {_list_classes(outputs)}, and these images are labelled"
            f" {_list_classes(labels)}: use images of its classes{remedy}"
        )


def _list_classes(classes: tuple[str, ...]) -> str:
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes ({names})"
