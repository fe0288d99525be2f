"""The class of every image, by its folder or by a column of its Parquet file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selftaught.data.folder_names import is_set_part, plain_side, split_sides
from selftaught.data.index.layout import Layout
from selftaught.data.index.scan import Files, Root
from selftaught.errors import UserError
from selftaught.text import count_text, printable


def assign_labels(
    source: str, places: Sequence[Root], files: Files, layout: Layout, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the labels, [n] int64 or [n, C] int8 or None, and the names of the classes.

    -1 marks an image without a label. Raises UserError where `source` is "folders" and none fit.
    """
    if source == "none":
        return None, ()
    if source == "auto" and any(image_classes is not None for image_classes in files.image_classes):
        return _parquet_labels(places, files, layout, notes)
    names, objection = _class_folders(files, layout, required=source == "folders")
    if source == "folders" and objection is not None:
        raise UserError(f"labels cannot be taken from folders: {objection}")
    if objection is None:
        _note_unlabelled(names, files, layout, notes)
        return encode_labels([(name,) if name else None for name in names])
    if len(set(names)) > 1:
        notes.append(f"folders not taken as classes: {objection}")
    return None, ()


def _class_folders(
    files: Files, layout: Layout, required: bool = False
) -> tuple[list[str], str | None]:
    """Return the class folder of each image ("" for none), and an objection to these as classes.

    required: the user demands class folders, so that only their absence is an objection.
    """
    # by folder: its class, and whether a split lies below the class
    folder_classes: dict[tuple[str, int], tuple[str, bool]] = {}
    names: list[str] = []
    for i, (name, depth) in enumerate(zip(files.names, layout.depth.tolist(), strict=True)):
        key = (name.rpartition("/")[0], depth)
        if depth < 0 or files.pathless[i]:
            names.append("")
            continue
        if key not in folder_classes:
            folders = key[0].split("/")[depth:] if key[0] else []
            folder_classes[key] = (folders[0] if folders else "", any(map(plain_side, folders[1:])))
        names.append(folder_classes[key][0])
    classes = sorted(set(names) - {""})
    train_labelled = np.flatnonzero((layout.depth >= 0) & ~layout.test)
    unlabelled = sum(not names[i] for i in train_labelled)
    if "" in names and (
        len(classes) < 2 or 2 * unlabelled > len(train_labelled) or not len(train_labelled)
    ):
        example = printable(files.paths[names.index("")])
        return (
            names,
            (
                f"{count_text(names.count(''), 'image')} of {len(names):,} in no class folder, for"
                f" example {example}"
            ),
        )
    if len(classes) < 2:
        return names, f"all images are in one folder, {printable(classes[0])}"
    if required:
        return names, None
    all_split = all(has_split for name, has_split in folder_classes.values() if name)
    if layout.sets or all_split or split_sides(classes) or all(map(is_set_part, classes)):
        parts = ", ".join(map(printable, classes[:4]))
        return (
            names,
            f"{parts} look like parts of a data set; name the one that is meant as the data",
        )
    held_out = {names[i] for i in np.flatnonzero(layout.test)} - {""}
    if (
        len(held_out) > 1
        and len(classes) > len(held_out) + 1
        and held_out.isdisjoint(names[i] for i in train_labelled)
    ):
        return names, "the train and the test folders have none in common"
    if len(classes) > max(50, len(names) // 2):  # such as folders by day or by patient
        return names, f"{len(classes):,} folders for {len(names):,} images are too many"
    return names, None


def _note_unlabelled(names: Sequence[str], files: Files, layout: Layout, notes: list[str]) -> None:
    if missing := names.count(""):
        total, example = count_text(len(names), "image"), printable(files.paths[names.index("")])
        notes.append(
            f"{missing:,} of {total} lie in no class folder and have no label, for example"
            f" {example}"
        )
    if layout.test.any() and not any(names[i] for i in np.flatnonzero(layout.test).tolist()):
        notes.append("no held-out image has a label: no accuracy can be measured on them")


def _parquet_labels(
    places: Sequence[Root], files: Files, layout: Layout, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels from columns of Parquet files; of files beside these from their class
    folders.
    """
    image_classes = list(files.image_classes)
    if file_positions := [i for i, root in enumerate(files.roots) if not places[root].is_parquet]:
        names, objection = _class_folders(
            files.select(file_positions), layout.select(file_positions)
        )
        for i, name in zip(file_positions, names, strict=True):
            image_classes[i] = (name,) if objection is None and name else None
        if objection is not None:
            notes.append(f"folders not taken as classes: {objection}")
    if missing := image_classes.count(None):
        notes.append(f"{missing:,} of {count_text(len(files), 'image')} have no label")
    return encode_labels(image_classes, files.classes, files.multi_label)


def encode_labels(
    names: Sequence[tuple[str, ...] | None], leading: Sequence[str] = (), multi_label: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return class numbers [n], or with `multi_label` one 0/1 column a class [n, C]; -1 where
    unknown.

    leading: classes that come first, even without images. The others are sorted, whole numbers by
    size.
    """
    names_present = {name for row in names if row is not None for name in row}
    are_numbers = all(name.isascii() and name.isdigit() for name in names_present)
    rest = sorted(
        names_present - set(leading), key=lambda name: (int(name) if are_numbers else 0, name)
    )
    classes = [*leading, *rest]
    number = {name: i for i, name in enumerate(classes)}
    if not multi_label:
        rows = np.array([-1 if row is None else number[row[0]] for row in names], dtype=np.int64)
    else:
        rows = np.zeros((len(names), len(classes)), dtype=np.int8)
        for i, row in enumerate(names):
            rows[i, slice(None) if row is None else [number[name] for name in row]] = (
                -1 if row is None else 1
            )
    return rows, tuple(printable(name) for name in classes)
