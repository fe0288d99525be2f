"""The encoded bytes of an image: of a file, a URL or a row of a Parquet file."""

from pathlib import Path

from selftaught.data.io import integrity
from selftaught.data.io.row_path import RowAddress


def read_bytes(path: Path | str, column: str | None = None) -> bytes:
    """Return all bytes of an image; for a row those of another `column` of images ("mask"), too.

    Raises `Unreadable` where there are none, and UserError where a server fails.
    """
    address = RowAddress.parse(path)
    if address is None:
        return integrity.read_file(path)
    from selftaught.data.parquet import row_cache  # imports pyarrow

    return row_cache.read_row(address, column)
