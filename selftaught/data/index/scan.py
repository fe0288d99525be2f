"""The image files below the roots that a user gives, each once, whatever links lead to it."""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from selftaught.data.folder_names import is_hidden
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
_CONVERT, _UPGRADE = "convert them to jpg or png", "pip install --upgrade pillow"
_INSTALL_HEIC = "pip install 'selftaught[heic]'"


def _suffixes(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_CAMERAS = _suffixes(
    ".cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .dng .orf .rw2 .raf .pef .srw .x3f .3fr .fff .iiq"
    " .mos .erf .kdc .dcr .mrw .rwl"
)
_OTHERS = _suffixes(".jxl .jp2 .j2k .jpf .jpx .psd .tga .exr .hdr .dcm .svs .ndpi")

# Suffixes in lower case. Those of pictures that cannot be read here have a remedy.
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
    **({} if _AVIF else {".avif": _UPGRADE}),
    **({} if _HEIC else dict.fromkeys((".heic", ".heif", ".hif"), _INSTALL_HEIC)),
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
    "mlflow.db",
    *(f"{study}.json" for study in _STUDIES),
}


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def find_own_products(names: Iterable[str]) -> set[str]:
    """Return the entries of a folder that selftaught wrote: of a run, plan, study, pack or demo
    set.

    A single marker such as run.json does not suffice.
    """
    if not (markers := _MARKERS.intersection(names)):
        return set()
    entries = set(names)
    products: set[str] = set()
    if "run.json" in markers and entries & _RUN:
        products |= {"run.json", "album", "features", "checkpoints", "tensorboard", "wandb"}
    if "mlflow.db" in markers and "mlartifacts" in entries:
        products |= {"mlflow.db", "mlartifacts"}
    if "plan.json" in markers and "stages" in entries:
        products |= {"plan.json", "stages"}
    # studies of older versions, without study.json
    is_old_study = "stages" in entries and any(f"{study}.json" in markers for study in _STUDIES)
    if "cells" in entries and ("study.json" in markers or is_old_study):
        figures = tuple(f"{study}-" for study in _STUDIES)
        products |= {"study.json", "cells", "stages"} | {
            name for name in entries if name.startswith(figures)
        }
    if "pack.json" in markers and any(name.endswith(".parquet") for name in entries):
        products |= {"pack.json"}
    if "patches.json" in markers and {"train", "test"} <= entries:
        products |= {"patches.json"}
    return products


@dataclass(frozen=True)
class Root:
    """A folder, file or URL that the user gives as data."""

    path: str  # absolute, links kept; or a URL
    real: str
    is_file: bool
    is_parquet: bool = False  # its images are rows of Parquet files

    @classmethod
    def parse(cls, root: Path | str) -> Root:
        """Resolve a location. Raises UserError where there is nothing, or no image."""
        location = normalize_location(root)
        if is_url(location):
            return cls(location, location, is_file=False, is_parquet=True)
        path = Path(location)
        if not path.exists():
            raise UserError(f"{printable(path)}: no such file or folder")
        is_parquet = (
            path.name.endswith(".parquet") if path.is_file() else (path / "pack.json").is_file()
        )
        if path.is_file() and not is_image(path.name) and not is_parquet:
            if remedy := UNREADABLE_SUFFIXES.get(path.suffix.lower()):
                raise UserError(f"{printable(path)} cannot be read here: {remedy}")
            raise UserError(
                f"{printable(path)} is no image file: known are {SUFFIX_NAMES}, and parquet"
            )
        return cls(os.path.abspath(path), os.path.realpath(path), path.is_file(), is_parquet)

    @property
    def folder(self) -> str:
        """The real folder whose file checks are cached together; of a file its parent."""
        return os.path.dirname(self.real) if self.is_file else self.real


