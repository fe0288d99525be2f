"""Converts images with colour profiles to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# largest difference in grey levels of a profile that counts as sRGB: many are rounded copies of it
_NEAR = 4
# mode of the image -> mode in sRGB
_SRGB_MODES = {"RGB": "RGB", "RGBA": "RGBA", "L": "RGB", "CMYK": "RGB", "LAB": "RGB"}


@lru_cache(64)
def make_srgb_transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return a transform of images of a mode to sRGB (`.apply`); None where none is needed or
    possible.

    profile: the bytes in the file; None for LAB, which has one meaning.
    """
    if mode not in _SRGB_MODES or (profile is None and mode != "LAB"):
        return None
    try:
        source = (
            ImageCms.createProfile("LAB")
            if profile is None
            else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        )
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            _SRGB_MODES[mode],
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode in ("RGB", "RGBA", "L"):
            samples = _make_samples(mode)
            converted, plain = (
                np.asarray(i.convert("RGB")).astype(int)
                for i in (transform.apply(samples), samples)
            )
            if np.abs(converted - plain).max() <= _NEAR:
                return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of another mode
        return None
    return transform


def _make_samples(mode: str) -> Image.Image:
    """Return an image with colours of the whole cube."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(
        np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    ).convert(mode)
