"""The images that paths in a table mean, from other folders, systems or without suffix."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from selftaught.data.index.scan import Files, Root, is_image

_NUMBER = re.compile(r"0*(\d+)(\.0+)?", re.ASCII)


class Match(NamedTuple):
    """The images that a path fits equally well, and how closely: less is closer."""

    images: tuple[int, ...] = ()  # positions; empty: no such image; several: ambiguous
    base: int = 0  # number of the `Base`
    # exact, no suffix, suffix in other case, all in other case, that without suffix, other zeros
    spelling: int = 0

    @property
    def closeness(self) -> tuple[int, int]:
        return self.base, self.spelling


class Base(NamedTuple):
    """A starting point of paths, such as a folder: how it spells images and paths in full."""

    # of an image; with `has_depth` its last folders, as many as the path has, and its name
    image_key: Callable[[int, int], str]
    path_keys: Callable[[str], list[str]]  # of a path, the likeliest first
    is_exact: bool = False  # no other suffix, case or zeros
    has_depth: bool = False


def find_images(
    cells: Sequence[str], folder: str, places: Sequence[Root], files: Files, members: Sequence[int]
) -> list[Match]:
    """Return for each path the images among `members` that it means. folder: that of the table.

    The first base with a match decides. Images that fit equally well are all returned.
    """
    paths_by_cell = [_possible_paths(cell) for cell in cells]
    matches = [Match() for _ in cells]
    pending = [row for row, paths in enumerate(paths_by_cell) if paths]
    for number, base in enumerate(list_bases(folder, places, files)):
        if not pending:
            break
        keys = {
            row: [key for paths in paths_by_cell[row] for key in base.path_keys(paths)]
            for row in pending
        }
        for row, images, spelling in _match(base, keys, members):
            matches[row] = Match(images, number, spelling)
        pending = [row for row in pending if not matches[row].images]
    return matches


def list_bases(folder: str, places: Sequence[Root], files: Files) -> list[Base]:
    """Return the bases: the table's folder, its real path, a root, a root's parent, any folder."""
    folder_path = normalize_path(os.path.abspath(folder))
    real_folder = normalize_path(os.path.realpath(folder))
    roots = [(normalize_path(place.path), normalize_path(place.real)) for place in places]
    are_files = [place.is_file for place in places]
    parents = [
        posixpath.basename(posixpath.dirname(path) if is_file else path)
        for (path, _), is_file in zip(roots, are_files, strict=True)
    ]

    def name(i: int, _: int = 0) -> str:
        return normalize_path(files.names[i])

    def path(i: int, _: int = 0) -> str:
        return (
            roots[files.roots[i]][0]
            if are_files[files.roots[i]]
            else f"{roots[files.roots[i]][0]}/{name(i)}"
        )

    def real_path(i: int, _: int) -> str:
        return (
            roots[files.roots[i]][1]
            if are_files[files.roots[i]]
            else f"{roots[files.roots[i]][1]}/{name(i)}"
        )

    def below(form: str) -> list[str]:
        return [] if _is_absolute(form) or form.startswith("../") else [form]

    return [
        # most tables match here, which saves time
        Base(path, lambda form: [_join(folder_path, form)], is_exact=True),
        Base(path, lambda form: [_join(folder_path, form)]),
        Base(real_path, lambda form: [_join(real_folder, form)]),
        Base(name, below),
        Base(lambda i, _: f"{normalize_path(parents[files.roots[i]])}/{name(i)}", _path_ends),
        Base(lambda i, depth: "/".join(name(i).split("/")[-depth:]), below, has_depth=True),
    ]


BY_NAME = 5  # the number of the base that is any folder


def _match(
    base: Base, keys: dict[int, list[str]], members: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Return for each path (row and keys) with a match the images, and the rank of the spelling."""
    make_key = str if base.is_exact else _loose_key
    depths = (
        {1 + key.count("/") for positions in keys.values() for key in positions}
        if base.has_depth
        else {0}
    )
    images: dict[str, list[int]] = {
        make_key(key): [] for positions in keys.values() for key in positions
    }
    for i in members:
        for depth in depths:
            if (positions := images.get(make_key(base.image_key(i, depth)))) is not None:
                positions.append(i)
    for row, row_keys in keys.items():
        for key in row_keys:
            depth = 1 + key.count("/") if base.has_depth else 0
            candidates = images[make_key(key)]
            ranks = {
                i: rank
                for i in candidates
                if (rank := _rank_spelling(key, base.image_key(i, depth))) is not None
            }
            if ranks:
                best = min(ranks.values())
                yield row, tuple(i for i, rank in ranks.items() if rank == best), best
                break


def normalize_path(path: str) -> str:
    """Return one spelling of a path: forward slashes, no ./, composed letters.

    macOS decomposes letters in file names.
    """
    path = path.replace("\\", "/")
    # `normpath` is slow for a million names
    if "//" in path or "./" in path or path.endswith(("/", ".")):
        path = posixpath.normpath(path)
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _possible_paths(cell: str) -> list[str]:
    """Return the paths that a cell may mean: as written, and decoded as from a URL."""
    if not cell:
        return []
    if cell.startswith("file://"):
        cell = urlsplit(cell).path
    return [normalize_path(cell), *([normalize_path(unquote(cell))] if "%" in cell else [])]


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or re.match("[A-Za-z]:/", path) is not None


def _join(folder: str, path: str) -> str:
    if _is_absolute(path):
        return path
    return posixpath.normpath(f"{folder}/{path}") if path.startswith("..") else f"{folder}/{path}"


def _path_ends(path: str) -> list[str]:
    """Return the ends of a path that keep at least one folder, the longest first."""
    parts = path.split("/")
    return ["/".join(parts[at:]) for at in range(len(parts) - 1)]


def _stem(path: str) -> str:
    return path[: path.rindex(".")] if is_image(path) else path


def _loose_key(path: str) -> str:
    """Return what spellings of one path share: no suffix, lower case, numbers without leading
    zeros.

    `007` becomes 7, as does 7.0.
    """
    folder, _, stem = _stem(path).casefold().rpartition("/")
    if stem[:1].isdigit() and (number := _NUMBER.fullmatch(stem)):
        stem = number[1]
    return f"{folder}/{stem}"


def _rank_spelling(path: str, image: str) -> int | None:
    """Return how well a path fits an image, 0 best; None: "a.png" is not "a.jpg"."""
    stem = _stem(image)
    if path in (image, stem):
        return 0 if path == image else 1
    if path.casefold() == image.casefold():
        return 2 if _stem(path) == stem else 3
    if path.casefold() == stem.casefold():
        return 4
    return None if is_image(path) else 5
