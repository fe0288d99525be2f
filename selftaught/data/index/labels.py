"""The class of every image, by its folder or by its store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selftaught.data.index.folder_names import is_part, plain_side, split_sides
from selftaught.data.index.layout import Layout
from selftaught.data.index.scan import Files, Root
from selftaught.errors import UserError
from selftaught.text import count_text, printable


def label(
    source: str, places: Sequence[Root], files: Files, layout: Layout, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels, [n] int64 or [n, C] int8 or None, -1 where an image has none, and the names of
    the classes.
    """
    if source == "none":
        return None, ()
    if source == "auto" and any(said is not None for said in files.said):
        return _told_labels(places, files, layout, notes)
    names, objection = _class_folders(files, layout, insisted=source == "folders")
    if source == "folders" and objection is not None:
        raise UserError(f"labels cannot be taken from folders: {objection}")
    if objection is None:
        _note_unlabelled(names, files, layout, notes)
        return _encoded([(name,) if name else None for name in names])
    if len(set(names)) > 1:
        notes.append(f"folders not taken as classes: {objection}")
    return None, ()


def _class_folders(
    files: Files, layout: Layout, insisted: bool = False
) -> tuple[list[str], str | None]:
    """The class folder of each image ("" for none), and what speaks against these as classes: where
    somebody has `insisted` on them, only that there are none.
    """
    known: dict[
        tuple[str, int], tuple[str, bool]
    ] = {}  # of a folder: its class, and whether a split lies below that
    names: list[str] = []
    for i, (name, depth) in enumerate(zip(files.names, layout.depth.tolist(), strict=True)):
        place = (name.rpartition("/")[0], depth)
        if depth < 0 or files.pathless[i]:
            names.append("")
            continue
        if place not in known:
            folders = place[0].split("/")[depth:] if place[0] else []
            known[place] = (folders[0] if folders else "", any(map(plain_side, folders[1:])))
        names.append(known[place][0])
    classes = sorted(set(names) - {""})
    taught = np.flatnonzero((layout.depth >= 0) & ~layout.test)
    loose = sum(not names[i] for i in taught)
    if "" in names and (len(classes) < 2 or 2 * loose > len(taught) or not len(taught)):
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
    if insisted:
        return names, None
    divided = all(split for name, split in known.values() if name)
    if layout.sets or divided or split_sides(classes) or all(map(is_part, classes)):
        parts = ", ".join(map(printable, classes[:4]))
        return (
            names,
            f"{parts} look like parts of a data set; name the one that is meant as the data",
        )
    held_out = {names[i] for i in np.flatnonzero(layout.test)} - {""}
    if (
        len(held_out) > 1
        and len(classes) > len(held_out) + 1
        and held_out.isdisjoint(names[i] for i in taught)
    ):
        return names, "the train and the test folders have none in common"
    if len(classes) > max(50, len(names) // 2):  # folders by day or by patient, say
        return names, f"{len(classes):,} folders for {len(names):,} images are too many"
    return names, None


def _note_unlabelled(names: Sequence[str], files: Files, layout: Layout, notes: list[str]) -> None:
    if missing := names.count(""):
        of, example = count_text(len(names), "image"), printable(files.paths[names.index("")])
        notes.append(
            f"{missing:,} of {of} lie in no class folder and have no label, for example {example}"
        )
    if layout.test.any() and not any(names[i] for i in np.flatnonzero(layout.test).tolist()):
        notes.append("no held-out image has a label: no accuracy can be measured on them")


def _told_labels(
    places: Sequence[Root], files: Files, layout: Layout, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """As the stores tell; of files beside them by their class folders."""
    found = list(files.said)
    if others := [i for i, root in enumerate(files.roots) if not places[root].is_store]:
        names, objection = _class_folders(files.chosen(others), layout.chosen(others))
        for i, name in zip(others, names, strict=True):
            found[i] = (name,) if objection is None and name else None
        if objection is not None:
            notes.append(f"folders not taken as classes: {objection}")
    if missing := found.count(None):
        notes.append(f"{missing:,} of {count_text(len(files), 'image')} have no label")
    return _encoded(found, files.classes, files.several)


def _encoded(
    names: Sequence[tuple[str, ...] | None], first: Sequence[str] = (), several: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers [n], or with `several` an image one 0/1 column a class [n, C]; -1 where nothing
    is known (None). The classes `first` are known, though there may be none of them; the others are
    sorted, whole numbers by size.
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
            rows[i, slice(None) if row is None else [number[name] for name in row]] = (
                -1 if row is None else 1
            )
    return rows, tuple(printable(name) for name in classes)
