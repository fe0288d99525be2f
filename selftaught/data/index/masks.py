"""Masks, label maps and other annotations beside their photographs, which are not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from selftaught.data.folder_names import (
    TEST_WORDS,
    TRAIN_WORDS,
    distinctive_words,
    is_masks,
    is_photos,
    is_plural,
    masked_stem,
    may_name_masks,
    photo_stem,
    split_sides,
)
from selftaught.data.index.folders import Folder, build_trees
from selftaught.data.index.scan import Files
from selftaught.text import count_text, printable

# suffixes by the path of a file below a folder, without its suffix
Stems = dict[str, set[str]]


def remove_masks(files: Files, notes: list[str]) -> Files:
    """Return `files` without masks, which `notes` counts. Where there are only masks, all stay."""
    masks: set[int] = set()
    masks_beside: list[int] = []  # masks in one folder with their photographs
    in_folders: Counter[str] = Counter()
    for root in build_trees(files).values():
        pending = [root]
        while pending:
            folder = pending.pop()
            mask_folders = _find_mask_folders(folder, files)
            for name, child in folder.folders.items():
                if name in mask_folders:
                    in_folders[name] += child.count()
                    masks.update(child.positions())
                else:
                    pending.append(child)
            masks_beside += _find_masks_beside(folder.files, files)
    if in_folders:
        names = ", ".join(f"{printable(name)} ({n:,})" for name, n in in_folders.most_common(5))
        more = f", and {len(in_folders) - 5:,} more" if len(in_folders) > 5 else ""
        notes.append(
            f"{count_text(len(masks), 'image')} left out as masks or other parts of a data set:"
            f" {names}{more}; name such a folder itself to train on it"
        )
    if masks_beside:
        example = printable(files.paths[min(masks_beside)])
        notes.append(
            f"{count_text(len(masks_beside), 'image')} left out as masks of the images beside them,"
            f" for example {example}"
        )
    masks.update(masks_beside)
    return files.select(i for i in range(len(files)) if i not in masks) if masks else files


def _find_mask_folders(folder: Folder, files: Files) -> list[str]:
    """Return the subfolders that hold masks, by their names and by photographs beside them."""
    kinds = {name: kind for name in folder.folders if (kind := is_masks(name))}
    photos = [name for name in folder.folders if name not in kinds]
    if not photos and not folder.files:
        return []
    return [
        name
        for name, kind in kinds.items()
        if kind == "surely" or _is_mask_folder(name, photos, folder, files)
    ]


def _is_mask_folder(name: str, photos: Sequence[str], folder: Folder, files: Files) -> bool:
    """Whether a folder holds masks of the images in `photos`, and not a class called "mask"."""
    own_words = distinctive_words(name)
    namesakes = [photo for photo in photos if distinctive_words(photo) == own_words]
    if own_words and not namesakes:  # no_mask beside mask
        return False
    if (
        any(map(is_photos, namesakes))
        or (not own_words and split_sides(photos))
        or (own_words and own_words <= TRAIN_WORDS | TEST_WORDS)
    ):
        return True
    # Where the names do not decide, each mask needs a photograph of its name. It also needs another
    # format where a class may have this name.
    child = folder.folders[name]
    masks = _stems(child, files, of_masks=True)
    neighbours = namesakes if own_words else photos if len(photos) == 1 else []
    candidates = [_stems(folder.folders[photo], files) for photo in neighbours]
    if not own_words:
        candidates.append(_stems(folder, files, subfolders=photos))
    no_class = (
        not photos
        or is_plural(name)
        or all(masked_stem(_stem(files.names[i])) for i in child.positions())
    )
    return any(_all_have_photos(stems, masks, no_class) for stems in candidates)


def _all_have_photos(photos: Stems, masks: Stems, same_format: bool) -> bool:
    return masks.keys() <= photos.keys() and (
        same_format or all(masks[stem].isdisjoint(photos[stem]) for stem in masks)
    )


def _stems(
    folder: Folder, files: Files, of_masks: bool = False, subfolders: Collection[str] | None = None
) -> Stems:
    """Return the stems that masks and photographs share, of all images below a folder.

    subfolders: only of images directly in the folder and of those below these subfolders.
    """
    stems: Stems = {}
    folders: Iterable[Folder] = folder.walk()
    if subfolders is not None:
        top = Folder(folder.path)
        top.files = folder.files
        folders = [top, *(inner for name in subfolders for inner in folder.folders[name].walk())]
    for inner in folders:
        prefix = inner.path[len(folder.path) :].strip("/")
        for i in inner.files:
            stem, suffix = _stem(files.names[i]), files.names[i].rpartition(".")[2].lower()
            for shared in {masked_stem(stem) or stem} if of_masks else {stem, photo_stem(stem)}:
                stems.setdefault(f"{prefix}/{shared}", set()).add(suffix)
    return stems


def _find_masks_beside(positions: Collection[int], files: Files) -> list[int]:
    """Return the images of one folder that are named as masks of others in it: 7_mask.png beside
    7.jpg.
    """
    # one search over all names saves time
    if not may_name_masks("\n".join(files.names[i] for i in positions)):
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
