"""The index of an image set: its images, their sizes and classes, and the held-out split."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from selftaught.data import pixel_range as pixel_range_module
from selftaught.data.alike import note_copies
from selftaught.data.index import cache as index_cache
from selftaught.data.index.file_checks import check_files
from selftaught.data.index.label_budget import Budget, draw
from selftaught.data.index.labels import assign_labels
from selftaught.data.index.layout import read_layout
from selftaught.data.index.masks import remove_masks
from selftaught.data.index.scan import SUFFIX_NAMES, Files, Root, Scan, is_image
from selftaught.data.index.split import draw_split
from selftaught.data.index.tables.nearest_tables import find_tables
from selftaught.data.index.tables.table_labels import label_by_tables
from selftaught.data.io.cache_folder import default_cache_folder
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.data.io.paths import Paths
from selftaught.data.io.row_path import RowAddress
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError, require
from selftaught.text import count_text, list_reasons, printable

if TYPE_CHECKING:
    from selftaught.data.parquet.row_groups import Groups

_MAX_UNREADABLE = 0.10  # share of the image files; a larger one suggests a wrong folder


@dataclass(frozen=True, eq=False, kw_only=True)
class Index:
    """The readable images of some roots, in an order that depends on their relative paths alone."""

    paths: Sequence[Path]  # N of them, sorted by the path below their root
    names: Sequence[Path]  # N of them: the paths below their roots, equal in a copy of the data
    sizes: Tensor  # [N, 2] long: height, width after EXIF orientation
    # [N] long, or [N, C] int8 for several classes an image; -1 = unlabelled; None: no labels
    labels: Tensor | None
    classes: tuple[str, ...]
    test: Tensor  # [N] bool: held out
    # "given" by train/ and test/ folders, by a column of the "table" of labels, or "drawn" by seed
    split: str
    unreadable: tuple[tuple[str, str], ...]  # (path, reason) of files and folders
    # sha256 over relative paths, contents, labels, range and given split: equal for a copy of the
    # data
    fingerprint: str
    # the same with sizes in place of contents, as older runs recorded it
    listing: str = ""
    # scale to 8 bits of images with more; None: see `PixelRange`
    pixel_range: PixelRange | None = None
    groups: Groups | None = None  # row groups of the images; None: all are files
    notes: tuple[str, ...] = ()  # unexpected facts, a line each: columns not used, links, ...

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def train(self) -> Tensor:
        """Positions [n] of the training images."""
        return torch.nonzero(~self.test).flatten()

    @property
    def held_out(self) -> Tensor:
        """Positions [n] of the held-out images."""
        return torch.nonzero(self.test).flatten()

    @property
    def labelled(self) -> Tensor:
        """[N] bool: whether the label is known."""
        if self.labels is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return (self.labels if self.labels.dim() == 1 else self.labels[:, 0]) >= 0

    def subset(self, of: str, seed: int) -> Index:
        """Return the index with a part of its training images; the held-out ones stay.

        of: "all", a share such as "25%", or a budget of labels: "5" a class, or "total:1000" with
        every class at least once. With one seed a smaller part lies within a larger one. Raises
        UserError for anything else.
        """
        if of == "all":
            return self
        train = self.train
        if of.endswith("%"):
            share = float(of[:-1]) / 100 if of[:-1].replace(".", "", 1).isdecimal() else 0.0
            if not 0 < share <= 1:
                raise UserError(
                    f"--subset {of}: a share of the training images is above 0 % and at most 100 %"
                )
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            positions = train[order[: max(round(share * len(train)), 1)]]
        else:
            if self.labels is None:
                raise UserError(
                    f"--subset {of} counts labels, and these images have none: give a share such"
                    " as 10%"
                )
            budget, labelled = Budget.parse(of, "--subset"), train[self.labelled[train]]
            positions = labelled[
                draw(
                    self.labels[labelled], per_class=budget.per_class, total=budget.total, seed=seed
                )
            ]
        subset = torch.cat([positions, self.held_out]).sort().values
        return replace(
            self,
            paths=Paths([str(self.paths[i]) for i in subset.tolist()]),
            names=Paths([str(self.names[i]) for i in subset.tolist()]),
            groups=None if self.groups is None else self.groups.subset(subset),
            sizes=self.sizes[subset],
            labels=None if self.labels is None else self.labels[subset],
            test=self.test[subset],
            fingerprint=hashlib.sha256(
                f"{self.fingerprint}/{subset.tolist()}".encode()
            ).hexdigest(),
            listing=hashlib.sha256(f"{self.listing}/{subset.tolist()}".encode()).hexdigest(),
            notes=(
                *self.notes,
                f"{of} of the training images: {len(positions):,} of {len(train):,}",
            ),
        )

    def describe(self) -> str:
        """Return counts, classes, split, unreadable files and notes as text, one line each."""
        held_out = int(self.test.sum())
        origin = {"given": "as their folders say", "table": "as their table says"}.get(
            self.split, "drawn by the seed"
        )
        lines = [
            f"{count_text(len(self), 'image')}, {self._classes()}: {len(self) - held_out:,} to"
            f" train on, {held_out:,} held out ({origin})"
        ]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} not readable: {list_reasons(self.unreadable)}")
        return "\n".join([*lines, *self.notes])

    def _classes(self) -> str:
        if self.labels is None:
            return "no labels"
        kind = "classes" if self.labels.dim() == 1 else "classes (several an image)"
        examples = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"{len(self.classes)} {kind} ({examples})"


def build_index(
    roots: Sequence[Path | str],
    *,
    labels: str | Path = "auto",
    holdout: float = 0.2,
    seed: int = 0,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    pixel_range: PixelRange | None = PixelRange(),
) -> Index:
    """Index the images below `roots`: nested folders, image files, packs, Parquet files, and their
    URLs.

    Links are followed, and every file is counted once, by its real path. Left out, and counted in
    `notes`: hidden files and system folders (__MACOSX, @eaDir, bins), folders that selftaught
    wrote, pictures of unsupported formats, and masks beside their photographs. Every file is
    decoded once. Results are cached in `cache` (default: $XDG_CACHE_HOME/selftaught or
    ~/.cache/selftaught) by size and times of change. A later call is quick, and follows additions,
    changes and deletions. The index of a large set is cached as a whole.

    labels: "auto" takes the nearest labels.csv above an image, else class folders, else none.
    "folders" requires class folders; "none"; or the path of a CSV (see `label_table`).

    The split is that of folders such as `train/` and `test/` (`val2017/`, `test_set/`, ...), also
    below a wrapper folder; images beside these (`unlabeled/`) are trained on. Else it is that of a
    column `split` of the table. Else the share `holdout` of every class is drawn by a hash of seed
    and path. Later images then move few of the others.

    max_pixels: limit of an image; larger ones are left out. pixel_range: scale to 8 bits of images
    with more; pairs that it lacks are measured on these images. None: as in runs of versions
    without it.

    Raises UserError without images, with more than 10 % unreadable ones, or for labels that do not
    fit.
    """
    if not roots:
        raise UserError("no data: give at least one folder of images")
    require(0 <= holdout < 1, "--holdout", "at least 0 and less than 1", holdout)
    places = [Root.parse(root) for root in roots]
    cache = cache or default_cache_folder()
    table = (
        None
        if str(labels) in ("auto", "folders", "none")
        else os.path.abspath(Path(labels).expanduser())
    )
    cache_name = index_cache.make_key(
        [places, table or str(labels), holdout, seed, max_pixels, pixel_range]
    )
    if (
        cache is not None
        and (cached_fields := index_cache.load_index(cache, cache_name)) is not None
    ):
        return Index(**cached_fields)
    began = time.time_ns()
    scan = Scan(places)
    places, notes = scan.places, scan.notes
    cache_notes: list[str] = []  # failures to write the cache, which are not cached
    scan.files = remove_masks(scan.files, notes)
    checks = check_files(places, scan.files, cache, on_progress, cache_notes, max_pixels)
    all_files, packed_range = scan.files, PixelRange()
    sizes, measurements, reasons = checks
    if any(place.is_parquet for place in places):
        from selftaught.data.index import parquet_rows  # imports pyarrow

        all_files, sizes, measurements, reasons, packed_range = parquet_rows.add_parquet_rows(
            places, scan.files, *checks, cache, on_progress, notes, cache_notes, max_pixels
        )
    readable = [i for i in range(len(all_files)) if i not in reasons]
    failed = [*((all_files.paths[i], reason) for i, reason in reasons.items()), *scan.unreadable]
    unreadable = sorted((printable(path), reason) for path, reason in failed)
    _refuse_bad_sets(places, len(readable), unreadable, notes)

    files = all_files.select(readable)
    layout = read_layout(files, notes)
    split: str = layout.split
    is_test = layout.test
    tables = label_by_tables(str(labels), places, files, notes)
    label_rows, classes = (
        (tables.labels, tables.classes)
        if tables
        else assign_labels(str(labels), places, files, layout, notes)
    )
    if tables and tables.test is not None:
        if split == "given":
            notes.append(
                "the split that the table of labels names is not used, as folders name one"
            )
        else:
            split, is_test = "table", tables.test
    if split == "drawn":
        is_test = draw_split(files, label_rows, holdout, seed)
    measurements = measurements[readable]
    own_range = packed_range.fill_missing(pixel_range_module.measure_range(measurements))
    pixel_range = None if pixel_range is None else pixel_range.fill_missing(own_range)
    notes += pixel_range_module.describe_range(pixel_range, measurements, own_range)
    notes += note_copies(files)
    listing, fingerprint = _fingerprints(
        files, label_rows, classes, pixel_range_module.describe_used(pixel_range, measurements)
    )
    index = Index(
        paths=Paths(files.paths),
        names=Paths(files.names),
        sizes=torch.from_numpy(sizes[readable]),
        labels=None if label_rows is None else torch.from_numpy(label_rows),
        classes=classes,
        test=torch.from_numpy(is_test),
        split=split,
        unreadable=tuple(unreadable),
        fingerprint=fingerprint,
        listing=listing,
        pixel_range=pixel_range,
        groups=_make_groups(files),
        notes=tuple(notes),
    )
    index = _add_sides(index, files)
    if cache is not None and len(index) >= index_cache.MIN_IMAGES:
        tables_read = [table] if table else find_tables(places, files)
        stamp = index_cache.CacheStamp.from_scan(
            scan, [*tables_read, *(all_files.paths[i] for i in reasons)], began
        )
        if stamp is not None:
            index_cache.save_index(
                cache,
                cache_name,
                vars(index),
                np.stack([files.bytes, files.stamps], 1),
                stamp,
                cache_notes,
            )
    return replace(index, notes=(*notes, *cache_notes)) if cache_notes else index


def _add_sides(index: Index, files: Files) -> Index:
    """Return the index with a split that older versions did not read as part of its fingerprints.

    They drew a split instead: their runs trained on images that are held out now.
    """
    is_test = index.test.numpy()
    if index.split == "drawn" or (
        index.split == "given" and np.array_equal(is_test, _first_folder_tests(files))
    ):
        return index
    sides = np.packbits(is_test).tobytes().hex()
    listing, fingerprint = (
        hashlib.sha256(f"{digest}/{sides}".encode()).hexdigest()
        for digest in (index.listing, index.fingerprint)
    )
    return replace(index, listing=listing, fingerprint=fingerprint)


def _make_groups(files: Files) -> Groups | None:
    """Return the row groups of images; None where all are files."""
    if max(files.groups) < 0:
        return None
    from selftaught.data.parquet.row_groups import Groups

    return Groups.from_images(files.groups, files.bytes)


def _refuse_bad_sets(
    places: Sequence[Root],
    n_readable: int,
    unreadable: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    # without folders
    n_bad = sum(is_image(path) or RowAddress.parse(path) is not None for path, _ in unreadable)
    names = ", ".join(printable(place.path) for place in places[:3]) + (
        ", ..." if len(places) > 3 else ""
    )
    if n_readable + n_bad == 0:
        reasons = f"; not readable: {list_reasons(unreadable)}" if unreadable else ""
        raise UserError(
            "; ".join([f"no images in {names}: looked for {SUFFIX_NAMES}{reasons}", *notes])
        )
    if n_bad > _MAX_UNREADABLE * (n_readable + n_bad):
        raise UserError(
            f"{n_bad:,} of {count_text(n_readable + n_bad, 'image file')} in {names} cannot be"
            f" read, more than {_MAX_UNREADABLE:.0%}: {list_reasons(unreadable)};"
            " repair or remove them"
        )


def _first_folder_tests(files: Files) -> np.ndarray:
    """[n] bool: whether the first folder below the root is called test, val or the like."""
    names = ("test", "testing", "val", "valid", "validation")
    return np.array([name.partition("/")[0].lower() in names for name in files.names], dtype=bool)


def _fingerprints(
    files: Files, rows: np.ndarray | None, classes: Sequence[str], range_text: str
) -> tuple[str, str]:
    """Return hashes over names, sizes, labels and range; and over names, contents, labels and
    range.
    """
    sizes, contents = hashlib.sha256(), hashlib.sha256()
    numbers = rows.tolist() if rows is not None and rows.ndim == 1 else None
    for i, name in enumerate(files.names):
        image_labels: Iterable[int] = ()
        if numbers is not None:
            image_labels = (numbers[i],) if numbers[i] >= 0 else ()
        elif rows is not None:
            image_labels = np.flatnonzero(rows[i]).tolist() if np.min(rows[i]) >= 0 else ()
        label_text = "|".join(classes[c] for c in image_labels)
        path, suffix = os.fsencode(name), f"{label_text}\n".encode()
        sizes.update(b"%b\0%d\0%b" % (path, files.bytes[i], suffix))
        contents.update(b"%b\0%d/%d\0%b" % (path, files.bytes[i], files.digests[i], suffix))
    sizes.update(range_text.encode())
    contents.update(range_text.encode())
    return sizes.hexdigest(), contents.hexdigest()
