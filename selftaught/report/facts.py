"""Facts of a run: its settings, data, stages and commands."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from selftaught.report.format import (
    as_list,
    format_duration,
    format_integer,
    format_value,
    part_title,
)
from selftaught.runs.reader import RunContent, number


def format_subtitle(run: RunContent) -> str:
    """Method, hard examples, backbone, size and images in one line, as far as they are recorded."""
    config = run.section("config")
    titles = [part_title(config.get("method")), *map(part_title, as_list(config.get("hard")))]
    method = " + ".join(filter(None, titles))
    images = number(run.section("data").get("images"))
    parts = [
        method,
        part_title(config.get("backbone")),
        f"{format_integer(config['size'])} px" if number(config.get("size")) else "",
        f"{format_integer(images)} images" if images else "",
    ]
    return " · ".join(filter(None, parts))


def list_facts(run: RunContent) -> list[tuple[str, str]]:
    """The facts of a run as (name, value), without those that are not recorded."""
    config, data = run.section("config"), run.section("data")
    last = run.journal[-1] if run.journal else {}
    rates = [
        rate for record in run.journal if (rate := number(record.get("images_per_s"))) is not None
    ]
    waits = [wait for record in run.journal if (wait := number(record.get("wait"))) is not None]
    loss = number(last.get("loss"))
    names = ("pretext", "pretext_error", "pretext_chance")
    accuracy, error, chance = (number(run.about.get(name)) for name in names)
    beside = "" if error is None else f" ± {196 * error:.1f}"
    beside += " %" if chance is None else f" % (chance {100 * chance:.1f} %)"
    facts = [
        ("Method", part_title(config.get("method"))),
        (
            "Hard examples",
            " + ".join(map(part_title, as_list(config.get("hard"))))
            or ("none" if "hard" in config else ""),
        ),
        ("Backbone", part_title(config.get("backbone"))),
        ("Size", f"{format_integer(config['size'])} px" if number(config.get("size")) else ""),
        ("Images", format_integer(data.get("images"))),
        ("Steps", format_integer(last.get("step"))),
        ("Time", format_duration(number(last.get("seconds")))),
        (
            "Images per second",
            f"{format_integer(statistics.median(rates))} (median)" if rates else "",
        ),
        ("Waiting for data", f"{100 * statistics.fmean(waits):.0f} % of the time" if waits else ""),
        ("Last loss", f"{loss:.4g}" if loss is not None else ""),
        ("Pretext task", f"{100 * accuracy:.1f}{beside}" if accuracy is not None else ""),
        ("Recommended stage", str(run.about.get("recommended_stage") or "")),
        ("Device", str(run.about.get("device") or "")),
        ("Seed", str(run.about.get("seed", ""))),
        (
            "Outcome",
            {"done": "finished", "running": "not finished"}.get(str(run.about.get("outcome")), "")
            or str(run.about.get("outcome") or "unknown"),
        ),
    ]
    return [(name, value) for name, value in facts if value]


def describe_data(run: RunContent) -> dict[str, Any]:
    """The data of a run: facts as (name, value), classes, and unreadable files with reasons."""
    data = run.section("data")
    classes = data.get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    unreadable = []
    for entry in as_list(data.get("unreadable")):
        has_reason = isinstance(entry, (list, tuple)) and len(entry) == 2
        unreadable.append((str(entry[0]), str(entry[1])) if has_reason else (str(entry), ""))
    count = number(classes) if not isinstance(classes, list) else len(names)
    split = {
        "given": "as the folders give it",
        "table": "as the table of labels gives it",
        "drawn": "drawn at random by the seed, class by class",
    }
    labels = ""
    if data:
        labels = "yes" if run.labelled else "none, so this page shows no accuracy of training"
    facts = [
        ("Folders", ", ".join(map(str, as_list(data.get("roots"))))),
        ("Images", format_integer(data.get("images"))),
        ("For training", format_integer(data.get("train"))),
        ("Held out", format_integer(data.get("held_out"))),
        ("Split", split.get(str(data.get("split")), str(data.get("split") or ""))),
        ("Classes", format_integer(count) if run.labelled and count else ""),
        ("Labels", labels),
        ("Fingerprint", str(data.get("fingerprint") or "")[:16]),
    ]
    return {
        "facts": [(name, value) for name, value in facts if value],
        "classes": names if run.labelled else [],
        "unreadable": unreadable,
    }


def list_stages(run: RunContent) -> list[str]:
    """The stages of training of this backbone, first to last, one line each."""
    lines = []
    for stage in as_list(run.about.get("lineage")):
        if isinstance(stage, dict):
            steps = ""
            if number(stage.get("steps")) is not None:
                steps = f", {format_integer(stage.get('steps'))} steps"
            init = format_value(stage.get("init")) or "random initialisation"
            data = format_value(stage.get("data")) or "unnamed data"
            lines.append(f"from {init}, on {data}{steps}")
    return lines


def list_commands(run: RunContent) -> list[str]:
    """The command lines that trained and evaluated a run, without duplicates."""
    commands = [
        run.about.get("command"),
        *(evaluation.get("command") for evaluation in run.evaluations),
    ]
    return list(dict.fromkeys(format_value(command, shlex.join) for command in commands if command))


def evaluate_command(run: RunContent) -> str:
    """The command line that evaluates a run."""
    roots = [str(root) for root in as_list(run.section("data").get("roots"))]
    data = shlex.join(roots) if run.labelled and roots else "LABELLED_IMAGES"
    return (
        f"selftaught evaluate {shlex.quote(str(run.folder))} --data {data} --protocol knn linear"
        " --against random init"
    )


def resume_command(run: RunContent) -> str:
    """The command line that resumes a run."""
    return f"selftaught pretrain --out {shlex.quote(str(run.folder))} --resume"


def list_differences(runs: Sequence[RunContent]) -> list[tuple[str, list[str]]]:
    """The fields of the configuration that differ, as (field, [value of each run])."""
    flat = [dict(flatten_config(run.section("config"))) for run in runs]
    keys = dict.fromkeys(key for fields in flat for key in fields)
    rows = [(key, [fields.get(key, "\u2014") for fields in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def flatten_config(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Flatten a nested configuration to (dotted name, value as text)."""
    fields: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            fields += flatten_config(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
            for i, part in enumerate(value):
                if isinstance(part, dict):
                    fields += flatten_config(part, f"{name}.{i}.")
                else:
                    fields.append((f"{name}.{i}", format_value(part)))
        else:
            fields.append((name, format_value(value)))
    return fields
