"""Small image folders for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def folder(root: Path, classes: int = 3, each: int = 16, size: int = 40, seed: int = 0) -> Path:
    """Class subfolders of noisy stripes whose direction and colour tell the class."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    for c in range(classes):
        place = root / f"class {c}"
        place.mkdir(parents=True, exist_ok=True)
        for i in range(each):
            wave = np.sin((across * np.cos(c) + down * np.sin(c)) / 2 + rng.uniform(0, 6))
            image = (
                128
                + 60 * wave[..., None] * np.array([1, c / classes, 1 - c / classes])
                + rng.normal(0, 15, (size, size, 3))
            )
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(place / f"{i:03}.png")
    return root
