"""Charts of losses, features and speed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selftaught.report.charts import SERIES, Chart, Series, chart
from selftaught.runs.reader import RunContent, number

FEATURES = (
    (
        "std",
        "Spread",
        "1: features cover the whole sphere. 0: all images have the same features.",
        (0.0, 1.0),
    ),
    (
        "rank",
        "Effective rank",
        "Number of dimensions in use (RankMe). A fall towards 1 is a collapse.",
        (0.0, None),
    ),
    (
        "alignment",
        "Alignment",
        "Distance between two views of one image: lower is better.",
        (0.0, None),
    ),
    (
        "uniformity",
        "Uniformity",
        "How evenly features cover the sphere: lower is better.",
        (None, None),
    ),
    (
        "knn",
        "kNN accuracy",
        "Balanced accuracy on held-out images (AUROC for several classes an image).",
        (None, None),
    ),
)


# the logged value of a record; None if it was not measured at that step
Value = Callable[[Mapping[str, Any]], object]


def chart_losses(runs: Sequence[RunContent], letters: Sequence[str]) -> list[Chart]:
    """Charts of the loss: one with all parts for a single run, else one for each part."""
    parts = list(
        dict.fromkeys(
            part for run in runs for record in run.journal for part in _inner(record, "losses")
        )
    )
    parts = parts if len(parts) > 1 else []  # a single part equals the loss
    if len(runs) == 1:
        series = [_series(runs[0], "all" if parts else "", "loss", 0, _entry("loss"))]
        series += [
            _series(runs[0], p, f"{p} loss", i + 1, _entry("losses", p))
            for i, p in enumerate(parts)
        ]
        return _present(
            chart(
                "Loss",
                series,
                note="The loss that training minimises" + (", and its parts." if parts else "."),
            )
        )
    return _present(
        overlay_runs(
            "Loss",
            runs,
            letters,
            _entry("loss"),
            note="The loss that training minimises. Only runs of one method are comparable.",
        ),
        *(
            overlay_runs(
                f"Loss, {part}",
                runs,
                letters,
                _entry("losses", part),
                note=f"The part of {part} views.",
            )
            for part in parts
        ),
    )


def chart_features(runs: Sequence[RunContent], letters: Sequence[str]) -> list[Chart]:
    """Charts of the measures of features. kNN is of runs with labels only."""
    charts = []
    for key, title, note, bounds in FEATURES:
        some = [run if key != "knn" or run.labelled else None for run in runs]
        charts.append(
            overlay_runs(title, some, letters, _entry("features", key), note=note, bounds=bounds)
        )
    return _present(*charts)


def chart_pretext(runs: Sequence[RunContent], letters: Sequence[str]) -> list[Chart]:
    """The chart of the pretext task's accuracy on held-out images, with the lines of chance."""
    alone = len(runs) == 1
    series = [
        _series(
            run,
            "" if alone else letter,
            "accuracy" if alone else f"{letter} ({run.name})",
            i,
            _entry("pretext"),
        )
        for i, (run, letter) in enumerate(zip(runs, letters, strict=True))
    ]
    guesses = [_series(run, "chance", "chance", -1, _entry("pretext_chance")) for run in runs]
    distinct = {tuple(one.y[:1]): one for one in guesses if one.y}  # one line for each level
    series += [
        replace(one, colour=(len(runs) + i) % SERIES) for i, one in enumerate(distinct.values())
    ]
    return _present(
        chart(
            "Accuracy of the pretext task",
            series,
            note="Mean over held-out images. Chance is the accuracy of guesses.",
        )
    )


def chart_speed(runs: Sequence[RunContent], letters: Sequence[str]) -> list[Chart]:
    """Charts of images per second, waiting time and learning rate."""
    waiting = "Share of the time. Near 0 the device limits the speed, near 1 the data."
    rate = "Training images, averaged over the steps since the last record."
    return _present(
        overlay_runs(
            "Images per second",
            runs,
            letters,
            _entry("images_per_s"),
            note=rate,
            bounds=(0.0, None),
        ),
        overlay_runs(
            "Waiting for data", runs, letters, _entry("wait"), note=waiting, bounds=(0.0, 0.5)
        ),
        overlay_runs(
            "Learning rate",
            runs,
            letters,
            _entry("lr"),
            note="Learning rate of the optimizer at each step.",
            bounds=(0.0, None),
        ),
    )


def overlay_runs(
    title: str,
    runs: Sequence[RunContent | None],
    letters: Sequence[str],
    value: Value,
    *,
    note: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
) -> Chart | None:
    """Build a chart with a curve for each run; None stands for a run without this value.

    A curve is labelled with the run's letter, unless there is one run only.
    """
    alone = len(runs) == 1
    series = [
        _series(
            run, "" if alone else letter, title if alone else f"{letter} ({run.name})", i, value
        )
        for i, (run, letter) in enumerate(zip(runs, letters, strict=True))
        if run is not None
    ]
    return chart(title, series, note=note, bounds=bounds)


def _series(run: RunContent, label: str, name: str, colour: int, value: Value) -> Series:
    """The values of a run. Steps without a value are omitted; NaN becomes a gap."""
    entries = [(float(record["step"]), value(record)) for record in run.journal]
    measured = [(step, number(entry)) for step, entry in entries if entry is not None]
    return Series(
        label=label,
        name=name,
        colour=colour,
        x=[x for x, _ in measured],
        y=[y for _, y in measured],
    )


def _entry(key: str, inner: str | None = None) -> Value:
    if inner is None:
        return lambda record: record.get(key)
    return lambda record: _inner(record, key).get(inner)


def _inner(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _present(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
