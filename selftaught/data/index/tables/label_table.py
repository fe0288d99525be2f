"""The labels in one table, for the images that it applies to."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftaught.data.index.scan import Files, Root
from selftaught.data.index.tables.delimited import TextTable, read_table
from selftaught.data.index.tables.image_lookup import BY_NAME, Match, find_images, normalize_path
from selftaught.data.index.tables.table_columns import (
    Classes,
    Column,
    choose_classes,
    choose_path,
    is_first_row,
    is_one_hot,
    read_classes,
    read_flags,
    read_split,
)
from selftaught.data.index.tables.table_words import CLASS_NAMES, PATH_NAMES, UNKNOWN
from selftaught.errors import UserError
from selftaught.text import count_text, printable

# returns the images that paths in cells mean
Lookup = Callable[[Sequence[str]], list[Match]]
_SAMPLE = 200  # rows that the column of paths is chosen by
_DOUBTFUL = ("unknown", "unlabelled", "unlabeled")


@dataclass(frozen=True)
class Rows:
    """The rows of a table, R of them, each with a different path."""

    lines: list[int]  # R, in the file
    paths: list[str]  # R, as written
    classes: list[Classes | None]  # R; None: unknown
    test: list[bool] | None  # R, held out; None: no column of splits
    columns: list[str]  # of yes and no
    multi_label: bool  # whether images may have several classes
    nameless: int  # rows without a path
    empty: tuple[int, str] | None  # line and path of the first row with an empty cell for its class
    notes: list[str]


@dataclass(frozen=True)
class Claims:
    """Which images have a row, by their positions."""

    rows: dict[int, int]  # row by image
    conflicts: list[int]  # images with rows of different classes
    ambiguous: list[tuple[int, tuple[int, ...]]]  # rows that fit several images, and these
    by_name: int  # images whose row lacks some of their folders


@dataclass(frozen=True)
class LabelTable:
    """The labels in one table, for the images that it applies to."""

    path: Path
    encoding: str
    rows: Rows
    claims: Claims

    @property
    def labels(self) -> dict[int, Classes | None]:
        """The classes of each image with a row; None where they are unknown."""
        labels = {image: self.rows.classes[row] for image, row in self.claims.rows.items()}
        return labels | dict.fromkeys(self.claims.conflicts)

    @property
    def is_utf(self) -> bool:
        return self.encoding not in ("cp1252", "latin-1")

    @property
    def unused(self) -> int:
        """Number of rows without an image."""
        n_used = len(self.claims.rows) + len(self.claims.ambiguous)
        return len(self.rows.paths) + self.rows.nameless - n_used


def read_label_table(
    path: Path, places: Sequence[Root], files: Files, members: Sequence[int]
) -> LabelTable:
    """Read a table for the images at `members`. Raises UserError for one that does not fit.

    It has a column of paths, from its own folder or from a root. Classes are one column (several as
    `a|b`), or columns of yes and no, one a class.
    """
    at, folder = printable(path), os.path.dirname(os.path.abspath(path))

    def find(cells: Sequence[str]) -> list[Match]:
        return find_images(cells, folder, places, files, members)

    table = read_table(path, raw_names=any(_is_raw(files.names[i]) for i in members))
    if len(table.header) < 2:
        raise UserError(f"{at}: needs a header and two columns, the image's path and its class")
    fitted, number = choose_path_column(table, find)
    rows = read_rows(fitted, number, at)
    if fitted is not table:
        rows.notes.append("no header, so the first line is read as a row")
    return LabelTable(path, table.encoding, rows, claim_images(rows.classes, find(rows.paths)))


def choose_path_column(table: TextTable, find: Lookup) -> tuple[TextTable, int]:
    """Return the table, without header where its first line is a row, and the number of its path
    column.
    """
    columns = _columns(table)
    step = max(len(table.rows) // _SAMPLE, 1)
    image_counts, header_is_image = count_images(columns, slice(None, None, step), find)
    likely_counts = [
        n
        for column, n in zip(columns, image_counts, strict=True)
        if column.names_files or column.key in PATH_NAMES
    ]
    if step > 1 and not any(likely_counts):
        image_counts, header_is_image = count_images(columns, slice(None), find)
    path_column = choose_path(columns, image_counts)
    return (
        table.without_header()
        if is_first_row(path_column, header_is_image[path_column.number])
        else table
    ), path_column.number


def count_images(
    columns: Sequence[Column], sample: slice, find: Lookup
) -> tuple[list[int], list[bool]]:
    """Return how many images a sample of each column names, and whether its header names one.

    Columns of file names are tried first. The others are slow among many images.
    """
    counts, header_is_image = [0] * len(columns), [False] * len(columns)
    for names_files in (True, False):
        group = [column for column in columns if column.names_files == names_files]
        # A name in the header has no suffix where the names below have one.
        cells = [["" if names_files else column.name, *column.cells[sample]] for column in group]
        matches = iter(
            find([cell for column_cells in cells for cell in column_cells]) if cells else ()
        )
        for column, column_cells in zip(group, cells, strict=True):
            header_images, *row_images = [next(matches).images for _ in column_cells]
            counts[column.number] = len({*row_images} - {()})
            header_is_image[column.number] = bool(header_images)
        if any(counts):
            break
    return counts, header_is_image


def read_rows(table: TextTable, path: int, at: str) -> Rows:
    """Return the rows of a table whose column `path` names images.

    Raises UserError where two rows of one path differ.
    """
    columns = _columns(table)
    paths = columns.pop(path)
    class_columns, are_flags = choose_classes(columns, at)
    _refuse_bad_rows(table, [path, *(column.number for column in class_columns)], at)
    notes: list[str] = []
    if are_flags:
        classes, blank_is_no = read_flags(class_columns)
        multi_label = not is_one_hot(classes)
        if blank_is_no:
            notes.append("an empty cell means no, as no other cell does")
    else:
        classes, multi_label = read_classes(class_columns[0])
    split = read_split(columns)
    notes += _describe_columns(
        columns, class_columns, split[0] if split else None
    ) + _describe_classes(class_columns, classes)
    lines = [line for line, _ in table.rows]
    rows = _merge_rows(lines, paths.cells, classes, at)
    empty = [
        (lines[i], paths.cells[i])
        for i, cell in enumerate(class_columns[0].cells)
        if not cell and not are_flags
    ]
    return Rows(
        lines=[lines[i] for i in rows],
        paths=[paths.cells[i] for i in rows],
        classes=[classes[i] for i in rows],
        test=[split[1][i] for i in rows] if split else None,
        columns=[column.name for column in class_columns] if are_flags else [],
        multi_label=multi_label,
        nameless=paths.cells.count(""),
        empty=empty[0] if empty else None,
        notes=notes,
    )


def claim_images(classes: Sequence[Classes | None], matches: Sequence[Match]) -> Claims:
    """Assign each row to the one image that it means. Of several rows for an image an exact path
    wins.
    """
    claims: dict[int, list[int]] = defaultdict(list)
    ambiguous = []
    for row, match in enumerate(matches):
        if len(match.images) == 1:
            claims[match.images[0]].append(row)
        elif match.images:
            ambiguous.append((row, match.images))
    row_by_image, conflicts = {}, []
    for image, rows in claims.items():
        best = min(matches[row].closeness for row in rows)
        closest = [row for row in rows if best[1] > 0 or matches[row].closeness == best]
        labelled = [row for row in closest if classes[row] is not None]
        row_by_image[image] = (labelled or closest)[0]
        if len({frozenset(classes[row] or ()) for row in labelled}) > 1:
            conflicts.append(image)
    by_name = sum(matches[row].base == BY_NAME for row in row_by_image.values())
    return Claims(row_by_image, conflicts, ambiguous, by_name)


def _columns(table: TextTable) -> list[Column]:
    return [
        Column(i, name, cells)
        for i, (name, cells) in enumerate(zip(table.header, table.columns(), strict=True))
    ]


def _is_raw(name: str) -> bool:
    """Whether a file's name is not UTF-8."""
    return not name.isascii() and any("\udc80" <= c <= "\udcff" for c in name)


