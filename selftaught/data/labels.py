"""The class of every image, by its folder or by its store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selftaught.data.paths import counted, shown
from selftaught.data.scan import Files, Root
from selftaught.data.split import TEST_NAMES, TRAIN_NAMES
from selftaught.errors import UserError

_PART_NAMES = {"images", "image", "imgs", "masks", "mask", "annotations", "labels", "ground_truth"}


def label(
    source: str, places: Sequence[Root], files: Files, depth: np.ndarray, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels, [n] int64 or [n, C] int8 or None, -1 where an image has none, and the names of the classes."""
    if source == "none":
        return None, ()
    if source == "auto" and any(said is not None for said in files.said):
        return _told_labels(places, files, depth, notes)
    names, objection = _class_folders(files, depth)
    if source == "folders" and (len(set(names)) < 2 or "" in names):
        raise UserError(f"labels cannot be taken from folders: {objection}")
    if source == "folders" or objection is None:
        return _encoded([(name,) for name in names])
    if len(set(names)) > 1:
        notes.append(f"folders not taken as classes: {objection}")
    return None, ()


def _class_folders(files: Files, depth: np.ndarray) -> tuple[list[str], str | None]:
    """The first folder of each image below its split ("" for none), and what speaks against these as classes."""
    names, seconds = [], set()
    for name, skip in zip(files.names, depth, strict=True):
        folders = name.split("/")[skip:-1] if skip >= 0 else []
        names.append(folders[0] if folders else "")
        seconds.add(folders[1].lower() if len(folders) > 1 else "")
    classes = set(names) - {""}
    if loose := names.count(""):
        example = shown(files.paths[names.index("")])
        return names, f"{counted(loose, 'image')} of {len(names):,} in no class folder, for example {example}"
    if len(classes) < 2:
        return names, f"all images are in one folder, {shown(next(iter(classes)))}"
    if {name.lower() for name in classes} <= _PART_NAMES or seconds <= {*TRAIN_NAMES, *TEST_NAMES}:
        parts = ", ".join(shown(name) for name in sorted(classes)[:4])
        return names, f"{parts} look like parts of a data set; name the one that is meant as the data"
    if len(classes) > max(50, len(names) // 2):  # folders by day or by patient, say
        return names, f"{len(classes):,} folders for {len(names):,} images are too many"
    return names, None


def _told_labels(
    places: Sequence[Root], files: Files, depth: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """As the stores tell; of files beside them by their class folders."""
    found = list(files.said)
    if others := [i for i, root in enumerate(files.roots) if not places[root].is_store]:
        names, objection = _class_folders(files.chosen(others), depth[others])
        for i, name in zip(others, names, strict=True):
            found[i] = (name,) if objection is None else None
        if objection is not None:
            notes.append(f"folders not taken as classes: {objection}")
    if missing := found.count(None):
        notes.append(f"{missing:,} of {counted(len(files), 'image')} have no label")
    return _encoded(found, files.classes, files.several)


def _encoded(
    names: Sequence[tuple[str, ...] | None], first: Sequence[str] = (), several: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers [n], or with `several` an image one 0/1 column a class [n, C]; -1 where nothing is known (None).
    The classes `first` are known, though there may be none of them; the others are sorted, whole numbers by size.
    """
    seen = {name for row in names if row is not None for name in row}
    whole = all(name.isascii() and name.isdigit() for name in seen)
    rest = sorted(seen - set(first), key=lambda name: (int(name) if whole else 0, name))
    classes = [*first, *rest]
    number = {name: i for i, name in enumerate(classes)}
    if not several:
        rows = np.array([-1 if row is None else number[row[0]] for row in names], dtype=np.int64)
    else:
        rows = np.zeros((len(names), len(classes)), dtype=np.int8)
        for i, row in enumerate(names):
            rows[i, slice(None) if row is None else [number[name] for name in row]] = -1 if row is None else 1
    return rows, tuple(shown(name) for name in classes)
