"""The class of every image, by its folder, by a table or by its store; over 200 lines as each has rules of its own."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selftaught.data.folder_names import is_part, plain_side, split_sides
from selftaught.data.layout import Layout
from selftaught.data.paths import counted, shown
from selftaught.data.scan import Files, Root, is_image
from selftaught.errors import UserError


def label(
    source: str, places: Sequence[Root], files: Files, layout: Layout, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels, [n] int64 or [n, C] int8 or None, -1 where an image has none, and the names of the classes."""
    if source == "none":
        return None, ()
    tables: list[Path] = []
    if source == "auto":
        inside = [Path(place.path) / "labels.csv" for place in places if not place.is_file]
        tables = [table for table in inside if table.is_file()]
    elif source != "folders":
        tables = [Path(source).expanduser()]
        if not tables[0].is_file():
            choices = '"auto", "folders", "none" or a CSV file'
            raise UserError(f"labels {source!r}: no such file; labels are {choices}")
    if tables:
        return _csv_labels(tables, files, notes)
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


def _class_folders(files: Files, layout: Layout, insisted: bool = False) -> tuple[list[str], str | None]:
    """The class folder of each image ("" for none), and what speaks against these as classes: where somebody has
    `insisted` on them, only that there are none.
    """
    known: dict[tuple[str, int], tuple[str, bool]] = {}  # of a folder: its class, and whether a split lies below that
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
        example = shown(files.paths[names.index("")])
        return names, f"{counted(names.count(''), 'image')} of {len(names):,} in no class folder, for example {example}"
    if len(classes) < 2:
        return names, f"all images are in one folder, {shown(classes[0])}"
    if insisted:
        return names, None
    divided = all(split for name, split in known.values() if name)
    if layout.sets or divided or split_sides(classes) or all(map(is_part, classes)):
        parts = ", ".join(map(shown, classes[:4]))
        return names, f"{parts} look like parts of a data set; name the one that is meant as the data"
    held_out = {names[i] for i in np.flatnonzero(layout.test)} - {""}
    if len(held_out) > 1 and len(classes) > len(held_out) + 1 and held_out.isdisjoint(names[i] for i in taught):
        return names, "the train and the test folders have none in common"
    if len(classes) > max(50, len(names) // 2):  # folders by day or by patient, say
        return names, f"{len(classes):,} folders for {len(names):,} images are too many"
    return names, None


def _note_unlabelled(names: Sequence[str], files: Files, layout: Layout, notes: list[str]) -> None:
    if missing := names.count(""):
        of, example = counted(len(names), "image"), shown(files.paths[names.index("")])
        notes.append(f"{missing:,} of {of} lie in no class folder and have no label, for example {example}")
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
        notes.append(f"{missing:,} of {counted(len(files), 'image')} have no label")
    return _encoded(found, files.classes, files.several)


def _csv_labels(tables: Sequence[Path], files: Files, notes: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    read = [Table(table) for table in tables]
    found: list[tuple[str, ...] | None] = []
    for path, name in zip(files.paths, files.names, strict=True):
        rows = (table.find(path, name) for table in read)
        found.append(next((row for row in rows if row is not None), None))
    names = ", ".join(shown(table) for table in tables)
    missing = [path for path, row in zip(files.paths, found, strict=True) if row is None]
    if len(missing) == len(files):
        raise UserError(
            f"not one of {counted(len(files), 'image')} has a row in {names}, for example {shown(missing[0])}: "
            'name each by its path from the folder of the CSV, or take no labels ("none")'
        )
    for table in read:
        notes += table.notes
    if missing:
        notes.append(
            f"{len(missing):,} of {counted(len(files), 'image')} have no row in {names} and so no label, for example "
            f"{shown(missing[0])}"
        )
    if (unused := sum(len(table.rows) for table in read) - len(found) + len(missing)) > 0:
        notes.append(f"{counted(unused, 'row')} of {names} without an image")
    columns = dict.fromkeys(name for table in read for name in table.columns)
    several = any(table.several for table in read)
    encoded, classes = _encoded(found, list(columns), several)
    if len(classes) < 2 and not several:
        notes.append(f"{names} names one class only, which is as good as no labels")
        return None, ()
    return encoded, classes


class Table:
    """A CSV of labels: a header; in the first column a path from the CSV's folder or from a root (with or without
    its suffix); in the second the class, or several as `a|b`; or else several columns of 0 and 1, one a class.
    """

    def __init__(self, path: Path) -> None:
        self.folder = os.path.dirname(os.path.abspath(path))
        self.notes: list[str] = []
        self.columns: list[str] = []  # of 0 and 1
        at = shown(path)
        header, body = _lines(path)
        if len(header) < 2:
            raise UserError(f"{at}: needs a header and two columns, the image's path and its class")
        if is_image(header[0]):
            raise UserError(f"{at}: has no header: its first line is {','.join(header)}")
        wide = len(header) > 2 and all(cell in ("0", "1") for _, cells in body for cell in cells[1:])
        if wide:
            self.columns = [name.strip() for name in header[1:]]
        elif len(header) > 2:
            self.notes.append(f"{at}: columns not used: {', '.join(header[2:])}")
        self.several = wide or any("|" in cells[1] for _, cells in body)
        self.rows: dict[str, tuple[str, ...]] = {}
        for line, cells in body:
            if wide:
                names = tuple(name for name, cell in zip(self.columns, cells[1:], strict=True) if cell == "1")
            else:
                names = tuple(name.strip() for name in cells[1].split("|") if name.strip())
            if not names and not self.several:
                raise UserError(f"{at}, line {line}: no class for {cells[0]}")
            if self.rows.setdefault(_key(cells[0]), names) != names:
                raise UserError(f"{at}, line {line}: {cells[0]} has another class further up")

    def find(self, path: str, name: str) -> tuple[str, ...] | None:
        """The row of the image at `path`, whose path below its root is `name`."""
        for candidate in (os.path.relpath(path, self.folder), name, path):
            for key in (_key(candidate), _key(os.path.splitext(candidate)[0])):
                if key in self.rows:
                    return self.rows[key]
        return None


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header's cells, and (line number, cells) for every row, all of the header's width."""
    try:
        data = path.read_bytes()
        # Spreadsheets write UTF-16 or a UTF-8 mark; names that are no UTF-8 stay what the file system calls them.
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = data.decode("utf-16") if utf16 else data.decode("utf-8-sig", "surrogateescape")
        first = text.split("\n", 1)[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{shown(path)} cannot be read as a CSV: {error}") from None
    if len(lines) < 2:
        raise UserError(f"{shown(path)}: needs a header and at least one row")
    (_, header), *body = lines
    for line, cells in body:
        if len(cells) != len(header):
            raise UserError(f"{shown(path)}, line {line}: {len(cells)} columns, but the header has {len(header)}")
    return header, body


def _key(path: str) -> str:
    """One spelling for a path: forward slashes, no ./, composed letters (macOS decomposes them in file names)."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")))


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
