"""The folders of an image set as a tree of those that hold images."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from selftaught.data.index.scan import Files


class Folder:
    """A folder with images in it or below it."""

    def __init__(self, path: str = "") -> None:
        self.path = path  # below the root, with forward slashes; of the root nothing
        self.folders: dict[str, Folder] = {}
        self.files = array("q")  # positions of the images that lie in this very folder

    @property
    def depth(self) -> int:
        """How many folders below the root it lies."""
        return self.path.count("/") + 1 if self.path else 0

    def below(self) -> Iterator[Folder]:
        """This folder and all below it."""
        todo = [self]
        while todo:
            folder = todo.pop()
            yield folder
            todo += folder.folders.values()

    def positions(self) -> Iterator[int]:
        """The positions of all images in it and below it."""
        for folder in self.below():
            yield from folder.files

    def count(self) -> int:
        return sum(len(folder.files) for folder in self.below())


def trees(files: Files) -> dict[int, Folder]:
    """The folders of each root, by the root's number."""
    roots: dict[int, Folder] = {}
    known: dict[tuple[int, str], Folder] = {}
    for i, (root, name) in enumerate(zip(files.roots, files.names, strict=True)):
        path = name.rpartition("/")[0]
        folder = known.get((root, path))
        if folder is None:
            folder = roots.setdefault(root, Folder())
            parts = path.split("/") if path else []
            for at, part in enumerate(parts):
                folder = folder.folders.setdefault(part, Folder("/".join(parts[: at + 1])))
            known[root, path] = folder
        folder.files.append(i)
    return roots
