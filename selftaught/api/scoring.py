"""Evaluation, features, loading, export and reports of runs."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from selftaught.api.dataset import roots_of
from selftaught.api.embedding import Embeddings, embed_images
from selftaught.api.launch import Launch, find_device
from selftaught.api.training import describe_call
from selftaught.distributed import rank
from selftaught.errors import UserError
from selftaught.evaluation.evaluate import AGAINST, LABELS, PROTOCOLS, Evaluation, evaluate_run
from selftaught.features.protocol import Protocol
from selftaught.loggers.terminal import Progress
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone, given_backbone
from selftaught.models.input_check import PixelCheck
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import weight_files
from selftaught.report.page import write
from selftaught.runs import folder as run_folder

Location = str | os.PathLike[str]


def evaluate(
    run: Location,
    *data: Any,
    protocols: Sequence[Protocol] = PROTOCOLS,
    labels: Sequence[str | int] = LABELS,
    against: Sequence[Location] = AGAINST,
    backbone: nn.Module | None = None,
    device: str = "auto",
    **options: Any,
) -> Evaluation:
    """Score the features of a run, or of a file of weights, on labelled images.

    data: paths, or torch Datasets of (image, label); by default the images of the run. against:
    "random", "init" (the starting weights), runs or files of weights. backbone: the module, if the
    run was trained with one. options: as for `evaluate_run`, such as layers="best". The results are
    added to the run. Raises UserError if there are no images or no labels.
    """
    with (
        given_backbone(backbone),
        tempfile.TemporaryDirectory() as folder,
        Progress(show=False) as quiet,
    ):
        return evaluate_run(
            os.fspath(run),
            roots_of(data, Path(folder), quiet),
            protocols=protocols,
            labels=[str(number) for number in labels],
            against=[os.fspath(name) for name in against],
            device=find_device(device),
            command=describe_call("evaluate", (run, *data)),
            **options,
        )


def embed(
    run: Location,
    *data: Any,
    out: Location | None = None,
    backbone: nn.Module | None = None,
    device: str = "auto",
    threads: Any = "auto",
    workers: Any = "auto",
    show: bool = False,
    **options: Any,
) -> Embeddings:
    """Compute the features of images, and write them to `out` (.csv, .parquet or .npz), if given.

    data: paths or torch Datasets; by default the images of the run. options: `labels_from`,
    `max_pixels`, `size`. Raises UserError if there are no images.
    """
    if out is not None:
        Embeddings.refuse_suffix(Path(out))
    launch = Launch(device=device, threads=threads, workers=workers)
    with (
        given_backbone(backbone),
        tempfile.TemporaryDirectory() as folder,
        launch.start("", show=show) as (runtime, progress),
    ):
        embeddings = embed_images(
            Path(run),
            roots_of(data, Path(folder), progress),
            device=runtime.device,
            workers=runtime.workers,
            progress=progress,
            **options,
        )
        if out is not None and rank() == 0:
            embeddings.save(Path(out))
    return embeddings


def load(path: Location, backbone: nn.Module | None = None) -> Backbone:
    """Load the backbone of a run or a file: pixels [B, 3, H, W] in [0, 1] -> features [B, D].

    It is in evaluation mode, and also takes uint8 pixels in 0..255. Its `pixel_range` states which
    values of more than 8 bits are 0 and 1. backbone: the module, if the run was trained with one;
    the weights are loaded into a copy. The result raises ValueError for pixels of other shapes,
    types or ranges, and warns of negative pixels.
    """
    with given_backbone(backbone):
        network = run_folder.open_backbone(Path(path)).eval()
    network.register_forward_pre_hook(PixelCheck(), with_kwargs=True)
    return network


def export(run: Location, to: Location, backbone: nn.Module | None = None) -> Path:
    """Write a run's backbone with timm's names, as .safetensors or .pth; return the file."""
    with given_backbone(backbone):
        export_backbone(Path(run), Path(to))
    return Path(to)


def export_backbone(run: Path, to: Path) -> tuple[Backbone, list[str]]:
    """Write a run's backbone; return it, and lines of information for the user."""
    source = weight_files.folder_of(run)
    if to.is_dir():
        raise UserError(f"--to {to} is a folder: name the file, as {to / weight_files.BACKBONE}")
    backbone = run_folder.open_backbone(source)
    if to.exists() and any(file.samefile(to) for file in weight_files.locate(source)):
        raise UserError(f"--to {to} is the file that is exported: choose another name")
    lines = []
    own = run_folder.read_run(source) if run_folder.is_run(source) else None
    if own and own.doubt:
        lines.append(f"{run}: {own.doubt}")
    replaced = ", replaces the earlier file" if to.exists() else ""
    try:
        weights_io.save_backbone(backbone, to)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"--to {to} cannot be written: {why}. Nothing was changed: choose another place"
        ) from error
    size = f"{to.stat().st_size / 2**20:.1f} MiB"
    lines.append(
        f"{to}: {backbone.name}, {backbone.features:,} features an image, {size}{replaced}"
    )
    if own and (stage := own.facts.get("recommended_stage")):
        lines.append(
            f"recommended stage: {stage}, which this method teaches best; compare the stages with"
            f" selftaught evaluate {run} --layers all"
        )
    if not backbone_module.is_given(backbone.name):
        lines.append(
            f"continue training with --init {to}; score it with selftaught evaluate {to} --data"
            " LABELLED; load it without selftaught, in Python:"
        )
    return backbone, lines


def write_report(runs: Sequence[Location], out: Location) -> Path:
    """Write one self-contained HTML page that compares runs; return its path."""
    return write([Path(run) for run in runs], Path(out))
