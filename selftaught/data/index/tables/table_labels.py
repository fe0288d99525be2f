"""The class of every image by tables: those that lie among the images, or one that the user
names.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selftaught.data.index.labels import _encoded
from selftaught.data.index.scan import Files, Root
from selftaught.data.index.tables.label_table import LabelTable, read_label_table
from selftaught.data.index.tables.nearest_tables import LABELS, nearest_tables
from selftaught.data.index.tables.table_columns import Classes, too_many
from selftaught.errors import UserError
from selftaught.text import count_text, printable


@dataclass(frozen=True)
class TableLabels:
    labels: np.ndarray | None  # as those of `labels.label`
    classes: tuple[str, ...]
    test: np.ndarray | None  # [n] bool, held out, where a column of the tables says so


def label_by_tables(
    source: str, places: Sequence[Root], files: Files, notes: list[str]
) -> TableLabels | None:
    """The labels by the table `source`, or for "auto" by those that lie among the images; None:
    there is no table.

    Raises UserError for a table that does not fit.
    """
    if source in ("folders", "none"):
        return None
    members: dict[Path, list[int]] = defaultdict(list)
    if source == "auto":
        for i, table in enumerate(nearest_tables(places, files, notes)):
            if table is not None:
                members[table].append(i)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            choices = '"auto", "folders", "none" or a CSV file'
            raise UserError(f"labels {source!r}: no such file; labels are {choices}")
        members[path] = list(range(len(files)))
    if not members:
        return None
    tables = [read_label_table(path, places, files, own) for path, own in members.items()]
    usual = {os.path.join(place.path, LABELS) for place in places}
    if len(tables) > 1 or (source == "auto" and str(tables[0].path) not in usual):
        read = [
            f"{printable(table.path)} ({count_text(len(table.labels), 'image')})"
            for table in tables
        ]
        notes.append(f"labels are read from {_first(read)}")
    covered = {i for own in members.values() for i in own}
    return join_tables(tables, files, covered, notes)


def join_tables(
    tables: Sequence[LabelTable], files: Files, covered: set[int], notes: list[str]
) -> TableLabels:
    """The labels that some tables give together. Images that no table is for (not `covered`) keep
    what their store says.
    """
    from_stores = {
        i: names for i, names in enumerate(files.said) if names is not None and i not in covered
    }
    rows: dict[int, Classes | None] = {**from_stores}
    for table in tables:
        rows |= table.labels
    names = _first([printable(table.path) for table in tables])
    missing = [path for i, path in enumerate(files.paths) if i not in rows]
    _refuse_no_labels(tables, rows, missing, names, len(files))
    notes += _notes_on_tables(tables, files)
    if missing:
        notes.append(
            f"{len(missing):,} of {count_text(len(files), 'image')} have no row in {names} and so"
            f" no label, for example {printable(missing[0])}"
        )
    if unused := sum(table.unused for table in tables):
        notes.append(f"{count_text(unused, 'row')} of {names} without an image")
    first = dict.fromkeys(files.classes if from_stores else ())
    first |= dict.fromkeys(name for table in tables for name in table.rows.columns)
    several = any(table.rows.several for table in tables) or (bool(from_stores) and files.several)
    labels, classes = _encoded([rows.get(i) for i in range(len(files))], list(first), several)
    test = _join_splits(tables, rows, len(files), notes)
    if several:
        return TableLabels(labels, classes, test)
    if len(classes) < 2:
        _refuse_empty_cells(tables, classes)
        notes.append(f"{names} names one class only, which is as good as no labels")
        return TableLabels(None, (), test)
    if too_many(classes, n := sum(row is not None for row in rows.values())):
        raise UserError(
            f"{names}: {len(classes):,} classes for {count_text(n, 'image')} are too many; leave"
            ' out what is no class (sizes, dates, captions), or take no labels ("none")'
        )
    return TableLabels(labels, classes, test)


def _first(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (
        f" and {len(names) - most:,} more" if len(names) > most else ""
    )


def _refuse_no_labels(
    tables: Sequence[LabelTable],
    rows: dict[int, Classes | None],
    missing: Sequence[str],
    names: str,
    n: int,
) -> None:
    if not rows:
        remedy = (
            'name each image by its path from the folder of the CSV, or take no labels ("none")'
        )
        if table := next((table for table in tables if table.claims.ambiguous), None):
            path = table.rows.paths[table.claims.ambiguous[0][0]]
            raise UserError(
                f"{names}: the same names lie in several folders, for example {printable(path)}:"
                f" {remedy}"
            )
        if not all(table.is_utf for table in tables):
            remedy = f"save it as UTF-8, which it is not, and {remedy}"
        raise UserError(
            f"not one of {count_text(n, 'image')} has a row in {names}, for example"
            f" {printable(missing[0])}: {remedy}"
        )
    if all(row is None for row in rows.values()):
        remedy = (
            "columns of 0 and 1 need a cell for every class"
            if tables[0].rows.columns
            else "write classes into it"
        )
        raise UserError(
            f'{names}: no image has a known class there; {remedy}, or take no labels ("none")'
        )


def _refuse_empty_cells(tables: Sequence[LabelTable], classes: Sequence[str]) -> None:
    """Empty cells beside a single class: are they another class, or unknown?"""
    for table in tables:
        if table.rows.empty is not None:
            line, path = table.rows.empty
            raise UserError(
                f"{printable(table.path)}, line {line}: no class for {printable(path)}, and all"
                f" others are {', '.join(classes)}: name two classes or more"
            )


def _join_splits(
    tables: Sequence[LabelTable], rows: dict[int, Classes | None], n: int, notes: list[str]
) -> np.ndarray | None:
    test = np.zeros(n, dtype=bool)
    for table in tables:
        if table.rows.test is not None:
            test[[image for image, row in table.claims.rows.items() if table.rows.test[row]]] = True
    if not test.any():
        return None
    if test.all() or all(rows.get(int(i)) is None for i in np.flatnonzero(test)):
        notes.append(
            "the tables' split is not used: it needs images to train on and labelled ones to"
            " test on"
        )
        return None
    return test


def _notes_on_tables(tables: Iterable[LabelTable], files: Files) -> list[str]:
    """Each note once, after the names of all tables that it is on."""
    notes: dict[str, list[str]] = defaultdict(list)
    for table in tables:
        own = list(table.rows.notes)
        if not table.is_utf:
            own.append(
                "not in UTF-8, so read as Windows-1252; save it as UTF-8 if letters are wrong"
            )
        if table.claims.by_name:
            own.append(
                f"{count_text(table.claims.by_name, 'image')} by file name, as the row has not all"
                " folders"
            )
        if images := table.claims.conflicts:
            example = printable(files.paths[images[0]])
            own.append(
                f"{count_text(len(images), 'image')} with rows of different classes, so not"
                f" labelled, for example {example}"
            )
        if rows := table.claims.ambiguous:
            both = " and ".join(printable(files.paths[i]) for i in rows[0][1][:2])
            own.append(
                f"{count_text(len(rows), 'row')} of one name and several images, so not used, for"
                f" example of {both}"
            )
        for note in own:
            notes[note].append(printable(table.path))
    return [f"{_first(names)}: {note}" for note, names in notes.items()]
