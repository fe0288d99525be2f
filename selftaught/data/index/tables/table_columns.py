"""The content of each column of a label table: paths, classes, splits or something else.

Contents decide first, then the names of columns.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from selftaught.data.index.scan import is_image
from selftaught.data.index.tables.table_words import (
    CLASS_NAMES,
    ID_NAMES,
    MINUS_ONE,
    OTHER_NAMES,
    PATH_NAMES,
    SPLIT_NAMES,
    TEST_WORDS,
    TRAIN_WORDS,
    UNKNOWN,
    WEAK_CLASS_NAMES,
    YES_AND_NO,
)
from selftaught.errors import UserError

_LIST = re.compile(r"\[.*\]")
Classes = tuple[str, ...]  # of an image; () for an image of no class


@dataclass(frozen=True)
class Column:
    number: int
    name: str  # as the header has it
    cells: list[str]

    @cached_property
    def key(self) -> str:
        """The name in the spelling of `table_words`; "" without one, and for pandas' generated
        name.
        """
        return (
            ""
            if self.name.startswith("Unnamed:")
            else "".join(c for c in self.name.casefold() if c.isalnum())
        )

    @cached_property
    def values(self) -> set[str]:
        """The different cells, without unknown ones."""
        return set(self.cells) - UNKNOWN

    @cached_property
    def is_binary(self) -> bool:
        return _find_word_family(self.values) is not None

    @cached_property
    def names_files(self) -> bool:
        """Whether most cells end as image files do."""
        return 2 * sum(map(is_image, self.cells)) > len(self.cells)

    @cached_property
    def is_other(self) -> bool:
        """Whether its name means something other than classes."""
        return self.key in SPLIT_NAMES or (
            (self.key in OTHER_NAMES or self.key.endswith("id")) and not self.is_binary
        )

    @cached_property
    def has_too_many_values(self) -> bool:
        """Whether it has more values than classes have: measurements, captions or names."""
        return are_too_many(self.values, sum(cell not in UNKNOWN for cell in self.cells))

    @cached_property
    def numbers_rows(self) -> bool:
        """Whether it counts 0, 1, 2, ... or 1, 2, 3, ..."""
        first = self.cells[0]
        return (
            first in ("0", "1")
            and len(self.cells) > 2
            and all(c == str(i) for i, c in enumerate(self.cells, int(first)))
        )


def choose_path(columns: Sequence[Column], images: Sequence[int]) -> Column:
    """Return the column of paths. images: number of different images that each column names."""
    candidates = [(column, n) for column, n in zip(columns, images, strict=True) if n] or [
        (column, 0) for column in columns
    ]
    # Numbers of rows and of classes also fit 0.png, 1.png, ...
    candidates = [pair for pair in candidates if pair[0].names_files] or candidates
    candidates = [pair for pair in candidates if pair[0].key in PATH_NAMES] or candidates
    most = max(n for _, n in candidates)
    return min(
        (pair for pair in candidates if 2 * pair[1] >= most),
        key=lambda pair: (_path_rank(pair[0]), -pair[1]),
    )[0]


def _path_rank(column: Column) -> int:
    if column.key in CLASS_NAMES | WEAK_CLASS_NAMES:
        return 4
    if not column.key or column.numbers_rows:
        return 3
    return 1 if column.key in ID_NAMES else 2


def is_first_row(path: Column, names_image: bool) -> bool:
    """Whether the header is a row: its cell of the path column names an image as those below do."""
    return is_image(path.name) or (
        names_image and not path.names_files and path.key not in PATH_NAMES | ID_NAMES
    )


def choose_classes(columns: Sequence[Column], at: str) -> tuple[list[Column], bool]:
    """Return the column of classes, or several of yes and no, and whether it is the latter.

    columns: all but that of paths. Raises UserError for none, or for several candidates.
    """
    filled_columns = [
        column for column in columns if any(column.cells) and read_split([column]) is None
    ]
    if named_columns := [column for column in filled_columns if column.key in CLASS_NAMES]:
        return [_choose_clearest(named_columns)], False
    rest = [
        column for column in filled_columns if column.key and not column.numbers_rows
    ] or filled_columns
    useful = [column for column in rest if not column.is_other]
    rest = useful or [column for column in rest if column.key not in ID_NAMES | SPLIT_NAMES] or rest
    # a constant column holds no classes
    rest = [column for column in rest if len(column.values) > 1 or column.is_binary] or rest
    if len(rest) > 1 and not useful:
        raise UserError(f"{at}: several columns may be the class: name it `class`")
    if not rest:
        raise UserError(
            f"{at}: needs a column of classes beside the one of paths; add it, or take labels from"
            ' folders ("folders") or none ("none")'
        )
    binary = [column for column in rest if column.is_binary]
    if (
        len(binary) > 1
        and (rest[0] in binary or len(binary) > max(2, len(rest) / 2))
        and not _odd_columns(rest)
    ):
        return binary, True
    if odd_columns := _odd_columns(rest):
        raise UserError(
            f"{at}: a cell of column {odd_columns[0].name} is {_odd_cell(odd_columns[0])!r}, and"
            " columns of classes hold 0 and 1 only: correct it, or name the one column of classes"
            " `class`"
        )
    first = next(
        (c for c in rest if c.key in WEAK_CLASS_NAMES),
        next((c for c in rest if not c.has_too_many_values), rest[0]),
    )
    if (
        len(rest) > 1
        and first.key not in WEAK_CLASS_NAMES
        and any(_is_fraction(value) for value in first.values)
    ):
        raise UserError(f"{at}: several columns may be the class: name it `class`")
    return [first], False


def _choose_clearest(columns: list[Column]) -> Column:
    """Return the first column, or one of words where the first holds their numbers."""
    first = columns[0]
    if all(_parse_number(value) is not None for value in first.values):
        for other in columns[1:]:
            pairs = {
                pair
                for pair in zip(first.cells, other.cells, strict=True)
                if not set(pair) & UNKNOWN
            }
            if len(pairs) == len(first.values) == len(other.values) and other.values:
                return other
    return first


def _odd_columns(columns: Sequence[Column]) -> list[Column]:
    """Return the columns of yes and no with a few other cells; none where only one column is of
    this kind.
    """
    odd = [column for column in columns if _odd_cell(column) is not None]
    return odd if len(odd) + sum(column.is_binary for column in columns) > 1 else []


def _odd_cell(column: Column) -> str | None:
    """Return a cell that is neither yes nor no, of a column where nearly all others are."""
    counts = Counter(cell for cell in column.cells if cell not in UNKNOWN)
    odd = [value for value in counts if _find_word_family({value}) is None]
    return odd[0] if odd and 10 * sum(counts[value] for value in odd) <= counts.total() else None


def are_too_many(names: Collection[str], n: int) -> bool:
    """Whether there are more classes than `n` images can teach; the limit for numbers is lower."""
    if all(_parse_number(name) is not None for name in names):
        limit = 2 if any(_is_fraction(name) for name in names) else 10
        return len({normalize_number(name) for name in names}) > max(limit, n // 2)
    return len(names) > max(50, n // 2) or len(names) == n > 10


def read_flags(columns: Sequence[Column]) -> tuple[list[Classes | None], bool]:
    """Read columns of yes and no, one a class, as the classes of each row; None for an unclear row.

    Also returns whether no is written as an empty cell. That holds only where no cell of any column
    is a word for no. Where all cells are 1 and -1, -1 means no.
    """
    word_families = [
        _find_word_family(column.values) or (frozenset(), frozenset()) for column in columns
    ]
    cells = {cell for column in columns for cell in column.cells}
    has_no = any(
        _normalize_word(value) in no
        for column, (_, no) in zip(columns, word_families, strict=True)
        for value in column.values
    )
    minus_ones = cells & MINUS_ONE
    signed = bool(minus_ones) and not has_no and cells.isdisjoint(UNKNOWN - minus_ones)
    negative = minus_ones if signed else set() if has_no else {""}
    flags: list[dict[str, bool]] = []
    for column, (positive, _) in zip(columns, word_families, strict=True):
        words_by_cell = {cell: _normalize_word(cell) for cell in column.values}
        flags.append(
            {cell: word in positive for cell, word in words_by_cell.items()}
            | dict.fromkeys(negative, False)
        )
    rows: list[Classes | None] = []
    for cells_of_row in zip(*(column.cells for column in columns), strict=True):
        row = [flag.get(cell) for flag, cell in zip(flags, cells_of_row, strict=True)]
        names = tuple(column.name for column, yes in zip(columns, row, strict=True) if yes)
        rows.append(None if None in row else names)
    return rows, not has_no and not signed and "" in cells


def read_classes(column: Column) -> tuple[list[Classes | None], bool]:
    """Read a column of classes, or of several as `a|b` or Python's lists; also return which it is.

    1.0 is the class 1. An empty cell is no class in a column of several, else unknown.
    """
    values = column.values
    are_lists = bool(values) and all(_LIST.fullmatch(value) for value in values)
    if are_lists or any("|" in value for value in values):
        return [
            None if c in UNKNOWN - {""} else _split_list(c) if are_lists else _split_parts(c)
            for c in column.cells
        ], True
    minus_ones = set(column.cells) & MINUS_ONE
    numbers = all(_parse_number(value) is not None for value in values)
    # 1 and -1 are two classes
    signed = bool(minus_ones) and {normalize_number(value) for value in values} == {"1"}
    unknown = UNKNOWN - minus_ones if signed else UNKNOWN
    names = {cell: normalize_number(cell) if numbers else cell for cell in {*values, *minus_ones}}
    return [None if cell in unknown else (names[cell],) for cell in column.cells], False


def read_split(columns: Iterable[Column]) -> tuple[Column, list[bool]] | None:
    """Return the column of splits, and for each row whether it is held out (test or validation)."""
    for column in columns:
        values = {value.casefold() for value in column.values}
        if (
            column.key in SPLIT_NAMES
            and values & TRAIN_WORDS
            and values & TEST_WORDS
            and values <= TRAIN_WORDS | TEST_WORDS
        ):
            return column, [cell.casefold() in TEST_WORDS for cell in column.cells]
    return None


def is_one_hot(rows: Iterable[Classes | None]) -> bool:
    return all(row is None or len(row) == 1 for row in rows)


def normalize_number(value: str) -> str:
    """Return one spelling of a number: 1.0, 1,0 and 1 are one class."""
    number = _parse_number(value)
    return (
        str(int(number))
        if number is not None and number.is_integer() and not value.isdecimal()
        else value
    )


def _parse_number(value: str) -> float | None:
    """Parse a number with a point or a comma before its fraction; None for other text."""
    if (
        not value
        or not set(value) <= set("+-0123456789.,eE")
        or value[-1] in "eE+-"
        or value[0] in "eE"
    ):
        return None
    try:
        return float(value.replace(",", "."))
    except ValueError:
        return None


def _is_fraction(value: str) -> bool:
    number = _parse_number(value)
    return number is not None and not number.is_integer()


def _normalize_word(cell: str) -> str:
    """Return a cell in the spelling of `YES_AND_NO`."""
    return normalize_number(cell.casefold())


def _find_word_family(values: set[str]) -> tuple[frozenset[str], frozenset[str]] | None:
    """Return the words for yes and no that a column uses; None where it uses other words."""
    words = {_normalize_word(value) for value in values}
    return next(((yes, no) for yes, no in YES_AND_NO if words and words <= yes | no), None)


def _split_list(cell: str) -> Classes:
    """Return the names in a list of Python's syntax; none for an empty cell."""
    try:
        names = ast.literal_eval(cell) if cell else ()
    except (ValueError, SyntaxError):  # without quotation marks
        names = cell.strip("[]").split(",")
    return tuple(name for name in (str(name).strip() for name in names) if name)


def _split_parts(cell: str) -> Classes:
    return tuple(part for part in (part.strip() for part in cell.split("|")) if part)
