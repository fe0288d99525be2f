"""Finding the image files below the places that a user names, each once, whatever links to it; over
200 lines with the columns that it fills, and with what else lies among images.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from selftaught.data.index.folder_names import is_hidden
from selftaught.data.io.filesystem import file_stamp, is_url, normalize_location
from selftaught.data.io.integrity import Unreadable, describe_error
from selftaught.errors import UserError
from selftaught.text import count_text, printable

try:
    from PIL import AvifImagePlugin

    _AVIF = bool(AvifImagePlugin.SUPPORTED)
except ImportError:  # before Pillow 11.3
    _AVIF = False
_HEIC = find_spec("pillow_heif") is not None
_CONVERT, _NEWER = "convert them to jpg or png", "pip install --upgrade pillow"
_BY_HEIC = "pip install 'selftaught[heic]'"
_CAMERAS = (
    ".cr2",
    ".cr3",
    ".crw",
    ".nef",
    ".nrw",
    ".arw",
    ".sr2",
    ".srf",
    ".dng",
    ".orf",
    ".rw2",
    ".raf",
    ".pef",
    ".srw",
    ".x3f",
    ".3fr",
    ".fff",
    ".iiq",
    ".mos",
    ".erf",
    ".kdc",
    ".dcr",
    ".mrw",
    ".rwl",
)
_OTHERS = (
    ".jxl",
    ".jp2",
    ".j2k",
    ".jpf",
    ".jpx",
    ".psd",
    ".tga",
    ".exr",
    ".hdr",
    ".dcm",
    ".svs",
    ".ndpi",
)

# In any case. What a picture's suffix is and cannot be read has a remedy.
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".pbm",
    ".pgm",
    ".ppm",
    ".pnm",
    ".gif",
    *([".avif"] if _AVIF else []),
    *([".heic", ".heif", ".hif"] if _HEIC else []),
)
UNREADABLE_SUFFIXES: dict[str, str] = {
    **dict.fromkeys((*_OTHERS, *_CAMERAS), _CONVERT),
    **({} if _AVIF else {".avif": _NEWER}),
    **({} if _HEIC else dict.fromkeys((".heic", ".heif", ".hif"), _BY_HEIC)),
}
SUFFIX_NAMES = " ".join(suffix[1:] for suffix in SUFFIXES)

_STUDIES = ("separability", "labels", "sequential", "augmentations", "data")
_RUN = {
    "journal.jsonl",
    "checkpoints",
    "backbone.safetensors",
    "album",
    "features",
    "evaluation.json",
}
_MARKERS = {
    "run.json",
    "plan.json",
    "study.json",
    "pack.json",
    "patches.json",
    *(f"{study}.json" for study in _STUDIES),
}


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def own_products(names: Iterable[str]) -> set[str]:
    """Which entries of a folder this product wrote for itself, where the folder is one of a run, a
    plan, a study, a pack or the demo's images; else nothing. A file called run.json alone proves
    nothing.
    """
    if not (markers := _MARKERS.intersection(names)):
        return set()
    there = set(names)
    found: set[str] = set()
    if "run.json" in markers and there & _RUN:
        found |= {"run.json", "album", "features", "checkpoints"}
    if "plan.json" in markers and "stages" in there:
        found |= {"plan.json", "stages"}
    # they had no study.json
    older = "stages" in there and any(f"{study}.json" in markers for study in _STUDIES)
    if "cells" in there and ("study.json" in markers or older):
        figures = tuple(f"{study}-" for study in _STUDIES)
        found |= {"study.json", "cells", "stages"} | {
            name for name in there if name.startswith(figures)
        }
    if "pack.json" in markers and any(name.endswith(".parquet") for name in there):
        found |= {"pack.json"}
    if "patches.json" in markers and {"train", "test"} <= there:
        found |= {"patches.json"}
    return found


@dataclass(frozen=True)
class Root:
    """One of the places that the user named."""

    path: str  # absolute, links kept; or a URL
    real: str
    is_file: bool
    is_store: bool = False  # images as rows of Parquet files

    @classmethod
    def of(cls, root: Path | str) -> Root:
        location = normalize_location(root)
        if is_url(location):
            return cls(location, location, is_file=False, is_store=True)
        path = Path(location)
        if not path.exists():
            raise UserError(f"{printable(path)}: no such file or folder")
        is_store = (
            path.name.endswith(".parquet") if path.is_file() else (path / "pack.json").is_file()
        )
        if path.is_file() and not is_image(path.name) and not is_store:
            if remedy := UNREADABLE_SUFFIXES.get(path.suffix.lower()):
                raise UserError(f"{printable(path)} cannot be read here: {remedy}")
            raise UserError(
                f"{printable(path)} is no image file: known are {SUFFIX_NAMES}, and parquet"
            )
        return cls(os.path.abspath(path), os.path.realpath(path), path.is_file(), is_store)

    @property
    def folder(self) -> str:
        """The real folder whose verdicts are remembered together: a file's are kept with its
        neighbours'.
        """
        return os.path.dirname(self.real) if self.is_file else self.real


class Files:
    """Images in columns: for a million of them the two strings are the only objects each."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.names: list[
            str
        ] = []  # the path below its root, with forward slashes; of a root file its name
        self.roots = array("i")  # number of the root
        self.bytes = array("q")
        self.changed = array("q")  # a stamp, as in `locations`; of a store 0
        self.digests = array("q")  # of the content, once it is checked
        self.groups = array("q")  # number of a store's row group, -1 for a file
        # whether it is a row without a path, whose name says nothing of a class
        self.pathless = array("b")
        self.said: list[tuple[str, ...] | None] = []  # the classes that a store tells
        self.classes: tuple[str, ...] = ()  # in the order of the stores
        self.several = False  # classes an image, in a store

    def __len__(self) -> int:
        return len(self.paths)

    def add(
        self,
        path: str,
        name: str,
        root: int,
        size: int,
        changed: int,
        group: int = -1,
        said: tuple[str, ...] | None = None,
        pathless: bool = False,
        digest: int = 0,
    ) -> None:
        self.paths.append(path)
        self.names.append(name)
        self.roots.append(root)
        self.bytes.append(size)
        self.changed.append(changed)
        self.groups.append(group)
        self.said.append(said)
        self.pathless.append(pathless)
        self.digests.append(digest)

    def chosen(self, order: Iterable[int]) -> Files:
        files = Files()
        for i in order:
            files.add(
                self.paths[i],
                self.names[i],
                self.roots[i],
                self.bytes[i],
                self.changed[i],
                self.groups[i],
                self.said[i],
                bool(self.pathless[i]),
                self.digests[i],
            )
        files.classes, files.several = self.classes, self.several
        return files


