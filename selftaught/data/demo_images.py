"""Photo patches: the embedded demo data, from photographs inside the scikit-image and scikit-learn
wheels.

One class a photograph. A 4 x 4 grid of cells parts each photograph; a patch lies inside one cell,
and a cell belongs to train or to test, so that the two share no pixel. Nothing is downloaded.
"""

import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from selftaught.errors import UserError

# class -> (package, file in it). Left out: pictures that are nearly flat (cell, clock), drawn
# (logo, colour wheel) or text, of which a patch says nothing, and the second picture of a stereo
# pair.
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
    """A square (left, top, right, bottom), in pixels of the photograph, inside one cell of its
    grid.
    """

    split: Split
    cell: tuple[int, int]  # row, column
    box: Box


def plan(
    name: str, width: int, height: int, *, seed: int, train: int, test: int
) -> tuple[Patch, ...]:
    """The patches of one photograph: `train` from twelve cells and `test` from the other four, in
    turn.

    The test cells are one in each row and each column. All depends on the arguments alone: only
    `random()` of Python's generator is used, which gives the same numbers in every version.
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

    By default 3,008 + 800 patches, 52 MB, in a few seconds. The same arguments give the same
    pixels. A folder that holds exactly these patches is left as it is; one that holds anything else
    is refused. Returns the folder. Patches of one cell overlap: the test patches are less
    independent than they are many. Raises UserError where scikit-image is not installed, or the
    folder holds something else.
    """
    folder = Path(folder)
    arguments = {
        "size": size,
        "seed": seed,
        "train_per_class": train_per_class,
        "test_per_class": test_per_class,
    }
    if _holds(folder, arguments):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} already holds something else: give an empty or new folder for the photo"
            " patches."
        )
    sources = photographs()
    # all or nothing, also when it is interrupted
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        where: dict[str, list[dict[str, object]]] = {}
        for name, source in sources.items():
            with Image.open(source) as file:
                photo = file.convert("L" if file.mode == "L" else "RGB")
            patches = plan(name, *photo.size, seed=seed, train=train_per_class, test=test_per_class)
            where[name] = [asdict(patch) for patch in patches]
            for index, patch in enumerate(patches):
                path = draft / patch.split / name / f"{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Cropped first: a resize of the whole photograph would mix in pixels from outside
                # the box.
                tile = photo.crop(patch.box).resize((size, size), Image.Resampling.BICUBIC)
                tile.save(path, compress_level=1)
        files = {name: "/".join(source) for name, source in PHOTOGRAPHS.items()}
        text = json.dumps({"arguments": arguments, "photographs": files, "patches": where})
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


def _holds(folder: Path, arguments: dict[str, int]) -> bool:
    try:
        note = json.loads((folder / "patches.json").read_text())
        # Written before the folder gets its name; only a later hand can have taken patches away.
        whole = sum(len(patches) for patches in note["patches"].values())
        return bool(note["arguments"] == arguments) and len(list(folder.glob("*/*/*.png"))) == whole
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def photographs() -> dict[str, Path]:
    """class -> its photograph's file inside the installed packages."""
    found = {}
    for name, (package, inside) in PHOTOGRAPHS.items():
        spec = find_spec(package)  # finds the files without importing the package
        path = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
        if path is None or not path.is_file():
            pip = {"skimage": "selftaught[demo]", "sklearn": "scikit-learn"}[package]
            raise UserError(
                f"The demo's photograph {inside} comes with {package}: run pip install '{pip}'."
            )
        found[name] = path
    return found
