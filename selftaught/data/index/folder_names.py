"""What a folder's name says of the images in it: a side of a split, no labels, photographs, or
masks.

A name alone proves little. A split needs both of its sides; masks need the photographs that they
belong to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Side = Literal["train", "test", "unlabelled"]

TRAIN_WORDS = frozenset({"train", "training", "trainval", "labeled", "labelled"})
TEST_WORDS = frozenset(
    {
        "test",
        "testing",
        "val",
        "valid",
        "validation",
        "dev",
        "eval",
        "evaluation",
        "holdout",
        "heldout",
    }
)
UNLABELLED_WORDS = frozenset(
    {
        "unlabeled",
        "unlabelled",
        "unlab",
        "unsup",
        "unsupervised",
        "unannotated",
        "nolabel",
        "nolabels",
    }
)
# beside a train folder: more images, often without labels
MORE_WORDS = frozenset({"extra", "extras", "additional"})

_PHOTO_WORDS = frozenset(
    {
        "image",
        "images",
        "img",
        "imgs",
        "photo",
        "photos",
        "photograph",
        "photographs",
        "picture",
        "pictures",
        "pic",
        "pics",
        "rgb",
        "frame",
        "frames",
        "scan",
        "scans",
        "slide",
        "slides",
        "tile",
        "tiles",
        "patches",
        "crops",
        "input",
        "inputs",
        "original",
        "originals",
        "raw",
    }
)
_MASK_WORDS = frozenset(
    {
        "mask",
        "masks",
        "label",
        "labels",
        "lbl",
        "lbls",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "annot",
        "annots",
        "annotation",
        "annotations",
        "anno",
        "annos",
        "gt",
        "gts",
        "trimap",
        "trimaps",
        "labelmap",
        "labelmaps",
        "matte",
        "mattes",
        "contour",
        "contours",
        "manual",
        "saliency",
        "ann",
        "anns",
        "target",
        "targets",
        "depth",
        "depths",
        "disparity",
        "instance",
        "instances",
        "semantic",
        "panoptic",
        "parsing",
        "overlay",
        "overlays",
        "heatmap",
        "heatmaps",
    }
)
# Nobody calls a class so: these are masks beside whatever images there are.
_SURELY_MASKS = frozenset(
    {"annotations", "segmentations", "labelmap", "labelmaps", "trimap", "trimaps"}
)
_SURE_PAIRS = (
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
# Words that change nothing of what a name means.
_NEUTRAL_WORDS = _PHOTO_WORDS | {
    "set",
    "sets",
    "data",
    "dataset",
    "datasets",
    "split",
    "splits",
    "part",
    "parts",
    "folder",
    "dir",
    "file",
    "files",
    "sample",
    "samples",
    "full",
    "all",
    "clean",
    "orig",
    "new",
    "old",
    "final",
    "public",
    "private",
    "small",
    "large",
    "big",
    "mini",
    "subset",
    "partial",
    "hr",
    "lr",
    "jpg",
    "jpeg",
    "png",
    "color",
    "colour",
    "gray",
    "grey",
    "crop",
    "cropped",
    "resized",
    "size",
    "px",
    "class",
    "classes",
    "cls",
    "category",
    "categories",
    "of",
    "the",
    "my",
    "only",
    "st",
    "nd",
    "aug",
    "augmented",
    "binary",
    "bit",
}

_BOUNDARY = re.compile(
    r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"
)
# trainset, testimages, trainannot
_GLUED = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev|eval|unlabell?ed|ground)"
    r"(sets?|data|images?|imgs?|pics|masks?|labels?|annots?|gt|truth|only)"
)

# Made by file systems, NAS and desktops beside what people put there: thumbnails, bins, snapshots.
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
    """Whether a file or folder is hidden, or one that a system made for itself."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


@lru_cache(1 << 14)
def words(name: str) -> frozenset[str]:
    """The words of a name in lower case, without numbers and single letters: train2017 -> train;
    valSet_A -> val, set.
    """
    found: set[str] = set()
    for word in _BOUNDARY.split(name):
        glued = _GLUED.fullmatch(word.lower())
        found |= set(glued.groups()) if glued else {word.lower()}
    return frozenset(word for word in found if len(word) > 1 and not word.isdecimal())


