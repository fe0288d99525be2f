"""The rows of Parquet files as images: of a pack by its index file, of others by their columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
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


def read_manifest(location: str) -> dict[str, Any] | None:
    """Return the manifest of a pack; None where there is no pack. Raises UserError for a damaged
    one.
    """
    file = filesystem.join_location(location, MANIFEST)
    try:
        content = json.loads(filesystem.fetch(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise read_error(printable(file), error) from None
    except (ValueError, RecursionError) as error:
        raise damage_error(printable(file), error, _ANEW) from None
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{printable(location)} was packed by another version of selftaught: take that one, or"
            " pack anew"
        )
    if not _is_manifest(content):
        raise damage_error(printable(file), "fields of a pack are missing or wrong", _ANEW)
    return content


def _is_manifest(content: Any) -> bool:
    """Whether it has every field that is read from it, with the right types."""
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
        "index": (dict, NoneType),
        "finished": bool,
    }
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name, ...), kind) for name, kind in kinds.items()
    ):
        return False
    return all(
        entry is None or _is_entry(entry) for entry in [*content["shards"], content["index"]]
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


def read_rows(
    location: str,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    cache_notes: list[str],
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """Return the rows of a pack, a Parquet file or a folder of these. Raises UserError for anything
    else.
    """
    row_cache.invalidate(location)
    single = location.endswith(".parquet")
    pack_manifest = None if single else read_manifest(location)
    if pack_manifest is not None:
        return _read_pack(location, pack_manifest)
    notes: list[str] = []
    try:
        parquet_files = (
            [] if single else hub.choose_set(location, filesystem.list_parquet(location), notes)
        )
        files = (
            [location]
            if single
            else [filesystem.join_location(location, file) for file in parquet_files]
        )
    except OSError:
        files = []
    if not files:
        raise UserError(
            f"{printable(location)}: no pack and no Parquet files; give a folder that holds some"
        )
    rows = huggingface.read_rows(files, cache, on_progress, cache_notes, max_pixels)
    rows.notes[:0] = notes
    return rows


def add_parquet_rows(
    places: Sequence[Root],
    files: Files,
    sizes: np.ndarray,
    measurements: np.ndarray,
    reasons: dict[int, str],
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    notes: list[str],
    cache_notes: list[str],
    max_pixels: int,
) -> tuple[Files, np.ndarray, np.ndarray, dict[int, str], PixelRange]:
    """Return files, sizes, measurements and reasons with all rows of Parquet files, sorted by name.

    Also returns the pixel range that packs among `places` were made with.
    """
    groups, locations, pixel_range = 0, set[str](), PixelRange()
    all_sizes, all_measurements = [sizes], [measurements]
    for root, place in enumerate(places):
        if not place.is_parquet or place.real in locations:
            continue
        locations.add(place.real)
        rows = read_rows(place.path, cache, on_progress, cache_notes, max_pixels)
        reasons = reasons | {len(files) + i: reason for i, reason in rows.reasons.items()}
        for i, path in enumerate(rows.paths):
            image_classes = rows.image_classes[i] if rows.image_classes else None
            group, digest = groups + int(rows.groups[i]), int(rows.digests[i])
            files.add(
                path,
                rows.names[i],
                root,
                int(rows.bytes[i]),
                0,
                group,
                image_classes,
                i in rows.pathless,
                digest,
            )
        groups += int(rows.groups[-1]) + 1 if len(rows) else 0
        files.classes = tuple(dict.fromkeys([*files.classes, *rows.classes]))
        files.multi_label = files.multi_label or rows.multi_label
        all_sizes.append(rows.sizes)
        all_measurements.append(
            np.zeros((len(rows), 4)) if rows.measurements is None else rows.measurements
        )
        pixel_range = pixel_range.fill_missing(rows.pixel_range)
        notes += rows.notes
    if not locations:
        return files, sizes, measurements, reasons, pixel_range
    order = sorted(range(len(files)), key=lambda i: (files.names[i], files.roots[i], i))
    position_of = {i: at for at, i in enumerate(order) if i in reasons}
    sizes, measurements = np.concatenate(all_sizes)[order], np.concatenate(all_measurements)[order]
    return (
        files.select(order),
        sizes,
        measurements,
        {at: reasons[i] for i, at in position_of.items()},
        pixel_range,
    )


def _read_pack(location: str, pack_manifest: dict[str, Any]) -> Rows:
    refuse_unfinished(location, pack_manifest)
    shards = pack_manifest["shards"]
    for entry in [] if filesystem.is_url(location) else [*shards, pack_manifest["index"]]:
        check_size(location, entry)
    index = huggingface.open_shard(
        filesystem.join_location(location, pack_manifest["index"]["file"])
    )
    names = index.schema.names
    table = index.read(range(index.metadata.num_row_groups), names)
    column = {name: table.column(name) for name in names}
    firsts = np.cumsum([0] + [entry["rows"] for entry in shards])
    if firsts[-1] != len(table):
        raise UserError(
            f"{printable(location)}: {MANIFEST} and its index differ; copy it again, or pack anew"
        )
    files = [filesystem.join_location(location, entry["file"]) for entry in shards]
    image_classes, classes, multi_label = parquet_columns.read_labels(
        column, {}, pack_manifest["classes"]
    )
    return Rows(
        paths=[
            f"{file}/{row}"
            for file, entry in zip(files, shards, strict=True)
            for row in range(entry["rows"])
        ],
        names=column["name"].to_pylist(),
        bytes=column["bytes"].to_numpy().astype(np.int64),
        digests=(
            np.concatenate([_row_digests(entry) for entry in shards])
            if shards
            else np.zeros(0, np.int64)
        ),
        sizes=np.stack([column["height"].to_numpy(), column["width"].to_numpy()], axis=1).astype(
            np.int64
        ),
        groups=column["group"].to_numpy().astype(np.int64),
        image_classes=image_classes,
        classes=classes,
        multi_label=multi_label,
        pixel_range=_pixel_range(location, pack_manifest),
    )


def _row_digests(entry: dict[str, Any]) -> np.ndarray:
    """Return a digest of each row of a shard, from the shard's digest in the manifest."""
    first = np.uint64(int(entry["sha256"][:16], 16))
    return (first + np.arange(entry["rows"], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(
        np.int64
    )


def _pixel_range(location: str, pack_manifest: dict[str, Any]) -> PixelRange:
    try:
        return (
            PixelRange.from_json(pack_manifest["pixel_range"])
            if "pixel_range" in pack_manifest
            else PixelRange()
        )
    except UserError as error:
        raise UserError(
            f"{printable(location)}: its {MANIFEST} is damaged ({error}); copy it again, or pack"
            " anew"
        ) from None


def refuse_unfinished(location: str, pack_manifest: dict[str, Any]) -> None:
    """Raise UserError for a pack that is not finished."""
    if not pack_manifest["finished"] or None in (*pack_manifest["shards"], pack_manifest["index"]):
        raise UserError(
            f"{printable(location)} is not finished: run the same `selftaught pack` again, which"
            " goes on with it"
        )


def check_size(location: str, entry: dict[str, Any]) -> None:
    """Raise UserError for a file of a pack that is missing or has another size."""
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
