"""The index of an image set: which files are images, how large, of what class, and which are held
out. (Over 200 lines: what an index is, and how it is made.)
"""

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
from selftaught.data.index import cache as recall
from selftaught.data.index.file_checks import check
from selftaught.data.index.label_budget import Budget, draw
from selftaught.data.index.labels import label
from selftaught.data.index.layout import read_layout
from selftaught.data.index.masks import without_masks
from selftaught.data.index.scan import SUFFIX_NAMES, Files, Root, Scan, is_image
from selftaught.data.index.split import draw_split
from selftaught.data.index.tables.nearest_tables import find_tables
from selftaught.data.index.tables.table_labels import label_by_tables
from selftaught.data.io.cache_folder import default_cache_folder
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.data.io.paths import Paths
from selftaught.data.io.row_path import RowAddress
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError
from selftaught.text import count_text, list_reasons, printable

if TYPE_CHECKING:
    from selftaught.data.parquet.row_groups import Groups

# of the image files; with more, the folder is not what the user thinks it is
_MOST_UNREADABLE = 0.10


@dataclass(frozen=True, eq=False, kw_only=True)
class Index:
    """The readable images of some folders, in an order that depends only on their relative
    paths.
    """

    paths: Sequence[Path]  # N of them, sorted by the path below their root
    names: Sequence[Path]  # N of them: the paths below their roots, which a copy elsewhere shares
    sizes: Tensor  # [N, 2] long: height, width as shown (after EXIF orientation)
    # [N] long, or [N, C] int8 for several an image; -1 = unlabelled; None: no accuracy anywhere
    labels: Tensor | None
    classes: tuple[str, ...]
    test: Tensor  # [N] bool: held out
    # "given" by train/ and test/ folders, by a column of the "table" of labels, or "drawn" by seed
    split: str
    unreadable: tuple[tuple[str, str], ...]  # (path, reason) of files and folders
    # sha256 over relative paths, contents, labels, range and given split: equal for a copy of the
    # data
    fingerprint: str
    # the same with sizes in place of contents, by which older runs know their data
    listing: str = ""
    # by which values of more than 8 bits are brought to 8; None: see `PixelRange`
    pixel_range: PixelRange | None = None
    groups: Groups | None = None  # which images of stores lie together; None: all are files
    notes: tuple[
        str, ...
    ] = ()  # a line each on what one may not expect (columns not used, links, ...)

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

    @property
    def labelled(self) -> Tensor:
        """[N] bool: whose label is known."""
        if self.labels is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return (self.labels if self.labels.dim() == 1 else self.labels[:, 0]) >= 0

    def subset(self, of: str, seed: int) -> Index:
        """The same with a part of its training images: "25%" of them, or those of a budget of
        labels ("5" a class, "total:1000" with every class at least once). For one seed a smaller
        part lies within a larger one.
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
            chosen = train[order[: max(round(share * len(train)), 1)]]
        else:
            if self.labels is None:
                raise UserError(
                    f"--subset {of} counts labels, and these images have none: give a share such"
                    " as 10%"
                )
            budget, known = Budget.parse(of), train[self.labelled[train]]
            chosen = known[
                draw(self.labels[known], per_class=budget.per_class, total=budget.total, seed=seed)
            ]
        kept = torch.cat([chosen, self.held_out]).sort().values
        return replace(
            self,
            paths=Paths([str(self.paths[i]) for i in kept.tolist()]),
            names=Paths([str(self.names[i]) for i in kept.tolist()]),
            groups=None if self.groups is None else self.groups.subset(kept),
            sizes=self.sizes[kept],
            labels=None if self.labels is None else self.labels[kept],
            test=self.test[kept],
            fingerprint=hashlib.sha256(f"{self.fingerprint}/{kept.tolist()}".encode()).hexdigest(),
            listing=hashlib.sha256(f"{self.listing}/{kept.tolist()}".encode()).hexdigest(),
            notes=(*self.notes, f"{of} of the training images: {len(chosen):,} of {len(train):,}"),
        )

    def describe(self) -> str:
        """Counts, classes, split, unreadable files and notes, for people: a line for each that
        there is.
        """
        held_out = int(self.test.sum())
        how = {"given": "as their folders say", "table": "as their table says"}.get(
            self.split, "drawn by the seed"
        )
        lines = [
            f"{count_text(len(self), 'image')}, {self._classes()}: {len(self) - held_out:,} to"
            f" train on, {held_out:,} held out ({how})"
        ]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} not readable: {list_reasons(self.unreadable)}")
        return "\n".join([*lines, *self.notes])

    def _classes(self) -> str:
        if self.labels is None:
            return "no labels"
        kind = "classes" if self.labels.dim() == 1 else "classes (several an image)"
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"{len(self.classes)} {kind} ({shown})"


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
    """Indexes the images below `roots`: folders, nested in any way, image files, packs, Parquet
    files, URLs of these.

    Links are followed, every file is counted once (by its real path, where it lies rather than
    where it is linked). Passed over, and counted in `notes`: what is hidden or made by a system
    (__MACOSX, @eaDir, bins), folders that this product wrote (runs, plans, studies, packs),
    pictures whose format cannot be read here, and masks that lie beside their photographs. Every
    file is decoded fully once; verdicts are kept in `cache` (default: $XDG_CACHE_HOME/selftaught or
    ~/.cache/selftaught) by size and times of change, so that a second call is quick and follows
    additions, changes and deletions. The index of a large set is remembered as a whole.

    labels: "auto" takes the nearest labels.csv above an image, else class folders, else none;
    "folders" insists on class folders; "none"; or the path of a CSV (see `label_table`). Folders
    such as `train/` and `test/` (`val2017/`, `test_set/`, ...) are kept as the split, also in a
    folder that holds all the rest; what lies beside them (`unlabeled/`) is trained on; else a
    column `split` of the table is kept; else the share `holdout` of every class is held out. That
    draw goes by a hash of seed and path: images that come later move few of the others across.

    max_pixels: of an image; larger ones are left out. pixel_range: by which values of more than 8
    bits are brought to 8; the pairs that it lacks are measured on these images. None: as runs did
    that knew of none.

    Raises UserError when there are no images, when more than 10 % of them cannot be read, or when
    labels do not fit.
    """
    if not roots:
        raise UserError("no data: give at least one folder of images")
    if not 0 <= holdout < 1:
        raise UserError(f"the held-out share must be at least 0 and less than 1, not {holdout}")
    places = [Root.of(root) for root in roots]
    cache = cache or default_cache_folder()
    table = (
        None
        if str(labels) in ("auto", "folders", "none")
        else os.path.abspath(Path(labels).expanduser())
    )
    name = recall.key([places, table or str(labels), holdout, seed, max_pixels, pixel_range])
    if cache is not None and (remembered := recall.load(cache, name)) is not None:
        return Index(**remembered)
    began = time.time_ns()
    scan = Scan(places)
    places, notes = scan.places, scan.notes
    forgotten: list[str] = []  # notes of this call alone
    scan.files = without_masks(scan.files, notes)
    checked = check(places, scan.files, cache, on_progress, forgotten, max_pixels)
    found, packed = scan.files, PixelRange()
    sizes, measured, reasons = checked
    if any(place.is_store for place in places):
        from selftaught.data.index import parquet_rows  # for those who have Parquet files

        found, sizes, measured, reasons, packed = parquet_rows.join(
            places, scan.files, *checked, cache, on_progress, notes, forgotten, max_pixels
        )
    readable = [i for i in range(len(found)) if i not in reasons]
    failed = [*((found.paths[i], reason) for i, reason in reasons.items()), *scan.unreadable]
    unreadable = sorted((printable(path), reason) for path, reason in failed)
    _refuse_bad_sets(places, len(readable), unreadable, notes)

    files = found.chosen(readable)
    layout = read_layout(files, notes)
    split: str = layout.split
    is_test = layout.test
    tables = label_by_tables(str(labels), places, files, notes)
    known, classes = (
        (tables.labels, tables.classes)
        if tables
        else label(str(labels), places, files, layout, notes)
    )
    if tables and tables.test is not None:
        if split == "given":
            notes.append(
                "the split that the table of labels names is not used, as folders name one"
            )
        else:
            split, is_test = "table", tables.test
    if split == "drawn":
        is_test = draw_split(files, known, holdout, seed)
    measured = measured[readable]
    own = packed.or_else(pixel_range_module.measure_range(measured))
    pixel_range = None if pixel_range is None else pixel_range.or_else(own)
    notes += pixel_range_module.notes(pixel_range, measured, own)
    notes += note_copies(files)
    listing, fingerprint = _fingerprints(
        files, known, classes, pixel_range_module.used(pixel_range, measured)
    )
    index = Index(
        paths=Paths(files.paths),
        names=Paths(files.names),
        sizes=torch.from_numpy(sizes[readable]),
        labels=None if known is None else torch.from_numpy(known),
        classes=classes,
        test=torch.from_numpy(is_test),
        split=split,
        unreadable=tuple(unreadable),
        fingerprint=fingerprint,
        listing=listing,
        pixel_range=pixel_range,
        groups=_count_groups(files),
        notes=tuple(notes),
    )
    if split == "table" or (
        split == "given" and not np.array_equal(is_test, _first_folder_tests(files))
    ):
        # Earlier versions read no such split and drew one: a run of theirs was trained on images
        # that are held out here.
        sides = np.packbits(is_test).tobytes().hex()
        listing, fingerprint = (
            hashlib.sha256(f"{of}/{sides}".encode()).hexdigest()
            for of in (index.listing, index.fingerprint)
        )
        index = replace(index, listing=listing, fingerprint=fingerprint)
    if cache is not None and len(index) >= recall.LEAST:
        watched = [table] if table else find_tables(places, files)
        witness = recall.CacheStamp.of(scan, [*watched, *(found.paths[i] for i in reasons)], began)
        if witness is not None:
            recall.store(
                cache,
                name,
                vars(index),
                np.stack([files.bytes, files.changed], 1),
                witness,
                forgotten,
            )
    return replace(index, notes=(*notes, *forgotten)) if forgotten else index


def _count_groups(files: Files) -> Groups | None:
    """Which images lie together in row groups; None: all are files."""
    if max(files.groups) < 0:
        return None
    from selftaught.data.parquet.row_groups import Groups

    return Groups.from_images(files.groups, files.bytes)


def _refuse_bad_sets(
    places: Sequence[Root],
    readable: int,
    unreadable: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    # and not the folders
    bad = sum(is_image(path) or RowAddress.parse(path) is not None for path, _ in unreadable)
    named = ", ".join(printable(place.path) for place in places[:3]) + (
        ", ..." if len(places) > 3 else ""
    )
    if readable + bad == 0:
        because = f"; not readable: {list_reasons(unreadable)}" if unreadable else ""
        raise UserError(
            "; ".join([f"no images in {named}: looked for {SUFFIX_NAMES}{because}", *notes])
        )
    if bad > _MOST_UNREADABLE * (readable + bad):
        raise UserError(
            f"{bad:,} of {count_text(readable + bad, 'image file')} in {named} cannot be read, more"
            f" than {_MOST_UNREADABLE:.0%}: {list_reasons(unreadable)}; repair or remove them"
        )


def _first_folder_tests(files: Files) -> np.ndarray:
    """[n] bool: in a folder of the root that is called test, val or the like, and no otherwise."""
    names = ("test", "testing", "val", "valid", "validation")
    return np.array([name.partition("/")[0].lower() in names for name in files.names], dtype=bool)


def _fingerprints(
    files: Files, rows: np.ndarray | None, classes: Sequence[str], used: str
) -> tuple[str, str]:
    """Of names, sizes, labels and the range `used`; and of names, contents, labels and that."""
    sizes, contents = hashlib.sha256(), hashlib.sha256()
    plain = rows.tolist() if rows is not None and rows.ndim == 1 else None
    for i, name in enumerate(files.names):
        label: Iterable[int] = ()
        if plain is not None:
            label = (plain[i],) if plain[i] >= 0 else ()
        elif rows is not None:
            label = np.flatnonzero(rows[i]) if np.min(rows[i]) >= 0 else ()
        said = "|".join(classes[c] for c in label)
        path, told = os.fsencode(name), f"{said}\n".encode()
        sizes.update(b"%b\0%d\0%b" % (path, files.bytes[i], told))
        contents.update(b"%b\0%d/%d\0%b" % (path, files.bytes[i], files.digests[i], told))
    sizes.update(used.encode())
    contents.update(used.encode())
    return sizes.hexdigest(), contents.hexdigest()