class Files:
    """Images in columns, so that each of a million costs two strings and no other object."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        # the path below its root, with forward slashes; the file's name where it is the root
        self.names: list[str] = []
        self.roots = array("i")  # number of the root
        self.bytes = array("q")
        self.stamps = array("q")  # `filesystem.file_stamp`; 0 of rows
        self.digests = array("q")  # of the content, after the check
        self.groups = array("q")  # number of the row group, -1 of a file
        self.pathless = array("b")  # whether it is a row without a path, hence without class folder
        self.image_classes: list[tuple[str, ...] | None] = []  # from a column of a Parquet file
        self.classes: tuple[str, ...] = ()  # of the Parquet files, in their order
        self.multi_label = False  # whether rows may have several classes

    def __len__(self) -> int:
        return len(self.paths)

    def add(
        self,
        path: str,
        name: str,
        root: int,
        size: int,
        stamp: int,
        group: int = -1,
        image_classes: tuple[str, ...] | None = None,
        pathless: bool = False,
        digest: int = 0,
    ) -> None:
        self.paths.append(path)
        self.names.append(name)
        self.roots.append(root)
        self.bytes.append(size)
        self.stamps.append(stamp)
        self.groups.append(group)
        self.image_classes.append(image_classes)
        self.pathless.append(pathless)
        self.digests.append(digest)

    def select(self, order: Iterable[int]) -> Files:
        """Return the images at these positions, in this order."""
        files = Files()
        for i in order:
            files.add(
                self.paths[i],
                self.names[i],
                self.roots[i],
                self.bytes[i],
                self.stamps[i],
                self.groups[i],
                self.image_classes[i],
                bool(self.pathless[i]),
                self.digests[i],
            )
        files.classes, files.multi_label = self.classes, self.multi_label
        return files


class Scan:
    """The files below all roots, walked on construction.

    Real files come before linked ones, so that a link never takes an image from its own folder.
    Each real folder is entered once, which also ends loops of links.
    """

    def __init__(self, places: Sequence[Root]) -> None:
        # folders with Parquet files of images are marked `is_parquet` by the scan
        self.places = list(places)
        self.unreadable: list[tuple[str, str]] = []  # (path, reason) of files, links and folders
        self.folders: list[tuple[str, int]] = []  # every folder entered, and its stamp
        self.latest = 0  # when one of them last changed, in nanoseconds
        self.parquet: list[str] = []  # Parquet files
        self.links = 0  # of any kind
        self._files = Files()
        self._hidden = 0
        # by name, of folders that are hidden or made by a system
        self._system_folders: Counter[str] = Counter()
        self._own_folders: list[str] = []  # folders that selftaught wrote
        self._unsupported: Counter[str] = Counter()  # by suffix, of pictures that cannot be read
        self._repeats = 0  # links and given files whose image is counted already
        self._notes: list[str] = []
        self._entered: set[str] = set()
        self._linked_files: list[tuple[str, int]] = []
        # path, real folder of the link, root
        self._linked_folders: list[tuple[str, str, int]] = []
        self._parquet_by_root: dict[int, list[str]] = {}
        self._root_paths = {place.real for place in places}

        outer_first = sorted(range(len(places)), key=lambda r: (len(Path(places[r].real).parts), r))
        for r in outer_first:
            if places[r].is_parquet:
                continue
            if places[r].is_file:
                self._linked_files.append((places[r].path, r))
            else:
                self._walk(places[r].path, places[r].real, r)
        while self._linked_folders:
            folders, self._linked_folders = sorted(self._linked_folders), []
            for path, holder, r in folders:
                real = os.path.realpath(path)
                is_ancestor = (holder + os.sep).startswith(real.rstrip(os.sep) + os.sep)
                if not is_ancestor:  # a link to an ancestor may lead to the whole disk
                    self._walk(path, real, r)
        self._add_linked_files()
        parquet_roots = self._find_parquet_roots()
        order = sorted(
            range(len(self._files)), key=lambda i: (self._files.names[i], self._files.roots[i])
        )
        self.files = self._files.select(
            i for i in order if self._files.roots[i] not in parquet_roots
        )

    @property
    def notes(self) -> list[str]:
        """What the scan left out, one line each."""
        notes = list(self._notes)
        if self._hidden:
            notes.append(f"{count_text(self._hidden, 'hidden image file')} left out")
        if self._system_folders:
            names = ", ".join(
                f"{printable(name)} ({n:,})" for name, n in self._system_folders.most_common(5)
            )
            more = (
                f", and {len(self._system_folders) - 5:,} more"
                if len(self._system_folders) > 5
                else ""
            )
            notes.append(
                f"{count_text(self._system_folders.total(), 'hidden or system folder')} left out:"
                f" {names}{more}"
            )
        if self._own_folders:
            example = printable(min(self._own_folders))
            notes.append(
                f"{count_text(len(self._own_folders), 'folder')} that selftaught wrote left out,"
                f" for example {example}"
            )
        if self._unsupported:
            remedies: dict[str, list[str]] = {}
            for suffix, n in self._unsupported.most_common():
                remedies.setdefault(UNREADABLE_SUFFIXES[suffix], []).append(f"{n:,} {suffix[1:]}")
            kinds = "; ".join(
                f"{', '.join(suffixes)} ({remedy})" for remedy, suffixes in remedies.items()
            )
            notes.append(
                f"{count_text(self._unsupported.total(), 'picture')} that cannot be read here:"
                f" {kinds}"
            )
        if self._repeats:
            notes.append(
                f"{count_text(self._repeats, 'link or path', 'links or paths')} to images that are"
                " counted already"
            )
        return notes

    def _walk(self, path: str, real: str, root: int) -> None:
        pending = [(path, real)]
        while pending:
            path, real = pending.pop()
            if real in self._entered:
                continue
            try:
                status = os.stat(path)  # first, so that the stamp shows later changes
                with os.scandir(path) as iterator:
                    entries = list(iterator)
                own_names = find_own_products([entry.name for entry in entries])
                if own_names and real not in self._root_paths:
                    self._own_folders.append(path)
                    continue
                self._entered.add(real)
                self.folders.append((path, file_stamp(status)))
                self.latest = max(self.latest, status.st_mtime_ns)
                for entry in entries:
                    if entry.name not in own_names:
                        self._sort_entry(entry, real, root, pending)
            except OSError as error:
                self._entered.add(real)
                self.unreadable.append((path, f"folder: {describe_error(error)}"))

    def _sort_entry(
        self, entry: os.DirEntry[str], real: str, root: int, pending: list[tuple[str, str]]
    ) -> None:
        name = entry.name
        if is_hidden(name):
            if entry.is_dir(follow_symlinks=False):
                self._system_folders[name] += 1
            else:
                self._hidden += is_image(name)
        elif entry.is_symlink():
            self._follow_link(entry, real, root)
        elif entry.is_dir():
            pending.append((entry.path, os.path.join(real, name)))
        elif is_image(name):
            self._add_file(entry.path, root)
        else:
            self._note_other(entry.path, root)

    def _note_other(self, path: str, root: int) -> None:
        """Record a file that is no image, but may be taken for one."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix in UNREADABLE_SUFFIXES:
            self._unsupported[suffix] += 1
        elif suffix == ".parquet":
            self._parquet_by_root.setdefault(root, []).append(path)

    def _find_parquet_roots(self) -> set[int]:
        """Return the roots whose images are rows of Parquet files.

        Where image files lie beside these, the larger number decides.
        """
        files, roots = Counter(self._files.roots), set[int]()
        for root, paths in sorted(self._parquet_by_root.items()):
            self.parquet += paths
            paths = sorted(path for path in paths if os.path.realpath(path) not in self._root_paths)
            rows = _count_rows(paths) if files[root] else len(paths)
            if rows > files[root]:
                roots.add(root)
                self.places[root] = replace(self.places[root], is_parquet=True)
            if rows > files[root] > 0:
                self._notes.append(
                    f"{count_text(files[root], 'image file')} beside Parquet files of"
                    f" {count_text(rows, 'image')} left out"
                )
            elif paths and files[root]:
                counts = (
                    f"{count_text(len(paths), 'Parquet file')} beside"
                    f" {count_text(files[root], 'image file')}"
                )
                self._notes.append(
                    f"{counts} not read, for example {printable(paths[0])}: if it holds images,"
                    " name it as data"
                )
        return roots

    def _follow_link(self, entry: os.DirEntry[str], holder: str, root: int) -> None:
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
            self._note_other(entry.path, root)

    def _add_file(self, path: str, root: int) -> None:
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
            self._files.add(
                path, name.replace(os.sep, "/"), root, status.st_size, file_stamp(status)
            )
        else:
            self.unreadable.append((path, reason))

    def _add_linked_files(self) -> None:
        added = set()
        for path, root in sorted(self._linked_files):
            real = os.path.realpath(path)
            folder, name = os.path.split(real)
            is_walked = folder in self._entered and is_image(name) and not is_hidden(name)
            if is_walked or real in added:
                self._repeats += 1
            else:
                added.add(real)
                self._add_file(path, root)


def _count_rows(files: Iterable[str]) -> int:
    """Return the number of images in some Parquet files."""
    from selftaught.data.parquet import row_cache  # imports pyarrow

    rows = 0
    for file in files:
        try:
            shard = row_cache.open_shard(file)
        except (UserError, Unreadable, OSError):  # a broken file beside images counts as no rows
            continue
        rows += len(shard) if shard.image is not None else 0
    return rows
