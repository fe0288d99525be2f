"""The folders of an image set as a tree of those that hold images."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from selftaught.data.index.scan import Files


class Folder:
    """A folder with images in it or below it."""

    def __init__(self, path: str = "") -> None:
        self.path = path  # below the root, with forward slashes; "" of the root
        self.folders: dict[str, Folder] = {}
        self.files = array("q")  # positions of the images directly in this folder

    @property
    def depth(self) -> int:
        """Number of folders between it and the root."""
        return self.path.count("/") + 1 if self.path else 0

    def walk(self) -> Iterator[Folder]:
        """Iterate over this folder and all below it."""
        pending: list[Folder] = [self]
        while pending:
            folder = pending.pop()
            yield folder
            pending += folder.folders.values()

    def positions(self) -> Iterator[int]:
        """Iterate over the positions of all images in it and below it."""
        for folder in self.walk():
            yield from folder.files

    def count(self) -> int:
        return sum(len(folder.files) for folder in self.walk())


def build_trees(files: Files) -> dict[int, Folder]:
    """Return the tree of each root, by the root's number."""
    roots: dict[int, Folder] = {}
    folders: dict[tuple[int, str], Folder] = {}
    for i, (root, name) in enumerate(zip(files.roots, files.names, strict=True)):
        path = name.rpartition("/")[0]
        folder = folders.get((root, path))
        if folder is None:
            folder = roots.setdefault(root, Folder())
            parts = path.split("/") if path else []
            for at, part in enumerate(parts):
                folder = folder.folders.setdefault(part, Folder("/".join(parts[: at + 1])))
            folders[root, path] = folder
        folder.files.append(i)
    return roots
