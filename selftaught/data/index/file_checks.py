"""One check of every image file, with results cached between indices."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL

from selftaught.data.decode import measure, quiet, refuse_larger
from selftaught.data.index.scan import Files, Root
from selftaught.data.io.cache_folder import write_cache_file
from selftaught.data.io.integrity import MAX_PIXELS, Unreadable
from selftaught.data.io.parallel import run_parallel
from selftaught.data.io.source import read_bytes

_FORMAT = 2  # of the cached checks


def check_files(
    places: Sequence[Root],
    files: Files,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    notes: list[str],
    max_pixels: int = MAX_PIXELS,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return heights and widths [n, 2], measurements [n, 4] and the reasons of unreadable files.

    Files are decoded unless the cache has them. Sizes of unreadable files are 0. The files' digests
    are filled in. The measurements are the columns of `pixel_range`; notes name a cache that is not
    writable.
    """
    numbers = np.zeros((len(files), 4), dtype=np.int64)  # as in `FileChecks`
    measurements = np.zeros((len(files), 4))
    numbers[:, 0], numbers[:, 1] = files.bytes, files.stamps
    reasons: dict[int, str] = {}
    members: dict[str, list[int]] = {place.folder: [] for place in places}
    for i, root in enumerate(files.roots):
        members[places[root].folder].append(i)
    cached = {folder: FileChecks.load(cache, folder) for folder in members}
    todo = []
    for folder, positions in members.items():
        for i in positions:
            cached_check = cached[folder].lookup(files.names[i], files.bytes[i], files.stamps[i])
            if cached_check is None:
                todo.append(i)
            elif isinstance(cached_check, str):
                reasons[i] = cached_check
            else:
                numbers[i, 2:], measurements[i] = cached_check
                files.digests[i] = cached[folder].lookup_digest(files.names[i])
    unchecked = set(todo)  # not to be cached

    def check_one(j: int) -> None:
        i = todo[j]
        try:
            height, width, *measurements[i] = measure(files.paths[i], max_pixels)
            numbers[i, 2:] = height, width
            files.digests[i] = compute_digest(read_bytes(files.paths[i]))
        except Unreadable as error:
            reasons[i] = str(error)
            if error.transient:
                return
        unchecked.remove(i)

    try:
        with quiet():
            run_parallel(len(todo), check_one, on_progress=on_progress)
    finally:  # results before Ctrl-C are cached, too
        # a root that is a file leaves out its neighbours
        complete = {place.folder for place in places if not place.is_file}
        for folder, positions in members.items():
            checked_positions = [i for i in positions if i not in unchecked]
            known_reasons = {files.names[i]: reasons[i] for i in checked_positions if i in reasons}
            digests = np.array([files.digests[i] for i in checked_positions], dtype=np.int64)
            checks = FileChecks(
                (files.names[i] for i in checked_positions),
                numbers[checked_positions],
                measurements[checked_positions],
                known_reasons,
                digests,
            )
            if folder not in complete:
                checks = checks.merge(cached[folder])
            if todo or len(checks.rows) != len(cached[folder].rows):
                checks.save(cache, folder, notes)
    reasons |= find_larger(numbers[:, 2:], max_pixels)
    return numbers[:, 2:], measurements, dict(sorted(reasons.items()))


def find_larger(sizes: np.ndarray, max_pixels: int) -> dict[int, str]:
    """Return the reason for each image of [height, width] that has more pixels than allowed."""
    reasons = {}
    for i in np.flatnonzero(sizes.prod(axis=1) > max_pixels).tolist():
        try:
            refuse_larger(int(sizes[i, 1]), int(sizes[i, 0]), max_pixels)
        except Unreadable as error:
            reasons[i] = str(error)
    return reasons


