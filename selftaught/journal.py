"""What a run writes down as it goes: one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from selftaught.checkpoint import atomic


class Journal:
    """Appends to `path`; a resumed run first drops what came after its checkpoint, or was torn by a crash."""

    def __init__(self, path: Path, after: int) -> None:
        """Keep the entries that were made until `after` steps were done."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries = [entry for entry in read(path) if entry["step"] <= after] if after else []
        kept = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        atomic(path, lambda draft: draft.write_text(kept, encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a torn last one is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
