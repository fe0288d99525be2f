"""Files: one odd file among sixteen good images, trained on and packed."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tests.abuse.harness import (
    DONE,
    EITHER,
    REFUSED,
    SMALL,
    TRAIN,
    Case,
    Outcome,
    Sandbox,
    assert_done,
    carry_out,
    encoded,
    facts,
    photos,
    picture,
    rows,
)

pytestmark = pytest.mark.abuse

TAKEN, LEFT_OUT, PASSED_OVER, HANDLED = (
    "taken",
    "left out and named",
    "passed over",
    "taken, or left out and named",
)


def odd(
    id: str,
    what: str,
    write: Callable[[Path], object],
    fate: str = LEFT_OUT,
    *,
    permissions: bool = False,
    then: Callable[[Sandbox, Outcome], object] = lambda sandbox, outcome: None,
    images: int | None = None,
) -> Case:
    """A case of one file that `write` puts into a folder of sixteen images."""

    def prepare(sandbox: Sandbox) -> None:
        photos(sandbox / "photos")
        write(sandbox / "photos")

    def check(sandbox: Sandbox, outcome: Outcome) -> None:
        result = facts(sandbox)
        count, unreadable = result["images"], result["unreadable"]
        if fate == TAKEN:
            assert (count, unreadable) == (images or 17, [])
        elif fate == LEFT_OUT:
            assert (count, len(unreadable)) == (16, 1), unreadable
        elif fate == PASSED_OVER:
            assert (count, unreadable) == (images or 16, [])
        else:
            assert count + len(unreadable) >= 17, (count, unreadable)
        for path, reason in unreadable:
            assert reason.strip(), path
            assert os.path.basename(path) in outcome.err
        then(sandbox, outcome)

    return Case(id=id, what=what, prepare=prepare, then=check, right=fate, permissions=permissions)


def file(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def saved(
    name: str, image: Callable[[], Image.Image], **options: object
) -> Callable[[Path], object]:
    return lambda folder: image().save(folder / name, **options)


def grey(values: np.ndarray) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray(values)


def ramp(kind: str, top: float = 1.0) -> np.ndarray:
    return (np.linspace(0, top, 1600).reshape(40, 40)).astype(kind)


def several(name: str, **options: object) -> Callable[[Path], object]:
    pages = [picture(seed=k) for k in range(3)]
    return lambda folder: pages[0].save(
        folder / name, save_all=True, append_images=pages[1:], **options
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, pixels: bytes = b""
) -> bytes:
    """A PNG whose header may say anything."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def jpeg_with(marker: int, data: bytes) -> bytes:
    """A JPEG with a segment of one's own behind its start."""
    whole = encoded("JPEG")
    return whole[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + whole[2:]


def wrong_sum() -> bytes:
    data = bytearray(encoded())
    at = data.index(b"IDAT")
    data[at + 10] ^= 0xFF
    return bytes(data)


def tiff_loop() -> bytes:
    """A TIFF whose directory of tags leads back to itself."""
    return b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)


