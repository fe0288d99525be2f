"""A cache of whole indices, so that a million unchanged images load in a second."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from selftaught.data.index.scan import SUFFIXES, Scan
from selftaught.data.io.cache_folder import write_cache_file
from selftaught.data.io.filesystem import file_stamp
from selftaught.data.io.parallel import run_parallel
from selftaught.data.io.paths import Paths
from selftaught.data.pixel_range import PixelRange

MIN_IMAGES = 20_000  # smaller sets are scanned anew, which takes less than a second
CHUNK, THREADS = 1000, 16  # files in a row of one thread; threads, as a disk may be remote
# nanoseconds; a folder that changed more recently may change again with the same time stamp
MIN_AGE = 2_000_000_000
_FORMAT = 6  # of the cache file, and of the rules for labels by folders and tables

Fields = dict[str, Any]


def make_key(arguments: Sequence[object]) -> str:
    """Return the name of an index in the cache, from all arguments that it depends on."""
    return hashlib.sha256(
        repr((_FORMAT, PIL.__version__, SUFFIXES, *arguments)).encode()
    ).hexdigest()[:32]


@dataclass(frozen=True)
class CacheStamp:
    """The state that an index was made from: folders, tables and Parquet files.

    A folder's stamp shows files that were added, removed or renamed. Files with new contents are
    compared one by one.
    """

    folders: list[tuple[str, int]]  # every folder of the scan, and its stamp
    # tables, unreadable and Parquet files: path, size, stamp; -1: not there
    watched: list[tuple[str, int, int]]
    began: int  # start of the scan, in nanoseconds

    @classmethod
    def from_scan(cls, scan: Scan, other_files: Sequence[str], began: int) -> CacheStamp | None:
        """Return the stamp of a scan; None where changes may be invisible.

        These are Parquet files, links, unreadable places and folders that changed just before.
        """
        is_recent = began - scan.latest < MIN_AGE
        if (
            scan.links
            or scan.unreadable
            or is_recent
            or any(place.is_file or place.is_parquet for place in scan.places)
        ):
            return None
        return cls(
            scan.folders, [(path, *_stat(path)) for path in [*other_files, *scan.parquet]], began
        )

    def is_current(self) -> bool:
        """Whether all of it is unchanged on disk."""
        with contextlib.suppress(OSError):
            folders_equal = all(
                file_stamp(os.stat(path)) == previous for path, previous in self.folders
            )
            return folders_equal and all(
                _stat(path) == (size, previous) for path, size, previous in self.watched
            )
        return False


def _stat(path: str | bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, file_stamp(status)


def _unchanged(paths: Paths, file_stats: np.ndarray) -> bool:
    """Whether files have the sizes and stamps `file_stats` [N, 2]. Threads help on slow disks."""
    text, ends = paths.to_bytes()
    changed: list[bool] = []

    def compare(chunk: int) -> None:
        if changed:
            return
        first = chunk * CHUNK
        start = int(ends[first - 1]) if first else 0
        for end, previous in zip(
            ends[first : first + CHUNK].tolist(),
            file_stats[first : first + CHUNK].tolist(),
            strict=True,
        ):
            if list(_stat(text[start:end])) != previous:
                changed.append(True)
                return
            start = end

    run_parallel(-(-len(paths) // CHUNK), compare, threads=THREADS)
    return not changed


def save_index(
    cache: Path,
    name: str,
    fields: Fields,
    file_stats: np.ndarray,
    stamp: CacheStamp,
    notes: list[str],
) -> None:
    """Cache `fields` of an Index with size and stamp [N, 2] of its files; notes report failures."""
    arrays = {"sizes": fields["sizes"].numpy(), "looks": file_stats}
    for field in ("paths", "names"):
        text, ends = fields[field].to_bytes()
        arrays |= {f"{field} text": np.frombuffer(text, "u1"), f"{field} ends": ends}
    arrays["test"] = fields["test"].numpy()
    if fields["labels"] is not None:
        arrays["labels"] = fields["labels"].numpy()
    values = {
        field: fields[field]
        for field in ("classes", "split", "unreadable", "fingerprint", "listing", "notes")
    }
    values["pixel_range"] = (
        None if fields["pixel_range"] is None else fields["pixel_range"].to_json()
    )
    facts = json.dumps(
        {"plain": values, "folders": stamp.folders, "watched": stamp.watched, "began": stamp.began}
    )
    arrays["said"] = np.frombuffer(facts.encode("utf-8", "surrogateescape"), "u1")

    def write(draft: Path) -> None:
        with draft.open("wb") as out:
            # pyrefly: ignore[bad-argument-type]
            np.savez(out, **arrays)

    write_cache_file(_file(cache, name), write, notes)


def load_index(cache: Path, name: str) -> Fields | None:
    """Return the fields of an Index from the cache; None where it is missing or outdated."""
    # A missing or damaged file counts as an empty cache.
    with contextlib.suppress(Exception), np.load(_file(cache, name), allow_pickle=False) as arrays:
        facts = json.loads(arrays["said"].tobytes().decode("utf-8", "surrogateescape"))
        folders, watched = (
            [tuple(entry) for entry in facts[field]] for field in ("folders", "watched")
        )
        if not CacheStamp(folders, watched, facts["began"]).is_current():
            return None
        paths, names = (
            Paths.from_bytes(arrays[f"{field} text"].tobytes(), arrays[f"{field} ends"])
            for field in ("paths", "names")
        )
        if not _unchanged(paths, arrays["looks"]):
            return None
        fields: Fields = dict(facts["plain"])
        for field in ("classes", "notes"):
            fields[field] = tuple(fields[field])
        if fields["pixel_range"] is not None:
            fields["pixel_range"] = PixelRange.from_json(fields["pixel_range"])
        fields["unreadable"] = tuple((path, reason) for path, reason in fields["unreadable"])
        fields |= {"paths": paths, "names": names} | {
            field: torch.from_numpy(arrays[field]) for field in ("sizes", "test")
        }
        return fields | {
            "labels": torch.from_numpy(arrays["labels"]) if "labels" in arrays.files else None
        }
    return None


def _file(cache: Path, name: str) -> Path:
    return cache / "index" / f"{name}.whole.npz"
