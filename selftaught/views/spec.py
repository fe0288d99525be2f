"""The specification of views: crops, colours, blurs and their probabilities."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from selftaught.errors import UserError
from selftaught.ranges import (
    Count,
    Natural,
    NonNegative,
    NonzeroShare,
    Positive,
    Range,
    Share,
    check_order,
    check_ranges,
)


@dataclass(frozen=True, kw_only=True)
class Views:
    """The specification of views; the defaults are MoCo v2's (Chen et al., 2020, arXiv:2003.04297).

    Raises UserError for values out of range.
    """

    # reference: torchvision's operations, an image at a time
    pipeline: Literal["fast", "reference"] = "fast"
    # share of the image's area in a large view
    scale: tuple[NonzeroShare, NonzeroShare] = (0.2, 1.0)
    # width / height of a crop, at the true aspect
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Share = 0.5  # probability
    jitter: Share = 0.8  # probability of the four colour jitters, in random order
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.4
    # share of the colour circle
    hue: Annotated[float, Range(0, 0.5), arg(metavar="0..0.5")] = 0.1
    gray: Share = 0.2  # probability
    blur: Share = 0.5  # probability
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)  # in pixels of the view
    solarize: Share = 0.0  # probability
    large: Count = 2  # number of views of the full size; the method sets it
    # number of smaller views (multi-crop: Caron et al., 2020, arXiv:2006.09882)
    small: Natural = 0
    small_size: Natural = 0  # in pixels; 0 = half the full size, rounded down to an even number
    # share of the image's area in a small view
    small_scale: tuple[NonzeroShare, NonzeroShare] = (0.05, 0.2)

    def __post_init__(self) -> None:
        if self.pipeline not in ("fast", "reference"):
            raise UserError(
                f"--views.pipeline must be fast or reference, and not '{self.pipeline}'"
            )
        check_ranges(self, "views")
        check_order(self, "views", "scale", "small_scale", "ratio", "blur_sigma")
