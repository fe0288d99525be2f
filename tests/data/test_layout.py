"""What folders say by their names: splits, classes, unlabelled images, masks, and what an archive
was unpacked into.
"""

from itertools import product

import pytest

from selftaught.data.folder_names import is_masks
from selftaught.data.index.labels import assign_labels
from selftaught.data.index.layout import read_layout
from selftaught.data.index.masks import remove_masks
from selftaught.data.index.scan import Files, Root

HERE = [Root("/r", "/r", is_file=True)]  # so that no labels.csv is looked for
NONE = (None, False)  # no label, and not held out


def few(*folders: str, n: int = 4, suffix: str = "png") -> list[str]:
    return [f"{folder}/{i}.{suffix}" for folder in folders for i in range(n)]


def classes(folder: str, *names: str) -> list[str]:
    return few(*(f"{folder}/{name}" for name in names or ("a", "b")))


def read(names: list[str], notes: list[str] | None = None) -> dict[str, tuple[str | None, bool]]:
    """Of each image that is taken its class and whether it is held out by its folder."""
    files = Files()
    for name in sorted(names):
        files.add(f"/r/{name}", name, 0, 1, 1)
    notes = [] if notes is None else notes
    files = remove_masks(files, notes)
    layout = read_layout(files, notes)
    numbers, classes = assign_labels("auto", HERE, files, layout, notes)
    own = [-1] * len(files) if numbers is None else numbers.tolist()
    assert layout.split == ("given" if layout.test.any() else "drawn")
    return {
        name: (classes[number] if number >= 0 else None, held_out)
        for name, number, held_out in zip(files.names, own, layout.test.tolist(), strict=True)
    }


def expected(names: list[str], place: int, held_out: str = "") -> dict[str, tuple[str, bool]]:
    """The class is the folder at `place`; the folder `held_out` is held out."""
    return {
        name: (name.split("/")[place], bool(held_out) and held_out in name.split("/"))
        for name in names
    }


# Splits

SIDES = [
    *("train | test", "Train | TEST", "training | testing", "train2017 | val2017"),
    *("training_set | test_set", "train-images | test-images", "imgs_train | imgs_val"),
    *("train | val_set", "train | dev", "train | eval", "training | evaluation"),
    *("trainset | testset", "TrainingSet | ValidationSet", "train data | valid data"),
    *("seg_train | seg_test", "bounding_box_train | bounding_box_test"),
    *("ILSVRC2012_img_train | ILSVRC2012_img_val", "DIV2K_train_HR | DIV2K_valid_HR"),
    *("01_train | 02_test", "train_256 | test_256", "labeled | test", "trainval | test"),
    *("TRAIN | Holdout", "my_train_data | my_test_data"),
]


@pytest.mark.parametrize(("train", "test"), [pair.split(" | ") for pair in SIDES])
@pytest.mark.parametrize("twice", [False, True])
def test_a_split_by_any_of_its_names(train: str, test: str, twice: bool) -> None:
    """Also where an archive of each side was unpacked into a folder of its own name."""
    inside = [f"{side}/{side}" if twice else side for side in (train, test)]
    names = [name for folder in inside for name in classes(folder)]
    notes: list[str] = []
    assert read(names, notes) == expected(names, 1 + twice, test)
    assert any(train in note and test in note for note in notes)


@pytest.mark.parametrize(
    "folders",
    [
        *("train bus plane", "trains tests buses", "trainers boots test_tube", "valid invalid"),
        *("test_tube train_station", "valley hill", "devices trainers", "test exam"),
        *("evaluations training_ground val_d_isere", "Trainspotting latest"),
    ],
)
@pytest.mark.parametrize("around", ["", "set/"])
def test_classes_that_only_look_like_a_split(folders: str, around: str) -> None:
    names = few(*(around + folder for folder in folders.split()))
    assert read(names) == expected(names, 1 if around else 0)


def test_a_class_called_train_in_a_split_and_beside_its_val() -> None:
    three = ("train", "bus", "plane")
    inside = [name for side in ("train", "test") for name in classes(side, *three)]
    assert read(inside) == {name: (name.split("/")[1], name.startswith("test/")) for name in inside}
    beside, held_out = few(*three), classes("val", *three)
    assert read([*beside, *held_out]) == expected(beside, 0) | expected(held_out, 1, "val")


def test_a_side_without_class_folders() -> None:
    """As many competitions give their test images: these have no labels, and the others keep
    theirs.
    """
    names, more = classes("train"), few("test", n=20)
    assert read([*names, *more]) == expected(names, 1) | dict.fromkeys(more, (None, True))


