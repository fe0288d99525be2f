"""Which image a path in a table means: the table may lie elsewhere, leave the suffix out, or come
from another system.
"""

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
    """The images that a path fits equally well, and how well: less is closer."""

    images: tuple[
        int, ...
    ] = ()  # positions; none: there is no such image; several: it cannot be told which
    base: int = 0  # number of the `Base` that it counts from
    # exact, no suffix, suffix in other case, all in other case, that without suffix, other zeros
    spelling: int = 0

    @property
    def closeness(self) -> tuple[int, int]:
        return self.base, self.spelling


class Base(NamedTuple):
    """Something that paths count from, such as a folder: how images and paths are written in full
    from there.
    """

    # of an image; where `has_depth`, its last so many folders and its name
    image_key: Callable[[int, int], str]
    path_keys: Callable[[str], list[str]]  # of a path, the likeliest first
    is_exact: bool = False  # no other suffix, case or zeros
    has_depth: bool = False


def find_images(
    cells: Sequence[str], folder: str, places: Sequence[Root], files: Files, members: Sequence[int]
) -> list[Match]:
    """Of each path the images among `members` that it means, if there are any. folder: that of the
    table.

    The first base that fits decides. Where several images fit equally well from there, all are
    named.
    """
    forms = [_forms(cell) for cell in cells]
    matches = [Match() for _ in cells]
    pending = [row for row, form in enumerate(forms) if form]
    for number, base in enumerate(list_bases(folder, places, files)):
        if not pending:
            break
        keys = {
            row: [key for form in forms[row] for key in base.path_keys(form)] for row in pending
        }
        for row, images, spelling in _match(base, keys, members):
            matches[row] = Match(images, number, spelling)
        pending = [row for row in pending if not matches[row].images]
    return matches


def list_bases(folder: str, places: Sequence[Root], files: Files) -> list[Base]:
    """The table's folder (or none, for absolute paths); its real place; a root; the folder above a
    root; any folder.
    """
    here, real = spell(os.path.abspath(folder)), spell(os.path.realpath(folder))
    roots = [(spell(place.path), spell(place.real)) for place in places]
    single = [place.is_file for place in places]
    parents = [
        posixpath.basename(posixpath.dirname(path) if one else path)
        for (path, _), one in zip(roots, single, strict=True)
    ]

    def name(i: int, _: int = 0) -> str:
        return spell(files.names[i])

    def path(i: int, _: int = 0) -> str:
        return (
            roots[files.roots[i]][0]
            if single[files.roots[i]]
            else f"{roots[files.roots[i]][0]}/{name(i)}"
        )

    def real_path(i: int, _: int) -> str:
        return (
            roots[files.roots[i]][1]
            if single[files.roots[i]]
            else f"{roots[files.roots[i]][1]}/{name(i)}"
        )

    def below(form: str) -> list[str]:
        return [] if _is_absolute(form) or form.startswith("../") else [form]

    return [
        Base(
            path, lambda form: [_join(here, form)], is_exact=True
        ),  # most tables need no more, which saves time
        Base(path, lambda form: [_join(here, form)]),
        Base(real_path, lambda form: [_join(real, form)]),
        Base(name, below),
        Base(lambda i, _: f"{spell(parents[files.roots[i]])}/{name(i)}", _ends),
        Base(lambda i, depth: "/".join(name(i).split("/")[-depth:]), below, has_depth=True),
    ]


BY_NAME = 5  # the number of the base that is any folder


def _match(
    base: Base, keys: dict[int, list[str]], members: Sequence[int]
) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Of each path (its row, and what it may be from this base) that fits an image: the images, and
    how they are spelt.
    """
    loosen = str if base.is_exact else _loosen
    depths = {1 + key.count("/") for own in keys.values() for key in own} if base.has_depth else {0}
    images: dict[str, list[int]] = {loosen(key): [] for own in keys.values() for key in own}
    for i in members:
        for depth in depths:
            if (own := images.get(loosen(base.image_key(i, depth)))) is not None:
                own.append(i)
    for row, own_keys in keys.items():
        for key in own_keys:
            depth = 1 + key.count("/") if base.has_depth else 0
            near = images[loosen(key)]
            ranks = {
                i: rank
                for i in near
                if (rank := _spelling(key, base.image_key(i, depth))) is not None
            }
            if ranks:
                best = min(ranks.values())
                yield row, tuple(i for i, rank in ranks.items() if rank == best), best
                break


def spell(path: str) -> str:
    """One spelling for a path: forward slashes, no ./, composed letters (macOS decomposes them in
    file names).
    """
    path = path.replace("\\", "/")
    if (
        "//" in path or "./" in path or path.endswith(("/", "."))
    ):  # asked first, as it is for a million names
        path = posixpath.normpath(path)
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _forms(cell: str) -> list[str]:
    """What a cell may mean as a path: as it stands, and where it comes from a web address,
    decoded.
    """
    if not cell:
        return []
    if cell.startswith("file://"):
        cell = urlsplit(cell).path
    return [spell(cell), *([spell(unquote(cell))] if "%" in cell else [])]


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or re.match("[A-Za-z]:/", path) is not None


def _join(folder: str, path: str) -> str:
    if _is_absolute(path):
        return path
    return posixpath.normpath(f"{folder}/{path}") if path.startswith("..") else f"{folder}/{path}"


def _ends(path: str) -> list[str]:
    """The ends of a path with a folder or more, the longest first."""
    parts = path.split("/")
    return ["/".join(parts[at:]) for at in range(len(parts) - 1)]


def _stem(path: str) -> str:
    return path[: path.rindex(".")] if is_image(path) else path


def _loosen(path: str) -> str:
    """What two spellings of one path share: no suffix, small letters; of a number its value, as
    `007` becomes 7 or 7.0.
    """
    folder, _, stem = _stem(path).casefold().rpartition("/")
    if stem[:1].isdigit() and (number := _NUMBER.fullmatch(stem)):
        stem = number[1]
    return f"{folder}/{stem}"


def _spelling(path: str, image: str) -> int | None:
    """How well a path fits an image, 0 best, or None: "a.png" is not "a.jpg"."""
    stem = _stem(image)
    if path in (image, stem):
        return 0 if path == image else 1
    if path.casefold() == image.casefold():
        return 2 if _stem(path) == stem else 3
    if path.casefold() == stem.casefold():
        return 4
    return None if is_image(path) else 5
