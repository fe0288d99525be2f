"""Which values are black and which are white, in images that hold more than 8 bits a value: one
scaling for a whole set.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selftaught.errors import UserError
from selftaught.text import count_text

Pair = tuple[float, float]  # the value that is black, and the one that is white

EIGHT_BITS, INTEGERS, FLOATS = 0, 1, 2  # kinds of values
KIND, LOW, HIGH, PAGES = range(4)  # columns of what is measured of a file; zeros of the usual one
_TAIL = 0.001  # of an image's values, at each end: hot pixels do not count
_RARE = 0.01  # of the images, at each end: a file of another scale does not count
SAMPLE = 1 << 16  # values of an image, evenly spaced
_MISSING = 1e30  # floats from here on, and below minus this, are marks of "no data"


@dataclass(frozen=True)
class PixelRange:
    """The values that are shown as black and as white: of images of whole numbers, and of floats.
    None: there are none.

    Where a function takes `PixelRange | None`, None means as before there was one: each image by
    the range of its own kind or its own values, and without regard to colour profiles. Runs that
    were trained so go on so.
    """

    integers: Pair | None = None
    floats: Pair | None = None

    def of(self, kind: int) -> Pair | None:
        return {INTEGERS: self.integers, FLOATS: self.floats}.get(kind)

    def or_else(self, other: PixelRange) -> PixelRange:
        """These pairs, and of the other those that are missing."""
        return PixelRange(self.integers or other.integers, self.floats or other.floats)

    def to_json(self) -> dict[str, list[float] | None]:
        return {name: None if pair is None else list(pair) for name, pair in asdict(self).items()}

    @classmethod
    def from_json(cls, written: Any) -> PixelRange:
        """Raises UserError where it is none."""
        pairs: list[Pair | None] = []
        try:
            for found in (written["integers"], written["floats"]):
                low, high = map(float, found or (0, 1))
                if not math.isfinite(high - low) or low >= high:
                    raise ValueError
                pairs.append((low, high) if found else None)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"a pixel range of {written} is none: it is black and white, for integers and for"
                " floats"
            ) from None
        return cls(*pairs)


def to_eight_bits(values: np.ndarray, pair: Pair) -> np.ndarray:
    """Floats of any shape to uint8: black at the first of the pair and below, white at the second;
    NaN is black.
    """
    low, high = pair
    shown = values - low
    shown *= 255.0 / (high - low)
    np.rint(shown.clip(0, 255, out=shown), out=shown)
    shown[np.isnan(shown)] = 0
    return shown.astype(np.uint8)


def limits(values: np.ndarray) -> Pair:
    """All but the last thousandth of some values at each end. NaN, twice, where there are none."""
    sample = values[np.isfinite(values)]
    if not len(sample):
        return np.nan, np.nan
    low, high = np.quantile(sample.astype(np.float64), (_TAIL, 1 - _TAIL))
    return float(low), float(high)


def without_marks(values: np.ndarray) -> np.ndarray:
    """Floats with NaN for what only marks that there is no value."""
    return np.where(np.abs(values) < _MISSING, values, np.where(np.isinf(values), values, np.nan))


def measure_range(measurements: np.ndarray) -> PixelRange:
    """The range of a set, from what was measured of its files [n, 4] (KIND, LOW, HIGH, PAGES).
    Order does not matter.
    """
    return PixelRange(
        *(_pair(measurements[measurements[:, KIND] == kind], kind) for kind in (INTEGERS, FLOATS))
    )


def _pair(measurements: np.ndarray, kind: int) -> Pair | None:
    if not len(measurements):
        return None
    measurements = measurements[np.isfinite(measurements[:, LOW])]
    if not len(measurements):
        return 0.0, 1.0
    low = float(np.quantile(measurements[:, LOW], _RARE, method="lower"))
    high = float(np.quantile(measurements[:, HIGH], 1 - _RARE, method="higher"))
    full = _full(high, kind)
    if full is not None and low >= -full / 20 and (high - low >= full / 2 or low == high):
        return 0.0, full
    return (low, high) if high > low else (low, low + 1)


def _full(high: float, kind: int) -> float | None:
    """The white of the kind: the largest number of as many bits as are used; 1 or 255 of floats,
    which may overshoot.
    """
    if kind == INTEGERS:
        return next((float(2**bits - 1) for bits in range(8, 33) if high <= 2**bits - 1), None)
    return next((white for white in (1.0, 255.0) if high <= 1.05 * white), None)


def _spelt(pair: Pair) -> str:
    return f"{pair[0]:,.6g} to {pair[1]:,.6g}"


def used(pixel_range: PixelRange | None, measurements: np.ndarray) -> str:
    """What of a range decides what these files [n, 4] look like; nothing where all are of 8
    bits.
    """
    pairs = (
        [(kind, pixel_range.of(kind)) for kind in (INTEGERS, FLOATS)]
        if pixel_range is not None
        else []
    )
    pairs = [
        (kind, pair)
        for kind, pair in pairs
        if pair is not None and (measurements[:, KIND] == kind).any()
    ]
    return "".join(
        f"{kind} {pair[0]:.17g} {pair[1]:.17g}\n" for kind, pair in pairs if pair is not None
    )


def notes(pixel_range: PixelRange | None, measurements: np.ndarray, own: PixelRange) -> list[str]:
    """What a person should know: a line for each kind of values beyond 8 bits, and one for pages
    that are not used.
    """
    lines = []
    for kind, what in ((INTEGERS, "more than 8 bits a value"), (FLOATS, "floating-point values")):
        n = int((measurements[:, KIND] == kind).sum())
        pair = pixel_range.of(kind) if pixel_range is not None else None
        if not n:
            continue
        which = f"{count_text(n, 'image')} of {what}"
        if pair is None:
            lines.append(
                f"{which}: each is scaled by its kind or by itself, as in the run's training"
            )
            continue
        bits = round(np.log2(pair[1] + 1)) if pair[1] > 0 else 0
        if kind == INTEGERS and pair == (0, 2**bits - 1):
            which = f"{count_text(n, 'image')} of {bits} bits a value"
        there = own.of(kind) or pair
        whose = (
            ""
            if pair == there
            else f", as in the run's training; they themselves hold {_spelt(there)}"
        )
        lines.append(f"{which}: {_spelt(pair)} are shown as black to white{whose}")
    pages = measurements[:, PAGES]
    if several := int((pages > 1).sum()):
        lines.append(
            f"{count_text(several, 'file')} of several pages or frames, {int(pages.sum()):,} in"
            " all: the first of each is used"
        )
    return lines
