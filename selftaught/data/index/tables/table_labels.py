"""Labels by tables: those among the images, or one that the user gives."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selftaught.data.index.labels import encode_labels
from selftaught.data.index.scan import Files, Root
from selftaught.data.index.tables.label_table import LabelTable, read_label_table
from selftaught.data.index.tables.nearest_tables import LABELS, nearest_tables
from selftaught.data.index.tables.table_columns import Classes, are_too_many
from selftaught.errors import UserError
from selftaught.text import count_text, printable


@dataclass(frozen=True)
class TableLabels:
    labels: np.ndarray | None  # as of `labels.assign_labels`
    classes: tuple[str, ...]
    test: np.ndarray | None  # [n] bool, held out; None: no column of splits


def label_by_tables(
    source: str, places: Sequence[Root], files: Files, notes: list[str]
) -> TableLabels | None:
    """Return labels by the table `source`, or for "auto" by those among the images; None without
    tables.

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
    tables = [
        read_label_table(path, places, files, positions) for path, positions in members.items()
    ]
    usual_paths = {os.path.join(place.path, LABELS) for place in places}
    if len(tables) > 1 or (source == "auto" and str(tables[0].path) not in usual_paths):
        descriptions = [
            f"{printable(table.path)} ({count_text(len(table.labels), 'image')})"
            for table in tables
        ]
        notes.append(f"labels are read from {_list_names(descriptions)}")
    covered = {i for positions in members.values() for i in positions}
    return join_tables(tables, files, covered, notes)


def join_tables(
    tables: Sequence[LabelTable], files: Files, covered: set[int], notes: list[str]
) -> TableLabels:
    """Join the labels of some tables. Images that no table applies to keep those of their Parquet
    file.
    """
    from_columns = {
        i: names
        for i, names in enumerate(files.image_classes)
        if names is not None and i not in covered
    }
    rows: dict[int, Classes | None] = {**from_columns}
    for table in tables:
        rows |= table.labels
    names = _list_names([printable(table.path) for table in tables])
    unlabelled = [path for i, path in enumerate(files.paths) if i not in rows]
    _refuse_no_labels(tables, rows, unlabelled, names, len(files))
    notes += _describe_tables(tables, files)
    if unlabelled:
        notes.append(
            f"{len(unlabelled):,} of {count_text(len(files), 'image')} have no row in {names} and"
            f" so no label, for example {printable(unlabelled[0])}"
        )
    if unused := sum(table.unused for table in tables):
        notes.append(f"{count_text(unused, 'row')} of {names} without an image")
    leading_classes = dict.fromkeys(files.classes if from_columns else ())
    leading_classes |= dict.fromkeys(name for table in tables for name in table.rows.columns)
    multi_label = any(table.rows.multi_label for table in tables) or (
        bool(from_columns) and files.multi_label
    )
    labels, classes = encode_labels(
        [rows.get(i) for i in range(len(files))], list(leading_classes), multi_label
    )
    test = _join_splits(tables, rows, len(files), notes)
    if multi_label:
        return TableLabels(labels, classes, test)
    if len(classes) < 2:
        _refuse_empty_cells(tables, classes)
        notes.append(f"{names} names one class only, which is as good as no labels")
        return TableLabels(None, (), test)
    if are_too_many(classes, n := sum(row is not None for row in rows.values())):
        raise UserError(
            f"{names}: {len(classes):,} classes for {count_text(n, 'image')} are too many; leave"
            ' out what is no class (sizes, dates, captions), or take no labels ("none")'
        )
    return TableLabels(labels, classes, test)


def _list_names(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (
        f" and {len(names) - limit:,} more" if len(names) > limit else ""
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
            f"none of {count_text(n, 'image')} has a row in {names}, for example"
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
    """Raise UserError for empty cells beside a single class: unknown, or another class."""
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


def _describe_tables(tables: Iterable[LabelTable], files: Files) -> list[str]:
    """Return each note once, after the names of all its tables."""
    notes: dict[str, list[str]] = defaultdict(list)
    for table in tables:
        table_notes = list(table.rows.notes)
        if not table.is_utf:
            table_notes.append(
                "not in UTF-8, so read as Windows-1252; save it as UTF-8 if letters are wrong"
            )
        if table.claims.by_name:
            table_notes.append(
                f"{count_text(table.claims.by_name, 'image')} by file name, as the row has not all"
                " folders"
            )
        if images := table.claims.conflicts:
            example = printable(files.paths[images[0]])
            table_notes.append(
                f"{count_text(len(images), 'image')} with rows of different classes, so not"
                f" labelled, for example {example}"
            )
        if rows := table.claims.ambiguous:
            both = " and ".join(printable(files.paths[i]) for i in rows[0][1][:2])
            table_notes.append(
                f"{count_text(len(rows), 'row')} of one name and several images, so not used, for"
                f" example of {both}"
            )
        for note in table_notes:
            notes[note].append(printable(table.path))
    return [f"{_list_names(names)}: {note}" for note, names in notes.items()]
