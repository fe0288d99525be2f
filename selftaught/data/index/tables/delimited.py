"""A table in a text file (CSV, TSV, JSON lines) as a header and rows, in any common dialect."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

from selftaught.data.index.scan import is_image
from selftaught.errors import UserError
from selftaught.text import printable

Records = list[tuple[int, list[str]]]  # line number and cells

WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_WORKBOOK_STARTS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_SEPARATORS = ",;\t| "
_HEAD = 1 << 16  # characters that the separator is chosen by
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, as its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TextTable:
    """Cells as text, without spaces around them. A row may be shorter than the header, but not
    longer.
    """

    header: list[str]
    rows: Records
    encoding: str
    line: int = 1  # of the header

    def columns(self) -> list[list[str]]:
        """Return the cells of each column; missing cells of short rows are empty."""
        width = range(len(self.header))
        columns = zip_longest(self.header, *(cells for _, cells in self.rows), fillvalue="")
        return [list(column[1:]) for _, column in zip(width, columns, strict=True)]

    def without_header(self) -> TextTable:
        """Return the same table where the first line is a row already."""
        names = [f"column {i + 1}" for i in range(len(self.header))]
        return replace(self, header=names, rows=[(self.line, self.header), *self.rows])


def read_table(path: Path, *, raw_names: bool = False) -> TextTable:
    """Read a CSV or JSON lines. Raises UserError with the line of the problem.

    raw_names: image names are not UTF-8, so invalid bytes of the table are kept as in the names.
    """
    at = printable(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{at} cannot be read: {error.strerror or error}") from None
    if path.suffix.lower() in WORKBOOKS or data.startswith(_WORKBOOK_STARTS):
        raise UserError(f"{at} is a spreadsheet's own file: save it as CSV, and give that")
    try:
        text, encoding = decode_text(data, raw_names)
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            records = split_json_lines(text)
        else:
            records = split_rows(text)
    except (UnicodeError, csv.Error, ValueError) as error:
        raise UserError(f"{at} cannot be read as a table: {error}") from None
    if len(records) < 2:
        raise UserError(f"{at}: needs a header and at least one row")
    header, rows = fit_rows(records)
    for line, cells in rows:
        if len(cells) > len(header):
            raise UserError(
                f"{at}, line {line}: {len(cells)} columns, but the header has {len(header)}"
            )
    return TextTable(header, rows, encoding, records[0][0])


def decode_text(data: bytes, raw_names: bool = False) -> tuple[str, str]:
    """Return the text and its encoding: by its byte-order mark, UTF-16, UTF-8, or Windows-1252 of
    Excel.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding), encoding
    if b"\0" in data[:_HEAD]:
        encoding = (
            "utf-16-le" if data[1:_HEAD:2].count(0) > data[0:_HEAD:2].count(0) else "utf-16-be"
        )
        return data.decode(encoding), encoding
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        if raw_names:
            return data.decode("utf-8", "surrogateescape"), "utf-8"
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:  # five bytes are undefined in it
        return data.decode("latin-1"), "latin-1"


def split_rows(text: str) -> Records:
    """Return the rows of a CSV that are not empty, the header first."""
    declaration = re.match(r"sep=(.)\s*?(\r\n|\r|\n)", text)  # Excel's declaration of the separator
    separator = declaration[1] if declaration else find_separator(text)
    try:
        records = _parse_records(text, separator, strict=True)
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise ValueError(
                "a quotation mark is not closed, and all below it became one cell"
            ) from None
        records = _parse_records(text, separator)
    return records[1:] if declaration else records


def find_separator(text: str) -> str:
    """Return the separator, of , ; tab | space, by which most rows have as many cells as the first.

    Of equal ones it is the one with more image names.
    """

    def agreement(separator: str) -> tuple[float, int]:
        try:
            head = [cells for _, cells in islice(_parse_records(text[:_HEAD], separator), 50)]
        except csv.Error:
            return 0.0, 0
        if not head or len(head[0]) < 2:
            return 0.0, 0
        agreement_share = sum(len(cells) == len(head[0]) for cells in head) / len(head)
        return agreement_share, sum(is_image(cell) for cells in head for cell in cells)

    return max(_SEPARATORS, key=agreement)  # the first of equal ones


def fit_rows(records: Records) -> tuple[list[str], Records]:
    """Return header and rows without empty cells beyond the header, and with a name for R's row
    numbers.
    """
    (_, header), *rows = records
    width = len(header)
    rows = [(line, cells[:width] + _strip_empty_cells(cells[width:])) for line, cells in rows]
    if all(len(cells) == width + 1 and cells[0].isdecimal() for _, cells in rows):
        header = ["", *header]
    return header, rows


def split_json_lines(text: str) -> Records:
    """Return JSON objects, one a line, as rows: a header of all keys, lists as `a|b`, null as empty
    cells.
    """
    objects = []
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                value = json.loads(content)
            except ValueError as error:
                raise ValueError(f"line {line}: {error}") from None
            if not isinstance(value, dict):
                raise ValueError(f"line {line}: no JSON object")
            objects.append((line, value))
    header = list(dict.fromkeys(key for _, value in objects for key in value))
    return [
        (0, header),
        *((line, [_json_cell(value.get(key)) for key in header]) for line, value in objects),
    ]


def _json_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
        return "|".join(str(part) for part in value)
    return str(value).strip() if isinstance(value, str | int | float) else json.dumps(value)


def _parse_records(text: str, separator: str, *, strict: bool = False) -> Records:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict
    )
    rows = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
    return [(line, cells) for line, cells in rows if any(cells)]


def _strip_empty_cells(cells: Sequence[str]) -> list[str]:
    """Return the cells without empty ones at the end."""
    stripped = list(cells)
    while stripped and not stripped[-1]:
        stripped.pop()
    return stripped
