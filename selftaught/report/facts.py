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
from selftaught.runs.reader import Run, number


def format_subtitle(run: Run) -> str:
    """Method, hard examples, backbone and size in one line, as far as the configuration tells."""
    config = run.section("config")
    method = " + ".join(
        filter(
            None, [part_title(config.get("method")), *map(part_title, as_list(config.get("hard")))]
        )
    )
    images = number(run.section("data").get("images"))
    parts = [
        method,
        part_title(config.get("backbone")),
        f"{format_integer(config['size'])} px" if number(config.get("size")) else "",
        f"{format_integer(images)} images" if images else "",
    ]
    return " · ".join(filter(None, parts))


def list_facts(run: Run) -> list[tuple[str, str]]:
    config, data = run.section("config"), run.section("data")
    last = run.journal[-1] if run.journal else {}
    rates = [
        rate for record in run.journal if (rate := number(record.get("images_per_s"))) is not None
    ]
    waits = [wait for record in run.journal if (wait := number(record.get("wait"))) is not None]
    loss = number(last.get("loss"))
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
        ("Device", str(run.about.get("device") or "")),
        ("Seed", str(run.about.get("seed", ""))),
        (
            "Outcome",
            {"done": "finished", "running": "not finished"}.get(str(run.about.get("outcome")), "")
            or str(run.about.get("outcome") or "unknown"),
        ),
    ]
    return [(name, value) for name, value in facts if value]


# Facts


def describe_data(run: Run) -> dict[str, Any]:
    data = run.section("data")
    classes = data.get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    unreadable = [
        (
            (str(entry[0]), str(entry[1]))
            if isinstance(entry, list | tuple) and len(entry) == 2
            else (str(entry), "")
        )
        for entry in as_list(data.get("unreadable"))
    ]
    count = number(classes) if not isinstance(classes, list) else len(names)
    split = {
        "given": "as the folders give it",
        "table": "as the table of labels gives it",
        "drawn": "drawn at random by the seed, class by class",
    }
    facts = [
        ("Folders", ", ".join(map(str, as_list(data.get("roots"))))),
        ("Images", format_integer(data.get("images"))),
        ("For training", format_integer(data.get("train"))),
        ("Held out", format_integer(data.get("held_out"))),
        ("Split", split.get(str(data.get("split")), str(data.get("split") or ""))),
        ("Classes", format_integer(count) if run.labelled and count else ""),
        (
            "Labels",
            (
                ("yes" if run.labelled else "none, so this page shows no accuracy of training")
                if data
                else ""
            ),
        ),
        ("Fingerprint", str(data.get("fingerprint") or "")[:16]),
    ]
    return {
        "facts": [(name, value) for name, value in facts if value],
        "classes": names if run.labelled else [],
        "unreadable": unreadable,
    }


def list_stages(run: Run) -> list[str]:
    """The stages that led to this backbone, first to last."""
    said = []
    for stage in as_list(run.about.get("lineage")):
        if isinstance(stage, dict):
            steps = (
                f", {format_integer(stage.get('steps'))} steps"
                if number(stage.get("steps")) is not None
                else ""
            )
            init = format_value(stage.get("init")) or "random initialisation"
            said.append(
                f"from {init}, on {format_value(stage.get('data')) or 'unnamed data'}{steps}"
            )
    return said


def list_commands(run: Run) -> list[str]:
    commands = [
        run.about.get("command"),
        *(evaluation.get("command") for evaluation in run.evaluations),
    ]
    return list(dict.fromkeys(format_value(command, shlex.join) for command in commands if command))


def evaluate_command(run: Run) -> str:
    """What to type for a verdict, where there is none yet."""
    roots = [str(root) for root in as_list(run.section("data").get("roots"))]
    data = shlex.join(roots) if run.labelled and roots else "LABELLED_IMAGES"
    return (
        f"selftaught evaluate {shlex.quote(str(run.folder))} --data {data} --protocol knn linear"
        " --against random init"
    )


def resume_command(run: Run) -> str:
    return f"selftaught pretrain --out {shlex.quote(str(run.folder))} --resume"


def list_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The fields of the configuration in which the runs are not all equal: (field, a value a
    run).
    """
    flat = [dict(flatten_config(run.section("config"))) for run in runs]
    keys = dict.fromkeys(key for fields in flat for key in fields)
    rows = [(key, [fields.get(key, "\u2014") for fields in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def flatten_config(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """A nested configuration as (dotted name, value in words)."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            found += flatten_config(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
            for i, part in enumerate(value):
                found += (
                    flatten_config(part, f"{name}.{i}.")
                    if isinstance(part, dict)
                    else [(f"{name}.{i}", format_value(part))]
                )
        else:
            found.append((name, format_value(value)))
    return found
