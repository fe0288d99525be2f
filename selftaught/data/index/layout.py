"""The roles of folders above the classes: a split, unlabelled images, or wrappers of an archive."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from selftaught.data.folder_names import is_additional, is_photos, plain_side, split_sides
from selftaught.data.index.folders import Folder, build_trees
from selftaught.data.index.scan import Files
from selftaught.text import count_text, printable

# The use of a folder among its neighbours. "class": a class folder beside a val/ that has images of
# the class. "outside": images without a class, which are trained on.
Use = Literal["train", "test", "class", "outside"]


@dataclass(frozen=True)
class Layout:
    """What the folders mean for n images."""

    split: Literal["given", "drawn"]
    test: np.ndarray  # [n] bool: held out; none is where the split is to be drawn
    depth: np.ndarray  # [n] number of folders above the class folder; -1: no class
    sets: tuple[str, ...] = ()  # folders in the place of classes, each with a split of its own

    def select(self, order: Sequence[int]) -> Layout:
        return replace(self, test=self.test[order], depth=self.depth[order])


def read_layout(files: Files, notes: list[str]) -> Layout:
    """Return the split by folders and the depth of class folders; `notes` reports the reading."""
    reader = _Reader(files)
    for root in build_trees(files).values():
        reader.read(root)
    notes += reader.notes()
    return Layout(
        "given" if reader.is_given else "drawn", reader.test, reader.depth, tuple(reader.sets)
    )


class _Reader:
    """Walks the folders of each root from the top, and assigns side and depth to every image."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.test = np.zeros(len(files), dtype=bool)
        self.depth = np.zeros(len(files), dtype=np.int64)
        self.is_given = False
        self._sides: dict[str, set[str]] = {"train": set(), "test": set()}  # names of folders
        self._outside: dict[str, int] = {}  # name of a folder: its images
        self._loose_count = 0  # images beside the folders of a split
        self._wrappers: list[str] = []  # folders whose contents are read, as they hold all images
        self._undivided: list[str] = []  # with a split of their own, but few of the images
        self.sets: list[str] = []  # folders that each have a split of their own

    def read(
        self,
        folder: Folder,
        held_out: bool = False,
        elsewhere: Collection[str] = (),
        level: int | None = None,
    ) -> None:
        """Assign all images below `folder`.

        elsewhere: class folders of the other sides. level: the depth of classes where it is
        decided.
        """
        inner, loose = _unwrap(folder, elsewhere)
        self._assign(loose, -1 if level is None else level, held_out)
        if inner.folders and inner is not folder and not folder.path:
            self._note_wrapper(inner)
        if uses := _find_uses(inner):
            self._read_sides(inner, uses, held_out, level)
            return
        divided = _find_divided(inner)
        if divided and not _are_most(divided, inner):
            self._undivided += [child.path for child in divided]
            divided = []
        if len(divided) == 1 and level is None:  # the set, with a few figures beside it
            self._note_wrapper(divided[0])
        elif divided:  # several sets, or classes, each with a split of its own
            level = inner.depth if level is None else level
            self.sets += [child.path for child in divided]
        self._assign(
            inner.files,
            -1 if divided and level is None else inner.depth if level is None else level,
            held_out,
        )
        for name, child in inner.folders.items():
            if child in divided:
                self.read(child, held_out, level=level)
            elif _is_unlabelled(name) or (divided and level is None):
                self._assign_outside(name, child, held_out)
            else:
                self._assign(child.positions(), inner.depth if level is None else level, held_out)

    def _read_sides(
        self, folder: Folder, uses: dict[str, Use], held_out: bool, level: int | None
    ) -> None:
        is_given = "test" in uses.values()
        self.is_given |= is_given
        self._assign(folder.files, -1 if level is None else level, held_out)
        self._loose_count += len(folder.files)
        classes = {name: set(_unwrap(child)[0].folders) for name, child in folder.folders.items()}
        for name, child in folder.folders.items():
            use = uses[name]
            if is_given and use in self._sides:
                self._sides[use].add(name)
            elsewhere = {other for other, other_use in uses.items() if other_use == "class"}
            for other, other_use in uses.items():
                if {other_use, use} == {"train", "test"} and len(classes[other]) > 1:
                    elsewhere |= classes[other]
            train_classes = set().union(
                *(classes[other] for other, other_use in uses.items() if other_use == "train")
            )
            if use == "class":
                self._assign(child.positions(), folder.depth if level is None else level, held_out)
            elif use == "outside" and (
                _is_unlabelled(name) or not classes[name] or not classes[name] <= train_classes
            ):
                self._assign_outside(name, child, held_out)
            else:
                self.read(child, held_out or use == "test", elsewhere, level)

    def _assign(self, positions: Iterable[int], depth: int, held_out: bool) -> None:
        at = np.fromiter(positions, np.int64)
        self.depth[at], self.test[at] = depth, held_out

    def _assign_outside(self, name: str, folder: Folder, held_out: bool) -> None:
        self._assign(folder.positions(), -1, held_out)
        self._outside[name] = self._outside.get(name, 0) + folder.count()

    def _note_wrapper(self, inner: Folder) -> None:
        i = next(inner.positions())
        if self.files.groups[i] < 0:  # rows of a Parquet file lie in no folder
            root = self.files.paths[i].removesuffix(self.files.names[i])
            self._wrappers.append(printable(root + inner.path))

    def notes(self) -> list[str]:
        """How the folders were read, one line each."""
        notes = []
        if self._wrappers:
            notes.append(
                f"split and classes are read from {_list_names(self._wrappers)}, which holds"
                " the images"
            )
        if self.is_given:
            train, test = (_list_names(sorted(self._sides[side])) for side in ("train", "test"))
            notes.append(f"the split: {train or 'the class folders'} to train on, {test} held out")
        if outside := sum(self._outside.values()) + self._loose_count:
            where = "the train and test folders" if self.is_given else "the class folders"
            names = _list_names([f"{printable(name)}: {n:,}" for name, n in self._outside.items()])
            names = f" ({names})" if names else ""
            notes.append(f"{count_text(outside, 'image')} outside of {where}: trained on{names}")
        if self._undivided:
            notes.append(
                f"train and test folders in {_list_names(self._undivided)} hold few of the"
                " images, so they are not taken as the split; give that folder as the data"
            )
        return notes


