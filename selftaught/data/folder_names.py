"""What a folder's name means for its images: a side of a split, no labels, photographs or masks.

A name alone is weak evidence. A split needs both sides; masks need their photographs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Side = Literal["train", "test", "unlabelled"]


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


TRAIN_WORDS = frozenset({"train", "training", "trainval", "labeled", "labelled"})
TEST_WORDS = _word_set("test testing val valid validation dev eval evaluation holdout heldout")
UNLABELLED_WORDS = _word_set(
    "unlabeled unlabelled unlab unsup unsupervised unannotated nolabel nolabels"
)
# beside a train folder: more images, often without labels
MORE_WORDS = frozenset({"extra", "extras", "additional"})

_PHOTO_WORDS = _word_set(
    "image images img imgs photo photos photograph photographs picture pictures pic pics rgb"
    " frame frames scan scans slide slides tile tiles patches crops input inputs original"
    " originals raw"
)
_MASK_WORDS = _word_set(
    "mask masks label labels lbl lbls seg segs segmentation segmentations annot annots annotation"
    " annotations anno annos gt gts trimap trimaps labelmap labelmaps matte mattes contour"
    " contours manual saliency ann anns target targets depth depths disparity instance instances"
    " semantic panoptic parsing overlay overlays heatmap heatmaps"
)
# No class has these names: such folders hold masks beside any images.
_CERTAIN_MASKS = frozenset(
    {"annotations", "segmentations", "labelmap", "labelmaps", "trimap", "trimaps"}
)
_CERTAIN_PAIRS = (
    ("ground", "truth"),
    ("segmentation", "class"),
    ("segmentation", "object"),
    ("segmentation", "masks"),
    ("seg", "masks"),
    ("gt", "fine"),
    ("gt", "coarse"),
    ("label", "map"),
    ("label", "maps"),
)
# Words without effect on the meaning of a name.
_NEUTRAL_WORDS = _PHOTO_WORDS | _word_set(
    "set sets data dataset datasets split splits part parts folder dir file files sample samples"
    " full all clean orig new old final public private small large big mini subset partial hr lr"
    " jpg jpeg png color colour gray grey crop cropped resized size px class classes cls category"
    " categories of the my only st nd aug augmented binary bit"
)

_BOUNDARY = re.compile(
    r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"
)
# trainset, testimages, trainannot
_GLUED = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev|eval|unlabell?ed|ground)"
    r"(sets?|data|images?|imgs?|pics|masks?|labels?|annots?|gt|truth|only)"
)

# Folders that file systems, NAS and desktops make: thumbnails, bins, snapshots.
_SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "~snapshot",
        "__pycache__",
    }
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or made by a system."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


@lru_cache(1 << 14)
def words(name: str) -> frozenset[str]:
    """Return the words of a name in lower case, without numbers and single letters.

    train2017 -> train; valSet_A -> val, set.
    """
    parts: set[str] = set()
    for word in _BOUNDARY.split(name):
        compound = _GLUED.fullmatch(word.lower())
        parts |= set(compound.groups()) if compound else {word.lower()}
    return frozenset(word for word in parts if len(word) > 1 and not word.isdecimal())


@lru_cache(1 << 14)
def _side(name: str) -> tuple[Side | None, frozenset[str]]:
    """Return the side of a split that a name may mean, and its words of other meanings."""
    name_words = words(name)
    train, test, unlabelled = (
        name_words & TRAIN_WORDS,
        name_words & TEST_WORDS,
        name_words & UNLABELLED_WORDS,
    )
    others = name_words - TRAIN_WORDS - TEST_WORDS - UNLABELLED_WORDS - _NEUTRAL_WORDS
    if test and (not train or train <= {"labeled", "labelled"}):
        return "test", others
    if unlabelled:
        return "unlabelled", others
    if train and not test & {"test", "testing"}:  # train_val is trained on; train_test has no side
        return "train", others
    return None, others


def plain_side(name: str) -> Side | None:
    """Return the side of a split that a name alone means: training_set, val2017, unlabeled; not
    test_tube.
    """
    side, others = _side(name)
    return None if others else side


def split_sides(names: Iterable[str]) -> dict[str, Literal["train", "test"]]:
    """Return the sides of a split among neighbouring folders; empty unless train and test are
    there.

    A further word is allowed where both sides have it: seg_train beside seg_test, but not
    test_tube.
    """
    sides_by_name = {name: _side(name) for name in names}
    other_words = {
        side: {others for own_side, others in sides_by_name.values() if own_side == side}
        for side in ("train", "test")
    }
    sides: dict[str, Literal["train", "test"]] = {}
    for name, (side, others) in sides_by_name.items():
        if side in ("train", "test") and (
            not others or others in other_words["test" if side == "train" else "train"]
        ):
            sides[name] = side
    return sides if {"train", "test"} <= set(sides.values()) else {}


def is_additional(name: str) -> bool:
    """Whether a folder beside train/ is named as one of additional images, such as extra/."""
    name_words = words(name)
    return bool(name_words & MORE_WORDS) and name_words <= MORE_WORDS | _NEUTRAL_WORDS


def is_photos(name: str) -> bool:
    """Whether a folder is named as one of photographs: images, JPEGImages, leftImg8bit."""
    name_words = words(name)
    return bool(
        name_words & _PHOTO_WORDS
    ) and name_words <= _NEUTRAL_WORDS | TRAIN_WORDS | TEST_WORDS | {"left", "right"}


def is_masks(name: str) -> Literal["surely", "perhaps"] | None:
    """Whether a folder is named as one of masks or other pictures of annotations."""
    name_words = words(name)
    if (
        name_words & _CERTAIN_MASKS
        and name_words <= _CERTAIN_MASKS | _MASK_WORDS | _NEUTRAL_WORDS | TRAIN_WORDS | TEST_WORDS
    ):
        return "surely"
    if any(name_words >= set(pair) for pair in _CERTAIN_PAIRS):
        return "surely"
    return "perhaps" if name_words & _MASK_WORDS else None


def distinctive_words(name: str) -> frozenset[str]:
    """Return the words that distinguish a name from others of its kind: train of train_masks."""
    return words(name) - _MASK_WORDS - _NEUTRAL_WORDS


def is_set_part(name: str) -> bool:
    """Whether a folder has only a name that every set uses for images or masks, so that it is no
    class.
    """
    images = is_photos(name) and bool(words(name) & {"image", "images", "img", "imgs"})
    return (
        images
        or is_masks(name) == "surely"
        or (is_masks(name) is not None and not distinctive_words(name))
    )


def is_plural(name: str) -> bool:
    """Whether the word for masks in a name is a plural, which classes do not use."""
    return any(word.endswith("s") for word in words(name) & _MASK_WORDS)


_MASK_HINTS = ("mask", "gt", "ground", "label", "seg", "annot", "anno", "matte", "trimap", "parts")
_OF_MASK = (
    "mask|masks|gt|ground[_"
    " -]?truth|label|labels|labelmap|seg|segm|segmentation|annot|annotation|anno|matte|trimap"
)
_MASK_END = re.compile(
    rf"(.+?)[_\-. ](?:{_OF_MASK}|gt(?:fine|coarse)_\w+|parts)(?:[_\-. ]?\d+)?", re.IGNORECASE
)
_MASK_START = re.compile(rf"(?:{_OF_MASK})[_\-. ](.+)", re.IGNORECASE)
_PHOTO_END = re.compile(
    r"(.+?)[_\-. ](?:image|img|rgb|sat|leftimg8bit|photo|orig|original|input|raw)", re.IGNORECASE
)
_PHOTO_START = re.compile(
    r"(?:image|img|rgb|photo|orig|original|input|raw)[_\-. ](.+)", re.IGNORECASE
)


def may_name_masks(text: str) -> bool:
    """Whether any of many names may be that of a mask. False is certain."""
    lower = text.lower()
    return any(word in lower for word in _MASK_HINTS)


def masked_stem(stem: str) -> str | None:
    """Return the stem of the photograph that a file is a mask of: 7 of 7_mask; None for no mask."""
    match = _MASK_END.fullmatch(stem) or _MASK_START.fullmatch(stem)
    return match[1] if match else None


def photo_stem(stem: str) -> str:
    """Return the part of a photograph's stem that its mask shares: 7 of 7_sat; else all of it."""
    match = _PHOTO_END.fullmatch(stem) or _PHOTO_START.fullmatch(stem)
    return match[1] if match else stem