def test_one_class_to_train_on_and_more_to_test() -> None:
    names = [*few("train/good"), *few("test/good", "test/broken")]
    assert read(names) == expected(names, 1, "test")


def test_several_sets_each_with_a_split_hold_out_all_their_test_images() -> None:
    for domains in (("photo", "sketch"), ("photo", "sketch", "set/cartoon")):
        names = [
            name
            for domain, side in product(domains, ("train", "test"))
            for name in classes(f"{domain}/{side}")
        ]
        assert read(names) == {name: (None, "test" in name.split("/")) for name in names}


def test_few_divided_images_make_no_split() -> None:
    names = [*few("cat", "dog", n=20), *few("bird/train", "bird/test", n=3)]
    notes: list[str] = []
    assert read(names, notes) == expected(names, 0)
    assert any("bird" in note for note in notes)


def test_folders_of_scenes_that_train_and_test_do_not_share_are_no_classes() -> None:
    names = [*few("train/aachen", "train/ulm"), *few("val/lindau", "val/bonn")]
    assert read(names) == {name: (None, name.startswith("val")) for name in names}


# Unlabelled images


@pytest.mark.parametrize(
    "folder",
    ["unlabeled", "unlabelled", "Unlabeled2017", "unlabeled_images", "unsup", "extra", "misc"],
)
def test_unlabelled_images_beside_a_split(folder: str) -> None:
    names, more, notes = [*classes("train"), *classes("test")], few(folder, n=40), list[str]()
    assert read([*names, *more], notes) == expected(names, 1, "test") | dict.fromkeys(more, NONE)
    assert any("40" in note and folder in note for note in notes)


@pytest.mark.parametrize(
    ("labelled", "folder"),
    [
        *(("train", "unlabeled"), ("train", "extra"), ("labeled", "unlabeled")),
        *(("Train2017", "unlabeled2017"), ("test", "unsup")),
    ],
)
@pytest.mark.parametrize("around", ["", "set/"])
def test_unlabelled_images_beside_one_side_alone(labelled: str, folder: str, around: str) -> None:
    names, more = classes(around + labelled), few(around + folder, n=40)
    place = 2 if around else 1
    assert read([*names, *more]) == expected(names, place) | dict.fromkeys(more, NONE)


def test_unlabelled_images_among_classes() -> None:
    for folder, place in (("", 0), ("train/", 1)):
        more, names = few(f"{folder}unlabelled"), few(f"{folder}a", f"{folder}b")
        names += classes("test") if folder else []
        unlabelled = dict.fromkeys(more, NONE)
        assert read([*names, *more]) == expected(names, place, "test") | unlabelled


def test_more_images_of_the_same_classes_keep_their_labels() -> None:
    names = [*classes("train"), *classes("test"), *classes("extra")]
    assert read(names) == expected(names, 1, "test")


# Loose images


def test_a_loose_image_beside_class_folders_has_no_label() -> None:
    names = few("a", "b")
    for loose in (["x.png"], ["x.png", "y.png", "z.png"]):
        notes: list[str] = []
        assert read([*names, *loose], notes) == expected(names, 0) | dict.fromkeys(loose, NONE)
        assert any("x.png" in note for note in notes)
    many = [f"{i}.png" for i in range(9)]
    assert set(read([*names, *many]).values()) == {NONE}  # these folders are no classes


# What an archive was unpacked into


@pytest.mark.parametrize("around", ["set", "archive/set v1.0", "a/b/c/d", "images", "train"])
@pytest.mark.parametrize("loose", [[], ["preview.png"]])
def test_a_wrapping_folder_is_looked_into(around: str, loose: list[str]) -> None:
    depth = len(around.split("/"))
    for names, held_out in (
        ([*classes(f"{around}/training_set"), *classes(f"{around}/test_set")], "test_set"),
        (classes(around), ""),
    ):
        notes: list[str] = []
        target = expected(names, depth + bool(held_out), held_out) | dict.fromkeys(loose, NONE)
        assert read([*names, *loose], notes) == target
        assert any(f"/r/{around}" in note for note in notes)


def test_figures_beside_the_set_are_no_class() -> None:
    names, more = [*classes("set/train"), *classes("set/test")], ["docs/figure.png", "x.png"]
    assert read([*names, *more]) == expected(names, 2, "test") | dict.fromkeys(more, NONE)


