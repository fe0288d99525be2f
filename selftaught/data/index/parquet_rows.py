"""What a store says of its images, in the order in which they lie: a pack by its index, other files
by their columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.data.index import hub, huggingface, parquet_columns
from selftaught.data.index.parquet_columns import Rows
from selftaught.data.index.scan import Files, Root
from selftaught.data.io import filesystem
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.data.parquet import row_cache
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError, damage_error, read_error
from selftaught.text import printable

MANIFEST = "pack.json"
FORMAT = 1  # of packs
_ANEW = "copy it again, or pack anew"


def manifest(location: str) -> dict[str, Any] | None:
    """What a pack says of itself; None: there is no pack. Raises UserError for one that is
    damaged.
    """
    file = filesystem.join_location(location, MANIFEST)
    try:
        written = json.loads(filesystem.fetch(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise read_error(printable(file), error) from None
    except (ValueError, RecursionError) as error:
        raise damage_error(printable(file), error, _ANEW) from None
    if isinstance(written, dict) and written.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{printable(location)} was packed by another version of selftaught: take that one, or"
            " pack anew"
        )
    if not _is_manifest(written):
        raise damage_error(printable(file), "it is not what a pack says of itself", _ANEW)
    return written


def _is_manifest(written: Any) -> bool:
    """Whether it has all that is read of it, of the right kinds."""
    kinds: dict[str, Any] = {
        "format": int,
        "settings": dict,
        "source": str,
        "images": int,
        "classes": list,
        "several": bool,
        "split": str,
        "masks": int,
        "shards": list,
        "index": dict | None,
        "finished": bool,
    }
    if not isinstance(written, dict) or not all(
        isinstance(written.get(name, ...), kind) for name, kind in kinds.items()
    ):
        return False
    return all(
        entry is None or _is_entry(entry) for entry in [*written["shards"], written["index"]]
    )


def _is_entry(entry: Any) -> bool:
    kinds = {"file": str, "rows": int, "bytes": int, "sha256": str}
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(name), kind) for name, kind in kinds.items()
    ):
        return False
    return re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None and entry[
        "file"
    ] == filesystem.location_name(entry["file"])


def of(
    location: str,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    forgotten: list[str],
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """The rows of a pack, of a Parquet file or of a folder of these. Raises UserError for what is
    none of them.
    """
    row_cache.invalidate(location)
    single = location.endswith(".parquet")
    written = None if single else manifest(location)
    if written is not None:
        return _of_pack(location, written)
    notes: list[str] = []
    try:
        below = [] if single else hub.choose_set(location, filesystem.list_parquet(location), notes)
        files = (
            [location] if single else [filesystem.join_location(location, file) for file in below]
        )
    except OSError:
        files = []
    if not files:
        raise UserError(
            f"{printable(location)}: neither a pack nor Parquet files are there; name a folder that"
            " holds some"
        )
    rows = huggingface.rows_of(files, cache, on_progress, forgotten, max_pixels)
    rows.notes[:0] = notes
    return rows


def join(
    places: Sequence[Root],
    files: Files,
    sizes: np.ndarray,
    measured: np.ndarray,
    reasons: dict[int, str],
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    notes: list[str],
    forgotten: list[str],
    max_pixels: int,
) -> tuple[Files, np.ndarray, np.ndarray, dict[int, str], PixelRange]:
    """`files`, their sizes, what was measured of them and what cannot be read, with the rows of all
    stores among `places`, sorted by name again; and the range by which those were packed.
    """
    groups, seen, all_sizes, all_measured, pixel_range = (
        0,
        set[str](),
        [sizes],
        [measured],
        PixelRange(),
    )
    for root, place in enumerate(places):
        if not place.is_store or place.real in seen:
            continue
        seen.add(place.real)
        rows = of(place.path, cache, on_progress, forgotten, max_pixels)
        reasons = reasons | {len(files) + i: reason for i, reason in rows.reasons.items()}
        for i, path in enumerate(rows.paths):
            said = rows.said[i] if rows.said else None
            group, digest = groups + int(rows.groups[i]), int(rows.digests[i])
            files.add(
                path,
                rows.names[i],
                root,
                int(rows.bytes[i]),
                0,
                group,
                said,
                i in rows.pathless,
                digest,
            )
        groups += int(rows.groups[-1]) + 1 if len(rows) else 0
        files.classes = tuple(dict.fromkeys([*files.classes, *rows.classes]))
        files.several = files.several or rows.several
        all_sizes.append(rows.sizes)
        all_measured.append(np.zeros((len(rows), 4)) if rows.measured is None else rows.measured)
        pixel_range = pixel_range.or_else(rows.pixel_range)
        notes += rows.notes
    if not seen:
        return files, sizes, measured, reasons, pixel_range
    order = sorted(range(len(files)), key=lambda i: (files.names[i], files.roots[i], i))
    place_of = {i: at for at, i in enumerate(order) if i in reasons}
    sizes, measured = np.concatenate(all_sizes)[order], np.concatenate(all_measured)[order]
    return (
        files.chosen(order),
        sizes,
        measured,
        {at: reasons[i] for i, at in place_of.items()},
        pixel_range,
    )


def _of_pack(location: str, written: dict[str, Any]) -> Rows:
    finished(location, written)
    shards = written["shards"]
    for entry in [] if filesystem.is_url(location) else [*shards, written["index"]]:
        check_size(location, entry)
    index = huggingface.opened(filesystem.join_location(location, written["index"]["file"]))
    names = index.schema.names
    table = index.read(range(index.metadata.num_row_groups), names)
    column = {name: table.column(name) for name in names}
    firsts = np.cumsum([0] + [entry["rows"] for entry in shards])
    if firsts[-1] != len(table):
        raise UserError(
            f"{printable(location)}: {MANIFEST} and its index differ; copy it again, or pack anew"
        )
    files = [filesystem.join_location(location, entry["file"]) for entry in shards]
    said, classes, several = parquet_columns.labels(column, {}, written["classes"])
    return Rows(
        paths=[
            f"{file}/{row}"
            for file, entry in zip(files, shards, strict=True)
            for row in range(entry["rows"])
        ],
        names=column["name"].to_pylist(),
        bytes=column["bytes"].to_numpy().astype(np.int64),
        digests=(
            np.concatenate([_digests(entry) for entry in shards])
            if shards
            else np.zeros(0, np.int64)
        ),
        sizes=np.stack([column["height"].to_numpy(), column["width"].to_numpy()], axis=1).astype(
            np.int64
        ),
        groups=column["group"].to_numpy().astype(np.int64),
        said=said,
        classes=classes,
        several=several,
        pixel_range=_pixel_range(location, written),
    )


def _digests(entry: dict[str, Any]) -> np.ndarray:
    """What names the content of each row of a shard, as the manifest knows the shard's."""
    whole = np.uint64(int(entry["sha256"][:16], 16))
    return (whole + np.arange(entry["rows"], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(
        np.int64
    )


def _pixel_range(location: str, written: dict[str, Any]) -> PixelRange:
    try:
        return (
            PixelRange.from_json(written["pixel_range"])
            if "pixel_range" in written
            else PixelRange()
        )
    except UserError as error:
        raise UserError(
            f"{printable(location)}: its {MANIFEST} is damaged ({error}); copy it again, or pack"
            " anew"
        ) from None


def finished(location: str, written: dict[str, Any]) -> None:
    """Refuses a pack that is not."""
    if not written["finished"] or None in (*written["shards"], written["index"]):
        raise UserError(
            f"{printable(location)} is not finished: run the same `selftaught pack` again, which"
            " goes on with it"
        )


def check_size(location: str, entry: dict[str, Any]) -> None:
    """Refuses a file of a pack that is missing or of another size, which costs nothing to see."""
    file = filesystem.join_location(location, entry["file"])
    try:
        size = filesystem.stat_file(file)[0]
    except FileNotFoundError:
        raise UserError(
            f"{printable(file)} is missing: copy it again, or run the same `selftaught pack` again"
        ) from None
    if size != entry["bytes"]:
        raise UserError(
            f"{printable(file)} is damaged: {size:,} bytes where {MANIFEST} says"
            f" {entry['bytes']:,}; copy it again, or delete it and run the same `selftaught pack`"
            " again"
        )