class Scan:
    """Walks all roots. What really lies somewhere is found before what is linked there, so that a
    link never takes an image away from its own folder; real folders are entered once, which also
    ends every loop.
    """

    def __init__(self, places: Sequence[Root]) -> None:
        # of a folder that turns out to hold Parquet files of images: as a store
        self.places = list(places)
        self.unreadable: list[tuple[str, str]] = []  # (path, reason) of files, links and folders
        self.folders: list[tuple[str, int]] = []  # every folder entered, and its stamp
        self.latest = 0  # when one of them last changed, in nanoseconds
        self.parquet: list[str] = []  # Parquet files that were met
        self.links = 0  # of any kind
        self._found = Files()
        self._hidden = 0
        # names of folders that are hidden or made by a system
        self._system: Counter[str] = Counter()
        self._own: list[str] = []  # folders that this product wrote
        self._unread: Counter[str] = Counter()  # suffixes of pictures that cannot be read
        self._again = 0  # links and named files that lead to an image which is counted already
        self._said: list[str] = []
        self._entered: set[str] = set()
        self._linked_files: list[tuple[str, int]] = []
        self._linked_folders: list[
            tuple[str, str, int]
        ] = []  # path, real folder that holds the link, root
        self._parquet_of: dict[int, list[str]] = {}
        self._named = {place.real for place in places}

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
        stores = self._find_stores()
        order = sorted(
            range(len(self._found)), key=lambda i: (self._found.names[i], self._found.roots[i])
        )
        self.files = self._found.chosen(i for i in order if self._found.roots[i] not in stores)

    @property
    def notes(self) -> list[str]:
        """What was not taken, a line each."""
        notes = list(self._said)
        if self._hidden:
            notes.append(f"{count_text(self._hidden, 'hidden image file')} passed over")
        if self._system:
            named = ", ".join(
                f"{printable(name)} ({n:,})" for name, n in self._system.most_common(5)
            )
            more = f", and {len(self._system) - 5:,} more" if len(self._system) > 5 else ""
            notes.append(
                f"{count_text(self._system.total(), 'hidden or system folder')} passed over:"
                f" {named}{more}"
            )
        if self._own:
            example = printable(min(self._own))
            notes.append(
                f"{count_text(len(self._own), 'folder')} that selftaught wrote passed over, for"
                f" example {example}"
            )
        if self._unread:
            remedies: dict[str, list[str]] = {}
            for suffix, n in self._unread.most_common():
                remedies.setdefault(UNREADABLE_SUFFIXES[suffix], []).append(f"{n:,} {suffix[1:]}")
            said = "; ".join(f"{', '.join(found)} ({remedy})" for remedy, found in remedies.items())
            notes.append(
                f"{count_text(self._unread.total(), 'picture')} that cannot be read here: {said}"
            )
        if self._again:
            notes.append(
                f"{count_text(self._again, 'link or path', 'links or paths')} to images that are"
                " counted already"
            )
        return notes

    def _walk(self, path: str, real: str, root: int) -> None:
        todo = [(path, real)]
        while todo:
            path, real = todo.pop()
            if real in self._entered:
                continue
            try:
                status = os.stat(path)  # first: what changes meanwhile will be seen
                with os.scandir(path) as opened:
                    entries = list(opened)
                own = own_products([entry.name for entry in entries])
                if own and real not in self._named:
                    self._own.append(path)
                    continue
                self._entered.add(real)
                self.folders.append((path, file_stamp(status)))
                self.latest = max(self.latest, status.st_mtime_ns)
                for entry in entries:
                    if entry.name not in own:
                        self._take(entry, real, root, todo)
            except OSError as error:
                self._entered.add(real)
                self.unreadable.append((path, f"folder: {describe_error(error)}"))

    def _take(
        self, entry: os.DirEntry[str], real: str, root: int, todo: list[tuple[str, str]]
    ) -> None:
        name = entry.name
        if is_hidden(name):
            if entry.is_dir(follow_symlinks=False):
                self._system[name] += 1
            else:
                self._hidden += is_image(name)
        elif entry.is_symlink():
            self._link(entry, real, root)
        elif entry.is_dir():
            todo.append((entry.path, os.path.join(real, name)))
        elif is_image(name):
            self._add(entry.path, root)
        else:
            self._pass(entry.path, root)

    def _pass(self, path: str, root: int) -> None:
        """Notes a file that is no image, where it might be taken for one."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix in UNREADABLE_SUFFIXES:
            self._unread[suffix] += 1
        elif suffix == ".parquet":
            self._parquet_of.setdefault(root, []).append(path)

    def _find_stores(self) -> set[int]:
        """The roots whose images are rows of Parquet files; where image files lie beside these,
        what there is more of.
        """
        files, stores = Counter(self._found.roots), set[int]()
        for root, found in sorted(self._parquet_of.items()):
            self.parquet += found
            found = sorted(path for path in found if os.path.realpath(path) not in self._named)
            rows = _count_rows(found) if files[root] else len(found)
            if rows > files[root]:
                stores.add(root)
                self.places[root] = replace(self.places[root], is_store=True)
            if rows > files[root] > 0:
                self._said.append(
                    f"{count_text(files[root], 'image file')} beside Parquet files of"
                    f" {count_text(rows, 'image')} left out"
                )
            elif found and files[root]:
                several = (
                    f"{count_text(len(found), 'Parquet file')} beside"
                    f" {count_text(files[root], 'image file')}"
                )
                self._said.append(
                    f"{several} not read, for example {printable(found[0])}: if it holds images,"
                    " name it as data"
                )
        return stores

    def _link(self, entry: os.DirEntry[str], holder: str, root: int) -> None:
        self.links += 1
        try:
            target = entry.stat()
        except OSError as error:
            broken = isinstance(error, FileNotFoundError)
            self.unreadable.append(
                (entry.path, "broken link" if broken else f"link: {describe_error(error)}")
            )
            return
        if stat.S_ISDIR(target.st_mode):
            self._linked_folders.append((entry.path, holder, root))
        elif is_image(entry.name):
            self._linked_files.append((entry.path, root))
        else:
            self._pass(entry.path, root)

    def _add(self, path: str, root: int) -> None:
        try:
            status = os.stat(path)
            reason = None if stat.S_ISREG(status.st_mode) else "not a regular file"
        except OSError as error:
            reason = describe_error(error)
        if reason is None:
            place = self.places[root]
            name = (
                os.path.basename(path)
                if place.is_file
                else path[len(place.path.rstrip(os.sep)) + 1 :]
            )
            self._found.add(
                path, name.replace(os.sep, "/"), root, status.st_size, file_stamp(status)
            )
        else:
            self.unreadable.append((path, reason))

    def _take_linked_files(self) -> None:
        taken = set()
        for path, root in sorted(self._linked_files):
            real = os.path.realpath(path)
            folder, name = os.path.split(real)
            walked = folder in self._entered and is_image(name) and not is_hidden(name)
            if walked or real in taken:
                self._again += 1
            else:
                taken.add(real)
                self._add(path, root)


def _count_rows(files: Iterable[str]) -> int:
    """How many images Parquet files hold."""
    from selftaught.data.parquet import row_cache  # for those who have Parquet files

    rows = 0
    for file in files:
        try:
            shard = row_cache.open_shard(file)
        except (
            UserError,
            Unreadable,
            OSError,
        ):  # among image files it is only what they lie beside
            continue
        rows += len(shard) if shard.image is not None else 0
    return rows
