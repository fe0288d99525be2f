"""Masks, label maps and other annotations that lie beside the photographs which they belong to: not
to be trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from selftaught.data.index.folder_names import (
    TEST_WORDS,
    TRAIN_WORDS,
    is_masks,
    is_photos,
    is_plural,
    masked_stem,
    may_name_masks,
    particular_words,
    photo_stem,
    split_sides,
)
from selftaught.data.index.folders import Folder, trees
from selftaught.data.index.scan import Files
from selftaught.text import count_text, printable

# the path of a file below a folder, without its suffix: the suffixes that are there
Stems = dict[str, set[str]]


def without_masks(files: Files, notes: list[str]) -> Files:
    """`files` without the masks among them, which `notes` names and counts. Where there are only
    masks, all stay.
    """
    masks: set[int] = set()
    beside: list[int] = []  # in one folder with their photographs
    in_folders: Counter[str] = Counter()
    for root in trees(files).values():
        todo = [root]
        while todo:
            folder = todo.pop()
            mask_folders = _mask_folders(folder, files)
            for name, child in folder.folders.items():
                if name in mask_folders:
                    in_folders[name] += child.count()
                    masks.update(child.positions())
                else:
                    todo.append(child)
            beside += _masks_beside(folder.files, files)
    if in_folders:
        named = ", ".join(f"{printable(name)} ({n:,})" for name, n in in_folders.most_common(5))
        more = f", and {len(in_folders) - 5:,} more" if len(in_folders) > 5 else ""
        notes.append(
            f"{count_text(len(masks), 'image')} left out as masks or other parts of a data set:"
            f" {named}{more}; name such a folder itself to train on it"
        )
    if beside:
        example = printable(files.paths[min(beside)])
        notes.append(
            f"{count_text(len(beside), 'image')} left out as masks of the images beside them, for"
            f" example {example}"
        )
    masks.update(beside)
    return files.chosen(i for i in range(len(files)) if i not in masks) if masks else files


def _mask_folders(folder: Folder, files: Files) -> list[str]:
    """Which folders of a folder hold masks: those that are called so and have their photographs
    beside them.
    """
    named = {name: kind for name in folder.folders if (kind := is_masks(name))}
    photos = [name for name in folder.folders if name not in named]
    if not photos and not folder.files:
        return []
    return [
        name
        for name, kind in named.items()
        if kind == "surely" or _belongs(name, photos, folder, files)
    ]


def _belongs(name: str, photos: Sequence[str], folder: Folder, files: Files) -> bool:
    """Whether a folder that may hold masks, or a class called "mask", belongs to images of its
    neighbours `photos`.
    """
    own = particular_words(name)
    alike = [photo for photo in photos if particular_words(photo) == own]
    if own and not alike:  # no_mask beside mask
        return False
    if (
        any(map(is_photos, alike))
        or (not own and split_sides(photos))
        or (own and own <= TRAIN_WORDS | TEST_WORDS)
    ):
        return True
    # The names do not tell. Then each has the name of a photograph, and another format where a
    # class may be called so.
    child = folder.folders[name]
    masks = _stems(child, files, of_masks=True)
    neighbours = alike if own else photos if len(photos) == 1 else []
    possible = [_stems(folder.folders[photo], files) for photo in neighbours]
    if not own:
        possible.append(_stems(folder, files, only=photos))
    no_class = (
        not photos
        or is_plural(name)
        or all(masked_stem(_stem(files.names[i])) for i in child.positions())
    )
    return any(_covers(stems, masks, no_class) for stems in possible)


def _covers(photos: Stems, masks: Stems, same_format: bool) -> bool:
    return masks.keys() <= photos.keys() and (
        same_format or all(masks[stem].isdisjoint(photos[stem]) for stem in masks)
    )


def _stems(
    folder: Folder, files: Files, of_masks: bool = False, only: Collection[str] | None = None
) -> Stems:
    """The stems that masks and photographs share, of all images below a folder; with `only` of its
    own images and of those below some of its folders.
    """
    found: Stems = {}
    inside: Iterable[Folder] = folder.below()
    if only is not None:
        own = Folder(folder.path)
        own.files = folder.files
        inside = [own, *(one for name in only for one in folder.folders[name].below())]
    for one in inside:
        where = one.path[len(folder.path) :].strip("/")
        for i in one.files:
            stem, suffix = _stem(files.names[i]), files.names[i].rpartition(".")[2].lower()
            for shared in {masked_stem(stem) or stem} if of_masks else {stem, photo_stem(stem)}:
                found.setdefault(f"{where}/{shared}", set()).add(suffix)
    return found


def _masks_beside(positions: Collection[int], files: Files) -> list[int]:
    """Which images of one folder are called as masks of others there: 7_mask.png beside 7.jpg."""
    if not may_name_masks(
        "\n".join(files.names[i] for i in positions)
    ):  # a million names in one look
        return []
    masks = {i: owner for i in positions if (owner := masked_stem(_stem(files.names[i])))}
    photos = {
        key
        for i in positions
        if i not in masks
        for key in (_stem(files.names[i]), photo_stem(_stem(files.names[i])))
    }
    return [i for i, owner in masks.items() if owner in photos]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
