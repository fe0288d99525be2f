"""Demo data: patches of photographs in the scikit-image and scikit-learn wheels, without downloads.

Each photograph is a class. A 4 x 4 grid divides it into cells; each patch lies in one cell, and
each cell belongs to train or to test, so that the two share no pixel.
"""

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from selftaught.errors import UserError

# class -> (package, file in it). Without pictures that are nearly flat (cell, clock), drawn (logo,
# colour wheel) or text, and without the second picture of a stereo pair.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "cameraman": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "pagoda": ("sklearn", "datasets/images/china.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
GRID = 4  # cells along each side
SMALLEST = 0.5  # side of a patch, as a share of its cell's short side; the largest is 1

Split = Literal["train", "test"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A square in one cell of a photograph's grid."""

    split: Split
    cell: tuple[int, int]  # row, column
    box: Box  # left, top, right, bottom, in pixels of the photograph


def plan(
    name: str, width: int, height: int, *, seed: int, train: int, test: int
) -> tuple[Patch, ...]:
    """Return the patches of one photograph: `train` from twelve cells, and `test` from the other
    four.

    Each row and each column has one test cell. The result depends on the arguments alone: Python's
    `random()` gives equal numbers in every version.
    """
    rng = random.Random(f"{seed}/{name}")
    columns = sorted(range(GRID), key=lambda _: rng.random())
    held_out = [(row, column) for row, column in enumerate(columns)]
    others = [
        (row, col) for row in range(GRID) for col in range(GRID) if (row, col) not in held_out
    ]
    parts: tuple[tuple[Split, list[tuple[int, int]], int], ...] = (
        ("train", others, train),
        ("test", held_out, test),
    )
    patches = []
    for split, cells, count in parts:
        for index in range(count):
            row, column = cell = cells[index % len(cells)]
            left, right = column * width // GRID, (column + 1) * width // GRID
            top, bottom = row * height // GRID, (row + 1) * height // GRID
            short = min(right - left, bottom - top)
            side = round(short * (SMALLEST + (1 - SMALLEST) * rng.random()))
            x = left + int(rng.random() * (right - left - side + 1))
            y = top + int(rng.random() * (bottom - top - side + 1))
            patches.append(Patch(split=split, cell=cell, box=(x, y, x + side, y + side)))
    return tuple(patches)


def write(
    folder: str | Path,
    *,
    size: int = 96,
    seed: int = 0,
    train_per_class: int = 188,
    test_per_class: int = 50,
) -> Path:
    """Write folder/{train,test}/<class>/NNN.png, `size` pixels square, and folder/patches.json.

    Returns the folder. The default is 3,008 + 800 patches, 52 MB, in a few seconds. Equal arguments
    give equal pixels. A folder with exactly these patches stays unchanged. Patches of one cell
    overlap, so the test patches are not independent. Raises UserError without scikit-image, or for
    a folder with other content.
    """
    folder = Path(folder)
    arguments = {
        "size": size,
        "seed": seed,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
    }
    if _is_complete(folder, arguments):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} already holds something else: give an empty or new folder for the photo"
            " patches."
        )
    sources = photographs()
    # complete or absent, even after an interruption
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        patches_by_name: dict[str, list[dict[str, Any]]] = {}
        for name, source in sources.items():
            with Image.open(source) as file:
                photo = file.convert("L" if file.mode == "L" else "RGB")
            patches = plan(name, *photo.size, seed=seed, train=train_per_class, test=test_per_class)
            patches_by_name[name] = [asdict(patch) for patch in patches]
            for index, patch in enumerate(patches):
                path = draft / patch.split / name / f"{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Cropped first, as resizing the photograph would mix in pixels around the box.
                tile = photo.crop(patch.box).resize((size, size), Image.Resampling.BICUBIC)
                tile.save(path, compress_level=1)
        files = {name: "/".join(source) for name, source in PHOTOGRAPHS.items()}
        text = json.dumps(
            {"arguments": arguments, "photographs": files, "patches": patches_by_name}
        )
        (draft / "patches.json").write_text(text)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def write_night(folder: Path, images: Path, seed: int = 0) -> Path:
    """Write the patches of `images` once more into `folder` as a night camera would take them.

    They are grey, dark and noisy: a domain of its own, for the demo of adapting. Patches keep their
    names. A folder that holds them already is left as it is.
    """
    files = sorted(images.glob("*/*/*.png"))
    if folder.exists():
        if len(list(folder.glob("*/*/*.png"))) == len(files):
            return folder
        raise UserError(f"{folder} already holds something else: choose another --out")
    rng = np.random.default_rng(seed)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for file in files:
            with Image.open(file) as image:
                grey = np.asarray(image.convert("L"), dtype=np.float32)
            dark = 0.3 * grey + rng.normal(20, 12, grey.shape)
            path = draft / file.relative_to(images)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dark.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _is_complete(folder: Path, arguments: dict[str, int]) -> bool:
    try:
        content = json.loads((folder / "patches.json").read_text())
        # The file is written before the folder gets its name. Patches may be deleted later.
        n_patches = sum(len(patches) for patches in content["patches"].values())
        return (
            bool(content["arguments"] == arguments)
            and len(list(folder.glob("*/*/*.png"))) == n_patches
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def photographs() -> dict[str, Path]:
    """Return the file of each photograph in the installed packages, by class. Raises UserError."""
    files = {}
    for name, (package, file) in PHOTOGRAPHS.items():
        spec = find_spec(package)  # finds the files without importing the package
        path = Path(spec.origin).parent / file if spec is not None and spec.origin else None
        if path is None or not path.is_file():
            pip = {"skimage": "selftaught[demo]", "sklearn": "scikit-learn"}[package]
            raise UserError(
                f"The demo's photograph {file} comes with {package}: run pip install '{pip}'."
            )
        files[name] = path
    return files
