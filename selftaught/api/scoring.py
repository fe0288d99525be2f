"""Score, embed, load and export what was learnt, and write pages about it."""

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
    """Score a run's features, or those of a file of weights, on labelled images.

    data: paths, or torch Datasets of (image, label); by default what the run was trained on.
    against: "random", "init" (the starting weights), runs or files of weights. backbone: the
    module, where the run was trained with one. options: as for `evaluate_run`. A run keeps the
    results.
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
            labels=[str(one) for one in labels],
            against=[os.fspath(one) for one in against],
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
    """The features of images as a table, which is written to `out` (.csv, .parquet or .npz) where
    that is given.

    data: paths or torch Datasets; by default what the run was trained on. options: `labels_from`,
    `max_pixels`, `size`.
    """
    if out is not None:
        Embeddings.refuse_suffix(Path(out))
    launch = Launch(device=device, threads=threads, workers=workers)
    with (
        given_backbone(backbone),
        tempfile.TemporaryDirectory() as folder,
        launch.start("", show=show) as (runtime, progress),
    ):
        found = embed_images(
            Path(run),
            roots_of(data, Path(folder), progress),
            device=runtime.device,
            workers=runtime.workers,
            progress=progress,
            **options,
        )
        if out is not None and rank() == 0:
            found.save(Path(out))
    return found


def load(path: Location, backbone: nn.Module | None = None) -> Backbone:
    """The backbone of a run or an exported file, ready for use: pixels [B, 3, H, W] in [0, 1] ->
    features [B, D].

    uint8 pixels in 0..255 are taken, too. Its `pixel_range` says which values of more than 8 bits
    were 0 and 1 in training. `backbone`: the module, where the run was trained with one; a copy is
    filled. Raises ValueError when it is called with other shapes, kinds or ranges; warns of
    negative pixels.
    """
    with given_backbone(backbone):
        found = run_folder.open_backbone(Path(path)).eval()
    found.register_forward_pre_hook(PixelCheck(), with_kwargs=True)
    return found


def export(run: Location, to: Location, backbone: nn.Module | None = None) -> Path:
    """Write a run's backbone for others: timm's names, .safetensors or .pth; return the file."""
    with given_backbone(backbone):
        export_backbone(Path(run), Path(to))
    return Path(to)


def export_backbone(run: Path, to: Path) -> tuple[Backbone, list[str]]:
    """The same; returns the backbone, and what a person should know, in lines."""
    source = weight_files.folder_of(run)
    if to.is_dir():
        raise UserError(f"--to {to} is a folder: name the file, as {to / weight_files.BACKBONE}")
    backbone = run_folder.open_backbone(source)
    if to.exists() and any(file.samefile(to) for file in weight_files.locate(source)):
        raise UserError(f"--to {to} is the file that is exported: choose another name")
    lines = []
    if run_folder.is_run(source) and (doubt := run_folder.read_run(source).doubt):
        lines.append(f"{run}: {doubt}")
    replaced = " in place of the file that was there" if to.exists() else ""
    try:
        weights_io.save_backbone(backbone, to)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"--to {to} cannot be written: {why}. Nothing was changed there: choose another place"
        ) from error
    size = f"{to.stat().st_size / 2**20:.1f} MiB"
    lines.append(
        f"{to}: {backbone.name}, {backbone.features:,} features an image, {size}{replaced}"
    )
    if not backbone_module.is_given(backbone.name):
        lines.append(
            f"goes on by --init {to}, is scored by selftaught evaluate {to} --data LABELLED;"
            " without selftaught, in Python:"
        )
    return backbone, lines


def write_report(runs: Sequence[Location], out: Location) -> Path:
    """One self-contained HTML page of a run, or of several side by side; returns its path."""
    return write([Path(run) for run in runs], Path(out))
