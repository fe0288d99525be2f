"""Writing of a torch Dataset to a folder of images, so that commands can read it."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from selftaught import files
from selftaught.errors import UserError
from selftaught.loggers.terminal import Progress
from selftaught.text import count_text

MARKER = "dataset.json"
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that PNG stores without change


def roots_of(data: Any, folder: Path, progress: Progress) -> tuple[str, ...]:
    """Paths of the images of `data`: a path, a Dataset, or several of these.

    The images of each Dataset are written once, as PNG, to a folder below `folder`. Raises
    UserError for other types.
    """
    roots: list[str] = []
    for number, item in enumerate(data if isinstance(data, (list, tuple)) else (data,)):
        if isinstance(item, (str, os.PathLike)):
            roots.append(os.fspath(item))
        elif hasattr(item, "__getitem__") and hasattr(item, "__len__"):
            roots.append(str(write_images(item, folder / f"dataset-{number}", progress)))
        else:
            raise UserError(
                f"images are a path or a Dataset with a length, and not {type(item).__name__}"
            )
    return tuple(roots)


def write_images(dataset: Any, folder: Path, progress: Progress) -> Path:
    """Write every image as PNG, and labels, if there are any, as labels.csv; return `folder`.

    Items are images or (image, label). Images are PIL images, or uint8 tensors or arrays [H, W],
    [H, W, 3], [H, W, 1], [3, H, W] or [1, H, W]. Labels are integers, -1 for unlabelled;
    `dataset.classes` names them, if it exists. Transforms of the Dataset are applied once, here. A
    complete folder is not written again. Raises UserError for other items, and if the folder holds
    another Dataset.
    """
    kind, count = type(dataset).__qualname__, len(dataset)
    about = {"dataset": kind, "images": count}
    with files.locked(folder.with_suffix(".lock")):
        if (folder / MARKER).is_file():
            old = files.read_json(folder / MARKER, dict)
            if old != about:
                raise UserError(
                    f"{folder} holds {old.get('images')} images of {old.get('dataset')}, and"
                    f" not {count} of {kind}: choose another out"
                )
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        rows, size = [], 0
        classes = getattr(dataset, "classes", None)
        for i, (image, label) in enumerate(items(dataset)):
            name = f"{i:08}.png"
            buffer = io.BytesIO()
            as_image(image, i).save(buffer, "PNG", compress_level=1)
            (folder / name).write_bytes(buffer.getvalue())
            size += buffer.tell()
            if label is not None:
                rows.append((name, name_label(label, classes)))
            progress.of(f"writing images of {kind}")(i + 1, count)
        if rows:
            table = io.StringIO()
            writer = csv.writer(table, lineterminator="\n")
            writer.writerows([("path", "label"), *rows])
            files.write_text(folder / "labels.csv", table.getvalue())
        files.write_json(folder / MARKER, about)
    progress.say(
        f"{count_text(count, 'image')} of {kind} written to {folder}: {size / 1e6:,.1f} MB"
    )
    return folder


def items(dataset: Any) -> Iterator[tuple[Any, int | None]]:
    """Yield images and labels; the label is None if an item has none."""
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, (list, tuple)):
            yield item, None
            continue
        if len(item) != 2:
            raise UserError(f"item {i} has {len(item)} parts: give an image, or (image, label)")
        image, label = item
        if isinstance(label, torch.Tensor | np.ndarray | np.generic) and label.size in (1, ()):
            label = label.item()
        if isinstance(label, torch.Tensor) and label.numel() == 1:
            label = label.item()
        if not isinstance(label, int):
            raise UserError(f"the label of item {i} is not an integer, but {type(label).__name__}")
        yield image, label


def as_image(image: Any, i: int) -> Image.Image:
    """Convert item `i` of a Dataset to a PIL image in a mode that PNG stores."""
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "I"):
            raise UserError(f"image {i} is of mode {upright.mode}: give 8 bits a value")
        return upright if upright.mode in _MODES else upright.convert("RGB")
    if not isinstance(image, torch.Tensor | np.ndarray):
        raise UserError(f"item {i} is not an image, but {type(image).__name__}")
    values = np.asarray(image)
    if values.dtype != np.uint8:
        raise UserError(
            f"image {i} holds {values.dtype}: give uint8 in 0..255, before ToTensor and Normalize"
        )
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 and values.shape[2:] != (3,):
        raise UserError(
            f"image {i} has the shape {values.shape}: give [H, W], [H, W, 3] or [3, H, W]"
        )
    return Image.fromarray(np.ascontiguousarray(values))


def name_label(label: int, classes: Any) -> str:
    """The name of a label, or its number if it has none; empty for unlabelled images."""
    if label < 0:
        return ""
    named = classes is not None and label < len(classes)
    return str(classes[label]) if named else str(label)
