"""The class of every image by a table: a CSV file beside the images, or one that the user names."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selftaught.data.labels import _encoded
from selftaught.data.paths import counted, shown
from selftaught.data.scan import Files, Root, is_image
from selftaught.errors import UserError


def label_by_tables(
    source: str, places: Sequence[Root], files: Files, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]] | None:
    """As `labels.label`; None where no table is asked for and none lies there."""
    if source in ("folders", "none"):
        return None
    if source == "auto":
        inside = [Path(place.path) / "labels.csv" for place in places if not place.is_file]
        tables = [table for table in inside if table.is_file()]
        return _csv_labels(tables, files, notes) if tables else None
    table = Path(source).expanduser()
    if not table.is_file():
        choices = '"auto", "folders", "none" or a CSV file'
        raise UserError(f"labels {source!r}: no such file; labels are {choices}")
    return _csv_labels([table], files, notes)


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
