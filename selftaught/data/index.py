"""The index of an image set: which files are images, how large, of what class, and which are held out.

Longer than 200 lines because a folder becomes a data set here in five plain steps, read in the order of
`build`: scan the folders, check every file once (remembering verdicts), label, split, describe.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import posixpath
import stat
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from selftaught.data.images import SUFFIXES, Paths, Unreadable, in_parallel, measure, quiet, why
from selftaught.errors import UserError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
_PART_NAMES = {"images", "image", "imgs", "masks", "mask", "annotations", "labels", "ground_truth"}
_MOST_UNREADABLE = 0.10  # of the image files; with more, the folder is not what the user thinks it is
_CACHE_FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Index:
    """The readable images of some folders, in an order that depends only on their relative paths."""

    paths: Sequence[Path]  # N of them, sorted by the path below their root
    sizes: Tensor  # [N, 2] long: height, width as shown (after EXIF orientation)
    labels: Tensor | None  # [N] long, or [N, C] uint8 for several an image; None: no accuracy anywhere
    classes: tuple[str, ...]
    test: Tensor  # [N] bool: held out
    split: str  # "given" by train/ and test/ folders, or "drawn" by seed
    unreadable: tuple[tuple[str, str], ...]  # (path, reason) of files and folders
    fingerprint: str  # sha256 over relative paths, file sizes and labels: equal for a copy of the same data
    notes: tuple[str, ...] = ()  # a line each on what one may not expect (columns not used, links, ...)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def train(self) -> Tensor:
        """Positions [n] of the images to train on."""
        return torch.nonzero(~self.test).flatten()

    @property
    def held_out(self) -> Tensor:
        """Positions [n] of the images kept for evaluation."""
        return torch.nonzero(self.test).flatten()

    def describe(self) -> str:
        """Counts, classes, split, unreadable files and notes, for people: a line for each that there is."""
        held_out = int(self.test.sum())
        how = "as their folders say" if self.split == "given" else "drawn by the seed"
        lines = [
            f"{_count(len(self), 'image')}, {self._classes()}: {len(self) - held_out:,} to train on, "
            f"{held_out:,} held out ({how})"
        ]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} not readable: {_listed(self.unreadable)}")
        return "\n".join([*lines, *self.notes])

    def _classes(self) -> str:
        if self.labels is None:
            return "no labels"
        kind = "classes" if self.labels.dim() == 1 else "classes (several an image)"
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"{len(self.classes)} {kind} ({shown})"


def build(
    roots: Sequence[Path | str],
    *,
    labels: str | Path = "auto",
    holdout: float = 0.2,
    seed: int = 0,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Indexes the images below `roots` (folders, nested in any way, or image files).

    Links are followed, every file is counted once (by its real path, where it lies rather than where it is
    linked), and names that begin with a dot are passed over, as is __MACOSX. Every file is decoded fully
    once; verdicts are kept in `cache` (default: $XDG_CACHE_HOME/selftaught or ~/.cache/selftaught) by size
    and time of change, so that a second call is quick and follows additions, changes and deletions.

    labels: "auto" takes a root's labels.csv, else its class folders, else none; "folders" insists on class
    folders; "none"; or the path of a CSV (see `_Table`). `train/` and `test/` (`val/`, ...) below a root
    are kept as the split; else the share `holdout` of every class is held out. That draw goes by a hash of
    seed and path: images that come later move few of the others across.

    Raises UserError when there are no images, when more than 10 % of them cannot be read, or when labels do
    not fit.
    """
    if not roots:
        raise UserError("no data: give at least one folder of images")
    if not 0 <= holdout < 1:
        raise UserError(f"the held-out share must be at least 0 and less than 1, not {holdout}")
    places = [_Root.of(Path(root).expanduser()) for root in roots]
    found, notes = _scan(places)
    sizes, reasons = _check(places, found, cache or _default_cache(), on_progress)
    readable = [i for i in range(len(found.files)) if i not in reasons]
    _refuse_bad_sets(places, found, reasons, len(readable))

    files = found.files.chosen(readable)
    split, is_test, depth = _given_split(files, notes)
    rows, classes = _label(str(labels), places, files, depth, notes)
    if split == "drawn":
        is_test = _draw_split(files, rows, holdout, seed)
    failed = [*((found.files.paths[i], reason) for i, reason in reasons.items()), *found.unreadable]
    return Index(
        paths=Paths(files.paths),
        sizes=torch.from_numpy(sizes[readable]),
        labels=None if rows is None else torch.from_numpy(rows),
        classes=classes,
        test=torch.from_numpy(is_test),
        split=split,
        unreadable=tuple(sorted((_shown(path), reason) for path, reason in failed)),
        fingerprint=_fingerprint(files, rows, classes),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Root:
    """One of the places that the user named."""

    path: str  # absolute, links kept
    real: str
    is_file: bool

    @classmethod
    def of(cls, path: Path) -> _Root:
        if not path.exists():
            raise UserError(f"{_shown(path)}: no such file or folder")
        if path.is_file() and not _is_image(path.name):
            raise UserError(f"{_shown(path)} is no image file: known are {_suffixes()}")
        return cls(os.path.abspath(path), os.path.realpath(path), path.is_file())

    @property
    def folder(self) -> str:
        """The real folder whose verdicts are remembered together: a file's are kept with its neighbours'."""
        return os.path.dirname(self.real) if self.is_file else self.real


class _Files:
    """Image files in columns: for a million of them the two strings are the only objects each."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.names: list[str] = []  # the path below its root, with forward slashes; of a root file its name
        self.roots = array("i")  # number of the root
        self.bytes = array("q")
        self.changed = array("q")  # nanoseconds

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: str, name: str, root: int, size: int, changed: int) -> None:
        self.paths.append(path)
        self.names.append(name)
        self.roots.append(root)
        self.bytes.append(size)
        self.changed.append(changed)

    def chosen(self, order: Iterable[int]) -> _Files:
        files = _Files()
        for i in order:
            files.add(self.paths[i], self.names[i], self.roots[i], self.bytes[i], self.changed[i])
        return files

    def in_order(self) -> _Files:
        return self.chosen(sorted(range(len(self)), key=lambda i: (self.names[i], self.roots[i])))


class _Scan:
    """Walks all roots. What really lies somewhere is found before what is linked there, so that a link never
    takes an image away from its own folder; real folders are entered once, which also ends every loop.
    """

    def __init__(self, places: Sequence[_Root]) -> None:
        self.places = places
        self.files = _Files()
        self.unreadable: list[tuple[str, str]] = []
        self.bad_files = 0  # how many of `unreadable` are image files and not folders
        self.hidden = 0
        self.again = 0  # links and named files that lead to an image which is counted already
        self._entered: set[str] = set()
        self._linked_files: list[tuple[str, int]] = []
        self._linked_folders: list[tuple[str, str, int]] = []  # path, real folder that holds the link, root

        outer_first = sorted(range(len(places)), key=lambda r: (len(Path(places[r].real).parts), r))
        for r in outer_first:
            if places[r].is_file:
                self._linked_files.append((places[r].path, r))
            else:
                self._walk(places[r].path, places[r].real, r)
        while self._linked_folders:
            found, self._linked_folders = sorted(self._linked_folders), []
            for path, holder, r in found:
                real = os.path.realpath(path)
                if not _contains(real, holder):  # a link to a folder it lies in might bring in all the disk
                    self._walk(path, real, r)
        self._take_linked_files()

    def _walk(self, path: str, real: str, root: int) -> None:
        todo = [(path, real)]
        while todo:
            path, real = todo.pop()
            if real in self._entered:
                continue
            self._entered.add(real)
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        if entry.name == "__MACOSX" or entry.name.startswith("."):
                            self.hidden += _is_image(entry.name) and not entry.name.startswith("._")
                        elif entry.is_symlink():
                            self._link(entry, real, root)
                        elif entry.is_dir():
                            todo.append((entry.path, os.path.join(real, entry.name)))
                        elif _is_image(entry.name):
                            self._add(entry.path, root)
            except OSError as error:
                self.unreadable.append((path, f"folder: {why(error)}"))

    def _link(self, entry: os.DirEntry[str], holder: str, root: int) -> None:
        try:
            target = entry.stat()
        except OSError as error:
            broken = isinstance(error, FileNotFoundError)
            self.unreadable.append((entry.path, "broken link" if broken else f"link: {why(error)}"))
            self.bad_files += _is_image(entry.name)
            return
        if stat.S_ISDIR(target.st_mode):
            self._linked_folders.append((entry.path, holder, root))
        elif _is_image(entry.name):
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
            self.files.add(path, name.replace(os.sep, "/"), root, status.st_size, status.st_mtime_ns)
        else:
            self.unreadable.append((path, reason))
            self.bad_files += 1

    def _take_linked_files(self) -> None:
        taken = set()
        for path, root in sorted(self._linked_files):
            real = os.path.realpath(path)
            folder, name = os.path.split(real)
            walked = folder in self._entered and _is_image(name) and not name.startswith(".")
            if walked or real in taken:
                self.again += 1
            else:
                taken.add(real)
                self._add(path, root)


def _contains(folder: str, inner: str) -> bool:
    return inner == folder or inner.startswith(folder.rstrip(os.sep) + os.sep)


def _scan(places: Sequence[_Root]) -> tuple[_Scan, list[str]]:
    scan = _Scan(places)
    scan.files = scan.files.in_order()
    notes = []
    if scan.hidden:
        notes.append(f"{_count(scan.hidden, 'hidden image file')} passed over")
    if scan.again:
        notes.append(f"{_count(scan.again, 'link or path', 'links or paths')} to images that are counted already")
    return scan, notes


def _check(
    places: Sequence[_Root],
    found: _Scan,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Sizes [n, 2] (zeros where unreadable) and the reasons, by decoding what the cache does not know yet.

    By threads, which need no guarded `__main__` and no start of 0.8 to 1.5 s as two processes do. In CPU time a JPEG
    of 128 px takes 154 us (one of 500x375: 910), of which at most 39 (67) hold the interpreter's lock, so that it would
    let four (thirteen) cores work; the second thread adds about a tenth.
    """
    files = found.files
    sizes = np.zeros((len(files), 2), dtype=np.int64)
    reasons: dict[int, str] = {}
    keep = np.ones(len(files), dtype=bool)  # which verdicts to remember: final ones
    folders: dict[str, list[int]] = {place.folder: [] for place in places}
    for i in range(len(files)):
        folders[places[files.roots[i]].folder].append(i)
    todo: list[int] = []
    known = {folder: _Verdicts.load(cache, folder) for folder in folders}
    for folder, members in folders.items():
        for i in members:
            verdict = known[folder].get(files.names[i], files.bytes[i], files.changed[i])
            if verdict is None:
                todo.append(i)
                keep[i] = False
            elif isinstance(verdict, str):
                reasons[i] = verdict
            else:
                sizes[i] = verdict

    def one(j: int) -> None:
        i = todo[j]
        try:
            sizes[i] = measure(files.paths[i])
        except Unreadable as error:
            reasons[i] = str(error)
            keep[i] = not error.passing
        else:
            keep[i] = True

    try:
        with quiet():
            in_parallel(len(todo), one, on_progress=on_progress)
    finally:  # what was checked before Ctrl-C is remembered, too
        for folder, members in folders.items():
            scanned = any(place.folder == folder and not place.is_file for place in places)
            verdicts = _Verdicts() if scanned else known[folder]  # a file says nothing of its neighbours
            before = len(known[folder].rows)
            for i in members:
                if keep[i]:
                    verdicts.put(files.names[i], files.bytes[i], files.changed[i], reasons.get(i) or sizes[i])
            if todo or len(verdicts.rows) != before:
                verdicts.store(cache, folder)
    return sizes, dict(sorted(reasons.items()))


class _Verdicts:
    """What is known of the files of one folder: name -> (bytes, time of change, height, width), and reasons
    by name.

    Kept in a file of arrays, `<cache>/index/<hash of the real folder>.npz`. Writers replace it at once by a
    rename, so that readers and other writers see an old one or a new one, and whatever is wrong with it (its
    sums are checked while it is read), it is no more than a reason to decode the files again.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.numbers = array("q")  # four a row
        self.reasons: dict[str, str] = {}

    def get(self, name: str, size: int, changed: int) -> tuple[int, int] | str | None:
        """(height, width), the reason why it cannot be read, or None: not known as it is now."""
        at = 4 * self.rows.get(name, -1)
        if at < 0 or self.numbers[at] != size or self.numbers[at + 1] != changed:
            return None
        return self.reasons.get(name) or (self.numbers[at + 2], self.numbers[at + 3])

    def put(self, name: str, size: int, changed: int, verdict: np.ndarray | str) -> None:
        height, width = (0, 0) if isinstance(verdict, str) else verdict.tolist()
        self.reasons.pop(name, None)
        if isinstance(verdict, str):
            self.reasons[name] = verdict
        if (row := self.rows.get(name)) is None:
            self.rows[name] = len(self.rows)
            self.numbers.extend((size, changed, height, width))
        else:
            self.numbers[4 * row : 4 * row + 4] = array("q", (size, changed, height, width))

    @staticmethod
    def _file(cache: Path, folder: str) -> Path:
        # A newer Pillow, or a change of our own rules, may judge the same bytes differently.
        key = f"{_CACHE_FORMAT}\0{PIL.__version__}\0{folder}"
        return cache / "index" / (hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".npz")

    @classmethod
    def load(cls, cache: Path | None, folder: str) -> _Verdicts:
        verdicts = cls()
        if cache is None:
            return verdicts
        try:
            with np.load(cls._file(cache, folder), allow_pickle=False) as stored:
                names = stored["names"].tobytes().split(b"\0")[:-1]
                numbers = stored["numbers"].astype(np.int64, casting="safe")
                reasons = json.loads(stored["reasons"].tobytes())
            if numbers.shape != (len(names), 4) or not isinstance(reasons, dict):
                return verdicts
            rows = {os.fsdecode(name): row for row, name in enumerate(names)}
            zero = {name for name, row in rows.items() if numbers[row, 2] < 1 or numbers[row, 3] < 1}
            if len(rows) == len(names) and zero == set(reasons):
                verdicts.rows, verdicts.reasons = rows, reasons
                verdicts.numbers.frombytes(numbers.tobytes())
        except Exception:  # missing, torn or overwritten by anything at all: as if it were not there
            return cls()
        return verdicts

    def store(self, cache: Path | None, folder: str) -> None:
        if cache is None:
            return
        file = self._file(cache, folder)
        content = io.BytesIO()
        np.savez(
            content,
            names=np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in self.rows), dtype=np.uint8),
            numbers=np.array(self.numbers, dtype=np.int64).reshape(-1, 4),
            reasons=np.frombuffer(json.dumps(self.reasons).encode(), dtype=np.uint8),
        )
        part: str | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
            with os.fdopen(handle, "wb") as out:
                out.write(content.getbuffer())
            os.replace(part, file)
        except OSError:  # a full disk or a home that cannot be written to: the next index just takes as long
            if part is not None:
                with contextlib.suppress(OSError):
                    os.unlink(part)


def _default_cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "selftaught"
    try:
        return Path.home() / ".cache" / "selftaught"
    except RuntimeError:  # a user without a home
        return None


def _refuse_bad_sets(places: Sequence[_Root], found: _Scan, reasons: dict[int, str], readable: int) -> None:
    bad = len(reasons) + found.bad_files
    named = ", ".join(_shown(place.path) for place in places[:3]) + (", ..." if len(places) > 3 else "")
    failed = [*((found.files.paths[i], reason) for i, reason in reasons.items()), *found.unreadable]
    if readable + bad == 0:
        because = f"; not readable: {_listed(failed)}" if failed else ""
        raise UserError(f"no images in {named}: looked for {_suffixes()}{because}")
    if bad > _MOST_UNREADABLE * (readable + bad):
        raise UserError(
            f"{bad:,} of {_count(readable + bad, 'image file')} in {named} cannot be read, more than "
            f"{_MOST_UNREADABLE:.0%}: {_listed(failed)}; repair or remove them"
        )


def _given_split(files: _Files, notes: list[str]) -> tuple[str, np.ndarray, np.ndarray]:
    """The kind of split; [n] bool, held out; [n], how many folders of its path name the split, or -1."""
    first = [name.split("/", 1)[0].lower() if "/" in name else "" for name in files.names]
    folders: dict[int, set[str]] = {}
    for root, folder in zip(files.roots, first, strict=True):
        folders.setdefault(root, set()).add(folder)
    split = {r for r, names in folders.items() if names & set(TRAIN_NAMES) and names & set(TEST_NAMES)}
    # One lone train/ (or test/) folder around everything says nothing and is looked through.
    wrapped = {r for r, names in folders.items() if len(names) == 1 and names <= {*TRAIN_NAMES, *TEST_NAMES}}
    is_test = np.zeros(len(files), dtype=bool)
    depth = np.zeros(len(files), dtype=np.int64)
    for i, (root, folder) in enumerate(zip(files.roots, first, strict=True)):
        if root in split and folder in (*TRAIN_NAMES, *TEST_NAMES):
            is_test[i] = folder in TEST_NAMES
            depth[i] = 1
        elif root in split:
            depth[i] = -1
        elif root in wrapped:
            depth[i] = 1
    outside = int((depth < 0).sum())
    if outside:
        notes.append(f"{_count(outside, 'image')} outside of the train and test folders: trained on")
    return ("given" if split else "drawn"), is_test, depth


def _draw_split(files: _Files, rows: np.ndarray | None, holdout: float, seed: int) -> np.ndarray:
    """[n] bool: of every class the share `holdout` with the smallest hash, at least one of two and never all.

    With several classes an image the rarest class chooses first among what no other has chosen from (Sechidis
    et al., 2011, "On the stratification of multi-label data"), so that its few images are shared out well.
    """
    is_test = np.zeros(len(files), dtype=bool)
    if holdout == 0:
        return is_test
    hashes = (hashlib.blake2b(os.fsencode(f"{seed}/{name}"), digest_size=8).digest() for name in files.names)
    ranks = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)

    def share(n: int) -> int:
        return min(max(int(holdout * n + 0.5), 1), n - 1) if n >= 2 else 0

    def hold_out(members: np.ndarray, n: int) -> None:
        is_test[members[np.argsort(ranks[members], kind="stable")[:n]]] = True

    if rows is None or rows.ndim == 1:
        groups: np.ndarray = np.zeros(len(files), dtype=np.int64) if rows is None else rows
        by_group = np.argsort(groups, kind="stable")
        for group in np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1):
            hold_out(group, share(len(group)))
        return is_test
    free = np.ones(len(files), dtype=bool)
    for c in np.argsort(rows.sum(axis=0, dtype=np.int64), kind="stable"):
        members = rows[:, c] > 0
        hold_out(np.flatnonzero(members & free), max(share(int(members.sum())) - int(is_test[members].sum()), 0))
        free &= ~members
    hold_out(np.flatnonzero(free), share(int(free.sum())))
    return is_test


def _label(
    source: str, places: Sequence[_Root], files: _Files, depth: np.ndarray, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels, [n] int64 or [n, C] uint8 or None, and the names of the classes."""
    if source == "none":
        return None, ()
    if source == "folders":
        names, objection = _class_folders(files, depth)
        if len(set(names)) < 2 or "" in names:
            raise UserError(f"labels cannot be taken from folders: {objection}")
        return _encoded([(name,) for name in names], None)
    tables = [Path(place.path) / "labels.csv" for place in places if not place.is_file]
    tables = [table for table in tables if table.is_file()]
    if source != "auto":
        tables = [Path(source).expanduser()]
        if not tables[0].is_file():
            choices = '"auto", "folders", "none" or a CSV file'
            raise UserError(f"labels {source!r}: no such file; labels are {choices}")
    if tables:
        return _csv_labels(tables, places, files, notes)
    names, objection = _class_folders(files, depth)
    if objection is None:
        return _encoded([(name,) for name in names], None)
    if len(set(names)) > 1:
        notes.append(f"folders not taken as classes: {objection}")
    return None, ()


def _class_folders(files: _Files, depth: np.ndarray) -> tuple[list[str], str | None]:
    """The first folder of each image below its split ("" where there is none), and what speaks against these
    as classes.
    """
    names, seconds = [], set()
    for name, skip in zip(files.names, depth, strict=True):
        folders = name.split("/")[skip:-1] if skip >= 0 else []
        names.append(folders[0] if folders else "")
        seconds.add(folders[1].lower() if len(folders) > 1 else "")
    classes = set(names) - {""}
    loose = names.count("")
    if loose:
        example = _shown(files.paths[names.index("")])
        return names, f"{_count(loose, 'image')} of {len(names):,} in no class folder, for example {example}"
    if len(classes) < 2:
        return names, f"all images are in one folder, {_shown(next(iter(classes)))}"
    if {name.lower() for name in classes} <= _PART_NAMES or seconds <= {*TRAIN_NAMES, *TEST_NAMES}:
        parts = ", ".join(_shown(name) for name in sorted(classes)[:4])
        return names, f"{parts} look like parts of a data set; name the one that is meant as the data"
    if len(classes) > max(50, len(names) // 2):  # folders by day or by patient, say
        return names, f"{len(classes):,} folders for {len(names):,} images are too many"
    return names, None


def _csv_labels(
    tables: Sequence[Path], places: Sequence[_Root], files: _Files, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    read = [_Table(table) for table in tables]
    found: list[tuple[str, ...]] = []
    missing: list[str] = []
    used = 0
    for path, name in zip(files.paths, files.names, strict=True):
        for table in read:
            if (row := table.find(path, name)) is not None:
                found.append(row)
                used += 1
                break
        else:
            missing.append(path)
    listed = ", ".join(_shown(table) for table in tables)
    if missing:
        raise UserError(
            f"{len(missing):,} of {_count(len(files), 'image')} have no row in {listed}, for example "
            f"{_shown(missing[0])}: add a row for each (its path from the folder of the CSV, and its class), "
            'or take no labels ("none")'
        )
    for table in read:
        notes += table.notes
    if (unused := sum(len(table.rows) for table in read) - used) > 0:
        notes.append(f"{_count(unused, 'row')} of {listed} without an image")
    columns = [name for table in read for name in table.columns]
    several = any(table.several for table in read)
    rows, classes = _encoded(found, list(dict.fromkeys(columns)) if several else None, several)
    if len(classes) < 2 and not several:
        notes.append(f"{listed} names one class only, which is as good as no labels")
        return None, ()
    return rows, classes


class _Table:
    """A CSV of labels: a header; in the first column a path from the CSV's folder or from a root (with or
    without its suffix); in the second the class, or several as `a|b`; or else several columns of 0 and 1, one
    a class.
    """

    def __init__(self, path: Path) -> None:
        self.folder = os.path.dirname(os.path.abspath(path))
        self.notes: list[str] = []
        self.columns: list[str] = []  # of 0 and 1
        shown = _shown(path)
        header, *body = self._lines(path, shown)
        if len(header) < 2:
            raise UserError(f"{shown}: needs a header and two columns, the image's path and its class")
        if _is_image(header[0]):
            raise UserError(f"{shown}: has no header: its first line is {','.join(header)}")
        wide = len(header) > 2 and all(cell in ("0", "1") for _, cells in body for cell in cells[1:])
        if wide:
            self.columns = [name.strip() for name in header[1:]]
        elif len(header) > 2:
            self.notes.append(f"{shown}: columns not used: {', '.join(header[2:])}")
        self.several = wide or any("|" in cells[1] for _, cells in body)
        self.rows: dict[str, tuple[str, ...]] = {}
        for line, cells in body:
            if wide:
                names = tuple(name for name, cell in zip(self.columns, cells[1:], strict=True) if cell == "1")
            else:
                names = tuple(name.strip() for name in cells[1].split("|") if name.strip())
            if not names and not self.several:
                raise UserError(f"{shown}, line {line}: no class for {cells[0]}")
            if self.rows.setdefault(_key(cells[0]), names) != names:
                raise UserError(f"{shown}, line {line}: {cells[0]} has another class further up")

    @staticmethod
    def _lines(path: Path, shown: str) -> list[Any]:
        """The header's cells, then (line number, cells) for every row; all of the header's width."""
        try:
            data = path.read_bytes()
            # Names that are no UTF-8 stay what the file system calls them; spreadsheets write UTF-16 or a
            # UTF-8 mark.
            encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            text = data.decode(encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "strict")
            first = text.split("\n", 1)[0]
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{shown} cannot be read as a CSV: {error}") from None
        if len(lines) < 2:
            raise UserError(f"{shown}: needs a header and at least one row")
        header = lines[0][1]
        for line, cells in lines[1:]:
            if len(cells) != len(header):
                raise UserError(f"{shown}, line {line}: {len(cells)} columns, but the header has {len(header)}")
        return [header, *lines[1:]]

    def find(self, path: str, name: str) -> tuple[str, ...] | None:
        """The row of the image at `path`, whose path below its root is `name`."""
        for candidate in (os.path.relpath(path, self.folder), name, path):
            for key in (_key(candidate), _key(os.path.splitext(candidate)[0])):
                if key in self.rows:
                    return self.rows[key]
        return None


def _key(path: str) -> str:
    """One spelling for a path: forward slashes, no ./, composed letters (macOS decomposes them in file
    names).
    """
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")))


def _encoded(
    names: Sequence[tuple[str, ...]], columns: Sequence[str] | None, several: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers [n], or with `several` one 0/1 column a class [n, C]; classes sorted, whole numbers by
    size.
    """
    seen = {name for row in names for name in row}
    whole = all(name.isascii() and name.isdigit() for name in seen)
    rest = sorted(seen - set(columns or ()), key=lambda name: (int(name) if whole else 0, name))
    classes = [*(columns or ()), *rest]
    number = {name: i for i, name in enumerate(classes)}
    if several:
        rows = np.zeros((len(names), len(classes)), dtype=np.uint8)
        for i, row in enumerate(names):
            rows[i, [number[name] for name in row]] = 1
    else:
        rows = np.array([number[row[0]] for row in names], dtype=np.int64)
    return rows, tuple(_shown(name) for name in classes)


def _fingerprint(files: _Files, rows: np.ndarray | None, classes: Sequence[str]) -> str:
    total = hashlib.sha256()
    for i, name in enumerate(files.names):
        label: Iterable[int] = ()
        if rows is not None:
            label = (int(rows[i]),) if rows.ndim == 1 else np.flatnonzero(rows[i])
        said = "|".join(classes[c] for c in label)
        total.update(os.fsencode(name) + f"\0{files.bytes[i]}\0{said}\n".encode())
    return total.hexdigest()


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _suffixes() -> str:
    return " ".join(suffix[1:] for suffix in SUFFIXES)


def _shown(path: str | Path) -> str:
    """A path that any terminal and any JSON takes: what is not printable, or not UTF-8, is written as an
    escape.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _listed(failed: Sequence[tuple[str, str]], most: int = 5) -> str:
    more = f", and {len(failed) - most:,} more" if len(failed) > most else ""
    return ", ".join(f"{_shown(path)} ({reason})" for path, reason in failed[:most]) + more


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
