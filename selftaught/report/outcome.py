"""The outcome of a run: warnings, and the verdicts of its evaluations."""

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
from selftaught.runs.reader import RunContent, number


@dataclass(frozen=True, kw_only=True)
class Banner:
    """A warning at the top of the page."""

    level: str  # "bad" | "warn"
    letter: str  # of the run; empty for all runs
    text: str


def collect_banners(runs: Sequence[RunContent], letters: Sequence[str]) -> list[Banner]:
    """The warnings of all runs, the worst first, and one if their data differ."""
    banners = []
    for run, letter in zip(runs, letters, strict=True):
        banners += [
            Banner(level=level, letter=letter, text=text) for level, text in list_warnings(run)
        ]
    fingerprints = {str(run.section("data").get("fingerprint")) for run in runs}
    if len(fingerprints) > 1:
        text = (
            "These runs were trained on different images: their losses and features are not"
            " comparable number by number."
        )
        banners.append(Banner(level="warn", letter="", text=text))
    return sorted(banners, key=lambda banner: banner.level != "bad")


def list_warnings(run: RunContent) -> list[tuple[str, str]]:
    """The warnings about a run, as (level, text)."""
    at = " before the first step was logged"
    if run.journal:
        at = f" at step {format_integer(run.journal[-1]['step'])}"
    outcome = run.about.get("outcome")
    reason = format_value(run.about.get("reason"))
    warnings = []
    if outcome == "collapsed":
        why = reason or "The features of different images became nearly the same."
        warnings.append(
            ("bad", f"Collapsed: training was stopped{at}. {why} Do not use this backbone.")
        )
    elif outcome in ("diverged", "failed"):
        why = f": {reason}" if reason else ""
        warnings.append(("bad", f"Training failed{at}{why}."))
    elif outcome == "stopped":
        why = f"{reason} " if reason else ""
        warnings.append(("warn", f"Stopped early{at}. {why}Go on with: {resume_command(run)}"))
    elif outcome != "done" or run.about.get("finished") is False:
        text = (
            f"Not finished: the last record is{at}. It still runs, or was killed; then go on with:"
            f" {resume_command(run)}"
        )
        warnings.append(("warn", text))
    for warning in as_list(run.about.get("warnings")):
        warnings.append(("warn", format_value(warning)))
    losses = [record["loss"] for record in run.journal if record.get("loss") is not None]
    if lost := sum(1 for loss in losses if number(loss) is None):
        text = (
            f"The loss was not finite in {format_count(lost, 'logged step')}; the curves leave them"
            " out."
        )
        warnings.append(("bad", text))
    if skipped := number(run.journal[-1].get("skipped")) if run.journal else None:
        text = f"{format_count(int(skipped), 'step')} skipped: the gradients were not finite."
        warnings.append(("warn", text))
    if run.torn:
        text = (
            f"{format_count(run.torn, 'line')} of journal.jsonl could not be read and is left out."
            " A crash can truncate the last line."
        )
        warnings.append(("warn", text))
    for name in run.unreadable:
        text = f"{name} could not be read; the part of the page that shows it is missing."
        warnings.append(("warn", text))
    return [(level, text) for level, text in warnings if text]


def list_verdicts(run: RunContent) -> list[dict[str, Any]]:
    """The verdict of the last evaluation on each data set."""
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
