"""Tables of features: one row for each image, in files that other tools can read."""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selftaught import files
from selftaught.config.stage import Data
from selftaught.data.index.build import Index
from selftaught.data.io.filesystem import import_optional, normalize_location
from selftaught.data.loading.images import Images, default_canvas
from selftaught.errors import UserError, require
from selftaught.features.extract import extract
from selftaught.loggers.terminal import Progress
from selftaught.models.backbone import refuse_size
from selftaught.models.weights import weight_files
from selftaught.runs import folder as run_folder

SUFFIXES = (".csv", ".parquet", ".npz")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The features of N images."""

    paths: tuple[str, ...]  # [N]
    features: Tensor  # [N, D] float32
    labels: tuple[str, ...] | None  # [N] names of classes joined by "|"; "" for unlabelled

    def __len__(self) -> int:
        return len(self.paths)

    @staticmethod
    def refuse_suffix(file: Path) -> None:
        """Raise UserError if tables cannot be written to such a file."""
        if file.suffix not in SUFFIXES:
            raise UserError(f"--out {file}: a table is written as {', '.join(SUFFIXES)}")
        if file.suffix == ".parquet":
            import_optional("pyarrow.parquet")

    def save(self, file: Path) -> None:
        """Write the table in one atomic step, in the format of the suffix.

        .csv: columns path, label, f0, f1, ... .parquet: columns path, label and features, a list of
        floats. .npz: arrays path, label and features. Without labels there is no column for them.
        """
        self.refuse_suffix(file)
        write = {".csv": self._csv, ".parquet": self._parquet, ".npz": self._npz}[file.suffix]
        files.atomic(file, lambda draft: draft.write_bytes(write()))

    def _csv(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        named = [] if self.labels is None else ["label"]
        writer.writerow(["path", *named, *(f"f{i}" for i in range(self.features.shape[1]))])
        for i, row in enumerate(self.features.numpy()):
            label = [] if self.labels is None else [self.labels[i]]
            # The shortest text that float32 can be restored from.
            writer.writerow([self.paths[i], *label, *map(str, row)])
        return text.getvalue().encode(errors="surrogateescape")

    def _parquet(self) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = self.features.shape[1]
        flat = pa.array(self.features.numpy().reshape(-1))
        columns: dict[str, Any] = {"path": pa.array(self.paths)}
        if self.labels is not None:
            columns["label"] = pa.array(self.labels)
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, width)
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        return buffer.getvalue()

    def _npz(self) -> bytes:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"path": np.array(self.paths), "features": self.features.numpy()}
        if self.labels is not None:
            arrays["label"] = np.array(self.labels)
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def embed_images(
    learnt: Path,
    roots: tuple[str, ...] = (),
    *,
    labels_from: str = "auto",
    max_pixels: int | None = None,
    size: int | None = None,
    device: str = "cpu",
    workers: int = 2,
    progress: Progress | None = None,
) -> Embeddings:
    """Compute the features of every image of `roots`.

    By default they are the images of the run, including held-out ones. Raises UserError if there
    are no images.
    """
    progress = progress or Progress(show=False)
    learnt = weight_files.folder_of(learnt)
    own = run_folder.read_run(learnt) if run_folder.is_run(learnt) else None
    if own and own.doubt:
        progress.say(f"{learnt}: {own.doubt}")
    backbone = run_folder.open_backbone(learnt)
    if own and not roots:
        own.refuse_missing(labels=labels_from == "auto")
        data = replace(own.stage.data, subset="all")
        data = data if labels_from == "auto" else replace(data, labels=labels_from)
    elif roots:
        data = Data(roots=roots, labels=labels_from)
        if own:
            data = replace(data, max_pixels=own.stage.data.max_pixels)
    else:
        raise UserError("no images: name them by --data")
    data = data if max_pixels is None else replace(data, max_pixels=max_pixels)
    seed = own.stage.seed if own else 0
    pixel_range = own.pixel_range if own else backbone.pixel_range
    index = data.index(seed, progress.of("reading images"), pixel_range)
    progress.say(index.describe())
    usual = own.stage.size if own else backbone.usual_size
    width = usual if size is None else size
    require(width >= 8, "--size", "8 pixels or more", width)
    refuse_size(backbone, str(learnt), width)
    images = Images(
        index.paths,
        index.sizes,
        default_canvas(index.sizes, width),
        groups=index.groups,
        pixel_range=index.pixel_range,
        strict=True,
        on_progress=progress.of("loading"),
    )
    features = extract(
        backbone.to(device).to(memory_format=torch.channels_last),
        images,
        torch.arange(len(index)),
        size=width,
        device=device,
        precision=own.stage.precision if own else "fp32",
        workers=workers,
        on_progress=progress.of("features"),
    )
    paths = tuple(normalize_location(path) for path in index.paths)
    return Embeddings(paths, features, class_names(index))


def class_names(index: Index) -> tuple[str, ...] | None:
    """The names of the classes of every image, as in `Embeddings`."""
    if index.labels is None:
        return None
    if index.labels.dim() == 1:
        return tuple(index.classes[i] if i >= 0 else "" for i in index.labels.tolist())
    rows = index.labels.tolist()
    return tuple(
        "|".join(name for name, label in zip(index.classes, row, strict=True) if label > 0)
        for row in rows
    )
