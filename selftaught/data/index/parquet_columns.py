"""The columns of a Parquet file beside the images: labels, names and splits.

Features that Hugging Face's `datasets` writes into the schema count first, then names and types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selftaught.data.parquet.file import Shard
from selftaught.data.pixel_range import PixelRange

ImageClasses = tuple[str, ...] | None  # the classes of an image; None: not known


@dataclass
class Rows:
    """The images of Parquet files, in columns."""

    paths: list[str] = field(default_factory=list)
    # the path below the packed folder, or a similar one
    names: list[str] = field(default_factory=list)
    pathless: set[int] = field(default_factory=set)  # rows without a path
    bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of the content
    # height, width after EXIF orientation
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    measurements: np.ndarray | None = None  # [n, 4], columns of `pixel_range`; None: all zero
    # row groups, numbered through all files
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    image_classes: list[ImageClasses] | None = None  # None: no column of labels
    classes: tuple[str, ...] = ()
    multi_label: bool = False  # whether images may have several classes
    reasons: dict[int, str] = field(default_factory=dict)  # of unreadable rows
    notes: list[str] = field(default_factory=list)
    # scale to 8 bits that the pack was made with
    pixel_range: PixelRange = PixelRange()

    def __len__(self) -> int:
        return len(self.paths)


def select_columns(shard: Shard) -> list[str]:
    """Return the small columns to read: paths of images, labels, sizes and split."""
    import pyarrow.types as kinds

    names = shard.schema.names
    label = next((name for name in ("label", "labels") if name in names), None)
    label = label or next((name for name in names if class_names(shard.features.get(name))), None)
    kind = shard.schema.field(shard.image).type
    path = (
        [f"{shard.image}.path"]
        if kinds.is_struct(kind) and kind.get_field_index("path") >= 0
        else []
    )
    extra = [name for name in ("height", "width", "split") if name in names]
    return [*path, *([label] if label else []), *extra]


def make_name(split: str | None, name: str | None, default: str) -> str:
    """Return the name of a row: its path, or `default`, below the folder of its split."""
    name = (name or default).replace("\\", "/").lstrip("/")
    return name if not split or name.split("/")[0].lower() == split.lower() else f"{split}/{name}"


def class_names(feature: Any) -> list[str]:
    """Return the names of a ClassLabel feature, or of a list of them."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    return list((feature or {}).get("names") or []) if isinstance(feature, dict) else []


def read_labels(
    columns: Mapping[str, Any], features: Mapping[str, Any], names: Sequence[str] = ()
) -> tuple[list[ImageClasses] | None, tuple[str, ...], bool]:
    """Return the classes of each image, all classes in order, and whether an image may have
    several.

    Numbers are places among `names`, else among those of the features. -1 and null are unknown.
    """
    import pyarrow.types as kinds

    other_columns = {"image", "name", "bytes", "height", "width", "group", "split"}
    label_column = next(
        (c for c in columns if c not in other_columns and not kinds.is_struct(columns[c].type)),
        None,
    )
    if label_column is None:
        return None, (), False
    column = columns[label_column]
    kind = column.type
    multi_label = kinds.is_list(kind) or kinds.is_large_list(kind)
    value_kind = kind.value_type if multi_label else kind
    if kinds.is_dictionary(value_kind):
        value_kind = value_kind.value_type
    if not (
        kinds.is_integer(value_kind)
        or kinds.is_boolean(value_kind)
        or kinds.is_string(value_kind)
        or kinds.is_large_string(value_kind)
    ):
        return None, (), False
    names = tuple(names or class_names(features.get(label_column)))
    # a million images share the strings and tuples of a few classes
    strings: dict[Any, str] = {}
    tuples: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def class_name(value: Any) -> str:
        if value not in strings:
            strings[value] = (
                names[value] if isinstance(value, int) and value < len(names) else str(value)
            )
        return strings[value]

    def classes_of(value: Any) -> ImageClasses:
        if value is None or (not multi_label and value == -1):
            return None
        values = tuple(value) if multi_label else (value,)
        if values not in tuples:
            tuples[values] = tuple(map(class_name, values))
        return tuples[values]

    return [classes_of(value) for value in column.to_pylist()], names, multi_label
