"""Tables for the terminal: the results of an evaluation, and the list of methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from selftaught.report import scores

STYLES: Mapping[scores.Effect, str] = {"better": "green", "worse": "red", "unclear": ""}


def evaluation(
    rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]] = ()
) -> Table:
    """A table of results, grouped by setting, for 80 columns.

    rows: {backbone, protocol, labels, metric, mean, low, high, draws}. differences: {backbone,
    against, protocol, labels, metric, mean, low, high}, paired. They give the last column, the gain
    of the trained backbone over each other one.
    """
    trained = scores.trained_name({"rows": list(rows), "differences": list(differences)})
    gains = {
        (pair[0], str(row.get("against"))): pair[1]
        for row in differences
        if str(row.get("backbone")) == trained and (pair := scores.read_score(row))
    }
    settings: dict[scores.Setting, list[tuple[str, scores.Score]]] = {}
    for row in rows:
        if pair := scores.read_score(row):
            settings.setdefault(pair[0], []).append((str(row.get("backbone")), pair[1]))

    metrics = {setting.metric_words: None for setting in settings}
    title = f"{' and '.join(metrics)}, % with 95 % intervals" if metrics else "No results"
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=Text(title),
        title_justify="left",
    )
    table.add_column("Backbone")
    table.add_column("Score", no_wrap=True)
    table.add_column("Draws", justify="right")
    if gains:
        table.add_column("Trained gains over it", no_wrap=True)
    for setting in sorted(settings, key=lambda setting: setting.order):
        table.add_section()
        words = setting.words if len(metrics) == 1 else f"{setting.words}: {setting.metric_words}"
        table.add_row(Text(words, style="italic"))
        for backbone, score in settings[setting]:
            table.add_row(
                Text(
                    f"  {scores.backbone_words(backbone)}"
                    + (f" ({score.stage})" if score.stage else ""),
                    style="bold" if backbone == trained else "",
                ),
                f"{scores.percent(score.mean):>4} ({scores.interval(score)})",
                "" if score.draws is None else str(score.draws),
                *([_gain(gains.get((setting, backbone)))] if gains else []),
            )
    return table


def methods(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A table of entries {name, kind?, summary?, paper?, fields?}.

    Fields are {name, type, range, default}. `kind` ("method", "hard example", ...) gets a column if
    any entry has one.
    """
    kinds = any(entry.get("kind") for entry in entries)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("Name", no_wrap=True)
    if kinds:
        table.add_column("Kind", no_wrap=True)
    table.add_column("What it is, and its fields")
    for entry in entries:
        description = Text(str(entry.get("summary") or "").strip())
        if entry.get("paper"):
            description.append(f"\n{entry['paper']}", style="italic")
        for field in entry.get("fields") or ():
            description.append(f"\n  {field.get('name')}", style="cyan")
            description.append(f" = {field.get('default')}")
            about = " ".join(filter(None, (field.get("type"), field.get("range"))))
            description.append(f"  {about}", style="dim")
        name = Text(str(entry.get("name")), style="bold")
        kind = [Text(str(entry.get("kind") or ""))] if kinds else []
        table.add_row(name, *kind, description)
    return table


def show(table: Table, *, stderr: bool = False) -> None:
    """Print a table to standard output, or to standard error if the output is for programs."""
    Console(stderr=stderr).print(table)


def _gain(gain: scores.Score | None) -> Text:
    if gain is None:
        return Text("")
    sign = scores.effect_words(gain.effect).partition(" ")[0]  # ▲, ▼ or ≈
    words = f"{sign} {scores.points(gain.mean)} ({scores.interval(gain, signed=True)})"
    return Text(words, style=STYLES[gain.effect])
