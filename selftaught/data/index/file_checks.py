"""Checking every image file once, and remembering the verdicts between one index and the next."""

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

_FORMAT = 2  # of the remembered verdicts


def check(
    places: Sequence[Root],
    files: Files,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
    notes: list[str],
    max_pixels: int = MAX_PIXELS,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Heights and widths [n, 2] (zeros where unreadable), the columns of `pixel_range` [n, 4], and
    the reasons; by decoding what the cache does not know. The files' digests are filled in; notes
    say where the cache cannot be written.
    """
    numbers = np.zeros((len(files), 4), dtype=np.int64)  # as in `FileChecks`
    measured = np.zeros((len(files), 4))
    numbers[:, 0], numbers[:, 1] = files.bytes, files.changed
    reasons: dict[int, str] = {}
    members: dict[str, list[int]] = {place.folder: [] for place in places}
    for i, root in enumerate(files.roots):
        members[places[root].folder].append(i)
    known = {folder: FileChecks.load(cache, folder) for folder in members}
    todo = []
    for folder, inside in members.items():
        for i in inside:
            verdict = known[folder].of(files.names[i], files.bytes[i], files.changed[i])
            if verdict is None:
                todo.append(i)
            elif isinstance(verdict, str):
                reasons[i] = verdict
            else:
                numbers[i, 2:], measured[i] = verdict
                files.digests[i] = known[folder].digest(files.names[i])
    unsure = set(todo)  # not to be remembered

    def one(j: int) -> None:
        i = todo[j]
        try:
            height, width, *measured[i] = measure(files.paths[i], max_pixels)
            numbers[i, 2:] = height, width
            files.digests[i] = digest(read_bytes(files.paths[i]))
        except Unreadable as error:
            reasons[i] = str(error)
            if error.transient:
                return
        unsure.remove(i)

    try:
        with quiet():
            run_parallel(len(todo), one, on_progress=on_progress)
    finally:  # what was checked before Ctrl-C is remembered, too
        # a file says nothing of its neighbours
        whole = {place.folder for place in places if not place.is_file}
        for folder, inside in members.items():
            sure = [i for i in inside if i not in unsure]
            said = {files.names[i]: reasons[i] for i in sure if i in reasons}
            digests = np.array([files.digests[i] for i in sure], dtype=np.int64)
            verdicts = FileChecks(
                (files.names[i] for i in sure), numbers[sure], measured[sure], said, digests
            )
            if folder not in whole:
                verdicts = verdicts.beside(known[folder])
            if todo or len(verdicts.rows) != len(known[folder].rows):
                verdicts.store(cache, folder, notes)
    reasons |= larger(numbers[:, 2:], max_pixels)
    return numbers[:, 2:], measured, dict(sorted(reasons.items()))


def larger(sizes: np.ndarray, max_pixels: int) -> dict[int, str]:
    """The reason why an image of [height, width] is left out, of those that are larger than asked
    for.
    """
    reasons = {}
    for i in np.flatnonzero(sizes.prod(axis=1) > max_pixels).tolist():
        try:
            refuse_larger(int(sizes[i, 1]), int(sizes[i, 0]), max_pixels)
        except Unreadable as error:
            reasons[i] = str(error)
    return reasons


def digest(data: bytes) -> int:
    """What names the content of a file: equal for its copies, and for no other (64 bits of
    sha256).
    """
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


class FileChecks:
    """What is known of the files of one folder: `numbers` [n, 4] (bytes, stamp, height, width),
    `measured` [n, 4] (the columns of `pixel_range`) and `digests` [n] in the `rows` of their names,
    and by name the `reasons` why some cannot be read.

    Kept in a file of arrays, `<cache>/index/<hash of the real folder>.npz`. Readers and other
    writers see an old one or a new one, and whatever is wrong with it (its sums are checked while
    it is read), it is no more than a reason to decode the files again.
    """

    def __init__(
        self,
        names: Iterable[str],
        numbers: np.ndarray,
        measured: np.ndarray,
        reasons: dict[str, str],
        digests: np.ndarray,
    ) -> None:
        self.rows = {name: row for row, name in enumerate(names)}
        self.numbers = numbers
        self.measured = measured
        self.reasons = reasons
        self.digests = digests

    def of(self, name: str, size: int, changed: int) -> tuple[np.ndarray, np.ndarray] | str | None:
        """[height, width] and what was measured, the reason why it cannot be read, or None: not
        known as it is now.
        """
        row = self.rows.get(name)
        if row is None or self.numbers[row, 0] != size or self.numbers[row, 1] != changed:
            return None
        return self.reasons.get(name) or (self.numbers[row, 2:], self.measured[row])

    def digest(self, name: str) -> int:
        return int(self.digests[self.rows[name]])

    def beside(self, older: FileChecks) -> FileChecks:
        """These, and of all other files what was known."""
        others = {name: row for name, row in older.rows.items() if name not in self.rows}
        said = {name: reason for name, reason in older.reasons.items() if name in others}
        rows = list(others.values())
        numbers, measured, digests = (
            np.concatenate([mine, its[rows]])
            for mine, its in (
                (self.numbers, older.numbers),
                (self.measured, older.measured),
                (self.digests, older.digests),
            )
        )
        return FileChecks([*self.rows, *others], numbers, measured, self.reasons | said, digests)

    @staticmethod
    def _file(cache: Path, folder: str) -> Path:
        # A newer Pillow, or a change of our own rules, may judge the same bytes differently.
        key = f"{_FORMAT}\0{PIL.__version__}\0{folder}"
        return cache / "index" / (hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".npz")

    @classmethod
    def load(cls, cache: Path | None, folder: str) -> FileChecks:
        if cache is not None:
            # Missing, torn or overwritten by anything at all: as if it were not there.
            with (
                contextlib.suppress(Exception),
                np.load(cls._file(cache, folder), allow_pickle=False) as stored,
            ):
                names = stored["names"].tobytes().split(b"\0")[:-1]
                measured = np.zeros((len(names), 4))
                measured[stored["unusual"]] = stored["measured"]
                reasons = json.loads(stored["reasons"].tobytes())
                verdicts = cls(
                    map(os.fsdecode, names), stored["numbers"], measured, reasons, stored["digests"]
                )
                shapes = (verdicts.numbers.shape, verdicts.digests.shape, len(verdicts.rows))
                if shapes == ((len(names), 4), (len(names),), len(names)):
                    return verdicts
        return cls(
            (), np.empty((0, 4), dtype=np.int64), np.empty((0, 4)), {}, np.empty(0, dtype=np.int64)
        )

    def store(self, cache: Path | None, folder: str, notes: list[str]) -> None:
        names = b"".join(os.fsencode(name) + b"\0" for name in self.rows)
        reasons = json.dumps(self.reasons).encode()
        # few: of most files there is nothing to say
        unusual = np.flatnonzero(self.measured.any(axis=1))

        def write(draft: Path) -> None:
            with draft.open("wb") as out:
                np.savez(
                    out,
                    numbers=self.numbers,
                    names=np.frombuffer(names, "u1"),
                    reasons=np.frombuffer(reasons, "u1"),
                    unusual=unusual,
                    measured=self.measured[unusual],
                    digests=self.digests,
                )

        write_cache_file(cache and self._file(cache, folder), write, notes)
