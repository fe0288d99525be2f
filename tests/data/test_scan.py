"""What lies among people's images and is none of them: this product's own folders, junk, pictures
that cannot be read.
"""

import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from selftaught.cli import flags
from selftaught.cli.main import main
from selftaught.data.index import cache, scan
from selftaught.data.index.build import Index, build_index
from selftaught.data.index.scan import SUFFIXES, UNREADABLE_SUFFIXES, Root, Scan
from selftaught.errors import UserError
from selftaught.pipeline import execute
from selftaught.pipeline.plan import Node, Plan
from selftaught.text import count_text
from tests.data.image_files import put


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of six images."""
    names = [f"{c}/{i}.png" for c in ("blue", "red") for i in range(6)]
    put(tmp_path / "photos", *names, size=(16, 12))
    return tmp_path / "photos"


def list_names(*roots: Path) -> list[str]:
    return Scan([Root.parse(root) for root in roots]).files.names


def same(one: Index, other: Index) -> bool:
    return all(getattr(one, f) == getattr(other, f) for f in ("paths", "classes", "fingerprint"))


# What this product writes

PRODUCTS = {
    "a run": "run.json journal.jsonl album/views.png album/map.jpg checkpoints/last.pt",
    "a run, stopped": "run.json checkpoints/last.pt n.png",
    "an evaluated run": "run.json backbone.safetensors features/x.pt evaluation.json n.png",
    "a plan": "plan.json stages/0af/run.json stages/0af/journal.jsonl stages/0af/album/n.png",
    "a study": "study.json cells/x.json separability-knn.png",
    "an older study": "labels.json cells/x.json stages/0af/run.json labels-knn-all.png",
    "the demo's images": "patches.json train/cat/0.png test/cat/0.png",
    "a pack": "pack.json index.parquet train-00000-of-00001.parquet n.png",
}
PLACES = ["own", "runs/own", "blue/own", "blue/deep/own"]


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_folder_of_this_product_holds_no_images(photos: Path, kind: str) -> None:
    before = build_index([photos])
    for n, place in enumerate(PLACES, 1):
        put(photos / place, *PRODUCTS[kind].split())
        after = build_index([photos])
        assert same(before, after), place
        example = min(PLACES[:n])
        assert any(count_text(n, "folder") in x and example in x for x in after.notes)
        put(photos / place, "album/later.png", "stages/0af/later.png", "more.jpg")  # it grows
        assert same(before, build_index([photos])), place


@pytest.mark.parametrize("kind", ["a run", "a plan", "a study"])
def test_a_run_in_the_very_folder_of_the_images(photos: Path, kind: str) -> None:
    """cd photos; selftaught pretrain --data . --out . : the images stay, and what was written is
    none.
    """
    before = build_index([photos])
    put(photos, *PRODUCTS[kind].split())
    assert same(before, build_index([photos]))


NAMES = "run.json plan.json study.json labels.json pack.json patches.json"


@pytest.mark.parametrize("name", NAMES.split())
def test_a_file_of_a_telling_name_alone_proves_nothing(photos: Path, name: str) -> None:
    put(photos / "green", "0.png", name, *(["cells/0.png"] if name == "labels.json" else []))
    assert "green/0.png" in list_names(photos)


def test_what_is_named_itself_is_read(photos: Path) -> None:
    put(photos / "runs/a", *PRODUCTS["a run"].split())
    put(photos / "demo", *PRODUCTS["the demo's images"].split())
    assert list_names(photos / "runs/a/album") == ["map.jpg", "views.png"]
    assert list_names(photos / "demo") == ["test/cat/0.png", "train/cat/0.png"]
    assert len(list_names(photos, photos / "runs/a/album")) == 14
    (photos / "link").symlink_to(photos / "runs/a")
    assert len(list_names(photos)) == 12
    with pytest.raises(UserError, match="runs"):  # there is nothing else; it is said what there is
        build_index([photos / "runs"])


@pytest.mark.usefixtures("quick_scores", "pictures")
def test_a_run_kept_among_the_images_changes_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is really written, from within the folder; nor is a stage of a plan another one for
    it.
    """
    monkeypatch.chdir(photos)
    words = shlex.split("--data . --steps 1 --size 24 --backbone test_resnet --batch 4 --seed 0")
    overrides = flags.overrides_of(words, flags.parse([*words, "--out", "x"]))
    plan = Plan(nodes=(Node(name="own", overrides=overrides),))

    def identity() -> str:
        index = build_index(["."])
        stages = execute.resolve_plan(plan, Path("adapted"), "cpu", lambda data, seed: index)
        return stages["own"].identity

    before, own = build_index(["."]), identity()
    assert main(["pretrain", *words, "--out", "runs/a"]) == 0
    assert list(Path("runs/a/album").glob("*.png"))
    put(photos / "adapted", *PRODUCTS["a plan"].split(), "stages/n.png")
    assert same(before, build_index(["."]))
    assert identity() == own


