"""The values of black and white for images of more than 8 bits: one scale for a whole set."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from selftaught.errors import UserError
from selftaught.text import count_text

Pair = tuple[float, float]  # the values of black and white

EIGHT_BITS, INTEGERS, FLOATS = 0, 1, 2  # kinds of values
KIND, LOW, HIGH, PAGES = range(4)  # columns of the measurements of a file; 0 for a usual one
_TAIL = 0.001  # share of an image's values at each end that is ignored, such as hot pixels
_RARE = 0.01  # share of the images at each end that is ignored, such as files of another scale
SAMPLE = 1 << 16  # evenly spaced values of an image
_MISSING = 1e30  # floats of this magnitude or more are marks of "no data"


@dataclass(frozen=True)
class PixelRange:
    """The values of black and white, for integers and for floats; None: no such images.

    Where a function takes `PixelRange | None`, None means the behaviour of versions without it:
    each image is scaled by its type or its own values, and colour profiles are ignored. Runs of
    these versions continue so.
    """

    integers: Pair | None = None
    floats: Pair | None = None

    def pair_for(self, kind: int) -> Pair | None:
        return {INTEGERS: self.integers, FLOATS: self.floats}.get(kind)

    def fill_missing(self, other: PixelRange) -> PixelRange:
        """Return these pairs, with missing ones from `other`."""
        return PixelRange(self.integers or other.integers, self.floats or other.floats)

    def to_json(self) -> dict[str, list[float] | None]:
        return {name: None if pair is None else list(pair) for name, pair in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Any) -> PixelRange:
        """Parse what `to_json` returned. Raises UserError."""
        pairs: list[Pair | None] = []
        try:
            for values in (content["integers"], content["floats"]):
                low, high = map(float, values or (0, 1))
                if not math.isfinite(high - low) or low >= high:
                    raise ValueError
                pairs.append((low, high) if values else None)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{content} is no pixel range: give black and white for integers and for floats"
            ) from None
        return cls(*pairs)


def to_eight_bits(values: np.ndarray, pair: Pair) -> np.ndarray:
    """Scale floats of any shape to uint8: black up to the first of the pair, white from the second
    on.

    NaN is black.
    """
    low, high = pair
    scaled = values - low
    scaled *= 255.0 / (high - low)
    np.rint(scaled.clip(0, 255, out=scaled), out=scaled)
    scaled[np.isnan(scaled)] = 0
    return scaled.astype(np.uint8)


def measure_limits(values: np.ndarray) -> Pair:
    """Return the range of some values without a thousandth at each end; NaN, twice, for none."""
    sample = values[np.isfinite(values)]
    if not len(sample):
        return np.nan, np.nan
    low, high = np.quantile(sample.astype(np.float64), (_TAIL, 1 - _TAIL))
    return float(low), float(high)


def mask_no_data(values: np.ndarray) -> np.ndarray:
    """Return floats with NaN for marks of missing values."""
    return np.where(np.abs(values) < _MISSING, values, np.where(np.isinf(values), values, np.nan))


def measure_range(measurements: np.ndarray) -> PixelRange:
    """Return the range of a set from its measurements [n, 4] (KIND, LOW, HIGH, PAGES), in any
    order.
    """
    return PixelRange(
        *(
            _measure_pair(measurements[measurements[:, KIND] == kind], kind)
            for kind in (INTEGERS, FLOATS)
        )
    )


def _measure_pair(measurements: np.ndarray, kind: int) -> Pair | None:
    if not len(measurements):
        return None
    measurements = measurements[np.isfinite(measurements[:, LOW])]
    if not len(measurements):
        return 0.0, 1.0
    low = float(np.quantile(measurements[:, LOW], _RARE, method="lower"))
    high = float(np.quantile(measurements[:, HIGH], 1 - _RARE, method="higher"))
    full = _full_range(high, kind)
    if full is not None and low >= -full / 20 and (high - low >= full / 2 or low == high):
        return 0.0, full
    return (low, high) if high > low else (low, low + 1)


def _full_range(high: float, kind: int) -> float | None:
    """Return white for a type: of integers the largest of as many bits as occur; 1 or 255 of
    floats.

    Floats may exceed it by 5 %.
    """
    if kind == INTEGERS:
        return next((float(2**bits - 1) for bits in range(8, 33) if high <= 2**bits - 1), None)
    return next((white for white in (1.0, 255.0) if high <= 1.05 * white), None)


def _format_pair(pair: Pair) -> str:
    return f"{pair[0]:,.6g} to {pair[1]:,.6g}"


def describe_used(pixel_range: PixelRange | None, measurements: np.ndarray) -> str:
    """Return the part of a range that affects these files [n, 4]; "" where all are of 8 bits."""
    pairs = (
        [(kind, pixel_range.pair_for(kind)) for kind in (INTEGERS, FLOATS)]
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


def describe_range(
    pixel_range: PixelRange | None, measurements: np.ndarray, own_range: PixelRange
) -> list[str]:
    """Return a note for each kind of values beyond 8 bits, and one for unused pages."""
    lines = []
    for kind, description in (
        (INTEGERS, "more than 8 bits a value"),
        (FLOATS, "floating-point values"),
    ):
        n = int((measurements[:, KIND] == kind).sum())
        pair = pixel_range.pair_for(kind) if pixel_range is not None else None
        if not n:
            continue
        images = f"{count_text(n, 'image')} of {description}"
        if pair is None:
            lines.append(
                f"{images}: each is scaled by its kind or by itself, as in the run's training"
            )
            continue
        bits = round(np.log2(pair[1] + 1)) if pair[1] > 0 else 0
        if kind == INTEGERS and pair == (0, 2**bits - 1):
            images = f"{count_text(n, 'image')} of {bits} bits a value"
        own_pair = own_range.pair_for(kind) or pair
        origin = (
            ""
            if pair == own_pair
            else f", as in the run's training; they themselves hold {_format_pair(own_pair)}"
        )
        lines.append(f"{images}: {_format_pair(pair)} are shown as black to white{origin}")
    pages = measurements[:, PAGES]
    if n_files := int((pages > 1).sum()):
        lines.append(
            f"{count_text(n_files, 'file')} of several pages or frames, {int(pages.sum()):,} in"
            " all: the first of each is used"
        )
    return lines
