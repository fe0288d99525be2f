"""Tables for the terminal: what an evaluation found, and what methods there are."""

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
    """Rows {backbone, protocol, labels, metric, mean, low, high, draws}, setting by setting, narrow
    enough for 80 columns.

    Beside every other backbone stands what the trained one gains over it, from the paired
    differences {backbone, against, protocol, labels, metric, mean, low, high}.
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
                    f"  {scores.backbone_words(backbone)}",
                    style="bold" if backbone == trained else "",
                ),
                f"{scores.percent(score.mean):>4} ({scores.interval(score)})",
                "" if score.draws is None else str(score.draws),
                *([_gain(gains.get((setting, backbone)))] if gains else []),
            )
    return table


def methods(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Entries {name, kind?, summary?, paper?, fields?}; fields are {name, type, default} each.

    kind ("method", "hard example", ...) gets a column where any entry has one."""
    kinds = any(entry.get("kind") for entry in entries)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=False)
    table.add_column("Name", no_wrap=True)
    if kinds:
        table.add_column("Kind", no_wrap=True)
    table.add_column("What it is, and its fields")
    for entry in entries:
        said = Text(str(entry.get("summary") or "").strip())
        if entry.get("paper"):
            said.append(f"\n{entry['paper']}", style="italic")
        for field in entry.get("fields") or ():
            said.append(f"\n  {field.get('name')}", style="cyan")
            said.append(f" = {field.get('default')}")
            if field.get("type"):
                said.append(f"  {field['type']}", style="dim")
        name = Text(str(entry.get("name")), style="bold")
        table.add_row(name, *([Text(str(entry.get("kind") or ""))] if kinds else []), said)
    return table


def show(table: Table, *, stderr: bool = False) -> None:
    """Prints a table to standard output, or to standard error where output is for machines."""
    Console(stderr=stderr).print(table)


def _gain(gain: scores.Score | None) -> Text:
    if gain is None:
        return Text("")
    sign = scores.effect_words(gain.effect).partition(" ")[0]  # ▲, ▼ or ≈
    words = f"{sign} {scores.points(gain.mean)} ({scores.interval(gain, signed=True)})"
    return Text(words, style=STYLES[gain.effect])
