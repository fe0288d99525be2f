"""The bytes of an image, wherever it lies: a file, an address, or a row of a Parquet file."""

from pathlib import Path

from selftaught.data.io import integrity
from selftaught.data.io.row_path import Place


def read_bytes(path: Path | str, column: str | None = None) -> bytes:
    """All bytes of an image; of a row also those of another `column` of images ("mask").

    Raises `Unreadable` where there are none to be had, and UserError where a server fails.
    """
    place = Place.of(path)
    if place is None:
        return integrity.read(path)
    from selftaught.data.parquet import row_cache  # for those who have Parquet files

    return row_cache.read_row(place, column)
