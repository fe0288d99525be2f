"""`python -m tests.abuse.table [WORDS OF PYTEST]`: run the abuse suite, and write
docs/reliability.md from what came of it.

Without words the whole suite is run, and the page tells of it. With words, as `-k files`, what they
choose is run, and the page tells of that and of what was remembered of earlier calls. `--page` runs
nothing.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
REMEMBERED = ROOT / "build" / "abuse.json"

INTRODUCTION = """\
# Reliability

What selftaught promises for bad inputs and bad moments, and what was tried to break it. This page
is written by
`make abuse`, which runs every row of the tables below; do not edit it by hand.

## What is promised
- **Exit codes.** 0: done. 2: the input was refused. 3: training was stopped because its features
  collapsed. 130: Ctrl-C.
- **One line.** A refused command says on standard error, in one line, what is wrong and what to do.
  It shows no traceback.
  A misspelt flag is answered with the flags that come nearest.
- **Odd files.** An image that cannot be read is left out and named. More than one in ten of them
  refuse the folder.
- **Whole files.** Every file is written beside its place and then put there. A crash or a full disk
  leaves the old one.
- **Nothing is lost.** A refused command changes no file that was there before.
- **Resume.** After kill -9, a signal, a full disk or a dead network, `--resume` or the same command
  goes on. A run that goes
  on ends with the weights of one that was never stopped, bit for bit on a CPU.
- **Nothing outside.** A command writes to `--out`, `--to` and the cache
  (`$XDG_CACHE_HOME/selftaught`) and nowhere else.
  `evaluate` also writes into the run that it scores.
- **No code from files.** Weights, checkpoints, configurations and plans run no code, whatever they
  hold.
- **In time.** Each command of these tables ends within {seconds} seconds, those that are stopped
  and started again aside.

## What was tried
{tried}
"""


class Outcomes:
    """A plugin of pytest: what the rows' tests reported."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties).get("abuse")
        if not isinstance(properties, dict) or "id" not in properties:
            return
        row = self.rows.setdefault(report.nodeid, {"passed": True, "skipped": False})
        row |= properties
        row["passed"] &= not report.failed
        row["skipped"] |= report.skipped


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page in Markdown."""
    from tests.abuse.harness import SECONDS

    tried = [row for row in found.values() if not row["skipped"]]
    kept = sum(row["passed"] for row in tried)
    groups: dict[str, list[dict[str, Any]]] = {}
    for _, row in sorted(found.items(), key=lambda item: item[0].partition("[")[0]):
        groups.setdefault(row["group"], []).append(row)
    verdict = f"{len(tried):,} inputs in {len(groups)} groups; {kept:,} of them end as promised."
    lines = [INTRODUCTION.format(seconds=SECONDS, tried=verdict)]
    for group, rows in groups.items():
        name, _, about = group.rstrip(".").partition(": ")
        lines += [
            f"### {name}",
            f"{about[:1].upper()}{about[1:]}.",
            "",
            "| input | promised | outcome |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {cell(row['what'])} | {cell(row['promise'])} | {outcome(row)} |" for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def outcome(row: dict[str, Any]) -> str:
    """What came of a row, with the line that refused it."""
    if row["skipped"]:
        return "not tried on this machine"
    if not row["passed"]:
        return "**not yet as promised**"
    said = row.get("said")
    return f"refused: `{short(said)}`" if said else "done"


def short(said: str, most: int = 160) -> str:
    said = " ".join(said.removeprefix("selftaught:").split()).replace("`", "'").replace("|", "\\|")
    return said if len(said) <= most else f"{said[:most]}..."


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(words: list[str]) -> int:
    remembered: dict[str, dict[str, Any]] = {}
    if words and REMEMBERED.is_file():
        remembered = json.loads(REMEMBERED.read_text(encoding="utf-8"))
    code = 0
    if words != ["--page"]:
        outcomes = Outcomes()
        code = int(
            pytest.main(["-m", "abuse", str(Path(__file__).parent), *words], plugins=[outcomes])
        )
        remembered |= outcomes.rows
        REMEMBERED.parent.mkdir(exist_ok=True)
        REMEMBERED.write_text(json.dumps(remembered, indent=1), encoding="utf-8")
    PAGE.write_text(page(remembered), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
