"""What one table of labels says of the images that it is for. (Over 200 lines with the values that
it is read into.)
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftaught.data.index.scan import Files, Root
from selftaught.data.index.tables.delimited import TextTable, read_table
from selftaught.data.index.tables.image_lookup import BY_NAME, Match, find_images, spell
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

# of paths as cells have them, the images that they mean
Lookup = Callable[[Sequence[str]], list[Match]]
_SAMPLE = 200  # rows by which the column of paths is chosen
_DOUBTFUL = ("unknown", "unlabelled", "unlabeled")


@dataclass(frozen=True)
class Rows:
    """What the rows of a table say, R of them, each of a path of its own."""

    lines: list[int]  # R, in the file
    paths: list[str]  # R, as written
    classes: list[Classes | None]  # R; None: not known
    test: list[bool] | None  # R, held out, if a column says so
    columns: list[str]  # of yes and no
    several: bool  # classes an image
    nameless: int  # rows without a path
    empty: tuple[int, str] | None  # line and path of the first row with an empty cell for its class
    notes: list[str]


@dataclass(frozen=True)
class Claims:
    """Which images have a row, by their positions."""

    rows: dict[int, int]  # of each image its row
    conflicts: list[int]  # images with rows of different classes
    ambiguous: list[tuple[int, tuple[int, ...]]]  # rows that may mean several images, and these
    by_name: int  # images whose row leaves folders out


@dataclass(frozen=True)
class LabelTable:
    """What one table says of the images that it is for."""

    path: Path
    encoding: str
    rows: Rows
    claims: Claims

    @property
    def labels(self) -> dict[int, Classes | None]:
        """Of each image with a row its classes, or None where they are not known."""
        labels = {image: self.rows.classes[row] for image, row in self.claims.rows.items()}
        return labels | dict.fromkeys(self.claims.conflicts)

    @property
    def is_utf(self) -> bool:
        return self.encoding not in ("cp1252", "latin-1")

    @property
    def unused(self) -> int:
        """Rows that mean no image."""
        used = len(self.claims.rows) + len(self.claims.ambiguous)
        return len(self.rows.paths) + self.rows.nameless - used


def read_label_table(
    path: Path, places: Sequence[Root], files: Files, members: Sequence[int]
) -> LabelTable:
    """A table for the images at `members`: with a column of paths, from its own folder or from a
    root, and with a column of classes, or of several as `a|b`, or with columns of yes and no, one a
    class.
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
    """The table, as one without a header where its first line is a row, and the number of its
    column of paths.
    """
    columns = _columns(table)
    step = max(len(table.rows) // _SAMPLE, 1)
    images, first = count_images(columns, slice(None, None, step), find)
    likely = [
        n
        for column, n in zip(columns, images, strict=True)
        if column.names_files or column.key in PATH_NAMES
    ]
    if step > 1 and not any(likely):
        images, first = count_images(columns, slice(None), find)
    path = choose_path(columns, images)
    return (
        table.without_header() if is_first_row(path, first[path.number]) else table
    ), path.number


def count_images(
    columns: Sequence[Column], sample: slice, find: Lookup
) -> tuple[list[int], list[bool]]:
    """How many different images a sample of each column's cells names, and whether its name in the
    header names one.

    Where file names do, the other columns are not asked: among many images that takes time.
    """
    images, first = [0] * len(columns), [False] * len(columns)
    for names_files in (True, False):
        group = [column for column in columns if column.names_files == names_files]
        # A name in the header has no suffix where the names below have one.
        cells = [["" if names_files else column.name, *column.cells[sample]] for column in group]
        matches = iter(find([cell for own in cells for cell in own]) if cells else ())
        for column, own in zip(group, cells, strict=True):
            head, *rows = [next(matches).images for _ in own]
            images[column.number], first[column.number] = len({*rows} - {()}), bool(head)
        if any(images):
            break
    return images, first


def read_rows(table: TextTable, path: int, at: str) -> Rows:
    """The rows of a table whose column `path` names images. Raises UserError where two differ on
    one path.
    """
    columns = _columns(table)
    paths = columns.pop(path)
    chosen, are_flags = choose_classes(columns, at)
    _refuse_bad_rows(table, [path, *(column.number for column in chosen)], at)
    notes: list[str] = []
    if are_flags:
        classes, blank_is_no = read_flags(chosen)
        several = not is_one_hot(classes)
        if blank_is_no:
            notes.append("an empty cell means no, as nothing else there says no")
    else:
        classes, several = read_classes(chosen[0])
    split = read_split(columns)
    notes += _notes_on_columns(columns, chosen, split[0] if split else None) + _notes_on_classes(
        chosen, classes
    )
    lines = [line for line, _ in table.rows]
    rows = _different_rows(lines, paths.cells, classes, at)
    empty = [
        (lines[i], paths.cells[i])
        for i, cell in enumerate(chosen[0].cells)
        if not cell and not are_flags
    ]
    return Rows(
        lines=[lines[i] for i in rows],
        paths=[paths.cells[i] for i in rows],
        classes=[classes[i] for i in rows],
        test=[split[1][i] for i in rows] if split else None,
        columns=[column.name for column in chosen] if are_flags else [],
        several=several,
        nameless=paths.cells.count(""),
        empty=empty[0] if empty else None,
        notes=notes,
    )


def claim_images(classes: Sequence[Classes | None], matches: Sequence[Match]) -> Claims:
    """Gives each row to the one image that it means. Of several rows for an image an exact path
    counts first.
    """
    claims: dict[int, list[int]] = defaultdict(list)
    ambiguous = []
    for row, match in enumerate(matches):
        if len(match.images) == 1:
            claims[match.images[0]].append(row)
        elif match.images:
            ambiguous.append((row, match.images))
    chosen, conflicts = {}, []
    for image, rows in claims.items():
        best = min(matches[row].closeness for row in rows)
        closest = [row for row in rows if best[1] > 0 or matches[row].closeness == best]
        labelled = [row for row in closest if classes[row] is not None]
        chosen[image] = (labelled or closest)[0]
        if len({frozenset(classes[row] or ()) for row in labelled}) > 1:
            conflicts.append(image)
    by_name = sum(matches[row].base == BY_NAME for row in chosen.values())
    return Claims(chosen, conflicts, ambiguous, by_name)


def _columns(table: TextTable) -> list[Column]:
    return [
        Column(i, name, cells)
        for i, (name, cells) in enumerate(zip(table.header, table.columns(), strict=True))
    ]


def _is_raw(name: str) -> bool:
    """Whether a file's name is no UTF-8."""
    return not name.isascii() and any("\udc80" <= c <= "\udcff" for c in name)


def _refuse_bad_rows(table: TextTable, used: Sequence[int], at: str) -> None:
    for line, cells in table.rows:
        if len(cells) <= max(used):
            raise UserError(
                f"{at}, line {line}: {len(cells)} columns, but the header has {len(table.header)}"
            )
        if any("\n" in cells[column] or "\r" in cells[column] for column in used):
            raise UserError(
                f"{at}, line {line}: a cell of several lines; correct the quotation marks"
            )


def _different_rows(
    lines: Sequence[int], paths: Sequence[str], classes: Sequence[Classes | None], at: str
) -> list[int]:
    """One row for each path, one whose class is known if there is one."""
    rows: dict[str, int] = {}
    for i, path in enumerate(paths):
        if not path:
            continue
        name = spell(path)
        before = classes[rows.setdefault(name, i)]
        if before is None:
            rows[name] = i
        elif (own := classes[i]) is not None and set(own) != set(before):
            raise UserError(
                f"{at}, line {lines[i]}: {printable(path)} has another class further up; leave one"
                " of the two"
            )
    return list(rows.values())


def _notes_on_columns(
    columns: Sequence[Column], chosen: Sequence[Column], split: Column | None
) -> list[str]:
    used = {column.number for column in [*chosen, *([split] if split else [])]}
    unused = [
        column.name
        for column in columns
        if column.number not in used and column.key and any(column.cells)
    ]
    if not unused:
        return []
    named = len(chosen) > 1 or chosen[0].key in CLASS_NAMES
    return [
        ("" if named else f"classes are those of column {chosen[0].name}; ")
        + f"columns not used: {', '.join(unused)}"
    ]


def _notes_on_classes(chosen: Sequence[Column], classes: Sequence[Classes | None]) -> list[str]:
    notes = []
    if unknown := [i for i, row in enumerate(classes) if row is None]:
        cells = Counter(
            cell for i in unknown for cell in {column.cells[i] for column in chosen} & UNKNOWN
        )
        words = ", ".join(cell or "empty" for cell, _ in cells.most_common(3))
        which = "a cell that does not say" if len(chosen) > 1 else "no class"
        notes.append(f"{count_text(len(unknown), 'row')} with {which} ({words}), so not labelled")
    if doubtful := sorted(
        {name for row in classes for name in row or () if name.casefold() in _DOUBTFUL}
    ):
        notes.append(
            f"{doubtful[0]} is taken as a class; leave the cells of images without a class empty"
        )
    if len(chosen) == 1:
        minus = {name for row in classes for name in row or () if name.startswith("-")} & UNKNOWN
        notes += [
            f"{name} is taken as a class, as the only other one is 1" for name in sorted(minus)
        ]
    return notes
