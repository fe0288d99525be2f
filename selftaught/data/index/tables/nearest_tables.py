"""The label tables among the images: the nearest one above an image applies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from selftaught.data.index.scan import Files, Root
from selftaught.data.index.tables.delimited import WORKBOOKS, read_table
from selftaught.data.index.tables.table_columns import Column
from selftaught.data.index.tables.table_words import CLASS_NAMES
from selftaught.errors import UserError
from selftaught.text import list_reasons, printable

LABELS = "labels.csv"
METADATA = ("metadata.csv", "metadata.jsonl")  # of the Hugging Face hub


def find_tables(places: Sequence[Root], files: Files) -> list[str]:
    """Return every file that may hold labels, in a folder of images or above."""
    tables: list[str] = []

    @cache
    def visit(folder: str, root: str) -> None:
        tables.extend(os.path.join(folder, name) for name in _tables_in(folder))
        if folder != root:
            visit(os.path.dirname(folder), root)

    for place in _folders(places, files):
        if place is not None:
            visit(*place)
    return sorted(set(tables))


def nearest_tables(places: Sequence[Root], files: Files, notes: list[str]) -> list[Path | None]:
    """Return for each image the table in its folder, or in the next folder above, up to its root.

    A labels.csv comes before metadata. Metadata needs a column of classes.
    """
    ignored: list[tuple[str, str]] = []

    @cache
    def table_in(folder: str) -> Path | None:
        names = _tables_in(folder)
        for name in list(names):
            reason = (
                f"{names[0]} lies beside it" if name != names[0] else _objection(Path(folder, name))
            )
            if reason:
                ignored.append((printable(os.path.join(folder, name)), reason))
                names.remove(name)
        return Path(folder, names[0]) if names else None

    @cache
    def nearest(folder: str, root: str) -> Path | None:
        return table_in(folder) or (
            None if folder == root else nearest(os.path.dirname(folder), root)
        )

    tables = [None if place is None else nearest(*place) for place in _folders(places, files)]
    for place in places:
        for name in (f"labels{suffix}" for suffix in WORKBOOKS):
            if not place.is_file and os.path.isfile(path := os.path.join(place.path, name)):
                ignored.append((printable(path), f"a spreadsheet's own file: save it as {LABELS}"))
    if ignored:
        notes.append(f"not read for labels: {list_reasons(ignored)}")
    return tables


def _folders(places: Sequence[Root], files: Files) -> list[tuple[str, str] | None]:
    """Return for each image its folder and its root; None where the root is a file or a URL.

    For a row of a Parquet file both are the root.
    """
    folders: list[tuple[str, str] | None] = []
    for path, root in zip(files.paths, files.roots, strict=True):
        place = places[root]
        if place.is_file or "://" in place.path:
            folders.append(None)
        else:
            folders.append((place.path if place.is_parquet else os.path.dirname(path), place.path))
    return folders


def _tables_in(folder: str) -> list[str]:
    return [name for name in (LABELS, *METADATA) if os.path.isfile(os.path.join(folder, name))]


def _objection(path: Path) -> str:
    """Return why metadata holds no labels; "" if it does."""
    if path.name == LABELS:
        return ""
    try:
        table = read_table(path)
    except UserError as error:
        return str(error)
    has_classes = any(Column(i, name, []).key in CLASS_NAMES for i, name in enumerate(table.header))
    return "" if has_classes else "no column `label` or `class`"
