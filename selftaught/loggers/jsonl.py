"""The journal of a run: a file with one JSON object a line."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selftaught.files import convert_write_errors, write_text
from selftaught.loggers.logger import Logger, RunFacts

log = logging.getLogger(__name__)


class JSONL(Logger):
    """Writes metrics to the run's journal.jsonl. Pictures and scores have files of their own."""

    journal: "Journal"

    @property
    def name(self) -> str:
        return "jsonl"

    def begin(self, facts: RunFacts) -> None:
        self.journal = Journal(facts.folder / "journal.jsonl", after=facts.step)
        if self.journal.damaged:
            log.warning("journal.jsonl: %d damaged lines are left out", self.journal.damaged)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self.journal.write({"step": step, **values})

    def image(self, step: int, name: str, path: Path) -> None:
        pass

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, outcome: str) -> None:
        self.journal.close()


class Journal:
    """Appends entries to `path`. A resumed run first drops later entries and damaged lines."""

    def __init__(self, path: Path, after: int) -> None:
        """Open the journal and keep its entries up to step `after`.

        Raises FileError where it cannot be written.
        """
        # `damaged`: number of damaged lines, without an incomplete last one
        entries, self.damaged, _ = parse(path) if after else ([], 0, False)
        self.entries = [entry for entry in entries if entry["step"] <= after]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))
        self._path = path
        with convert_write_errors(path):
            # without a buffer, so that `close` has nothing to write on a full disk
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
    """Read the entries of a journal. Damaged lines are left out."""
    return parse(path)[0]


def parse(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """Read the entries of a journal.

    Returns also the number of damaged lines before the last one, and whether the last one is
    incomplete. A killed process leaves an incomplete last line.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:  # a run without an entry has no journal
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
