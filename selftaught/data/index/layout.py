"""What the folders around the classes are for: a split, unlabelled images, or only what an archive
was unpacked into.

(Over 200 lines: how a folder is read, and how it is told what it is for.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from selftaught.data.index.folder_names import is_more, is_photos, plain_side, split_sides
from selftaught.data.index.folders import Folder, trees
from selftaught.data.index.scan import Files
from selftaught.text import count_text, printable

# What a folder is for among its neighbours. "class": it lies beside the val/ that holds images of
# its class. "outside": its images are trained on and have no class.
Use = Literal["train", "test", "class", "outside"]


@dataclass(frozen=True)
class Layout:
    """What the folders say of n images."""

    split: Literal["given", "drawn"]
    test: np.ndarray  # [n] bool: held out; none is where the split is to be drawn
    depth: np.ndarray  # [n] how many folders lie above the class folder; -1: it has no class
    sets: tuple[
        str, ...
    ] = ()  # folders in the place of classes that each have a split of their own

    def chosen(self, order: Sequence[int]) -> Layout:
        return replace(self, test=self.test[order], depth=self.depth[order])


def read_layout(files: Files, notes: list[str]) -> Layout:
    """The split that the folders make, and the depth of the class folders; `notes` says what was
    taken for what.
    """
    reader = _Reader(files)
    for root in trees(files).values():
        reader.read(root)
    notes += reader.notes()
    return Layout(
        "given" if reader.given else "drawn", reader.test, reader.depth, tuple(reader.sets)
    )


class _Reader:
    """Walks the folders of each root from above, and notes of every image what they say."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.test = np.zeros(len(files), dtype=bool)
        self.depth = np.zeros(len(files), dtype=np.int64)
        self.given = False
        self._sides: dict[str, set[str]] = {"train": set(), "test": set()}  # names of folders
        self._outside: dict[str, int] = {}  # name of a folder: its images
        self._loose = 0  # images beside the folders of a split
        self._wrapped: list[
            str
        ] = []  # folders that were looked into, as they are all that there is
        self._undivided: list[str] = []  # have a split of their own, and are not most of the images
        self.sets: list[str] = []  # folders that each have a split of their own

    def read(
        self,
        folder: Folder,
        held_out: bool = False,
        elsewhere: Collection[str] = (),
        level: int | None = None,
    ) -> None:
        """Notes all below `folder`. `elsewhere`: class folders of the other sides; `level`: a depth
        that is settled.
        """
        inner, loose = _unwrap(folder, elsewhere)
        self._set(loose, -1 if level is None else level, held_out)
        if inner.folders and inner is not folder and not folder.path:
            self._note_wrapping(inner)
        if uses := _uses(inner):
            self._read_sides(inner, uses, held_out, level)
            return
        divided = _divided(inner)
        if divided and not _are_most(divided, inner):
            self._undivided += [child.path for child in divided]
            divided = []
        if len(divided) == 1 and level is None:  # the set, with some figures beside it
            self._note_wrapping(divided[0])
        elif divided:  # several sets, or classes, each with a split of its own
            level = inner.depth if level is None else level
            self.sets += [child.path for child in divided]
        self._set(
            inner.files,
            -1 if divided and level is None else inner.depth if level is None else level,
            held_out,
        )
        for name, child in inner.folders.items():
            if child in divided:
                self.read(child, held_out, level=level)
            elif _is_unlabelled(name) or (divided and level is None):
                self._set_outside(name, child, held_out)
            else:
                self._set(child.positions(), inner.depth if level is None else level, held_out)

    def _read_sides(
        self, folder: Folder, uses: dict[str, Use], held_out: bool, level: int | None
    ) -> None:
        given = "test" in uses.values()
        self.given |= given
        self._set(folder.files, -1 if level is None else level, held_out)
        self._loose += len(folder.files)
        classes = {name: set(_unwrap(child)[0].folders) for name, child in folder.folders.items()}
        for name, child in folder.folders.items():
            use = uses[name]
            if given and use in self._sides:
                self._sides[use].add(name)
            elsewhere = {other for other, its in uses.items() if its == "class"}
            for other, its in uses.items():
                if {its, use} == {"train", "test"} and len(classes[other]) > 1:
                    elsewhere |= classes[other]
            taught = set().union(*(classes[other] for other, its in uses.items() if its == "train"))
            if use == "class":
                self._set(child.positions(), folder.depth if level is None else level, held_out)
            elif use == "outside" and (
                _is_unlabelled(name) or not classes[name] or not classes[name] <= taught
            ):
                self._set_outside(name, child, held_out)
            else:
                self.read(child, held_out or use == "test", elsewhere, level)

    def _set(self, positions: Iterable[int], depth: int, held_out: bool) -> None:
        at = np.fromiter(positions, np.int64)
        self.depth[at], self.test[at] = depth, held_out

    def _set_outside(self, name: str, folder: Folder, held_out: bool) -> None:
        self._set(folder.positions(), -1, held_out)
        self._outside[name] = self._outside.get(name, 0) + folder.count()

    def _note_wrapping(self, inner: Folder) -> None:
        i = next(inner.positions())
        if self.files.groups[i] < 0:  # the rows of a store lie in no folder
            root = self.files.paths[i].removesuffix(self.files.names[i])
            self._wrapped.append(printable(root + inner.path))

    def notes(self) -> list[str]:
        """What was taken for what, a line each."""
        notes = []
        if self._wrapped:
            notes.append(
                f"split and classes are looked for in {_some(self._wrapped)}, which holds the"
                " images"
            )
        if self.given:
            train, test = (_some(sorted(self._sides[side])) for side in ("train", "test"))
            notes.append(f"the split: {train or 'the class folders'} to train on, {test} held out")
        if outside := sum(self._outside.values()) + self._loose:
            where = "the train and test folders" if self.given else "the class folders"
            named = (
                f" ({_some([f'{printable(name)}: {n:,}' for name, n in self._outside.items()])})"
                if self._outside
                else ""
            )
            notes.append(f"{count_text(outside, 'image')} outside of {where}: trained on{named}")
        if self._undivided:
            notes.append(
                f"train and test folders in {_some(self._undivided)}, where few of the images are,"
                " are not taken as the split; name that as the data"
            )
        return notes


