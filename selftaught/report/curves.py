"""Curves of losses, features and speed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selftaught.report.charts import Chart, Series, chart
from selftaught.runs.reader import Run, number

FEATURES = (
    (
        "std",
        "Spread",
        "1: features lie all around the sphere. 0: all images look the same to the backbone.",
        (0.0, 1.0),
    ),
    (
        "rank",
        "Effective rank",
        "Dimensions that are really used (RankMe). Falling towards 1 means collapse.",
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
        "Balanced accuracy on held-back images (AUROC where images have several classes).",
        (None, None),
    ),
)


# Curves

# record -> what was logged; None = not measured at that step
Value = Callable[[Mapping[str, Any]], object]


def chart_losses(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    """One run: all parts in one chart. Several: a chart a part, a curve a run."""
    parts = list(
        dict.fromkeys(
            part for run in runs for record in run.journal for part in _inner(record, "losses")
        )
    )
    parts = parts if len(parts) > 1 else []  # a single part is the whole
    if len(runs) == 1:
        series = [_series(runs[0], "all" if parts else "", "loss", 0, _logged("loss"))]
        series += [
            _series(runs[0], p, f"{p} loss", i + 1, _logged("losses", p))
            for i, p in enumerate(parts)
        ]
        return _present(
            chart(
                "Loss",
                series,
                note="What training makes smaller" + (", and its parts." if parts else "."),
            )
        )
    return _present(
        overlay_runs(
            "Loss",
            runs,
            letters,
            _logged("loss"),
            note="What training makes smaller. It compares only within a method.",
        ),
        *(
            overlay_runs(
                f"Loss, {part}",
                runs,
                letters,
                _logged("losses", part),
                note=f"Its part from {part} views.",
            )
            for part in parts
        ),
    )


def chart_features(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    found = []
    for key, title, note, bounds in FEATURES:
        # without labels: no accuracy
        shown = [run if key != "knn" or run.labelled else None for run in runs]
        found.append(
            overlay_runs(title, shown, letters, _logged("features", key), note=note, bounds=bounds)
        )
    return _present(*found)


def chart_speed(runs: Sequence[Run], letters: Sequence[str]) -> list[Chart]:
    waiting = "Share of the time. Near 0 the device is the limit, near 1 the data are."
    rate = "Images trained on, measured over the steps since the last record."
    return _present(
        overlay_runs(
            "Images per second",
            runs,
            letters,
            _logged("images_per_s"),
            note=rate,
            bounds=(0.0, None),
        ),
        overlay_runs(
            "Waiting for data", runs, letters, _logged("wait"), note=waiting, bounds=(0.0, 0.5)
        ),
        overlay_runs(
            "Learning rate",
            runs,
            letters,
            _logged("lr"),
            note="Of the optimiser, at each step.",
            bounds=(0.0, None),
        ),
    )


def overlay_runs(
    title: str,
    runs: Sequence[Run | None],
    letters: Sequence[str],
    value: Value,
    *,
    note: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
) -> Chart | None:
    """A curve for each run (None: this run has no say here), labelled by the run's letter; a curve
    alone needs none.
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


def _series(run: Run, label: str, name: str, colour: int, value: Value) -> Series:
    """A step that was not measured is no gap in the curve; a value that is no finite number is
    one.
    """
    taken = [(float(record["step"]), value(record)) for record in run.journal]
    measured = [(step, number(found)) for step, found in taken if found is not None]
    return Series(
        label=label,
        name=name,
        colour=colour,
        x=[x for x, _ in measured],
        y=[y for _, y in measured],
    )


def _logged(key: str, inner: str | None = None) -> Value:
    if inner is None:
        return lambda record: record.get(key)
    return lambda record: _inner(record, key).get(inner)


def _inner(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _present(*found: Chart | None) -> list[Chart]:
    return [one for one in found if one is not None]
