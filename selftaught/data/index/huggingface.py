"""Parquet files of images that others wrote, those of a Hugging Face dataset say, read as they are.

The small columns are read at once; where they tell no height and width, every image is decoded once
and the verdict remembered, as it is for files.
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
from selftaught.data.index.file_checks import FileChecks, digest, larger
from selftaught.data.index.parquet_columns import Rows
from selftaught.data.io import filesystem
from selftaught.data.io.integrity import MAX_PIXELS, Unreadable
from selftaught.data.io.parallel import run_parallel
from selftaught.data.io.source import read_bytes
from selftaught.data.parquet import row_cache, row_groups
from selftaught.data.parquet.file import Shard
from selftaught.errors import UserError
from selftaught.text import printable


def rows_of(
    files: Sequence[str],
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    forgotten: list[str],
    max_pixels: int = MAX_PIXELS,
) -> Rows:
    """The rows of some files; a column `split`, the name of a file or that of its folder is the
    split of its images.
    """
    shards: list[Shard] = [None] * len(files)  # type: ignore[list-item]
    tables: list[Any] = [None] * len(files)

    def read(i: int) -> None:
        shards[i] = shard = opened(files[i])
        if shard.image is None:
            known = ", ".join(shard.schema.names)
            raise UserError(
                f"{printable(files[i])} has no images: none of its columns ({known}) holds a file's"
                " bytes"
            )
        try:
            tables[i] = shard.read(
                range(shard.metadata.num_row_groups), parquet_columns.small(shard)
            )
        except Unreadable as error:
            raise UserError(
                f"{printable(files[i])} cannot be read ({error}): copy it again"
            ) from None

    run_parallel(len(files), read, threads=8)
    rows, unused = Rows(), set[str]()
    splits = hub.splits_of(files)
    group = 0
    for shard, table, split in zip(shards, tables, splits, strict=True):
        n, stem = len(shard), filesystem.location_name(shard.location).removesuffix(".parquet")
        names = [None] * n
        if shard.image in table.column_names:
            names = table.column(shard.image).combine_chunks().flatten()[0].to_pylist()
        given = table.column("split").to_pylist() if "split" in table.column_names else [split] * n
        rows.pathless |= {len(rows.names) + row for row, name in enumerate(names) if not name}
        rows.names += [
            parquet_columns.named(part, name, f"{stem}/{row:06}")
            for row, (part, name) in enumerate(zip(given, names, strict=True))
        ]
        rows.paths += [f"{shard.location}/{row}" for row in range(n)]
        rows.groups = np.append(
            rows.groups, group + np.searchsorted(shard.ends, np.arange(n), side="right")
        )
        group += len(shard.ends)
        said, classes, several = parquet_columns.labels(
            {c: table.column(c) for c in table.column_names}, shard.features
        )
        if said is not None or rows.said is not None:
            rows.said = [*(rows.said or [None] * (len(rows) - n)), *(said or [None] * n)]
        rows.classes, rows.several = (
            tuple(dict.fromkeys([*rows.classes, *classes])),
            rows.several or several,
        )
        unused |= {
            c for c in shard.schema.names if c not in {shard.image, *table.column_names, "mask"}
        }
    own = hub.own_names(files)
    _tell_apart(
        rows.names, [(own[i], row) for i, shard in enumerate(shards) for row in range(len(shard))]
    )
    if unused:
        rows.notes.append(f"columns not used: {', '.join(sorted(unused))}")
    _measure(rows, shards, tables, cache, on_progress, forgotten, max_pixels)
    largest = int(np.bincount(rows.groups, weights=rows.bytes).max()) if len(rows) else 0
    if rows.bytes.sum() > row_groups.CACHE and largest > row_groups.WINDOW // 16:
        rows.notes.append(
            f"row groups of {largest >> 20:,} MB are too large to be shuffled well: `selftaught"
            " pack` makes small ones"
        )
    return rows


def _tell_apart(names: list[str], places: Sequence[tuple[str, int]]) -> None:
    """Gives rows of one name names of their own, by the file and the row: what is held out is drawn
    by names.
    """
    often = Counter(names)
    for i, (name, (file, row)) in enumerate(zip(names, places, strict=True)):
        if often[name] > 1:
            folder, slash, base = name.rpartition("/")
            names[i] = f"{folder}{slash}{file}.{row:06}.{base}"


def opened(location: str) -> Shard:
    """A Parquet file; raises UserError where there is none, or one that is damaged."""
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
    forgotten: list[str],
    max_pixels: int,
) -> None:
    """Heights, widths, bytes, digests and unusual values: as told, as remembered, or by decoding.
    `rows` is filled in.
    """
    rows.digests = np.zeros(len(rows), dtype=np.int64)
    # as in `FileChecks`: bytes, a stamp of the file, height, width
    numbers = np.zeros((len(rows), 4), dtype=np.int64)
    measured = np.zeros((len(rows), 4))
    todo: list[int] = []
    first = 0
    spans = {}
    for shard, table in zip(shards, tables, strict=True):
        n, told = len(shard), {"height", "width"} <= set(table.column_names)
        here, stamp = slice(first, first + n), _number(f"{shard.size} {shard.stamp} {told}")
        spans[shard.location] = here
        known = FileChecks.load(cache, shard.location)
        numbers[here, 1] = stamp
        if len(known.rows) == n and bool((known.numbers[:, 1] == stamp).all()):
            numbers[here], measured[here], rows.digests[here] = (
                known.numbers,
                known.measured,
                known.digests,
            )
            rows.reasons |= {
                first + known.rows[name]: reason for name, reason in known.reasons.items()
            }
        else:
            todo += range(first, first + n)
            if told:
                numbers[here, 2] = table.column("height").to_numpy()
                numbers[here, 3] = table.column("width").to_numpy()
        first += n
    transient = set[int]()
    ahead = row_groups.ahead(len(rows), sum(shard.size for shard in shards))

    def one(j: int) -> None:
        i = todo[j]
        if j % ahead == 0:
            row_cache.prefetch(rows.paths[k] for k in todo[j : j + 2 * ahead])
        try:
            data = read_bytes(rows.paths[i])
            numbers[i, 0], rows.digests[i] = len(data), digest(data)
            if not numbers[i, 2:].all() or is_unusual(data):
                height, width, *measured[i] = measure(rows.paths[i], max_pixels)
                numbers[i, 2:] = height, width
        except Unreadable as error:
            rows.reasons[i] = str(error)
            if error.transient:
                transient.add(i)

    with quiet():
        run_parallel(len(todo), one, on_progress=on_progress)
    fresh = set(todo)
    for location, here in spans.items():
        inside = range(here.start, here.stop)
        if not fresh.isdisjoint(inside) and transient.isdisjoint(inside):
            said = {str(i - here.start): rows.reasons[i] for i in inside if i in rows.reasons}
            verdicts = FileChecks(
                map(str, range(len(inside))),
                numbers[here],
                measured[here],
                said,
                rows.digests[here],
            )
            verdicts.store(cache, location, forgotten)
    rows.reasons |= larger(numbers[:, 2:], max_pixels)
    rows.bytes, rows.sizes, rows.measured = numbers[:, 0], numbers[:, 2:], measured


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
