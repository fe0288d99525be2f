"""What happened to a run: warnings, and the words of its evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selftaught.report import scores
from selftaught.report.facts import resume_command
from selftaught.report.format import (
    as_list,
    format_count,
    format_integer,
    format_sentence,
    format_value,
)
from selftaught.runs.reader import Run, number


@dataclass(frozen=True, kw_only=True)
class Banner:
    level: str  # "bad" | "warn"
    letter: str
    text: str


# What happened


def collect_banners(runs: Sequence[Run], letters: Sequence[str]) -> list[Banner]:
    found = []
    for run, letter in zip(runs, letters, strict=True):
        found += [
            Banner(level=level, letter=letter, text=text) for level, text in list_warnings(run)
        ]
    fingerprints = {str(run.section("data").get("fingerprint")) for run in runs}
    if len(fingerprints) > 1:
        text = (
            "These runs were trained on different images: their losses and features are not"
            " comparable number by number."
        )
        found.append(Banner(level="warn", letter="", text=text))
    return sorted(found, key=lambda banner: banner.level != "bad")


def list_warnings(run: Run) -> list[tuple[str, str]]:
    at = (
        f" at step {format_integer(run.journal[-1]['step'])}"
        if run.journal
        else " before the first step was logged"
    )
    outcome = run.about.get("outcome")
    told = format_value(run.about.get("reason"))
    found = []
    if outcome == "collapsed":
        why = told or "The features of different images became nearly the same."
        found.append(
            ("bad", f"Collapsed: training was stopped{at}. {why} Do not use this backbone.")
        )
    elif outcome in ("diverged", "failed"):
        found.append(("bad", f"Training came to no good end{at}{f': {told}' if told else ''}."))
    elif outcome == "stopped":
        found.append(
            (
                "warn",
                f"Stopped early{at}. {told + ' ' if told else ''}Go on with: {resume_command(run)}",
            )
        )
    elif outcome != "done" or run.about.get("finished") is False:
        found.append(
            (
                "warn",
                (
                    f"Not finished: the last record is{at}. It still runs, or was killed; then go"
                    f" on with: {resume_command(run)}"
                ),
            )
        )
    for warning in as_list(run.about.get("warnings")):
        found.append(("warn", format_value(warning)))
    lost = sum(
        1
        for record in run.journal
        if record.get("loss") is not None and number(record["loss"]) is None
    )
    if lost:
        found.append(
            (
                "bad",
                (
                    f"The loss was no finite number in {format_count(lost, 'logged step')}; the"
                    " curves leave them out."
                ),
            )
        )
    if skipped := number(run.journal[-1].get("skipped")) if run.journal else None:
        found.append(
            (
                "warn",
                f"{format_count(int(skipped), 'step')} skipped: the gradients were not finite.",
            )
        )
    if run.torn:
        found.append(
            (
                "warn",
                (
                    f"{format_count(run.torn, 'line')} of journal.jsonl could not be read (a crash"
                    " tears the last one); left out."
                ),
            )
        )
    for name in run.unreadable:
        found.append(
            (
                "warn",
                (
                    f"{name} is there but could not be read; the part of the page that shows it is"
                    " missing."
                ),
            )
        )
    return [(level, text) for level, text in found if text]


def list_verdicts(run: Run) -> list[dict[str, Any]]:
    """The words of the last evaluation on each data set."""
    return [
        {
            "text": str(evaluation.get("verdict") or "Evaluated; the table says how well."),
            "notes": [format_sentence(note) for note in as_list(evaluation.get("notes"))],
            "data": scores.data_words(evaluation),
            "effect": scores.overall(evaluation),
        }
        for evaluation in scores.latest(run.evaluations)
        if scores.rows_of(evaluation)
    ]
