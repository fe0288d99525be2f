"""Which Parquet files below a folder form one image set, in the layouts of Hugging Face's hub.

default/train/0000.parquet, default/test/0000.parquet: a configuration with a folder for each split.
data/train-00000-of-00002.parquet: the split in the names of the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selftaught.data.folder_names import plain_side, split_sides
from selftaught.errors import UserError
from selftaught.text import printable

# First words that older versions read as splits. They begin the names of rows in old runs.
_FIRST_WORDS = ("train", "training", "test", "testing", "val", "valid", "validation")
_NUMBER = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")


def choose_set(location: str, files: Sequence[str], notes: list[str]) -> list[str]:
    """Return those Parquet files below `location` (relative paths) that form one set.

    Files outside the folders of configurations form one. Raises UserError for several
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
        other_sets = ", ".join(printable(name) for name in sorted(sets) if name)
        notes.append(
            f"Parquet files in {other_sets} are not read: name such a folder as data itself"
        )
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


def infer_splits(files: Sequence[str]) -> list[str]:
    """Return the split of each Parquet file, "" for none: by its first word, its folder or its
    name.
    """
    stems = [_NUMBER.sub("", file.rpartition("/")[2].removesuffix(".parquet")) for file in files]
    sides = split_sides(stems)
    depth = _count_common_folders([file.split("/")[:-1] for file in files])
    splits = []
    for file, stem in zip(files, stems, strict=True):
        *folders, base = file.split("/")[depth:]
        first = base.removesuffix(".parquet").split("-")[0].split(".")[0].lower()
        folder = next((name for name in reversed(folders) if plain_side(name)), "")
        own_side = stem if stem in sides or plain_side(stem) else ""
        splits.append((first if first in _FIRST_WORDS else "") or folder or own_side)
    return splits


def make_unique_names(files: Sequence[str]) -> list[str]:
    """Return a unique name for each file: its own, with its folders where there are several."""
    depth = _count_common_folders([file.split("/")[:-1] for file in files])
    return ["-".join(file.removesuffix(".parquet").split("/")[depth:]) for file in files]


def _count_common_folders(paths: Sequence[Sequence[str]]) -> int:
    """Return the number of leading folders that all paths share."""
    depth = min((len(path) for path in paths), default=0)
    return next((i for i in range(depth) if len({path[i] for path in paths}) > 1), depth)
