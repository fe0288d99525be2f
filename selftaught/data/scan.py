"""Finding the image files below the places that a user names, each once, whatever links to it; over 200 lines with the
columns that it fills.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftaught.data.damage import why
from selftaught.data.locations import is_url, listed, spelt, stamp
from selftaught.data.paths import counted, shown
from selftaught.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SUFFIX_NAMES = " ".join(suffix[1:] for suffix in SUFFIXES)


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Root:
    """One of the places that the user named."""

    path: str  # absolute, links kept; or a URL
    real: str
    is_file: bool
    is_store: bool = False  # images as rows of Parquet files

    @classmethod
    def of(cls, root: Path | str) -> Root:
        location = spelt(root)
        if is_url(location):
            return cls(location, location, is_file=False, is_store=True)
        path = Path(location)
        if not path.exists():
            raise UserError(f"{shown(path)}: no such file or folder")
        is_store = _is_store(path)
        if path.is_file() and not is_image(path.name) and not is_store:
            raise UserError(f"{shown(path)} is no image file: known are {SUFFIX_NAMES}, and parquet")
        return cls(os.path.abspath(path), os.path.realpath(path), path.is_file(), is_store)

    @property
    def folder(self) -> str:
        """The real folder whose verdicts are remembered together: a file's are kept with its neighbours'."""
        return os.path.dirname(self.real) if self.is_file else self.real


def _is_store(path: Path) -> bool:
    """Whether a place is a pack, a Parquet file, or a folder of these that holds no image files."""
    if path.is_file():
        return path.name.endswith(".parquet")
    if (path / "pack.json").is_file():
        return True
    try:
        return bool(listed(str(path))) and not any(is_image(name) for *_, names in os.walk(path) for name in names)
    except OSError:  # the scan says what is wrong
        return False


class Files:
    """Images in columns: for a million of them the two strings are the only objects each."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.names: list[str] = []  # the path below its root, with forward slashes; of a root file its name
        self.roots = array("i")  # number of the root
        self.bytes = array("q")
        self.changed = array("q")  # a stamp, as in `locations`; of a store 0
        self.digests = array("q")  # of the content, once it is checked
        self.groups = array("q")  # number of a store's row group, -1 for a file
        self.said: list[tuple[str, ...] | None] = []  # the classes that a store tells
        self.classes: tuple[str, ...] = ()  # in the order of the stores
        self.several = False  # classes an image, in a store

    def __len__(self) -> int:
        return len(self.paths)

    def add(
        self, path: str, name: str, root: int, size: int, changed: int,
        group: int = -1, said: tuple[str, ...] | None = None, digest: int = 0,
    ) -> None:  # fmt: skip
        self.paths.append(path)
        self.names.append(name)
        self.roots.append(root)
        self.bytes.append(size)
        self.changed.append(changed)
        self.groups.append(group)
        self.said.append(said)
        self.digests.append(digest)

    def chosen(self, order: Iterable[int]) -> Files:
        files = Files()
        for i in order:
            files.add(
                self.paths[i], self.names[i], self.roots[i], self.bytes[i], self.changed[i], self.groups[i], self.said[i],
                self.digests[i],
            )  # fmt: skip
        files.classes, files.several = self.classes, self.several
        return files


class Scan:
    """Walks all roots. What really lies somewhere is found before what is linked there, so that a link never
    takes an image away from its own folder; real folders are entered once, which also ends every loop.
    """

    def __init__(self, places: Sequence[Root]) -> None:
        self.places = places
        self.unreadable: list[tuple[str, str]] = []  # (path, reason) of files, links and folders
        self.folders: list[tuple[str, int]] = []  # every folder entered, and its stamp
        self.latest = 0  # when one of them last changed, in nanoseconds
        self.links = 0  # of any kind
        self._found = Files()
        self._hidden = 0
        self._again = 0  # links and named files that lead to an image which is counted already
        self._entered: set[str] = set()
        self._linked_files: list[tuple[str, int]] = []
        self._linked_folders: list[tuple[str, str, int]] = []  # path, real folder that holds the link, root

        outer_first = sorted(range(len(places)), key=lambda r: (len(Path(places[r].real).parts), r))
        for r in outer_first:
            if places[r].is_store:
                continue
            if places[r].is_file:
                self._linked_files.append((places[r].path, r))
            else:
                self._walk(places[r].path, places[r].real, r)
        while self._linked_folders:
            found, self._linked_folders = sorted(self._linked_folders), []
            for path, holder, r in found:
                real = os.path.realpath(path)
                above = (holder + os.sep).startswith(real.rstrip(os.sep) + os.sep)
                if not above:  # a link to a folder it lies in might bring in all the disk
                    self._walk(path, real, r)
        self._take_linked_files()
        order = sorted(range(len(self._found)), key=lambda i: (self._found.names[i], self._found.roots[i]))
        self.files = self._found.chosen(order)

    @property
    def notes(self) -> list[str]:
        """What was not taken, a line each."""
        notes = []
        if self._hidden:
            notes.append(f"{counted(self._hidden, 'hidden image file')} passed over")
        if self._again:
            notes.append(f"{counted(self._again, 'link or path', 'links or paths')} to images that are counted already")
        return notes

    def _walk(self, path: str, real: str, root: int) -> None:
        todo = [(path, real)]
        while todo:
            path, real = todo.pop()
            if real in self._entered:
                continue
            self._entered.add(real)
            try:
                status = os.stat(path)  # first: what changes meanwhile will be seen
                self.folders.append((path, stamp(status)))
                self.latest = max(self.latest, status.st_mtime_ns)
                with os.scandir(path) as entries:
                    for entry in entries:
                        if entry.name == "__MACOSX" or entry.name.startswith("."):
                            self._hidden += is_image(entry.name) and not entry.name.startswith("._")
                        elif entry.is_symlink():
                            self._link(entry, real, root)
                        elif entry.is_dir():
                            todo.append((entry.path, os.path.join(real, entry.name)))
                        elif is_image(entry.name):
                            self._add(entry.path, root)
            except OSError as error:
                self.unreadable.append((path, f"folder: {why(error)}"))

    def _link(self, entry: os.DirEntry[str], holder: str, root: int) -> None:
        self.links += 1
        try:
            target = entry.stat()
        except OSError as error:
            broken = isinstance(error, FileNotFoundError)
            self.unreadable.append((entry.path, "broken link" if broken else f"link: {why(error)}"))
            return
        if stat.S_ISDIR(target.st_mode):
            self._linked_folders.append((entry.path, holder, root))
        elif is_image(entry.name):
            self._linked_files.append((entry.path, root))

    def _add(self, path: str, root: int) -> None:
        try:
            status = os.stat(path)
            reason = None if stat.S_ISREG(status.st_mode) else "not a regular file"
        except OSError as error:
            reason = why(error)
        if reason is None:
            place = self.places[root]
            name = os.path.basename(path) if place.is_file else path[len(place.path.rstrip(os.sep)) + 1 :]
            self._found.add(path, name.replace(os.sep, "/"), root, status.st_size, stamp(status))
        else:
            self.unreadable.append((path, reason))

    def _take_linked_files(self) -> None:
        taken = set()
        for path, root in sorted(self._linked_files):
            real = os.path.realpath(path)
            folder, name = os.path.split(real)
            walked = folder in self._entered and is_image(name) and not name.startswith(".")
            if walked or real in taken:
                self._again += 1
            else:
                taken.add(real)
                self._add(path, root)
