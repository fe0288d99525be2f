"""What the folders around the classes are for: a split, unlabelled images, or only what an archive was unpacked into.

(Over 200 lines: how a folder is read, and how it is told what it is for.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from selftaught.data.folder_names import is_more, is_photos, plain_side, split_sides
from selftaught.data.folders import Folder, trees
from selftaught.data.paths import counted, shown
from selftaught.data.scan import Files

# What a folder is for among its neighbours. "class": it lies beside the val/ that holds images of its class.
# "outside": its images are trained on and have no class.
Use = Literal["train", "test", "class", "outside"]


@dataclass(frozen=True)
class Layout:
    """What the folders say of n images."""

    split: Literal["given", "drawn"]
    test: np.ndarray  # [n] bool: held out; none is where the split is to be drawn
    depth: np.ndarray  # [n] how many folders lie above the class folder; -1: it has no class

    def chosen(self, order: Sequence[int]) -> Layout:
        return Layout(self.split, self.test[order], self.depth[order])


def read_layout(files: Files, notes: list[str]) -> Layout:
    """The split that the folders make, and the depth of the class folders; `notes` says what was taken for what."""
    reader = _Reader(files)
    for root in trees(files).values():
        reader.read(root)
    notes += reader.notes()
    return Layout("given" if reader.given else "drawn", reader.test, reader.depth)


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
        self._wrapped: list[str] = []  # folders that were looked into, as they are all that there is
        self._undivided: list[str] = []  # have a split of their own, which their neighbours have not

    def read(
        self, folder: Folder, held_out: bool = False, elsewhere: Collection[str] = (), level: int | None = None
    ) -> None:  # fmt: skip
        """Notes all below `folder`. `elsewhere`: class folders of the other sides; `level`: a depth that is settled."""
        inner, loose = _unwrap(folder, elsewhere)
        self._set(loose, -1 if level is None else level, held_out)
        if inner.folders and inner is not folder and not folder.path:
            self._note_wrapping(inner)
        if uses := _uses(inner):
            self._read_sides(inner, uses, held_out, level)
            return
        level = inner.depth if level is None else level
        divided = {name: _has_split(child) for name, child in inner.folders.items() if not _is_unlabelled(name)}
        if len(divided) > 1 and all(divided.values()):  # several sets, or classes, each with a split of its own
            self._set(inner.files, level, held_out)
            for child in inner.folders.values():
                self.read(child, held_out, level=level)
            return
        self._undivided += [child.path for name, child in inner.folders.items() if divided.get(name)]
        self._set(inner.positions(), level, held_out)
        for name, child in inner.folders.items():
            if _is_unlabelled(name):
                self._set_outside(name, child, held_out)

    def _read_sides(self, folder: Folder, uses: dict[str, Use], held_out: bool, level: int | None) -> None:
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
            elif use == "outside" and (_is_unlabelled(name) or not classes[name] or not classes[name] <= taught):
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
            self._wrapped.append(shown(root + inner.path))

    def notes(self) -> list[str]:
        """What was taken for what, a line each."""
        notes = []
        if self._wrapped:
            notes.append(f"split and classes are looked for in {_some(self._wrapped)}, which holds the images")
        if self.given:
            train, test = (_some(sorted(self._sides[side])) for side in ("train", "test"))
            notes.append(f"the split: {train or 'the class folders'} to train on, {test} held out")
        if outside := sum(self._outside.values()) + self._loose:
            where = "the train and test folders" if self.given else "the class folders"
            named = f" ({_some([f'{shown(name)}: {n:,}' for name, n in self._outside.items()])})" if self._outside else ""
            notes.append(f"{counted(outside, 'image')} outside of {where}: trained on{named}")
        if self._undivided:
            notes.append(
                f"{_some(self._undivided)}: train and test folders of its own, which its neighbours do not have, are not "
                "taken as the split; name it as the data, or move them"
            )
        return notes


def _some(names: list[str], most: int = 4) -> str:
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def _is_unlabelled(name: str) -> bool:
    return plain_side(name) == "unlabelled"


def _unwrap(folder: Folder, elsewhere: Collection[str] = ()) -> tuple[Folder, list[int]]:
    """The folder that holds all which `folder` holds, but for some loose images, which are returned beside it.

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
    """What the folders of a folder are for, where they make a split or some hold no labels; else nothing."""
    plain = {name: plain_side(name) for name in folder.folders}
    tests = {name for name, side in plain.items() if side == "test"}
    others = folder.folders.keys() - tests
    held_out = set().union(*(_unwrap(folder.folders[name], others)[0].folders for name in tests))
    if len(others) > 1 and held_out and held_out <= others:  # val/ beside the class folders
        uses: dict[str, Use] = {name: "outside" if _is_unlabelled(name) else "class" for name in others}
        return uses | {name: "test" for name in tests}
    sides = split_sides(folder.folders)
    if sides:
        return {name: sides.get(name, "outside") for name in folder.folders}
    more = {name for name in folder.folders if plain[name] == "unlabelled" or is_more(name)}
    labelled = {plain[name] for name in folder.folders.keys() - more}
    if more and labelled in ({"train"}, {"test"}):  # one side alone is no split: it holds the labels
        return {name: "outside" if name in more else "train" for name in folder.folders}
    return {}


def _has_split(folder: Folder) -> bool:
    inner = _unwrap(folder)[0]
    children = [child for name, child in inner.folders.items() if not _is_unlabelled(name)]
    return "test" in _uses(inner).values() or (len(children) > 1 and all(map(_has_split, children)))
