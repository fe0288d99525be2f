"""The specification of views: crops, colours, blurs and their probabilities."""

import math
from dataclasses import dataclass
from typing import Literal

from selftaught.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Views:
    """The specification of views; the defaults are MoCo v2's (Chen et al., 2020, arXiv:2003.04297).

    Raises UserError for values out of range.
    """

    # reference: torchvision's operations, an image at a time
    pipeline: Literal["fast", "reference"] = "fast"
    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area in a large view
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a crop, at the true aspect
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of the four colour jitters, in random order
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # share of the colour circle, at most 0.5
    gray: float = 0.2  # probability
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # in pixels of the view
    solarize: float = 0.0  # probability
    large: int = 2  # number of views of the full size; the method sets it
    small: int = 0  # number of smaller views (multi-crop: Caron et al., 2020, arXiv:2006.09882)
    small_size: int = 0  # in pixels; 0 = half the full size, rounded down to an even number
    small_scale: tuple[float, float] = (0.05, 0.2)

    def __post_init__(self) -> None:
        def check(fine: bool, name: str, rule: str) -> None:
            if not fine:
                raise UserError(f"views: {name} is {getattr(self, name)}; it must be {rule}")

        check(self.pipeline in ("fast", "reference"), "pipeline", "fast or reference")
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            check(0 <= getattr(self, name) <= 1, name, "a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            check(0 <= getattr(self, name) < math.inf, name, "0 or more")
        check(0 <= self.hue <= 0.5, "hue", "0 to 0.5")
        for name in ("scale", "small_scale"):
            low, high = getattr(self, name)
            check(
                0 < low <= high <= 1,
                name,
                "two shares of the image's area in rising order, above 0 and at most 1",
            )
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            check(0 < low <= high < math.inf, name, "two numbers above 0 in rising order")
        check(self.large >= 1, "large", "1 or more")
        check(self.small >= 0, "small", "0 or more")
        check(self.small_size >= 0, "small_size", "0 (half the full size) or a number of pixels")
