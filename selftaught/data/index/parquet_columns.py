"""The columns of a Parquet file of images beside the images: which there are, and what they say of
labels, names, splits.

What Hugging Face's `datasets` notes in a file's schema is believed; without it, names and types
tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selftaught.data.parquet.file import Shard
from selftaught.data.pixel_range import PixelRange

Said = tuple[str, ...] | None  # the classes of an image; None: not known


@dataclass
class Rows:
    """The images of a store, in columns."""

    paths: list[str] = field(default_factory=list)
    # the path below the folder that was packed, or a like one
    names: list[str] = field(default_factory=list)
    pathless: set[int] = field(default_factory=set)  # whose name was made up, as the row has none
    bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of the content
    # height, width as shown
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    measured: np.ndarray | None = None  # the columns of `pixel_range` [n, 4]; None: all are usual
    # row groups, counted through the store
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    said: list[Said] | None = None  # None: the store has no labels
    classes: tuple[str, ...] = ()
    several: bool = False  # classes an image
    reasons: dict[int, str] = field(default_factory=dict)  # of those that cannot be read
    notes: list[str] = field(default_factory=list)
    # by which they were brought to 8 bits when they were packed
    pixel_range: PixelRange = PixelRange()

    def __len__(self) -> int:
        return len(self.paths)


def small(shard: Shard) -> list[str]:
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
    told = [name for name in ("height", "width", "split") if name in names]
    return [*path, *([label] if label else []), *told]


def named(split: str | None, name: str | None, otherwise: str) -> str:
    name = (name or otherwise).replace("\\", "/").lstrip("/")
    return name if not split or name.split("/")[0].lower() == split.lower() else f"{split}/{name}"


def class_names(feature: Any) -> list[str]:
    """The names of a ClassLabel, or of a list of them."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    return list((feature or {}).get("names") or []) if isinstance(feature, dict) else []


def labels(
    columns: Mapping[str, Any], features: Mapping[str, Any], names: Sequence[str] = ()
) -> tuple[list[Said] | None, tuple[str, ...], bool]:
    """What the column of labels says, image by image, the classes in their order, and whether an
    image may have several.

    Numbers are places among `names`, or those that the features give; -1 and null: not known.
    """
    import pyarrow.types as kinds

    told = {"image", "name", "bytes", "height", "width", "group", "split"}
    of = next((c for c in columns if c not in told and not kinds.is_struct(columns[c].type)), None)
    if of is None:
        return None, (), False
    column = columns[of]
    kind = column.type
    several = kinds.is_list(kind) or kinds.is_large_list(kind)
    inner = kind.value_type if several else kind
    if kinds.is_dictionary(inner):
        inner = inner.value_type
    if not (
        kinds.is_integer(inner)
        or kinds.is_boolean(inner)
        or kinds.is_string(inner)
        or kinds.is_large_string(inner)
    ):
        return None, (), False
    names = tuple(names or class_names(features.get(of)))
    once: dict[
        Any, str
    ] = {}  # a million images share the strings, and the tuples, of a few classes
    shared: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def said(value: Any) -> str:
        if value not in once:
            once[value] = (
                names[value] if isinstance(value, int) and value < len(names) else str(value)
            )
        return once[value]

    def row(value: Any) -> Said:
        if value is None or (not several and value == -1):
            return None
        values = tuple(value) if several else (value,)
        if values not in shared:
            shared[values] = tuple(map(said, values))
        return shared[values]

    return [row(value) for value in column.to_pylist()], names, several