@lru_cache(1 << 14)
def _side(name: str) -> tuple[Side | None, frozenset[str]]:
    """Which side of a split a name may mean, and which of its words mean something else."""
    own = words(name)
    train, test, unlabelled = own & TRAIN_WORDS, own & TEST_WORDS, own & UNLABELLED_WORDS
    others = own - TRAIN_WORDS - TEST_WORDS - UNLABELLED_WORDS - _NEUTRAL_WORDS
    if test and (not train or train <= {"labeled", "labelled"}):
        return "test", others
    if unlabelled:
        return "unlabelled", others
    if train and not test & {"test", "testing"}:  # train_val is trained on, train_test says nothing
        return "train", others
    return None, others


def plain_side(name: str) -> Side | None:
    """The side of a split that a name says by itself: training_set, val2017, unlabeled; not
    test_tube.
    """
    side, others = _side(name)
    return None if others else side


def split_sides(names: Iterable[str]) -> dict[str, Literal["train", "test"]]:
    """The sides of a split among the names of neighbouring folders; empty unless both train and
    test are there.

    A word of its own is allowed where the other side has it too: seg_train beside seg_test, but not
    test_tube.
    """
    found = {name: _side(name) for name in names}
    kinds = {
        side: {others for own, others in found.values() if own == side}
        for side in ("train", "test")
    }
    sides: dict[str, Literal["train", "test"]] = {}
    for name, (side, others) in found.items():
        if side in ("train", "test") and (
            not others or others in kinds["test" if side == "train" else "train"]
        ):
            sides[name] = side
    return sides if {"train", "test"} <= set(sides.values()) else {}


def is_more(name: str) -> bool:
    """Whether a folder beside train/ is called as one that only adds images, such as extra/."""
    own = words(name)
    return bool(own & MORE_WORDS) and own <= MORE_WORDS | _NEUTRAL_WORDS


def is_photos(name: str) -> bool:
    """Whether a folder is called as one that holds the photographs of a set: images, JPEGImages,
    leftImg8bit.
    """
    own = words(name)
    return bool(own & _PHOTO_WORDS) and own <= _NEUTRAL_WORDS | TRAIN_WORDS | TEST_WORDS | {
        "left",
        "right",
    }


def is_masks(name: str) -> Literal["surely", "perhaps"] | None:
    """Whether a folder is called as one that holds masks or other pictures of annotations."""
    own = words(name)
    if (
        own & _SURELY_MASKS
        and own <= _SURELY_MASKS | _MASK_WORDS | _NEUTRAL_WORDS | TRAIN_WORDS | TEST_WORDS
    ):
        return "surely"
    if any(own >= set(pair) for pair in _SURE_PAIRS):
        return "surely"
    return "perhaps" if own & _MASK_WORDS else None


def particular_words(name: str) -> frozenset[str]:
    """The words of a name that tell it from others of its kind: train of train_masks and of
    imgs_train.
    """
    return words(name) - _MASK_WORDS - _NEUTRAL_WORDS


def is_part(name: str) -> bool:
    """Whether a folder is called by nothing but what every set has, images or masks, so that it is
    no class.
    """
    images = is_photos(name) and bool(words(name) & {"image", "images", "img", "imgs"})
    return (
        images
        or is_masks(name) == "surely"
        or (is_masks(name) is not None and not particular_words(name))
    )


def is_plural(name: str) -> bool:
    """Whether the word for masks in a name is a plural, which no class is called by."""
    return any(word.endswith("s") for word in words(name) & _MASK_WORDS)


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
    """Whether any of many names may be one of a mask; no means no."""
    lower = text.lower()
    return any(
        word in lower
        for word in (
            "mask",
            "gt",
            "ground",
            "label",
            "seg",
            "annot",
            "anno",
            "matte",
            "trimap",
            "parts",
        )
    )


def masked_stem(stem: str) -> str | None:
    """The stem of the photograph that a file, by its name, is a mask of: 7 of 7_mask; None: it is
    called as no mask.
    """
    found = _MASK_END.fullmatch(stem) or _MASK_START.fullmatch(stem)
    return found[1] if found else None


def photo_stem(stem: str) -> str:
    """The part of a photograph's stem that its mask shares: 7 of 7_sat, else all of it."""
    found = _PHOTO_END.fullmatch(stem) or _PHOTO_START.fullmatch(stem)
    return found[1] if found else stem
