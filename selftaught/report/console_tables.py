"""Tables for the terminal: the results of an evaluation, the methods, and their fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
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


def method_list(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A table of entries {name, kind, family, summary}: one line each, by family."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Name", no_wrap=True)
    table.add_column("What it is")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["family"] or "~")):
        groups.setdefault(f"{entry['family']} {entry['kind']}s".strip(), []).append(entry)
    for group, members in groups.items():
        table.add_section()
        table.add_row(Text(group, style="italic"), "")
        for entry in members:
            name = Text(f"  {entry['name']}", style="bold")
            table.add_row(name, Text(str(entry["summary"])))
    return table


def method_fields(entry: Mapping[str, Any]) -> Group:
    """The fields of {name, kind, summary, paper, fields: [{flag, values, default, meaning}]}."""
    about = Text(entry["name"], style="bold").append(f", {entry['kind']}", style="not bold")
    for line in filter(None, (entry["summary"], entry["paper"])):
        about.append(f"\n{line}", style="not bold")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Flag", no_wrap=True)
    table.add_column("Default", no_wrap=True)
    table.add_column("Values")
    for field in entry["fields"]:
        default = field["default"]
        if isinstance(default, bool):
            default = "yes" if default else "no"
        elif isinstance(default, tuple):
            default = " ".join(map(str, default))
        flag = Text(field["flag"], style="cyan")
        values = Text(field["values"])
        if field["meaning"]:
            values.append(f"\n{field['meaning']}", style="dim")
        table.add_row(flag, Text(str(default)), values)
    return Group(about, table)


def show(content: RenderableType, *, stderr: bool = False) -> None:
    """Print to standard output, or to standard error if the output is for programs."""
    Console(stderr=stderr).print(content)


def _gain(gain: scores.Score | None) -> Text:
    if gain is None:
        return Text("")
    sign = scores.effect_words(gain.effect).partition(" ")[0]  # ▲, ▼ or ≈
    words = f"{sign} {scores.points(gain.mean)} ({scores.interval(gain, signed=True)})"
    return Text(words, style=STYLES[gain.effect])