def _refuse_bad_rows(table: TextTable, columns: Sequence[int], at: str) -> None:
    for line, cells in table.rows:
        if len(cells) <= max(columns):
            raise UserError(
                f"{at}, line {line}: {len(cells)} columns, but the header has {len(table.header)}"
            )
        if any("\n" in cells[column] or "\r" in cells[column] for column in columns):
            raise UserError(
                f"{at}, line {line}: a cell of several lines; correct the quotation marks"
            )


def _merge_rows(
    lines: Sequence[int], paths: Sequence[str], classes: Sequence[Classes | None], at: str
) -> list[int]:
    """Return one row for each path, with known classes if there are any."""
    rows: dict[str, int] = {}
    for i, path in enumerate(paths):
        if not path:
            continue
        name = normalize_path(path)
        previous = classes[rows.setdefault(name, i)]
        if previous is None:
            rows[name] = i
        elif (classes_here := classes[i]) is not None and set(classes_here) != set(previous):
            raise UserError(
                f"{at}, line {lines[i]}: {printable(path)} has another class further up; keep one"
                " of the two"
            )
    return list(rows.values())


def _describe_columns(
    columns: Sequence[Column], class_columns: Sequence[Column], split: Column | None
) -> list[str]:
    numbers = {column.number for column in [*class_columns, *([split] if split else [])]}
    unused = [
        column.name
        for column in columns
        if column.number not in numbers and column.key and any(column.cells)
    ]
    if not unused:
        return []
    is_named = len(class_columns) > 1 or class_columns[0].key in CLASS_NAMES
    return [
        ("" if is_named else f"classes are those of column {class_columns[0].name}; ")
        + f"columns not used: {', '.join(unused)}"
    ]


def _describe_classes(
    class_columns: Sequence[Column], classes: Sequence[Classes | None]
) -> list[str]:
    notes = []
    if unknown := [i for i, row in enumerate(classes) if row is None]:
        cells = Counter(
            cell
            for i in unknown
            for cell in {column.cells[i] for column in class_columns} & UNKNOWN
        )
        words = ", ".join(cell or "empty" for cell, _ in cells.most_common(3))
        which = "an unclear cell" if len(class_columns) > 1 else "no class"
        notes.append(f"{count_text(len(unknown), 'row')} with {which} ({words}), so not labelled")
    if doubtful := sorted(
        {name for row in classes for name in row or () if name.casefold() in _DOUBTFUL}
    ):
        notes.append(
            f"{doubtful[0]} is taken as a class; leave the cells of images without a class empty"
        )
    if len(class_columns) == 1:
        minus = {name for row in classes for name in row or () if name.startswith("-")} & UNKNOWN
        notes += [
            f"{name} is taken as a class, as the only other one is 1" for name in sorted(minus)
        ]
    return notes