def exif_rotated(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((60, 40)).save(folder / "turned.jpg", exif=exif)


def multi_sampled(folder: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "x" * 100_000
    picture().save(folder / "tags.tif", tiffinfo=tags)


def a_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path has a hundred letters at most
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.jpg")
    finally:
        os.chdir(here)


def a_device(folder: Path) -> None:
    try:
        os.mknod(folder / "device.jpg", 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


def sparse(folder: Path) -> None:
    with (folder / "sparse.jpg").open("wb") as out:
        out.truncate(3 << 30)


def inside_folder(folder: Path) -> None:
    (folder / "x.jpg").mkdir()
    picture().save(folder / "x.jpg" / "y.png")


def zeros_behind() -> bytes:
    whole = encoded("JPEG", (120, 120))
    return whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)


def not_shown_raw(sandbox: Sandbox, outcome: Outcome) -> None:
    assert "\x1b" not in outcome.err


def pages_said(sandbox: Sandbox, outcome: Outcome) -> None:
    """Whoever has five pages must not believe that all are learnt from."""
    assert facts(sandbox)["images"] > 17 or "page" in outcome.err or "frame" in outcome.err


def as_wide(sandbox: Sandbox, outcome: Outcome) -> None:
    assert facts(sandbox)["images"] == 17


FILES = [
    odd("empty", "an empty .jpg", file("x.jpg", b"")),
    odd(
        "jpeg-cut-off",
        "a JPEG cut off in the middle",
        file("x.jpg", encoded("JPEG", (99, 99))[:2000]),
    ),
    odd("jpeg-three-bytes", "a JPEG of three bytes", file("x.jpg", b"\xff\xd8\xff")),
    odd(
        "jpeg-ends-in-zeros",
        "a JPEG whose second half is zeros, of a download that broke off",
        file("x.jpg", zeros_behind()),
    ),
    odd(
        "jpeg-and-more",
        "a JPEG with a kilobyte of other bytes behind its end",
        file("x.jpg", encoded("JPEG") + b"junk" * 256),
        TAKEN,
    ),
    odd(
        "jpeg-comment",
        "a JPEG with a comment of 64 KB",
        file("x.jpg", jpeg_with(0xFE, b"c" * 65000)),
        TAKEN,
    ),
    odd("png-cut-off", "a PNG cut off in the middle", file("x.png", encoded()[:2000])),
    odd("png-header-only", "the first 8 bytes of a PNG", file("x.png", encoded()[:8])),
    odd("png-wrong-sum", "a PNG with a changed byte", file("x.png", wrong_sum())),
    odd(
        "png-header-bomb",
        "a PNG of 200 bytes that claims 100,000 x 100,000 pixels",
        file("x.png", png(100_000, 100_000)),
    ),
    odd(
        "png-largest-header",
        "a PNG that claims 2,147,483,647 pixels each way",
        file("x.png", png(2**31 - 1, 2**31 - 1)),
    ),
    odd("png-no-pixels", "a PNG that claims 0 x 0 pixels", file("x.png", png(0, 0))),
    odd(
        "png-few-pixels",
        "a PNG with fewer pixels than its header claims",
        file("x.png", png(40, 40, pixels=bytes(121))),
    ),
    odd(
        "png-text-bomb",
        "a PNG with a comment that unpacks to 200 MB",
        file(
            "x.png",
            png(
                4,
                4,
                chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 1)),
                pixels=bytes(4 * 13),
            ),
        ),
        HANDLED,
    ),
    odd(
        "gif-cut-off", "a GIF cut off in the middle", file("x.gif", encoded("GIF", (99, 99))[:2000])
    ),
    odd(
        "webp-cut-off",
        "a WebP cut off in the middle",
        file("x.webp", encoded("WEBP", (99, 99))[:2000]),
    ),
    odd("bmp-cut-off", "a BMP cut off in the middle", file("x.bmp", encoded("BMP")[:2000])),
    odd(
        "tiff-cut-off",
        "a TIFF cut off in the middle",
        file("x.tif", encoded("TIFF", (99, 99))[:2000]),
    ),
    odd("tiff-loop", "a TIFF whose list of pages is a circle", file("x.tif", tiff_loop())),
    odd("wrong-suffix", "a PNG called .jpg", file("x.jpg", encoded()), TAKEN),
    odd("text", "a text called .jpg", file("x.jpg", "these are words\n" * 9)),
    odd(
        "html",
        "a web page called .png, as a failed download leaves",
        file("x.png", "<!DOCTYPE html><html>404</html>"),
    ),
    odd("svg", "an SVG called .png", file("x.png", "<svg xmlns='http://www.w3.org/2000/svg'/>")),
    odd(
        "postscript",
        "PostScript called .jpg, whose reader would start a program",
        file("x.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ),
    odd("zip", "a zip archive called .jpg", file("x.jpg", b"PK\x03\x04" + bytes(200))),
    odd(
        "lfs-pointer",
        "a pointer of Git LFS called .png",
        file("x.png", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ),
    odd("sparse", "a sparse .jpg of 3 GiB", sparse),
    odd("animated-gif", "an animated GIF", several("x.gif"), HANDLED),
    odd("tiff-pages", "a TIFF of three pages", several("x.tif"), HANDLED, then=pages_said),
    odd("animated-webp", "an animated WebP", several("x.webp"), HANDLED),
    odd(
        "cmyk", "a CMYK JPEG, as of print", saved("x.jpg", lambda: picture().convert("CMYK")), TAKEN
    ),
    odd(
        "lab",
        "a TIFF in CIE L*a*b*",
        saved("x.tif", lambda: Image.new("LAB", (40, 40), (128, 100, 99))),
        TAKEN,
    ),
    odd("ycbcr", "a TIFF in YCbCr", saved("x.tif", lambda: picture().convert("YCbCr")), HANDLED),
    odd(
        "palette",
        "a PNG with a palette and a transparent colour",
        saved("x.png", lambda: picture().quantize(16), transparency=3),
        TAKEN,
    ),
    odd(
        "one-bit",
        "a TIFF of one bit a pixel",
        saved("x.tif", lambda: picture().convert("1")),
        TAKEN,
    ),
    odd(
        "grey-alpha",
        "a grey PNG with transparency",
        saved("x.png", lambda: picture().convert("LA")),
        TAKEN,
    ),
    odd(
        "sixteen-bits",
        "a grey PNG of 16 bits a pixel",
        saved("x.png", grey(ramp("u2", 65535))),
        TAKEN,
    ),
    odd(
        "thirty-two-bits",
        "a TIFF of 32-bit integers",
        saved("x.tif", grey(ramp("i4", 100_000))),
        TAKEN,
    ),
    odd("float", "a TIFF of floats from 0 to 1", saved("x.tif", grey(ramp("f4"))), TAKEN),
    odd(
        "float-nan",
        "a TIFF of floats that are no numbers",
        saved("x.tif", grey(np.full((40, 40), np.nan, "f4"))),
        HANDLED,
    ),
    odd(
        "float-negative",
        "a TIFF of floats from -1 to 1",
        saved("x.tif", grey(2 * ramp("f4") - 1)),
        HANDLED,
    ),
    odd(
        "float-infinite",
        "a TIFF of floats, some of them infinite",
        saved("x.tif", grey(np.where(ramp("f4") > 0.5, np.inf, 0).astype("f4"))),
        HANDLED,
    ),
    odd("one-pixel", "an image of 1 x 1 pixels", saved("x.png", lambda: picture((1, 1))), TAKEN),
    odd(
        "narrow", "an image of 1 x 5,000 pixels", saved("x.png", lambda: picture((1, 5000))), TAKEN
    ),
    odd(
        "wide",
        "an image of 20,000 x 10 pixels",
        saved("x.png", lambda: picture((20_000, 10))),
        TAKEN,
        then=as_wide,
    ),
    odd("exif-turned", "a photograph that lies on its side by its EXIF data", exif_rotated, TAKEN),
    odd(
        "exif-broken",
        "a JPEG with broken EXIF data",
        file("x.jpg", jpeg_with(0xE1, b"Exif\0\0II*\0" + b"\xff" * 60)),
        TAKEN,
    ),
    odd(
        "icc-broken",
        "a JPEG with a broken colour profile",
        saved("x.jpg", picture, icc_profile=b"\xff" * 300),
        TAKEN,
    ),
    odd("tiff-long-tag", "a TIFF with a description of 100,000 letters", multi_sampled, TAKEN),
    odd("fifo", "a named pipe called .jpg", lambda folder: os.mkfifo(folder / "fifo.jpg")),
    odd("socket", "a socket called .jpg", a_socket),
    odd("device", "a device of endless zeros called .jpg", a_device),
    odd(
        "link-to-device",
        "a link to /dev/zero called .jpg",
        lambda folder: (folder / "x.jpg").symlink_to("/dev/zero"),
    ),
    odd(
        "broken-link",
        "a link to a file that is gone",
        lambda folder: (folder / "x.jpg").symlink_to("gone.jpg"),
    ),
    odd("link-loop", "a link to itself", lambda folder: (folder / "x.jpg").symlink_to("x.jpg")),
    odd(
        "link-to-image",
        "a link to an image of the same folder",
        lambda folder: (folder / "x.png").symlink_to("000.png"),
        PASSED_OVER,
    ),
    odd(
        "hard-link",
        "a second name of an image",
        lambda folder: os.link(folder / "000.png", folder / "x.png"),
        TAKEN,
    ),
    odd(
        "unreadable",
        "an image without the permission to read it",
        lambda folder: (picture().save(folder / "x.png"), (folder / "x.png").chmod(0)),
        permissions=True,
    ),
    odd("folder-jpg", "a folder called x.jpg, with an image inside", inside_folder, TAKEN),
    odd(
        "empty-folder-jpg",
        "an empty folder called x.jpg",
        lambda folder: (folder / "x.jpg").mkdir(),
        PASSED_OVER,
    ),
    odd("hidden", "a hidden image, .x.jpg", file(".x.jpg", encoded("JPEG")), PASSED_OVER),
    odd(
        "apple-double",
        "the ._x.jpg that macOS leaves on foreign disks",
        file("._x.jpg", b"\0\5\x16\7" + bytes(80)),
        PASSED_OVER,
    ),
    odd(
        "half-download",
        "x.jpg.part, of a download under way",
        file("x.jpg.part", b"half"),
        PASSED_OVER,
    ),
    odd("upper-case", "an image called X.JPG", file("X.JPG", encoded("JPEG")), TAKEN),
    odd("newline-name", "a name with a line break", file("a\nb.png", encoded()), TAKEN),
    odd("emoji-name", "a name of emoji", file("🦩🏳️‍🌈.png", encoded()), TAKEN),
    odd(
        "bytes-name",
        "a name that is no UTF-8",
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(
            encoded()
        ),
        TAKEN,
    ),
    odd("long-name", "a name of 255 letters", file("n" * 251 + ".png", encoded()), TAKEN),
    odd(
        "dash-name",
        "a name that looks like a flag, --out=x.png",
        file("--out=x.png", encoded()),
        TAKEN,
    ),
    odd("space-name", "a name of spaces and dots", file("  .. .png", encoded()), TAKEN),
    odd(
        "markup-name",
        "an unreadable file whose name is mark-up, [/red].png",
        file("[red][bold].png", b"no image"),
    ),
    odd(
        "escape-name",
        "an unreadable file whose name would colour the terminal",
        file("\x1b[31mred.png", b"no image"),
        HANDLED,
        then=not_shown_raw,
    ),
    odd(
        "suffix-alone", "a file called .png and nothing else", file(".png", encoded()), PASSED_OVER
    ),
]


@pytest.mark.parametrize("case", rows(FILES))
def test_one_odd_file_is_taken_or_left_out_and_named(case: Case, sandbox: Sandbox) -> None:
    carry_out(case, sandbox)
    assert_done(sandbox.run("pack", "photos", "--out", "photos.pack", permissions=case.permissions))


def only(
    id: str,
    what: str,
    write: Callable[[Path], object],
    promise: str = REFUSED,
    names: tuple[str, ...] = (),
) -> Case:
    """A case of a folder that holds nothing but sixteen files of a kind, or of one file that is
    named as the data.
    """
    return Case(
        id=id,
        what=what,
        prepare=lambda sandbox: ((sandbox / "photos").mkdir(), write(sandbox / "photos")),
        promise=promise,
        names=names,
    )


def sixteen(suffix: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: [(folder / f"{k}{suffix}").write_bytes(content) for k in range(16)]


def distinct(suffix: str, **options: object) -> Callable[[Path], object]:
    return lambda folder: [
        picture(seed=k).save(folder / f"{k}{suffix}", **options) for k in range(16)
    ]


ALONE = [
    only(
        "all-empty", "sixteen empty .jpg and nothing else", sixteen(".jpg", b""), names=("photos",)
    ),
    only(
        "all-text",
        "sixteen texts called .png and nothing else",
        sixteen(".png", b"words"),
        names=("photos",),
    ),
    only(
        "all-fifos",
        "sixteen named pipes and nothing else",
        lambda folder: [os.mkfifo(folder / f"{k}.jpg") for k in range(16)],
        names=("photos",),
    ),
    only(
        "all-one-pixel",
        "sixteen images of one pixel",
        lambda folder: [picture((1, 1), k).save(folder / f"{k}.png") for k in range(16)],
        EITHER,
    ),
    only(
        "all-black",
        "sixteen black images",
        lambda folder: [Image.new("L", (40, 40)).save(folder / f"{k}.png") for k in range(16)],
        EITHER,
    ),
    only("all-gif", "sixteen GIFs", distinct(".gif"), DONE),
    only(
        "all-wide",
        "sixteen images of 3,000 x 4 pixels",
        lambda folder: [picture((3000, 4), k).save(folder / f"{k}.png") for k in range(16)],
        DONE,
    ),
    Case(
        id="file-as-data",
        what="one broken file named by --data",
        promise=REFUSED,
        names=("x.jpg",),
        prepare=lambda sandbox: sandbox.write("x.jpg", b"broken"),
        words=("pretrain", "--data", "x.jpg", "--out", "out", *SMALL),
    ),
    Case(
        id="zip-as-data",
        what="a zip archive named by --data",
        promise=REFUSED,
        names=("photos.zip",),
        prepare=lambda sandbox: sandbox.write("photos.zip", b"PK\x03\x04" + bytes(99)),
        words=("pretrain", "--data", "photos.zip", "--out", "out", *SMALL),
    ),
    Case(
        id="two-steps",
        what="one unreadable file among sixteen images, two steps of training",
        right=LEFT_OUT,
        prepare=lambda sandbox: (
            photos(sandbox / "photos"),
            sandbox.write("photos/x.jpg", b"broken"),
        ),
        words=(*TRAIN[:-1], "2"),
    ),
]


@pytest.mark.parametrize("case", rows(ALONE))
def test_files_of_one_kind_alone(case: Case, sandbox: Sandbox) -> None:
    carry_out(case, sandbox)