@pytest.mark.parametrize("inside", ["images", "JPEGImages", "img"])
def test_a_folder_of_images_inside_each_side(inside: str) -> None:
    names = [*classes(f"train/{inside}"), *classes(f"test/{inside}")]
    assert read(names) == expected(names, 2, "test")
    flat = few(f"train/{inside}", f"test/{inside}")
    assert read(flat) == {name: (None, name.startswith("test")) for name in flat}


# Masks

VOC = few("JPEGImages", suffix="jpg")
GOOD_AND_BROKEN = few("bottle/train/good", "bottle/test/good", "bottle/test/broken")
ENDS = ("_GT", "-mask", "_label", "_seg", "_mask_1")


def many(form: str, n: int = 4) -> list[str]:
    return [form.format(i) for i in range(n)]


MASKS = [
    (VOC, few("SegmentationClass")),
    (VOC, few("SegmentationClass", "SegmentationObject", "Annotations")),
    (few("VOC2012/JPEGImages"), few("VOC2012/SegmentationClassAug")),
    (few("images"), few("masks")),
    (few("images/train", "images/val"), few("masks/train", "masks/val")),
    (few("images/train/a", "images/test/a"), few("masks/train/a", "masks/test/a")),
    (few("img"), few("gt")),
    (few("imgs_train", "imgs_test"), few("masks_train", "masks_test")),
    (few("train", "val"), few("train_labels", "val_labels")),
    (few("train", "test"), few("trainannot", "testannot")),
    (few("train", "test"), few("train_masks")),
    (few("train", "test"), few("masks/train")),
    (few("images"), few("annotations/trimaps")),
    (GOOD_AND_BROKEN, few("bottle/ground_truth/broken")),
    (few("cat/images", "dog/images"), few("cat/masks", "dog/masks")),
    (many("leftImg8bit/val/ulm/{}_leftImg8bit.png"), many("gtFine/val/ulm/{}_gtFine_color.png")),
    (few("Training_Input"), many("Training_GroundTruth/{}_segmentation.png")),
    (few("whatever", suffix="jpg"), few("mask")),  # called like no other, and of the same stems
    (few("whatever"), few("masks")),
    (few("cat", "dog"), few("masks/cat", "masks/dog")),
    (["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"], ["cat/mask/1.png", "dog/mask/1.png"]),
    (few("a", "b", suffix="jpg"), many("a/{}_mask.png") + many("b/{}_mask.png")),
    (few("a", suffix="jpg"), [name for end in ENDS for name in many(f"a/{{}}{end}.png")]),
    (few("img_dir/train", "img_dir/val"), few("ann_dir/train", "ann_dir/val")),
    (few("input"), few("target")),
    (few("rgb"), few("depth", "instances")),
    (many("Class1/{:04}.PNG"), many("Class1/Label/{:04}_label.PNG", 2)),
    (few("cat", "dog"), ["cat/mask/1.png", "dog/mask/1.png"]),
    (many("b/b ({}).png", 3), ["b/b (0)_mask.png", "b/b (0)_mask_1.png"]),
    (many("{}_sat.jpg"), many("{}_mask.png")),
    (many("image_{}.jpg"), many("mask_{}.png")),
]


@pytest.mark.parametrize(("photos", "masks"), MASKS)
def test_masks_beside_their_photographs_are_left_out_and_counted(
    photos: list[str], masks: list[str]
) -> None:
    notes: list[str] = []
    labels_by_path = read([*photos, *masks], notes)
    assert labels_by_path.keys() == set(photos)
    assert any(note.startswith(f"{len(masks)} image") for note in notes)
    assert not any(own and is_masks(own) for own, _ in labels_by_path.values())
    assert read(masks).keys() == set(masks)  # who names the masks gets them


@pytest.mark.parametrize(
    "folders",
    [
        *("mask no_mask", "with_mask without_mask", "mask glasses hat", "labels bottles caps"),
        *("face face_mask face_shield", "Ford+GT+Coupe BMW+X5", "tile brick", "photo scan"),
        *("edge depth", "masked unmasked", "mask face", "manual automatic"),
        *("target background", "target non_target"),
    ],
)
def test_classes_that_only_look_like_masks(folders: str) -> None:
    names = few(*(folder.replace("+", " ") for folder in folders.split()))
    assert read(names) == expected(names, 0)
    split = [f"{side}/{name}" for side in ("train", "test") for name in names]
    assert read(split) == expected(split, 1, "test")


def test_files_that_only_look_like_masks() -> None:
    names = [*(f"{c}/{c}_mask_{i}.jpg" for c in "ab" for i in range(4)), "a/label.png", "b/gt.png"]
    assert read(names) == expected(names, 0)
