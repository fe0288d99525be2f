"""A torch Dataset as a folder of images, so that all that works on folders works on it."""

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
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that PNG keeps as they are


def roots_of(data: Any, folder: Path, progress: Progress) -> tuple[str, ...]:
    """Paths of images: those that `data` holds, and of each Dataset in it a folder below `folder`
    with its images, written once as PNG.

    data: a path, a Dataset, or several of these. Raises UserError for anything else.
    """
    found: list[str] = []
    for number, one in enumerate(data if isinstance(data, list | tuple) else (data,)):
        if isinstance(one, str | os.PathLike):
            found.append(os.fspath(one))
        elif hasattr(one, "__getitem__") and hasattr(one, "__len__"):
            found.append(str(write_images(one, folder / f"dataset-{number}", progress)))
        else:
            raise UserError(
                f"images are a path or a Dataset with a length, and not {type(one).__name__}"
            )
    return tuple(found)


def write_images(dataset: Any, folder: Path, progress: Progress) -> Path:
    """Every image as a PNG, and labels, where there are some, as labels.csv; returns `folder`.

    Items are images or (image, label): PIL images, or uint8 tensors and arrays [H, W], [H, W, 3],
    [H, W, 1], [3, H, W] or [1, H, W]; labels are integers, -1 = unlabelled, named by
    `dataset.classes` where it has that. Transforms of the Dataset are applied once, here. What is
    written already is taken. Raises UserError for other items, and where the folder holds another
    Dataset.
    """
    kind, count = type(dataset).__qualname__, len(dataset)
    about = {"dataset": kind, "images": count}
    with files.locked(folder.with_suffix(".lock")):
        if (folder / MARKER).is_file():
            there = files.read_json(folder / MARKER, dict)
            if there != about:
                raise UserError(
                    f"{folder} holds {there.get('images')} images of {there.get('dataset')}, and"
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
    """Images and labels, None where there are none."""
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, tuple | list):
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
            raise UserError(f"the label of item {i} is no integer, but {type(label).__name__}")
        yield image, label


def as_image(image: Any, i: int) -> Image.Image:
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "I"):
            raise UserError(f"image {i} is of mode {upright.mode}: give 8 bits a value")
        return upright if upright.mode in _MODES else upright.convert("RGB")
    if not isinstance(image, torch.Tensor | np.ndarray):
        raise UserError(f"item {i} is no image, but {type(image).__name__}")
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
    if label < 0:
        return ""
    named = classes is not None and label < len(classes)
    return str(classes[label]) if named else str(label)
