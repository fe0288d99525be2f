"""What a run writes down as it goes: one JSON object a line."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.files import write_text, writing
from selftaught.loggers.logger import Logger, RunFacts

log = logging.getLogger(__name__)


class JSONL(Logger):
    """Metrics into the run's journal.jsonl. Pictures and scores have files of their own there."""

    journal: "Journal"

    @property
    def name(self) -> str:
        return "jsonl"

    def begin(self, facts: RunFacts) -> None:
        self.journal = Journal(facts.folder / "journal.jsonl", after=facts.step)
        if self.journal.damaged:
            log.warning("journal.jsonl: %d lines are damaged, and left out", self.journal.damaged)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self.journal.write({"step": step, **values})

    def image(self, step: int, name: str, path: Path) -> None:
        pass

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, outcome: str) -> None:
        self.journal.close()


class Journal:
    """Appends to `path`; a resumed run first drops what came after its checkpoint, or makes no
    sense.
    """

    def __init__(self, path: Path, after: int) -> None:
        """Keep the entries that were made until `after` steps were done. Raises FileError where it
        cannot be written.
        """
        # lines that were no entries, a torn last one aside
        whole, self.damaged, _ = parse(path) if after else ([], 0, False)
        self.entries = [entry for entry in whole if entry["step"] <= after]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))
        self._path = path
        with writing(path):
            # nothing is left over to be written when the disk is full
            self._file = path.open("ab", buffering=0)

    def write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        line = (json.dumps(entry) + "\n").encode()
        with writing(self._path):
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        with self._file, writing(self._path):
            os.fsync(self._file.fileno())


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; lines that are torn or make no sense are left out."""
    return parse(path)[0]


def parse(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """The entries of a journal, how many lines before the last are none, and whether the last is
    torn, as any kill leaves it.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:  # there need not be one
        return [], 0, False
    entries = [_entry(line) for line in lines]
    damaged = sum(
        entry is None and bool(line) for entry, line in zip(entries[:-1], lines[:-1], strict=True)
    )
    torn = entries[-1] is None and bool(lines[-1])
    return [entry for entry in entries if entry is not None], damaged, torn


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and not isinstance(step, bool) else None
