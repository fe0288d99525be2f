"""A run folder read back as far as it goes: what is missing, torn or half-written becomes empty and
is counted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftaught.errors import UserError
from selftaught.loggers.jsonl import parse
from selftaught.runs.folder import read_facts, resolve_run


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a folder written by `selftaught pretrain` holds."""

    folder: Path
    name: str
    about: Mapping[str, Any]  # run.json
    # in order of steps, each step once; seconds count over every restart
    journal: tuple[Mapping[str, Any], ...]
    torn: int  # lines of the journal that are no record
    repeated: int  # records that a resumed run wrote again
    evaluations: tuple[Mapping[str, Any], ...]
    unreadable: tuple[str, ...]  # names of files that are there and make no sense
    album: Mapping[str, Any]  # "views" | "hard" | "neighbours" | "map" -> what its JSON file says

    def section(self, name: str) -> Mapping[str, Any]:
        """A part of run.json ("data", "config", "versions"); empty where it is missing."""
        part = self.about.get(name)
        return part if isinstance(part, dict) else {}

    @property
    def labelled(self) -> bool:
        return bool(self.section("data").get("labels"))


def load_all(folders: Sequence[Path]) -> tuple[Run, ...]:
    """The runs of these folders, each with the shortest name that tells it from the others.

    Raises UserError where a folder is no run."""
    unique = list(dict.fromkeys(resolve_run(Path(folder)).resolve() for folder in folders))
    if not unique:
        raise UserError(
            "no run was given: name at least one folder that `selftaught pretrain --out` wrote"
        )
    return tuple(load(folder, name) for folder, name in zip(unique, _names(unique), strict=True))


def load(folder: Path, name: str) -> Run:
    """Reads one run; raises UserError where `folder` is no run, and for nothing else that a crash
    may leave.
    """
    about = _about(folder)
    broken: list[str] = []
    journal, torn, repeated = _journal(folder / "journal.jsonl")
    evaluations = _json(folder, "evaluation.json", broken)
    if not isinstance(evaluations, list | None):
        broken.append("evaluation.json")
    album = {
        part: _json(folder, f"album/{part}.json", broken)
        for part in ("views", "hard", "neighbours", "map")
    }
    return Run(
        folder=folder,
        name=name,
        about=about,
        journal=journal,
        torn=torn,
        repeated=repeated,
        evaluations=tuple(e for e in evaluations if isinstance(e, dict))
        if isinstance(evaluations, list)
        else (),
        unreadable=tuple(broken),
        album={part: found for part, found in album.items() if found},
    )


def number(value: object) -> float | None:
    """A finite number, or None for all else (True and "1" are no numbers)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _about(folder: Path) -> Mapping[str, Any]:
    file = folder / "run.json"
    give = "Give the folder that `selftaught pretrain --out FOLDER` wrote"
    if not folder.exists():
        raise UserError(f"there is no folder {folder}. {give}.")
    if not file.is_file():
        inside = (
            sorted(path.parent for path in folder.glob("*/run.json")) if folder.is_dir() else []
        )
        hint = (
            f"It holds runs, though: name them, e.g. {' '.join(map(str, inside[:3]))}"
            if inside
            else give
        )
        raise UserError(f"{folder} is no run: there is no run.json in it. {hint}.")
    return read_facts(folder)


def _json(folder: Path, name: str, broken: list[str]) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        broken.append(name)
        return None


def _journal(file: Path) -> tuple[tuple[Mapping[str, Any], ...], int, int]:
    """Records, torn lines, repeated records. A run killed and resumed writes some steps twice: the
    later one holds.
    """
    entries, damaged, torn = parse(file)
    records: list[dict[str, Any]] = []
    repeated = 0
    for entry in entries:
        while records and records[-1]["step"] >= entry["step"]:
            records.pop()
            repeated += 1
        records.append(entry)
    return tuple(_one_clock(records)), damaged + torn, repeated


def _one_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`seconds` may start at 0 again where a run was resumed: let it go on instead."""
    offset = last = 0.0
    clocked = []
    for record in records:
        seconds = number(record.get("seconds"))
        if seconds is not None:
            if seconds + offset < last:
                offset = last
            last = seconds + offset
            record = {**record, "seconds": last}
        clocked.append(record)
    return clocked


def _names(folders: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]).lstrip("/") or str(folder) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
