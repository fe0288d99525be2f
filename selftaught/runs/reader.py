"""Reads a run's folder for reports. Missing and damaged parts become empty, and are counted."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from selftaught.errors import UserError
from selftaught.loggers.jsonl import parse
from selftaught.models.weights.weight_files import folder_of
from selftaught.runs.folder import read_facts, resolve_run


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """The content of a folder that `selftaught pretrain` wrote."""

    folder: Path
    name: str
    about: Mapping[str, Any]  # run.json
    # in order of steps, each step once; `seconds` goes on over restarts
    journal: tuple[Mapping[str, Any], ...]
    torn: int  # number of damaged lines of the journal
    repeated: int  # number of records that a resumed run wrote again
    evaluations: tuple[Mapping[str, Any], ...]
    unreadable: tuple[str, ...]  # names of damaged files
    album: Mapping[str, Any]  # name of a part, as "views" or "map" -> content of its JSON file

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a part of run.json ("data", "config", "versions"); empty where it is missing."""
        part = self.about.get(name)
        return part if isinstance(part, dict) else {}

    @property
    def labelled(self) -> bool:
        return bool(self.section("data").get("labels"))


def load_all(folders: Sequence[Path]) -> tuple[RunContent, ...]:
    """Read the runs of these folders. Each has the shortest name that is unique among them.

    Raises UserError where a folder is no run.
    """
    places: dict[Path, Path] = {}  # of a run -> as it was named: a plan's folder has a better name
    for folder in folders:
        places.setdefault(resolve_run(Path(folder)).resolve(), folder_of(Path(folder)).resolve())
    if not places:
        raise UserError(
            "there is no run to read: name a folder that `selftaught pretrain --out` wrote"
        )
    names = _names(list(places.values()))
    return tuple(load(folder, name) for folder, name in zip(places, names, strict=True))


def load(folder: Path, name: str) -> RunContent:
    """Read one run. Raises UserError where `folder` is no run, or its run.json is damaged.

    Other damage, such as a crash leaves, raises no error.
    """
    about = _about(folder)
    damaged: list[str] = []
    journal, torn, repeated = _journal(folder / "journal.jsonl")
    evaluations = _json(folder, "evaluation.json", damaged)
    if not isinstance(evaluations, (list, NoneType)):
        damaged.append("evaluation.json")
    album = {
        part: _json(folder, f"album/{part}.json", damaged)
        for part in ("views", "answers", "hard", "neighbours", "map")
    }
    return RunContent(
        folder=folder,
        name=name,
        about=about,
        journal=journal,
        torn=torn,
        repeated=repeated,
        evaluations=tuple(e for e in evaluations if isinstance(e, dict))
        if isinstance(evaluations, list)
        else (),
        unreadable=tuple(damaged),
        album={part: content for part, content in album.items() if content},
    )


def number(value: object) -> float | None:
    """Return a finite number as a float, and None for all else (True and "1" are no numbers)."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _about(folder: Path) -> Mapping[str, Any]:
    file = folder / "run.json"
    remedy = "Give the folder that `selftaught pretrain --out FOLDER` wrote"
    if not folder.exists():
        raise UserError(f"there is no folder {folder}. {remedy}.")
    if not file.is_file():
        runs = sorted(path.parent for path in folder.glob("*/run.json")) if folder.is_dir() else []
        hint = remedy
        if runs:
            hint = f"It holds runs, though: name them, e.g. {' '.join(map(str, runs[:3]))}"
        raise UserError(f"{folder} is no run: there is no run.json in it. {hint}.")
    return read_facts(folder)


def _json(folder: Path, name: str, damaged: list[str]) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        damaged.append(name)
        return None


def _journal(file: Path) -> tuple[tuple[Mapping[str, Any], ...], int, int]:
    """Return records, the number of damaged lines, and the number of repeated records.

    A resumed run writes some steps again. The later record of a step replaces the earlier one.
    """
    entries, damaged, torn = parse(file)
    records: list[dict[str, Any]] = []
    repeated = 0
    for entry in entries:
        while records and records[-1]["step"] >= entry["step"]:
            records.pop()
            repeated += 1
        records.append(entry)
    return tuple(_join_clocks(records)), damaged + torn, repeated


def _join_clocks(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make `seconds` increase throughout. It may start at 0 again where a run was resumed."""
    offset = last = 0.0
    result = []
    for record in records:
        seconds = number(record.get("seconds"))
        if seconds is not None:
            if seconds + offset < last:
                offset = last
            last = seconds + offset
            record = {**record, "seconds": last}
        result.append(record)
    return result


def _names(folders: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]).lstrip("/") or str(folder) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