def test_a_remembered_index_follows_runs_and_new_images(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MIN_IMAGES", 1)
    put(photos / "runs/a", *PRODUCTS["a run"].split())

    def index() -> Index:
        for folder, _, _ in os.walk(photos):
            # as if nothing had been written for a while
            os.utime(folder, (10**9, 10**9 + len(os.listdir(folder))))
        return build_index([photos])

    first = index()
    put(photos / "runs/a", "album/later.png")
    assert same(index(), first)
    put(photos / "runs/b", *PRODUCTS["a run"].split())
    assert same(index(), first)
    put(photos / "runs", "mine.png")
    assert len(index()) == 13


# Junk

JUNK = [
    *("@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/0.png", ".Trash-1000/files/0.png"),
    *(".Trashes/0.png", ".@__thumb/0.jpg", "$RECYCLE.BIN/0.png", "System Volume Information/0.png"),
    *("#recycle/0.png", "@Recycle/0.png", "@Recently-Snapshot/x/0.png", "lost+found/0.png"),
    *("__MACOSX/._0.png", ".ipynb_checkpoints/0.png", ".git/0.png"),
]


@pytest.mark.parametrize("junk", JUNK)
def test_folders_of_systems_are_passed_over_and_counted(photos: Path, junk: str) -> None:
    before = build_index([photos])
    put(photos, junk, f"blue/{junk}", f"red/deep/{junk}")
    after = build_index([photos])
    assert same(before, after)
    assert any(note.startswith("3 ") and junk.partition("/")[0] in note for note in after.notes)


def test_hidden_files_are_passed_over_and_counted_and_an_empty_file_makes_no_class(
    photos: Path,
) -> None:
    before = build_index([photos])
    put(photos, "blue/._0.png", "blue/.0.png", ".x.jpg", "Thumbs.db", "blue/desktop.ini", "n.txt")
    for name in (".DS_Store", "green/0.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    after = build_index([photos])
    assert same(before, after)
    assert any(note.startswith("3 hidden") for note in after.notes)
    assert [reason for _, reason in after.unreadable] == ["empty file"]


# Suffixes


def test_every_suffix_in_any_case(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        for name in (f"a{suffix}", f"b{suffix.upper()}", f"c{suffix.capitalize()}", f"d.x{suffix}"):
            (tmp_path / name).touch()
    assert len(list_names(tmp_path)) == 4 * len(SUFFIXES)


@pytest.mark.parametrize("suffix", [".jpe", ".jfif", ".JFIF", ".pgm", ".ppm", ".pbm", ".pnm"])
def test_formats_that_are_not_usual_are_read(tmp_path: Path, suffix: str) -> None:
    picture = Image.linear_gradient("L").resize((9, 7))
    picture = picture.convert({".ppm": "RGB", ".pbm": "1"}.get(suffix, "L"))
    picture.save(tmp_path / f"a{suffix}", "JPEG" if suffix.lower()[1] == "j" else "PPM")
    assert build_index([tmp_path]).sizes.tolist() == [[7, 9]]


@pytest.mark.parametrize("suffix", UNREADABLE_SUFFIXES)
def test_pictures_that_cannot_be_read_are_counted_with_a_remedy(photos: Path, suffix: str) -> None:
    before = build_index([photos])
    for name in (f"blue/x{suffix}", f"new/y{suffix.upper()}"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    after, remedy = build_index([photos]), UNREADABLE_SUFFIXES[suffix]
    assert same(before, after)
    assert any(f"2 {suffix[1:]}" in note and remedy in note for note in after.notes)
    with pytest.raises(UserError, match=suffix[1:]):
        build_index([photos / "new"])
    with pytest.raises(UserError, match="cannot be read here"):
        build_index([photos / f"blue/x{suffix}"])


def test_heic_is_read_where_its_extra_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.heic", "b.HEIF", "c.dng")
    assert (".heic" in SUFFIXES) != (".heic" in UNREADABLE_SUFFIXES)
    monkeypatch.setattr(scan, "SUFFIXES", (".jpg", ".heic", ".heif"))
    monkeypatch.setattr(scan, "UNREADABLE_SUFFIXES", {".dng": "convert"})
    assert list_names(tmp_path) == ["a.heic", "b.HEIF"]
