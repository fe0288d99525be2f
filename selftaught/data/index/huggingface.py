"""Images in Parquet files of other programs, such as those of a Hugging Face dataset.

Small columns are read at once. Without heights and widths every image is decoded once, and the
result is cached as for files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selftaught.data.decode import is_unusual, measure, quiet
from selftaught.data.index import hub, parquet_columns
from selftaught.data.index.file_checks import FileChecks, compute_digest, find_larger
from selftaught.data.index.parquet_columns import Rows
from selftaught.data.io import filesystem
from selftaught.data.io.integrity import MAX_PIXELS, Unreadable
from selftaught.data.io.parallel import run_parallel
from selftaught.data.io.source import read_bytes
from selftaught.data.parquet import row_cache, row_groups
from selftaught.data.parquet.file import Shard
from selftaught.errors import UserError
from selftaught.text import printable


def read_rows(
    files: Sequence[str],
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    cache_notes: list[str],
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """Return the rows of some files; a column, the file's name or its folder's name gives their
    split.

    Raises UserError for a file without images.
    """
    shards, tables = _read_small_columns(files)
    rows, unused = Rows(), set[str]()
    splits = hub.infer_splits(files)
    group = 0
    for shard, table, split in zip(shards, tables, splits, strict=True):
        n, stem = len(shard), filesystem.location_name(shard.location).removesuffix(".parquet")
        names = [None] * n
        if shard.image in table.column_names:
            names = table.column(shard.image).combine_chunks().flatten()[0].to_pylist()
        image_splits = (
            table.column("split").to_pylist() if "split" in table.column_names else [split] * n
        )
        rows.pathless |= {len(rows.names) + row for row, name in enumerate(names) if not name}
        rows.names += [
            parquet_columns.make_name(part, name, f"{stem}/{row:06}")
            for row, (part, name) in enumerate(zip(image_splits, names, strict=True))
        ]
        rows.paths += [f"{shard.location}/{row}" for row in range(n)]
        rows.groups = np.append(
            rows.groups, group + np.searchsorted(shard.ends, np.arange(n), side="right")
        )
        group += len(shard.ends)
        image_classes, classes, multi_label = parquet_columns.read_labels(
            {c: table.column(c) for c in table.column_names}, shard.features
        )
        if image_classes is not None or rows.image_classes is not None:
            rows.image_classes = [
                *(rows.image_classes or [None] * (len(rows) - n)),
                *(image_classes or [None] * n),
            ]
        rows.classes = tuple(dict.fromkeys([*rows.classes, *classes]))
        rows.multi_label = rows.multi_label or multi_label
        unused |= {
            c for c in shard.schema.names if c not in {shard.image, *table.column_names, "mask"}
        }
    unique_names = hub.make_unique_names(files)
    _make_names_unique(
        rows.names,
        [(unique_names[i], row) for i, shard in enumerate(shards) for row in range(len(shard))],
    )
    if unused:
        rows.notes.append(f"columns not used: {', '.join(sorted(unused))}")
    _measure(rows, shards, tables, cache, on_progress, cache_notes, max_pixels)
    largest = int(np.bincount(rows.groups, weights=rows.bytes).max()) if len(rows) else 0
    if rows.bytes.sum() > row_groups.CACHE and largest > row_groups.WINDOW // 16:
        rows.notes.append(
            f"row groups of {largest >> 20:,} MB are too large to be shuffled well: `selftaught"
            " pack` makes small ones"
        )
    return rows


def _read_small_columns(files: Sequence[str]) -> tuple[list[Shard], list[Any]]:
    """Open some files and read their small columns. Raises UserError for a file without images."""
    shards: list[Any] = [None] * len(files)
    tables: list[Any] = [None] * len(files)

    def read(i: int) -> None:
        shards[i] = shard = open_shard(files[i])
        if shard.image is None:
            columns = ", ".join(shard.schema.names)
            raise UserError(
                f"{printable(files[i])} has no images: none of its columns ({columns}) holds"
                " the bytes of files"
            )
        try:
            tables[i] = shard.read(
                range(shard.metadata.num_row_groups), parquet_columns.select_columns(shard)
            )
        except Unreadable as error:
            raise UserError(
                f"{printable(files[i])} cannot be read ({error}): copy it again"
            ) from None

    run_parallel(len(files), read, threads=8)
    return shards, tables


def _make_names_unique(names: list[str], places: Sequence[tuple[str, int]]) -> None:
    """Give rows of one name unique names by file and row, as the split is drawn by names."""
    counts = Counter(names)
    for i, (name, (file, row)) in enumerate(zip(names, places, strict=True)):
        if counts[name] > 1:
            folder, slash, base = name.rpartition("/")
            names[i] = f"{folder}{slash}{file}.{row:06}.{base}"


def open_shard(location: str) -> Shard:
    """Return a Parquet file; raise UserError where it is missing or damaged."""
    try:
        return row_cache.open_shard(location)
    except FileNotFoundError:
        raise UserError(f"{printable(location)}: no such file or folder") from None
    except Unreadable as error:
        raise UserError(f"{printable(location)} cannot be read ({error}): copy it again") from None


def _measure(
    rows: Rows,
    shards: Sequence[Shard],
    tables: Sequence[Any],
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    cache_notes: list[str],
    max_pixels: int,
) -> None:
    """Fill in heights, widths, bytes, digests and measurements: from columns, the cache or by
    decoding.
    """
    rows.digests = np.zeros(len(rows), dtype=np.int64)
    # as in `FileChecks`: bytes, a stamp of the file, height, width
    numbers = np.zeros((len(rows), 4), dtype=np.int64)
    measurements = np.zeros((len(rows), 4))
    todo: list[int] = []
    first = 0
    spans = {}
    for shard, table in zip(shards, tables, strict=True):
        n, has_sizes = len(shard), {"height", "width"} <= set(table.column_names)
        span = slice(first, first + n)
        stamp = _hash_number(f"{shard.size} {shard.stamp} {has_sizes}")
        spans[shard.location] = span
        cached = FileChecks.load(cache, shard.location)
        numbers[span, 1] = stamp
        if len(cached.rows) == n and bool((cached.numbers[:, 1] == stamp).all()):
            numbers[span], rows.digests[span] = cached.numbers, cached.digests
            measurements[span] = cached.measurements
            rows.reasons |= {
                first + cached.rows[name]: reason for name, reason in cached.reasons.items()
            }
        else:
            todo += range(first, first + n)
            if has_sizes:
                numbers[span, 2] = table.column("height").to_numpy()
                numbers[span, 3] = table.column("width").to_numpy()
        first += n
    transient = set[int]()
    ahead = row_groups.ahead(len(rows), sum(shard.size for shard in shards))

    def measure_row(j: int) -> None:
        i = todo[j]
        if j % ahead == 0:
            row_cache.prefetch(rows.paths[k] for k in todo[j : j + 2 * ahead])
        try:
            data = read_bytes(rows.paths[i])
            numbers[i, 0], rows.digests[i] = len(data), compute_digest(data)
            if not numbers[i, 2:].all() or is_unusual(data):
                height, width, *measurements[i] = measure(rows.paths[i], max_pixels)
                numbers[i, 2:] = height, width
        except Unreadable as error:
            rows.reasons[i] = str(error)
            if error.transient:
                transient.add(i)

    with quiet():
        run_parallel(len(todo), measure_row, on_progress=on_progress)
    decoded = set(todo)
    for location, span in spans.items():
        positions = range(span.start, span.stop)
        if not decoded.isdisjoint(positions) and transient.isdisjoint(positions):
            known_reasons = {
                str(i - span.start): rows.reasons[i] for i in positions if i in rows.reasons
            }
            checks = FileChecks(
                map(str, range(len(positions))),
                numbers[span],
                measurements[span],
                known_reasons,
                rows.digests[span],
            )
            checks.save(cache, location, cache_notes)
    rows.reasons |= find_larger(numbers[:, 2:], max_pixels)
    rows.bytes, rows.sizes, rows.measurements = numbers[:, 0], numbers[:, 2:], measurements


def _hash_number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