def _list_names(names: list[str], limit: int = 4) -> str:
    more = f", and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more


def _is_unlabelled(name: str) -> bool:
    return plain_side(name) == "unlabelled"


def _unwrap(folder: Folder, elsewhere: Collection[str] = ()) -> tuple[Folder, list[int]]:
    """Return the folder that holds nearly all of `folder`, and the few images beside it.

    A folder that is named as one of the classes `elsewhere` is a class, and no wrapper.
    """
    loose: list[int] = []
    while len(folder.folders) == 1:
        ((name, child),) = folder.folders.items()
        has_set_name = is_photos(name) or plain_side(name) is not None
        is_mostly_below = not folder.files or (
            bool(child.folders) and 2 * len(folder.files) <= folder.count()
        )
        if (
            not is_mostly_below
            or not (child.folders or has_set_name)
            or (name in elsewhere and not is_photos(name))
        ):
            break
        loose += folder.files
        folder = child
    return folder, loose


def _find_uses(folder: Folder) -> dict[str, Use]:
    """Return the uses of subfolders that form a split or hold unlabelled images; {} without."""
    plain_sides = {name: plain_side(name) for name in folder.folders}
    tests = {name for name, side in plain_sides.items() if side == "test"}
    others = folder.folders.keys() - tests
    test_classes = set().union(
        *(_unwrap(folder.folders[name], others)[0].folders for name in tests)
    )
    if len(others) > 1 and test_classes and test_classes <= others:  # val/ beside the class folders
        uses: dict[str, Use] = dict.fromkeys(tests, "test")
        for name in others:
            uses[name] = "outside" if _is_unlabelled(name) else "class"
        return uses
    sides = split_sides(folder.folders)
    if sides:
        return {name: sides.get(name, "outside") for name in folder.folders}
    additional = {
        name for name in folder.folders if plain_sides[name] == "unlabelled" or is_additional(name)
    }
    labelled_sides = {plain_sides[name] for name in folder.folders.keys() - additional}
    if additional and labelled_sides in (
        {"train"},
        {"test"},
    ):  # one side alone is no split: it holds the labels
        return {name: "outside" if name in additional else "train" for name in folder.folders}
    return {}


def _find_divided(folder: Folder) -> list[Folder]:
    """Return the subfolders that have a split of their own."""
    divided = []
    for name, child in folder.folders.items():
        inner = _unwrap(child)[0]
        if not _is_unlabelled(name) and (
            "test" in _find_uses(inner).values() or _are_most(_find_divided(inner), inner)
        ):
            divided.append(child)
    return divided


def _are_most(subfolders: Collection[Folder], folder: Folder) -> bool:
    """Whether subfolders hold most of the images of a folder."""
    return bool(subfolders) and 2 * sum(child.count() for child in subfolders) > folder.count()
