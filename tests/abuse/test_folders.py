"""Folders: where images are, or are not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.abuse.harness import (
    DONE,
    EITHER,
    REFUSED,
    SMALL,
    Case,
    Outcome,
    Sandbox,
    assert_done,
    carry_out,
    encoded,
    facts,
    nothing,
    photos,
    picture,
    rows,
)

pytestmark = pytest.mark.abuse


def of(*roots: str, steps: str = "0") -> tuple[str, ...]:
    return ("pretrain", "--data", *roots, "--out", "out", *SMALL, "--steps", steps)


def holds(
    images: int, *classes: str, held_out: int | None = None
) -> Callable[[Sandbox, Outcome], None]:
    """What the run says of its images."""

    def check(sandbox: Sandbox, outcome: Outcome) -> None:
        result = facts(sandbox)
        assert (result["images"], tuple(result["classes"])) == (images, classes)
        assert held_out is None or result["held_out"] == held_out

    return check


def at_least(images: int) -> Callable[[Sandbox, Outcome], None]:
    def check(sandbox: Sandbox, outcome: Outcome) -> None:
        assert facts(sandbox)["images"] >= images

    return check


def flat(sandbox: Sandbox) -> None:
    photos(sandbox / "photos")


def classes(*names: str, each: int = 8) -> Callable[[Sandbox], None]:
    return lambda sandbox: (photos(sandbox / "photos", names, each), None)[1]


def put(*paths: str, content: bytes = b"") -> Callable[[Sandbox], None]:
    """These files, images unless there is other content, beside sixteen images."""

    def prepare(sandbox: Sandbox) -> None:
        flat(sandbox)
        for k, path in enumerate(paths):
            sandbox.write(path, content)
            if not content:
                picture(seed=100 + k).save(sandbox / path)

    return prepare


def broken(number: int) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        flat(sandbox)
        for k in range(number):
            sandbox.write(f"photos/broken{k}.jpg", b"broken")

    return prepare


def few(number: int) -> Callable[[Sandbox], None]:
    return lambda sandbox: (
        [sandbox.write(f"photos/{k}.png", encoded(size=(40 + k, 40))) for k in range(number)]
        and None
    )


def linked(sandbox: Sandbox) -> None:
    photos(sandbox / "elsewhere")
    (sandbox / "photos").symlink_to("elsewhere")


def loop(sandbox: Sandbox) -> None:
    flat(sandbox)
    (sandbox / "photos" / "again").symlink_to("..")
    (sandbox / "photos" / "self").symlink_to("self")


def circle(sandbox: Sandbox) -> None:
    classes("a", "b")(sandbox)
    (sandbox / "photos" / "a" / "to b").symlink_to("../b")
    (sandbox / "photos" / "b" / "to a").symlink_to("../a")


def deep(sandbox: Sandbox) -> None:
    flat(sandbox)
    picture().save(sandbox.write("photos/" + "d/" * 200 + "x.png", b""))


def very_deep(sandbox: Sandbox) -> None:
    """A path longer than the 4,096 bytes that a call of the system takes."""
    flat(sandbox)
    image, here = encoded(), os.getcwd()
    try:
        os.chdir(sandbox / "photos")
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("x.png").write_bytes(image)
    finally:
        os.chdir(here)


def locked_inside(sandbox: Sandbox) -> None:
    flat(sandbox)
    (sandbox / "photos" / "locked").mkdir()
    (sandbox / "photos" / "locked").chmod(0)


def locked(sandbox: Sandbox) -> None:
    flat(sandbox)
    (sandbox / "photos").chmod(0)


def names_locked(sandbox: Sandbox, outcome: Outcome) -> None:
    assert facts(sandbox)["images"] == 16
    assert "locked" in outcome.err


def many_folders(sandbox: Sandbox) -> None:
    image = encoded()
    for k in range(300):
        sandbox.write(f"photos/{k}/x.png", image)


def many_other_files(sandbox: Sandbox) -> None:
    flat(sandbox)
    for k in range(5000):
        sandbox.write(f"photos/{k}.txt", b"")


def train_and_test(
    train: str = "train", test: str = "test", each: int = 8
) -> Callable[[Sandbox], None]:
    return classes(*(f"{split}/{c}" for split in (train, test) for c in "ab"), each=each)


def unlabelled_too(sandbox: Sandbox) -> None:
    train_and_test(each=4)(sandbox)
    photos(sandbox / "photos" / "unlabeled")


def empty_test(sandbox: Sandbox) -> None:
    classes("train/a", "train/b")(sandbox)
    (sandbox / "photos" / "test").mkdir()


def one_broken_class(sandbox: Sandbox) -> None:
    classes("a", "b", "c", each=12)(sandbox)
    sandbox.write("photos/d/only.jpg", b"broken")


def in_home(sandbox: Sandbox) -> None:
    photos(sandbox / "home" / "photos")


def unharmed(sandbox: Sandbox, outcome: Outcome) -> None:
    assert len(list((sandbox / "photos").glob("0*.png"))) == 16


FOLDERS = [
    Case(
        id="missing",
        what="a folder that is not there",
        words=of("nowhere"),
        promise=REFUSED,
        names=("nowhere",),
    ),
    Case(
        id="empty",
        what="an empty folder",
        prepare=lambda s: (s / "photos").mkdir(),
        promise=REFUSED,
        names=("photos",),
    ),
    Case(
        id="no-images",
        what="a folder of texts",
        prepare=lambda s: s.write("photos/a.txt", "words"),
        promise=REFUSED,
        names=("photos",),
    ),
    Case(
        id="empty-word",
        what='--data "", as an unset variable leaves it, in a folder of images',
        prepare=lambda s: photos(s.path),
        words=of(""),
        promise=REFUSED,
        names=("--data",),
    ),
    Case(
        id="dev-null",
        what="--data /dev/null",
        words=of("/dev/null"),
        promise=REFUSED,
        names=("/dev/null",),
    ),
    Case(
        id="pattern",
        what="a pattern that the shell did not fill in, photos/*.jpg",
        prepare=flat,
        words=of("photos/*.jpg"),
        promise=REFUSED,
        names=("*.jpg",),
    ),
    Case(
        id="zero-byte",
        what="a line break in the folder's name, which is not there",
        words=of("no\nwhere"),
        promise=REFUSED,
        names=("where",),
    ),
    Case(
        id="name-too-long",
        what="a name of 300 letters",
        words=of("n" * 300),
        promise=REFUSED,
        names=("nnn",),
    ),
    Case(
        id="one-missing-of-two",
        what="two folders, of which one is not there",
        prepare=flat,
        words=of("photos", "nowhere"),
        promise=REFUSED,
        names=("nowhere",),
    ),
    Case(id="one-image", what="one image", prepare=few(1), promise=REFUSED, names=("--batch",)),
    Case(
        id="two-images",
        what="two images, no --batch",
        prepare=few(2),
        words=("pretrain", "--data", "photos", "--out", "out", *SMALL[:4], "--steps", "0"),
        promise=REFUSED,
    ),
    Case(
        id="three-images",
        what="three images and --batch 2",
        prepare=few(3),
        words=(*of("photos"), "--batch", "2"),
        promise=EITHER,
    ),
    Case(id="one-broken-of-17", what="one of 17 images broken", prepare=broken(1), then=holds(16)),
    Case(
        id="half-broken",
        what="half of the images broken",
        prepare=broken(16),
        promise=REFUSED,
        names=("broken0.jpg",),
    ),
    Case(
        id="a-class-broken",
        what="all images of one small class broken",
        prepare=one_broken_class,
        then=holds(36, "a", "b", "c"),
    ),
    Case(
        id="twice",
        what="the same folder twice",
        prepare=flat,
        words=of("photos", "photos/"),
        then=holds(16),
        right="each image counts once",
    ),
    Case(
        id="inside-another",
        what="a folder and the one around it",
        prepare=classes("a", "b"),
        words=of("photos", "photos/a"),
        then=lambda s, o: facts(s)["images"] == 16 or pytest.fail("counted twice"),
        right="each image counts once",
    ),
    Case(
        id="dots",
        what="photos/../photos/./",
        prepare=flat,
        words=of("photos/../photos/./"),
        then=holds(16),
    ),
    Case(
        id="home", what="~/photos in quotes", prepare=in_home, words=of("~/photos"), then=holds(16)
    ),
    Case(
        id="file-url",
        what="a URL of a folder here, file:///",
        prepare=flat,
        words=of("file://{here}/photos"),
        then=holds(16),
    ),
    Case(id="link", what="a link to a folder", prepare=linked, then=holds(16)),
    Case(
        id="link-loop",
        what="a folder with a link to itself and one to the folder above",
        prepare=loop,
        then=holds(16),
    ),
    Case(
        id="link-circle",
        what="two folders that link to each other",
        prepare=circle,
        then=holds(16, "a", "b"),
        right="each image counts once, in its own class",
    ),
    Case(id="deep", what="200 folders one in another", prepare=deep, then=holds(17)),
    Case(
        id="very-deep",
        what="folders one in another, to a path of 5,000 letters",
        prepare=very_deep,
        then=at_least(16),
    ),
    Case(
        id="locked-inside",
        what="a folder inside that must not be read",
        prepare=locked_inside,
        then=names_locked,
        permissions=True,
        right="left out and named",
    ),
    Case(
        id="locked",
        what="a folder that must not be read",
        prepare=locked,
        promise=REFUSED,
        names=("photos",),
        permissions=True,
    ),
    Case(
        id="many-classes",
        what="300 folders of one image each",
        prepare=many_folders,
        then=holds(300),
        right="no classes are made up",
    ),
    Case(
        id="many-other-files",
        what="5,000 other files beside the images",
        prepare=many_other_files,
        then=holds(16),
    ),
    Case(
        id="loose-images",
        what="images beside class folders",
        prepare=lambda s: (
            photos(s / "photos", ("a", "b")),
            picture(seed=9).save(s / "photos" / "x.png"),
        ),
        then=holds(17, "a", "b"),
        right="the classes stay",
    ),
    Case(
        id="case-differs",
        what="class folders Cat and cat",
        prepare=classes("Cat", "cat"),
        then=holds(16, "Cat", "cat"),
    ),
    Case(
        id="odd-classes",
        what="class folders called [/red], 🦩, a line break, and -x",
        prepare=classes("[/red]", "🦩", "a\nb", "-x"),
        then=lambda s, o: len(facts(s)["classes"]) == 4 or pytest.fail(str(facts(s)["classes"])),
    ),
    Case(
        id="one-class",
        what="one class folder",
        prepare=classes("a", each=16),
        then=holds(16),
        right="no classes",
    ),
    Case(
        id="split",
        what="train/ and test/ with classes inside",
        prepare=train_and_test(),
        then=holds(32, "a", "b", held_out=16),
    ),
    Case(
        id="split-upper-case",
        what="Train/ and TEST/",
        prepare=train_and_test("Train", "TEST"),
        then=holds(32, "a", "b", held_out=16),
    ),
    Case(
        id="split-kaggle",
        what="training_set/ and test_set/",
        prepare=train_and_test("training_set", "test_set"),
        then=holds(32, "a", "b", held_out=16),
    ),
    Case(
        id="split-coco",
        what="train2017/ and val2017/",
        prepare=train_and_test("train2017", "val2017"),
        then=holds(32, "a", "b", held_out=16),
    ),
    Case(
        id="split-unlabelled",
        what="train/, test/ and unlabeled/",
        prepare=unlabelled_too,
        then=holds(32, "a", "b", held_out=8),
    ),
    Case(id="split-empty", what="train/ and an empty test/", prepare=empty_test, promise=EITHER),
    Case(
        id="split-no-train",
        what="test/ alone",
        prepare=classes("test/a", "test/b"),
        then=holds(16, "a", "b"),
    ),
    Case(
        id="hidden-folder", what="images in .git/", prepare=put("photos/.git/x.png"), then=holds(16)
    ),
    Case(
        id="macosx",
        what="__MACOSX/, as zip archives of macOS hold it",
        prepare=put("photos/__MACOSX/x.png"),
        then=holds(16),
    ),
    Case(
        id="nas",
        what="@eaDir/, the thumbnails of a NAS",
        prepare=put("photos/@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg"),
        then=holds(16),
    ),
    Case(
        id="windows",
        what="Thumbs.db and desktop.ini",
        prepare=put("photos/Thumbs.db", "photos/desktop.ini", content=b"\xd0\xcf"),
        then=holds(16),
    ),
    Case(
        id="out-inside",
        what="--out inside of the images, two runs",
        prepare=flat,
        words=("pretrain", "--data", "photos", "--out", "photos/runs/a", *SMALL, "--steps", "2"),
        then=lambda s, o: (
            assert_done(
                s.run(
                    "pretrain", "--data", "photos", "--out", "photos/runs/b", *SMALL, "--steps", "0"
                )
            ),
            _same_images(s),
        ),
        right="a run's own pictures are no images of the next one",
    ),
    Case(
        id="out-is-data",
        what="--out is the folder of the images",
        prepare=flat,
        words=("pretrain", "--data", "photos", "--out", "photos", *SMALL, "--steps", "2"),
        promise=EITHER,
        then=unharmed,
        right="every image stays",
    ),
    Case(
        id="parquet-is-none",
        what="a text called x.parquet",
        prepare=lambda s: s.write("x.parquet", "words" * 99),
        words=of("x.parquet"),
        promise=REFUSED,
        names=("x.parquet",),
    ),
    Case(
        id="parquet-empty",
        what="an empty file called x.parquet",
        prepare=lambda s: s.write("x.parquet", b""),
        words=of("x.parquet"),
        promise=REFUSED,
        names=("x.parquet",),
    ),
    Case(
        id="unknown-scheme",
        what="a URL of an unknown kind, gopher://",
        words=of("gopher://host/photos"),
        promise=REFUSED,
        names=("gopher",),
    ),
    Case(
        id="password",
        what="a URL with a password",
        words=of("https://me:secret@host/photos"),
        promise=REFUSED,
        then=lambda s, o: "secret" not in o.err or pytest.fail("the password is told"),
        right="the password is not repeated",
    ),
    Case(
        id="refused-connection",
        what="a server that is not there",
        words=of("http://127.0.0.1:9/photos.pack"),
        promise=REFUSED,
        names=("127.0.0.1",),
    ),
]


def _same_images(sandbox: Sandbox) -> None:
    assert facts(sandbox, "photos/runs/b")["images"] == 16


@pytest.mark.parametrize("case", rows(FOLDERS))
def test_a_folder_is_read_or_refused(case: Case, sandbox: Sandbox) -> None:
    if case.id == "file-url":
        words = [word.replace("{here}", str(sandbox.path)) for word in case.words]
        case.prepare(sandbox)
        assert_done(sandbox.run(*words))
        case.then(sandbox, Outcome(0, "", "", 0.0))
        return
    carry_out(case, sandbox)


def _packed(sandbox: Sandbox) -> None:
    photos(sandbox / "photos", ("a", "b"))
    assert_done(sandbox.run("pack", "photos", "--out", "photos.pack"))


def damaged(name: str, change: Callable[[bytes], bytes]) -> Callable[[Sandbox], None]:
    """A pack, one file of which is another now."""

    def prepare(sandbox: Sandbox) -> None:
        _packed(sandbox)
        (file,) = (sandbox / "photos.pack").glob(name)
        file.write_bytes(change(file.read_bytes()))

    return prepare


def without(name: str) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        _packed(sandbox)
        for file in (sandbox / "photos.pack").glob(name):
            file.unlink()

    return prepare


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def mended(sandbox: Sandbox, outcome: Outcome) -> None:
    """The same command again brings the pack in order."""
    assert_done(sandbox.run("pack", "photos", "--out", "photos.pack"))
    assert_done(sandbox.run("pack", "--verify", "photos.pack"))


VERIFY = ("pack", "--verify", "photos.pack")
PACKS = [
    Case(
        id="shard-cut-off",
        what="a pack with a shard cut off",
        prepare=damaged("train-*", half),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("train-00000",),
        then=mended,
        right="the same `pack` mends it",
    ),
    Case(
        id="shard-missing",
        what="a pack without one of its shards",
        prepare=without("train-*"),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("train-00000",),
        then=mended,
        right="the same `pack` mends it",
    ),
    Case(
        id="shard-changed",
        what="a pack with a changed byte, verified",
        prepare=damaged("train-*", flipped),
        words=VERIFY,
        promise=REFUSED,
        names=("train-00000",),
    ),
    Case(
        id="shard-changed-read",
        what="a pack with a changed byte, trained on",
        prepare=damaged("train-*", flipped),
        words=of("photos.pack"),
        promise=EITHER,
    ),
    Case(
        id="index-cut-off",
        what="a pack with its index cut off",
        prepare=damaged("index.parquet", half),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("index.parquet",),
        then=mended,
        right="the same `pack` mends it",
    ),
    Case(
        id="index-missing",
        what="a pack without its index",
        prepare=without("index.parquet"),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("index.parquet",),
        then=mended,
        right="the same `pack` mends it",
    ),
    Case(
        id="manifest-cut-off",
        what="a pack with its pack.json cut off",
        prepare=damaged("pack.json", half),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("pack.json",),
    ),
    Case(
        id="manifest-list",
        what="a pack.json that is a list",
        prepare=damaged("pack.json", lambda _: b"[]"),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("pack.json",),
    ),
    Case(
        id="manifest-keys",
        what="a pack.json that lacks its keys",
        prepare=damaged("pack.json", lambda _: b'{"format": 1, "shards": []}'),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("pack.json",),
    ),
    Case(
        id="manifest-climbs",
        what="a pack.json that names a shard ../../x.parquet",
        prepare=damaged("pack.json", lambda d: d.replace(b"train-00000", b"../../train-00000")),
        words=of("photos.pack"),
        promise=REFUSED,
    ),
    Case(
        id="manifest-newer",
        what="a pack of a later version",
        prepare=damaged("pack.json", lambda d: d.replace(b'"format": 1', b'"format": 99')),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("photos.pack",),
    ),
    Case(
        id="manifest-binary",
        what="a pack.json of random bytes",
        prepare=damaged("pack.json", lambda _: os.urandom(999)),
        words=of("photos.pack"),
        promise=REFUSED,
        names=("pack.json",),
    ),
    Case(
        id="verify-no-pack",
        what="--verify of a folder that is no pack",
        prepare=flat,
        words=("pack", "--verify", "photos"),
        promise=REFUSED,
        names=("photos",),
    ),
    Case(
        id="out-has-files",
        what="pack --out into a folder with other files",
        prepare=lambda s: (flat(s), s.write("full/diary.txt", "dear")),
        words=("pack", "photos", "--out", "full"),
        promise=REFUSED,
        names=("full",),
    ),
    Case(
        id="out-is-images",
        what="pack --out into the folder of the images",
        prepare=flat,
        words=("pack", "photos", "--out", "photos"),
        promise=REFUSED,
        names=("photos",),
    ),
    Case(
        id="masks-missing",
        what="pack --masks of a folder that is not there",
        prepare=flat,
        words=("pack", "photos", "--out", "p", "--masks", "nowhere"),
        promise=REFUSED,
        names=("nowhere",),
    ),
    Case(
        id="masks-broken",
        what="a broken mask",
        prepare=lambda s: (flat(s), s.write("masks/000.png", b"broken")),
        words=("pack", "photos", "--out", "p", "--masks", "masks"),
        promise=EITHER,
        right="it is named, if refused",
    ),
    Case(
        id="other-settings",
        what="pack again with another --size",
        prepare=_packed,
        words=("pack", "photos", "--out", "photos.pack", "--size", "16"),
        promise=REFUSED,
        names=("photos.pack",),
    ),
    Case(
        id="other-images",
        what="pack again after an image came",
        prepare=lambda s: (_packed(s), picture(seed=9).save(s / "photos/a/new.png")),
        words=("pack", "photos", "--out", "photos.pack"),
        promise=REFUSED,
        names=("photos.pack",),
    ),
]


@pytest.mark.parametrize("case", rows(PACKS))
def test_a_pack_is_read_or_refused(case: Case, sandbox: Sandbox) -> None:
    assert case.then is nothing or case.promise in (REFUSED, DONE)
    carry_out(case, sandbox)
