"""`selftaught report` and `show`: a page of runs, and what led to one."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from selftaught.cli.console import plain, tell

# ---------------------------------------------------------------------------------- report, export,
# methods, demo


@dataclasses.dataclass(kw_only=True)
class Report:
    """Write one self-contained HTML page of a run, or of several side by side."""

    runs: Annotated[tuple[str, ...], Positional]
    out: str = "report.html"


def report(words: list[str]) -> int:
    asked = tyro.cli(Report, prog="selftaught report", args=words)
    from selftaught.report.page import write

    tell(str(write([Path(r) for r in asked.runs], Path(asked.out))))
    return 0


@dataclasses.dataclass(kw_only=True)
class Show:
    """What led to a run: every stage's data, weights in, weights out, and scores."""

    run: Annotated[str, Positional]
    """a run's folder, or the folder of `selftaught adapt`"""
    json: bool = False


def show(words: list[str]) -> int:
    asked = tyro.cli(Show, prog="selftaught show", args=words)
    from rich.console import Console
    from rich.tree import Tree

    from selftaught.pipeline import lineage

    rows = lineage.lineage(Path(asked.run))
    if asked.json:
        print(json.dumps(rows, indent=2))
        return 0
    branches: dict[str, Tree] = {}
    roots: dict[str, Tree] = {}
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 200
    for row in rows:
        above = branches.get(row["from"]) or roots.setdefault(row["from"], Tree(plain(row["from"])))
        branches[row["stage"]] = above.add(
            plain("\n".join([f"{row['stage']}: {row['outcome']}", *row["said"]]))
        )
    for root in roots.values():
        console.print(root)
    return 0
