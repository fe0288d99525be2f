"""Which Parquet files below a folder are one set of images, as Hugging Face's hub lays them out.

default/train/0000.parquet, default/test/0000.parquet       a configuration, and in it a folder for
each split data/train-00000-of-00002.parquet                           the split in the names of the
files
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selftaught.data.index.folder_names import plain_side, split_sides
from selftaught.errors import UserError
from selftaught.text import printable

# As selftaught has always read them: these words begin the names of rows, which old runs know.
_FIRST_WORDS = ("train", "training", "test", "testing", "val", "valid", "validation")
_NUMBER = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")


def choose_set(location: str, files: Sequence[str], notes: list[str]) -> list[str]:
    """Those of the Parquet files below `location` (relative, with forward slashes) that are one
    set.

    Files that lie in no folder of a configuration are one. Raises UserError where there are several
    configurations.
    """
    sets: dict[str, list[str]] = {}
    for file in files:
        folders = file.split("/")[:-1]
        configuration = "/".join(
            name for name in folders if name.lower() != "data" and plain_side(name) is None
        )
        sets.setdefault(configuration, []).append(file)
    if "" in sets and len(sets) > 1:
        others = ", ".join(printable(name) for name in sorted(sets) if name)
        notes.append(f"Parquet files in {others} are not read: name such a folder as data itself")
    elif len(sets) > 1:
        names = sorted(sets)
        more = f", and {len(names) - 8:,} more" if len(names) > 8 else ""
        raise UserError(
            f"{printable(location)} holds several sets of Parquet files"
            f" ({', '.join(map(printable, names[:8]))}{more}): name the folder of one, such as"
            f" {printable(location)}/{printable(names[0])}"
        )
    elif sets and "" not in sets:
        notes.append(f"the Parquet files of {printable(location)}/{printable(next(iter(sets)))}")
    return sorted(sets.get("") or next(iter(sets.values()), []))


def splits_of(files: Sequence[str]) -> list[str]:
    """The split of each Parquet file: what its name begins with, or its folder's name, or its own
    name; or nothing.
    """
    stems = [_NUMBER.sub("", file.rpartition("/")[2].removesuffix(".parquet")) for file in files]
    known = split_sides(stems)
    common = _common([file.split("/")[:-1] for file in files])
    splits = []
    for file, stem in zip(files, stems, strict=True):
        *folders, base = file.split("/")[common:]
        first = base.removesuffix(".parquet").split("-")[0].split(".")[0].lower()
        folder = next((name for name in reversed(folders) if plain_side(name)), "")
        own = stem if stem in known or plain_side(stem) else ""
        splits.append((first if first in _FIRST_WORDS else "") or folder or own)
    return splits


def own_names(files: Sequence[str]) -> list[str]:
    """A name for each file that no other has: its own, with its folders where there are several."""
    common = _common([file.split("/")[:-1] for file in files])
    return ["-".join(file.removesuffix(".parquet").split("/")[common:]) for file in files]


def _common(paths: Sequence[Sequence[str]]) -> int:
    """How many folders all paths begin with."""
    depth = min((len(path) for path in paths), default=0)
    return next((i for i in range(depth) if len({path[i] for path in paths}) > 1), depth)
