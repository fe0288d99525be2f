"""What a run writes down as it goes: one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from selftaught.files import convert_write_errors, write_text


class Journal:
    """Appends to `path`; a resumed run first drops what came after its checkpoint, or makes no
    sense.
    """

    def __init__(self, path: Path, after: int) -> None:
        """Keep the entries that were made until `after` steps were done. Raises FileError where it
        cannot be written.
        """
        # lines that were no entries, a torn last one aside
        whole, self.damaged = parse(path) if after else ([], 0)
        self.entries = [entry for entry in whole if entry["step"] <= after]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))
        self._path = path
        with convert_write_errors(path):
            # nothing is left over to be written when the disk is full
            self._file = path.open("ab", buffering=0)

    def write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        line = (json.dumps(entry) + "\n").encode()
        with convert_write_errors(self._path):
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        with self._file, convert_write_errors(self._path):
            os.fsync(self._file.fileno())


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; lines that are torn or make no sense are left out."""
    return parse(path)[0]


def parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries of a journal, and how many lines are none; a torn last one, which any kill
    leaves, is not counted.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:  # there need not be one
        return [], 0
    entries = [_entry(line) for line in lines]
    damaged = sum(
        entry is None and bool(line) for entry, line in zip(entries[:-1], lines[:-1], strict=True)
    )
    return [entry for entry in entries if entry is not None], damaged


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and not isinstance(step, bool) else None