def compute_digest(data: bytes) -> int:
    """Return 64 bits of the sha256 of a file's content, equal for copies."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


class FileChecks:
    """Check results of the files of one folder, in an npz file of the cache.

    numbers: [n, 4] bytes, stamp, height, width. measurements: [n, 4] columns of `pixel_range`.
    digests: [n]. rows: row by name. reasons: by name, of unreadable files.

    The file is `<cache>/index/<hash of the real folder>.npz`. Readers and writers see an old or a
    new version of it. With any damage the images are decoded again.
    """

    def __init__(
        self,
        names: Iterable[str],
        numbers: np.ndarray,
        measurements: np.ndarray,
        reasons: dict[str, str],
        digests: np.ndarray,
    ) -> None:
        self.rows = {name: row for row, name in enumerate(names)}
        self.numbers = numbers
        self.measurements = measurements
        self.reasons = reasons
        self.digests = digests

    def lookup(
        self, name: str, size: int, stamp: int
    ) -> tuple[np.ndarray, np.ndarray] | str | None:
        """Return ([height, width], measurements), the reason of an unreadable file, or None if
        unknown.
        """
        row = self.rows.get(name)
        if row is None or self.numbers[row, 0] != size or self.numbers[row, 1] != stamp:
            return None
        return self.reasons.get(name) or (self.numbers[row, 2:], self.measurements[row])

    def lookup_digest(self, name: str) -> int:
        return int(self.digests[self.rows[name]])

    def merge(self, older: FileChecks) -> FileChecks:
        """Return these checks, and the older ones of all other files."""
        others = {name: row for name, row in older.rows.items() if name not in self.rows}
        other_reasons = {name: reason for name, reason in older.reasons.items() if name in others}
        rows = list(others.values())
        numbers, measurements, digests = (
            np.concatenate([own, others_array[rows]])
            for own, others_array in (
                (self.numbers, older.numbers),
                (self.measurements, older.measurements),
                (self.digests, older.digests),
            )
        )
        return FileChecks(
            [*self.rows, *others], numbers, measurements, self.reasons | other_reasons, digests
        )

    @staticmethod
    def _file(cache: Path, folder: str) -> Path:
        # A newer Pillow or a new format may read the same bytes differently.
        key = f"{_FORMAT}\0{PIL.__version__}\0{folder}"
        return cache / "index" / (hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".npz")

    @classmethod
    def load(cls, cache: Path | None, folder: str) -> FileChecks:
        if cache is not None:
            # A missing or damaged file counts as an empty one.
            with (
                contextlib.suppress(Exception),
                np.load(cls._file(cache, folder), allow_pickle=False) as arrays,
            ):
                names = arrays["names"].tobytes().split(b"\0")[:-1]
                measurements = np.zeros((len(names), 4))
                measurements[arrays["unusual"]] = arrays["measured"]
                reasons = json.loads(arrays["reasons"].tobytes())
                checks = cls(
                    map(os.fsdecode, names),
                    arrays["numbers"],
                    measurements,
                    reasons,
                    arrays["digests"],
                )
                shapes = (checks.numbers.shape, checks.digests.shape, len(checks.rows))
                if shapes == ((len(names), 4), (len(names),), len(names)):
                    return checks
        return cls(
            (), np.empty((0, 4), dtype=np.int64), np.empty((0, 4)), {}, np.empty(0, dtype=np.int64)
        )

    def save(self, cache: Path | None, folder: str, notes: list[str]) -> None:
        names = b"".join(os.fsencode(name) + b"\0" for name in self.rows)
        reasons = json.dumps(self.reasons).encode()
        # only few files have measurements
        unusual = np.flatnonzero(self.measurements.any(axis=1))

        def write(draft: Path) -> None:
            with draft.open("wb") as out:
                np.savez(
                    out,
                    numbers=self.numbers,
                    names=np.frombuffer(names, "u1"),
                    reasons=np.frombuffer(reasons, "u1"),
                    unusual=unusual,
                    measured=self.measurements[unusual],
                    digests=self.digests,
                )

        write_cache_file(cache and self._file(cache, folder), write, notes)
