"""Writes the report of one run, or of several side by side, as a single HTML page that asks nothing
of any network.

Where a part of a run is missing the page says so in a sentence; only a folder that is no run at all
is an error.
"""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from selftaught.files import write_text
from selftaught.report import charts, scores
from selftaught.report.curves import chart_features, chart_losses, chart_speed
from selftaught.report.facts import (
    describe_data,
    evaluate_command,
    flatten_config,
    format_subtitle,
    list_commands,
    list_differences,
    list_facts,
    list_stages,
)
from selftaught.report.format import as_list, run_letter
from selftaught.report.outcome import collect_banners, list_verdicts
from selftaught.report.samples import embed_hard, embed_map, embed_neighbours, embed_views
from selftaught.runs.reader import Run, load_all

SHAPES = 4  # marks of the map: with 8 colours 32 classes look different


def write(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page about these run folders to `out` (its folder is made) and returns `out`.

    Raises UserError where a folder is no run, or `out` cannot be written."""
    html = render(
        load_all(runs),
        command=shlex.join(["selftaught", "report", *map(str, runs), "--out", str(out)]),
    )
    return write_text(out, html)


def render(runs: Sequence[Run], *, command: str) -> str:
    """The page as text. `command` is what wrote it, shown among the commands that reproduce it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # for every template: names of files and classes come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": scores.percent,
        "points": scores.points,
        "interval": scores.interval,
        "effect": scores.effect_words,
    }
    letters = [run_letter(i) for i in range(len(runs))]
    found = scores.tables(runs, letters)
    return environment.get_template("page.html.j2").render(
        title=" against ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        date=datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
        several=len(runs) > 1,
        runs=[
            _about(run, letter, i)
            for i, (run, letter) in enumerate(zip(runs, letters, strict=True))
        ],
        banners=collect_banners(runs, letters),
        tables=found,
        between=scores.between(runs, letters, found) if found else (),
        losses=chart_losses(runs, letters),
        features=chart_features(runs, letters),
        speed=chart_speed(runs, letters),
        differing=list_differences(runs),
        command=command,
        shapes=SHAPES,
    )


def _about(run: Run, letter: str, position: int) -> dict[str, Any]:
    """All that the page says about one run alone."""
    return {
        "name": run.name,
        "letter": letter,
        "colour": position % charts.SERIES,
        "subtitle": format_subtitle(run),
        "verdicts": list_verdicts(run),
        "evaluate": evaluate_command(run),
        "facts": list_facts(run),
        "views": embed_views(run),
        "hard": embed_hard(run),
        "hard_expected": bool(as_list(run.section("config").get("hard"))),
        "neighbours": embed_neighbours(run),
        "map": embed_map(run),
        "data": describe_data(run),
        "config": flatten_config(run.section("config")),
        "versions": [
            *([("selftaught", str(run.about["selftaught"]))] if "selftaught" in run.about else []),
            *((str(k), str(v)) for k, v in run.section("versions").items() if k != "selftaught"),
        ],
        "commands": list_commands(run),
        "lineage": list_stages(run),
    }
