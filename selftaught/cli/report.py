"""`selftaught report` and `show`: a page of runs, and the lineage of one."""

import dataclasses
import json
from pathlib import Path

from selftaught.cli.console import plain, tell
from selftaught.cli.options import option, parse_options


@dataclasses.dataclass(kw_only=True)
class Report:
    """Write one self-contained HTML page that compares runs."""

    runs: tuple[str, ...] = option("RUN ...", "folders of runs", positional=True)
    out: str = option("FILE.html", "the page", default="report.html")


def report(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Report, "report", words)
    from selftaught.report.page import write

    tell(str(write([Path(r) for r in options.runs], Path(options.out))))
    return 0


@dataclasses.dataclass(kw_only=True)
class Show:
    """Show every stage that led to a run: its data, weights and scores."""

    run: str = option("RUN", "a run's folder, or the folder of `selftaught adapt`", positional=True)
    json: bool = option("", "print a JSON list of the stages", default=False)


def show(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Show, "show", words)
    from rich.console import Console
    from rich.tree import Tree

    from selftaught.pipeline import lineage

    rows = lineage.lineage(Path(options.run))
    if options.json:
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
