"""A whole index remembered, so that a million images load in a second: unless something shows that
they have changed.
"""

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

LEAST = 20_000  # images; smaller sets are walked anew, which takes less than a second
# files that a thread looks at in a row; threads, as a disk may be far away
CHUNK, THREADS = (1000, 16)
# nanoseconds; a folder that changed so shortly ago may change again at the same time of its clock
RACE = 2_000_000_000
_FORMAT = 6  # of what is stored, and of the rules by which folders and tables give labels

Fields = dict[str, Any]


def key(question: Sequence[object]) -> str:
    """A name for an index from all that was asked for."""
    return hashlib.sha256(
        repr((_FORMAT, PIL.__version__, SUFFIXES, *question)).encode()
    ).hexdigest()[:32]


@dataclass(frozen=True)
class CacheStamp:
    """What an index was made from beside its images: if all of it is as it was, so is the index.

    A folder's stamp tells of files that came, went or were renamed, and not of those written anew
    in their place: these are looked at one by one.
    """

    folders: list[tuple[str, int]]  # every folder that was entered, and its stamp
    # tables, unreadable and Parquet files: path, size, stamp; -1: not there
    watched: list[tuple[str, int, int]]
    began: int  # when the scan did

    @classmethod
    def of(cls, scan: Scan, others: Sequence[str], began: int) -> CacheStamp | None:
        """None where it met what may change unseen: stores, links, places that cannot be read, a
        folder still changing.
        """
        restless = began - scan.latest < RACE
        if (
            scan.links
            or scan.unreadable
            or restless
            or any(place.is_file or place.is_store for place in scan.places)
        ):
            return None
        return cls(scan.folders, [(path, *_look(path)) for path in [*others, *scan.parquet]], began)

    def stands(self) -> bool:
        with contextlib.suppress(OSError):
            same = all(file_stamp(os.stat(path)) == was for path, was in self.folders)
            return same and all(_look(path) == (size, was) for path, size, was in self.watched)
        return False


def _look(path: str | bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, file_stamp(status)


def _unchanged(paths: Paths, looks: np.ndarray) -> bool:
    """Whether files have the sizes and stamps `looks` [N, 2]. Several threads ask, as a disk may be
    far away.
    """
    text, ends = paths.to_bytes()
    changed: list[bool] = []

    def look(chunk: int) -> None:
        if changed:
            return
        first = chunk * CHUNK
        start = int(ends[first - 1]) if first else 0
        for end, was in zip(
            ends[first : first + CHUNK].tolist(), looks[first : first + CHUNK].tolist(), strict=True
        ):
            if list(_look(text[start:end])) != was:
                changed.append(True)
                return
            start = end

    run_parallel(-(-len(paths) // CHUNK), look, threads=THREADS)
    return not changed


def store(
    cache: Path, name: str, fields: Fields, looks: np.ndarray, witness: CacheStamp, notes: list[str]
) -> None:
    """Remember `fields` of an Index, with size and stamp [N, 2] of its files; notes say where that
    cannot be.
    """
    arrays = {"sizes": fields["sizes"].numpy(), "looks": looks}
    for n in ("paths", "names"):
        text, ends = fields[n].to_bytes()
        arrays |= {f"{n} text": np.frombuffer(text, "u1"), f"{n} ends": ends}
    arrays["test"] = fields["test"].numpy()
    if fields["labels"] is not None:
        arrays["labels"] = fields["labels"].numpy()
    plain = {
        n: fields[n] for n in ("classes", "split", "unreadable", "fingerprint", "listing", "notes")
    }
    plain["pixel_range"] = (
        None if fields["pixel_range"] is None else fields["pixel_range"].to_json()
    )
    said = json.dumps(
        {
            "plain": plain,
            "folders": witness.folders,
            "watched": witness.watched,
            "began": witness.began,
        }
    )
    arrays["said"] = np.frombuffer(said.encode("utf-8", "surrogateescape"), "u1")

    def write(draft: Path) -> None:
        with draft.open("wb") as out:
            np.savez(out, **arrays)

    write_cache_file(_file(cache, name), write, notes)


def load(cache: Path, name: str) -> Fields | None:
    """The fields of an Index, if it was remembered and still stands."""
    # Missing, torn or overwritten by anything at all: as if it were not there.
    with contextlib.suppress(Exception), np.load(_file(cache, name), allow_pickle=False) as stored:
        said = json.loads(stored["said"].tobytes().decode("utf-8", "surrogateescape"))
        folders, watched = ([tuple(entry) for entry in said[n]] for n in ("folders", "watched"))
        if not CacheStamp(folders, watched, said["began"]).stands():
            return None
        paths, names = (
            Paths.from_bytes(stored[f"{n} text"].tobytes(), stored[f"{n} ends"])
            for n in ("paths", "names")
        )
        if not _unchanged(paths, stored["looks"]):
            return None
        fields: Fields = dict(said["plain"])
        for n in ("classes", "notes"):
            fields[n] = tuple(fields[n])
        if fields["pixel_range"] is not None:
            fields["pixel_range"] = PixelRange.from_json(fields["pixel_range"])
        fields["unreadable"] = tuple((path, reason) for path, reason in fields["unreadable"])
        fields |= {"paths": paths, "names": names} | {
            n: torch.from_numpy(stored[n]) for n in ("sizes", "test")
        }
        return fields | {
            "labels": torch.from_numpy(stored["labels"]) if "labels" in stored.files else None
        }
    return None


def _file(cache: Path, name: str) -> Path:
    return cache / "index" / f"{name}.whole.npz"
