"""Geometry of the page's charts: positions and labels, which charts.html.j2 draws as SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

WIDTH, HEIGHT = 360.0, 210.0
LEFT, TOP, BOTTOM = 44.0, 10.0, 26.0
SERIES = 8  # number of colours and dash patterns
# positions of a curve; steps at one position are drawn as their mean and a band of their range
BUCKETS = 80


@dataclass(frozen=True, kw_only=True)
class Series:
    """The values of one curve, a short label for its end, and a full name."""

    label: str
    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float | None]  # None for values that are not finite; the line has a gap there


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mark of an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The SVG paths and positions of one curve."""

    label: str
    name: str
    colour: int
    paths: tuple[str, ...]  # attribute d of the pieces of the line
    # attribute d of the areas between the smallest and the largest value at each position
    band: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]  # single values between gaps
    end: tuple[float, float]
    label_at: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line chart: curves, and the marks of both axes."""

    title: str
    note: str
    words: str  # description for screen readers
    curves: tuple[Curve, ...]
    x: tuple[Mark, ...]
    y: tuple[Mark, ...]
    right: float  # right edge of the plot


def chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
) -> Chart | None:
    """Build a line chart over steps; None if there is no value to draw.

    bounds: values that the vertical axis includes.
    """
    series = [s for s in series if any(value is not None for value in s.y)]
    if not series:
        return None
    values = [value for s in series for value in s.y if value is not None]
    values += [bound for bound in bounds if bound is not None]
    steps = [x for s in series for x, y in zip(s.x, s.y, strict=True) if y is not None]
    if min(values) == max(values) == bounds[0]:
        values.append(values[0] + 1)  # all values are at the bound, so the axis starts there
    y_marks = ticks(min(values), max(values), 4)
    low, high = min(min(values), y_marks[0]), max(max(values), y_marks[-1])
    first, last = min(steps), max(steps)
    first = 0.0 if first < 0.1 * last else first
    right = WIDTH - 10 - 6.4 * max(len(s.label) for s in series)

    def across(x: float) -> float:
        return LEFT + (right - LEFT) * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    curves = [_curve(s, first, last, across, down) for s in series]
    x_marks = [t for t in ticks(first, last, 4, whole=True) if first <= t <= last]
    return Chart(
        title=title,
        note=note,
        words=_words(title, series),
        curves=_place_labels(curves, right),
        x=tuple(Mark(at=round(across(t), 1), text=steps_text(t)) for t in x_marks),
        y=tuple(
            Mark(at=round(down(t), 1), text=tick_text(t, y_marks))
            for t in y_marks
            if low <= t <= high
        ),
        right=round(right, 1),
    )


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> tuple[float, ...]:
    """About `count` round numbers that cover the range from `low` to `high`.

    Their distance is 1, 2 or 5 times a power of ten; with `whole`, at least 1.
    """
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    gap = max(1.0, gap) if whole else gap
    digits = 3 - math.floor(math.log10(gap))  # rounds 0.30000000000000004 to 0.3
    return tuple(
        round(gap * k, digits)
        for k in range(math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9) + 1)
    )


def tick_text(value: float, marks: Sequence[float]) -> str:
    """The text of a mark, with as many decimals as the distance of the marks requires."""
    gap = min((b - a for a, b in pairwise(marks)), default=1.0)
    if max(abs(mark) for mark in marks) >= 10_000:
        return steps_text(value)
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    return f"{value + 0.0:.{decimals}f}".replace("-", "\u2212") if abs(value) > gap / 100 else "0"


def steps_text(value: float) -> str:
    """A number of steps as short text, such as 20k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def spread_positions(
    positions: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
    """Move positions until they are at least `gap` apart, by one pass down and one pass up."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    result = [min(max(value, low), high) for value in positions]
    for before, after in pairwise(order):
        result[after] = max(result[after], result[before] + gap)
    limit = high
    for i in reversed(order):
        result[i] = min(result[i], limit)
        limit = result[i] - gap
    return [round(value, 1) for value in result]


def _curve(
    s: Series,
    first: float,
    last: float,
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> Curve:
    """The geometry of one series; `across` and `down` map values to positions."""
    pieces: list[list[tuple[float, float, float, float]]] = [[]]  # x, mean, smallest, largest
    for bucket in _buckets(s, first, last):
        if bucket is None:
            pieces.append([])
        else:
            x, values = bucket
            mean = sum(values) / len(values)
            pieces[-1].append((across(x), down(mean), down(max(values)), down(min(values))))
    pieces = [piece for piece in pieces if piece]
    lines = [piece for piece in pieces if len(piece) > 1]
    wide = [piece for piece in lines if any(bottom - top > 0.8 for _, _, top, bottom in piece)]
    return Curve(
        label=s.label,
        name=s.name,
        colour=s.colour % SERIES,
        paths=tuple(_path([(x, y) for x, y, _, _ in piece]) for piece in lines),
        band=tuple(
            _path(
                [(x, top) for x, _, top, _ in piece]
                + [(x, bottom) for x, _, _, bottom in reversed(piece)]
            )
            + "Z"
            for piece in wide
        ),
        dots=tuple(
            (round(piece[0][0], 1), round(piece[0][1], 1)) for piece in pieces if len(piece) == 1
        ),
        end=(round(pieces[-1][-1][0], 1), round(pieces[-1][-1][1], 1)),
        label_at=(0.0, 0.0),
    )


def _buckets(s: Series, first: float, last: float) -> list[tuple[float, list[float]] | None]:
    """Group the values at each position; None for a gap in the line."""
    buckets: list[tuple[float, list[float]] | None] = []
    open_at: int | None = None
    for x, y in zip(s.x, s.y, strict=True):
        if y is None:
            buckets.append(None)
            open_at = None
            continue
        at = int((x - first) / (last - first) * BUCKETS) if last > first else 0
        if open_at == at and buckets and buckets[-1] is not None:
            buckets[-1][1].append(y)
            # The last step of a bucket, so that the curve ends at the end of the run.
            buckets[-1] = (x, buckets[-1][1])
        else:
            buckets.append((x, [y]))
            open_at = at
    return buckets


def _place_labels(curves: Sequence[Curve], right: float) -> tuple[Curve, ...]:
    """Place labels to the right of the curves' ends, without overlap at the right edge."""
    edge = [i for i, curve in enumerate(curves) if right - curve.end[0] < 24]
    heights = {i: curve.end[1] for i, curve in enumerate(curves)}
    heights |= dict(
        zip(
            edge,
            spread_positions([heights[i] for i in edge], 13.0, TOP + 4, HEIGHT - BOTTOM),
            strict=True,
        )
    )
    return tuple(
        replace(curve, label_at=(round(right if i in edge else curve.end[0], 1) + 7, heights[i]))
        for i, curve in enumerate(curves)
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _words(title: str, series: Sequence[Series]) -> str:
    parts = []
    for s in series:
        values = [value for value in s.y if value is not None]
        parts.append(f"{s.name} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{title}: " + "; ".join(parts)