def _some(names: list[str], most: int = 4) -> str:
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def _is_unlabelled(name: str) -> bool:
    return plain_side(name) == "unlabelled"


def _unwrap(folder: Folder, elsewhere: Collection[str] = ()) -> tuple[Folder, list[int]]:
    """The folder that holds all which `folder` holds, but for some loose images, which are returned
    beside it.

    A folder that is named as one of the classes `elsewhere` is the only class here.
    """
    loose: list[int] = []
    while len(folder.folders) == 1:
        ((name, child),) = folder.folders.items()
        called = is_photos(name) or plain_side(name) is not None
        few = not folder.files or (bool(child.folders) and 2 * len(folder.files) <= folder.count())
        if not few or not (child.folders or called) or (name in elsewhere and not is_photos(name)):
            break
        loose += folder.files
        folder = child
    return folder, loose


def _uses(folder: Folder) -> dict[str, Use]:
    """What the folders of a folder are for, where they make a split or some hold no labels; else
    nothing.
    """
    plain = {name: plain_side(name) for name in folder.folders}
    tests = {name for name, side in plain.items() if side == "test"}
    others = folder.folders.keys() - tests
    held_out = set().union(*(_unwrap(folder.folders[name], others)[0].folders for name in tests))
    if len(others) > 1 and held_out and held_out <= others:  # val/ beside the class folders
        uses: dict[str, Use] = {
            name: "outside" if _is_unlabelled(name) else "class" for name in others
        }
        return uses | {name: "test" for name in tests}
    sides = split_sides(folder.folders)
    if sides:
        return {name: sides.get(name, "outside") for name in folder.folders}
    more = {name for name in folder.folders if plain[name] == "unlabelled" or is_more(name)}
    labelled = {plain[name] for name in folder.folders.keys() - more}
    if more and labelled in (
        {"train"},
        {"test"},
    ):  # one side alone is no split: it holds the labels
        return {name: "outside" if name in more else "train" for name in folder.folders}
    return {}


def _divided(folder: Folder) -> list[Folder]:
    """The folders of a folder that have a split of their own."""
    found = []
    for name, child in folder.folders.items():
        inner = _unwrap(child)[0]
        if not _is_unlabelled(name) and (
            "test" in _uses(inner).values() or _are_most(_divided(inner), inner)
        ):
            found.append(child)
    return found


def _are_most(some: Collection[Folder], folder: Folder) -> bool:
    """Whether some of the folders of a folder hold most of its images."""
    return bool(some) and 2 * sum(child.count() for child in some) > folder.count()
