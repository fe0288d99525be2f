"""Colour profiles in files: what turns an image's colours into those of sRGB, where they are
others.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# grey levels up to which a profile counts as that of sRGB: many are copies of it, rounded otherwise
_NEAR = 4
# mode -> mode in sRGB
_OUT = {"RGB": "RGB", "RGBA": "RGBA", "L": "RGB", "CMYK": "RGB", "LAB": "RGB"}


@lru_cache(64)
def to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What turns images of a mode into sRGB (`.apply`); None where nothing is to be done, or the
    profile is of no use.

    `profile`: as it stands in the file; None only for LAB, which means the same everywhere.
    """
    if mode not in _OUT or (profile is None and mode != "LAB"):
        return None
    try:
        source = (
            ImageCms.createProfile("LAB")
            if profile is None
            else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        )
        made = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            _OUT[mode],
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode in ("RGB", "RGBA", "L"):
            samples = _samples(mode)
            found, plain = (
                np.asarray(i.convert("RGB")).astype(int) for i in (made.apply(samples), samples)
            )
            if np.abs(found - plain).max() <= _NEAR:
                return None
    except (
        ImageCms.PyCMSError,
        OSError,
        ValueError,
        TypeError,
    ):  # damaged, or of another kind of image: as stored
        return None
    return made


def _samples(mode: str) -> Image.Image:
    """Colours from all of the cube."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(
        np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    ).convert(mode)
