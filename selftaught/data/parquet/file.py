"""One Parquet file of images: its footer, its row groups and its column of images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from selftaught.data.io import filesystem
from selftaught.data.io.integrity import Unreadable
from selftaught.errors import UserError


class Shard:
    """One Parquet file. Its footer is read on construction, its row groups on request.

    Raises FileNotFoundError, and Unreadable where the bytes are not those of a Parquet file.
    """

    def __init__(self, location: str) -> None:
        parquet = filesystem.import_optional("pyarrow.parquet")
        self.location = location
        self.size, self.stamp = filesystem.stat_file(location)
        self.metadata = self._run_arrow(lambda: parquet.read_metadata(self._open_source()))
        self.schema = self.metadata.schema.to_arrow_schema()
        self.features = _read_features(self.schema)
        groups = range(self.metadata.num_row_groups)
        self.ends = np.cumsum([self.metadata.row_group(g).num_rows for g in groups], dtype=np.int64)
        self.image = _find_image_column(self.schema, self.features)

    def __len__(self) -> int:
        return int(self.metadata.num_rows)

    def locate_row(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and the row's place in it."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)

    def read_encoded(self, group: int, column: str) -> Any:
        """Return the encoded images of a column in one row group, as an Arrow array of binaries."""
        import pyarrow.types as kinds

        kind = self.schema.field(column).type
        table = self.read([group], [f"{column}.bytes" if kinds.is_struct(kind) else column])
        array = table.column(column).combine_chunks()
        return array.flatten()[0] if kinds.is_struct(kind) else array

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> Any:
        """Return an Arrow table of some columns of some row groups."""
        parquet = filesystem.import_optional("pyarrow.parquet")

        def table() -> Any:
            with parquet.ParquetFile(
                self._open_source(),
                metadata=self.metadata,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as file:
                return file.read_row_groups(list(groups), columns=list(columns), use_threads=False)

        return self._run_arrow(table)

    def _open_source(self) -> Any:
        return (
            _Remote(self.location, self.size) if filesystem.is_url(self.location) else self.location
        )

    def _run_arrow(self, work: Callable[[], Any]) -> Any:
        """Call `work`, with Arrow's errors as `Unreadable`."""
        try:
            return work()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise Unreadable(
                f"damaged: {filesystem.location_name(self.location)}: {reason}"
            ) from None


class _Remote(io.RawIOBase):
    """A remote file for Arrow, which fetches exactly the ranges that Arrow reads."""

    def __init__(self, location: str, size: int) -> None:
        self.location, self.size, self.at = location, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int | None = -1) -> bytes:
        end = self.size if size is None or size < 0 else min(self.at + size, self.size)
        data = filesystem.fetch(self.location, self.at, end) if end > self.at else b""
        self.at += len(data)
        return data


def _read_features(schema: Any) -> dict[str, Any]:
    """Return the features that Hugging Face's `datasets` writes into a schema; {} without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _find_image_column(schema: Any, features: dict[str, Any]) -> str | None:
    """Return the column of images: a struct with bytes, or binary with a type or name of images."""
    import pyarrow.types as kinds

    usual_names = ("image", "img", "jpg", "jpeg", "png", "webp")

    def is_image_column(field: Any) -> bool:
        if kinds.is_struct(field.type):
            return field.type.get_field_index("bytes") >= 0
        declared = (features.get(field.name) or {}).get(
            "_type"
        ) == "Image" or field.name in usual_names
        return declared and (kinds.is_binary(field.type) or kinds.is_large_binary(field.type))

    names = [field.name for field in schema if is_image_column(field)]
    return next((name for name in (*usual_names, *names) if name in names), None)
