"""The report of one or several runs, as a single HTML page without external resources.

If a part of a run is missing, the page says so. Only a folder that is no run is an error.
"""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from selftaught.files import write_text
from selftaught.report import charts, scores
from selftaught.report.curves import chart_features, chart_losses, chart_pretext, chart_speed
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
from selftaught.report.samples import (
    embed_answers,
    embed_hard,
    embed_map,
    embed_neighbours,
    embed_views,
)
from selftaught.runs.reader import RunContent, load_all

SHAPES = 4  # marks of the map; with 8 colours they distinguish 32 classes


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write the page about these run folders to `out`, create its folder, and return `out`.

    Raises UserError if a folder is no run, or `out` cannot be written.
    """
    html = render(
        load_all(runs),
        command=shlex.join(["selftaught", "report", *map(str, runs), "--out", str(out)]),
    )
    return write_text(out, html)


def render(runs: Sequence[RunContent], *, command: str) -> str:
    """Render the page; it shows `command`, the command line that wrote it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of files and classes are untrusted input
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
    tables = scores.tables(runs, letters)
    return environment.get_template("page.html.j2").render(
        title=" against ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        date=datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
        several=len(runs) > 1,
        runs=[
            _describe_run(run, letter, i)
            for i, (run, letter) in enumerate(zip(runs, letters, strict=True))
        ],
        banners=collect_banners(runs, letters),
        tables=tables,
        between=scores.between(runs, letters, tables) if tables else (),
        losses=chart_losses(runs, letters),
        features=[*chart_pretext(runs, letters), *chart_features(runs, letters)],
        speed=chart_speed(runs, letters),
        differing=list_differences(runs),
        command=command,
        shapes=SHAPES,
    )


def _describe_run(run: RunContent, letter: str, position: int) -> dict[str, Any]:
    """The values of the template for one run."""
    versions = run.section("versions")
    own = [("selftaught", str(run.about["selftaught"]))] if "selftaught" in run.about else []
    return {
        "name": run.name,
        "letter": letter,
        "colour": position % charts.SERIES,
        "subtitle": format_subtitle(run),
        "verdicts": list_verdicts(run),
        "evaluate": evaluate_command(run),
        "facts": list_facts(run),
        "views": embed_views(run),
        "answers": embed_answers(run),
        "hard": embed_hard(run),
        "hard_expected": bool(as_list(run.section("config").get("hard"))),
        "neighbours": embed_neighbours(run),
        "map": embed_map(run),
        "data": describe_data(run),
        "config": flatten_config(run.section("config")),
        "versions": [*own, *((str(k), str(v)) for k, v in versions.items() if k != "selftaught")],
        "commands": list_commands(run),
        "lineage": list_stages(run),
    }
