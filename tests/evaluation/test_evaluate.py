"""What `evaluate` says of weights that are no others, and of labels that leave nothing to learn."""

import shutil
from pathlib import Path

import pytest

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.evaluation.evaluate import evaluate_run
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.protocol import Protocol
from selftaught.runs.folder import read_run
from tests.commands import argv
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder

SMALL = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --workers 0")
SHORT = FineTune(steps=(1,), epochs=(), rates=(0.01,), batch=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"), classes=2)


@pytest.fixture(scope="module")
def begun(images: Path, tmp_path_factory: Places) -> Path:
    """A run of no step: what it began from is what it leaves."""
    out = tmp_path_factory.mktemp("runs") / "begun"
    assert main(["pretrain", "--data", str(images), "--out", str(out), "--steps", "0", *SMALL]) == 0
    return out


@pytest.mark.parametrize("protocol", [KNN(), SHORT], ids=["knn", "finetune"])
def test_weights_that_are_no_others_have_rows_but_no_difference(
    begun: Path, protocol: Protocol, tmp_path: Path
) -> None:
    copied = tmp_path / "copied.safetensors"
    shutil.copyfile(begun / "backbone.safetensors", copied)
    result = evaluate_run(
        begun, protocols=[protocol], labels=["all"], against=["random", str(copied)], workers=0
    )
    assert {row.backbone for row in result.results.rows} == {str(begun), "random", str(copied)}
    assert result.results.differences == ()
    assert "these are the random weights" in result.verdict.lower()
    assert f"{copied} has the same weights".lower() in result.verdict.lower()


@pytest.mark.parametrize("statistics", ["weights", "data"])
def test_the_starting_weights_are_called_so(
    images: Path, begun: Path, tmp_path: Path, statistics: str
) -> None:
    """As a run leaves them that kept its start; pixels may be normalised in another way."""
    other = folder(tmp_path / "other", classes=2, size=48, seed=3)
    words = argv(f"--init {begun} --statistics {statistics} --seed 1 --out {tmp_path}/run")
    assert main(["pretrain", "--data", str(other), "--steps", "0", *words, *SMALL]) == 0
    result = evaluate_run(tmp_path / "run", protocols=[KNN()], labels=["all"], workers=0)
    assert result.verdict.startswith("These are the starting weights")
    assert ("mean and std" in result.verdict) == (statistics == "data")
    assert {d.against for d in result.results.differences} == {"random"} | (
        {"init"} if statistics == "data" else set()
    )


def test_exported_weights_keep_the_size_of_their_views(
    images: Path, begun: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "b.pth"
    assert main(["export", str(begun), "--to", str(file)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(file), "--data", str(images), "--protocol", "knn"]) == 0
    assert "images of 32 pixels" in capsys.readouterr().err
    words = argv(f"--data {images} --init {file} --batch 8 --steps 0 --precision fp32 --workers 0")
    assert main(["pretrain", *words, "--out", str(tmp_path / "run")]) == 0
    assert read_run(tmp_path / "run").stage.size == 32


def test_training_images_of_one_class_are_refused_before_any_is_looked_at(
    begun: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    folder(tmp_path / "data" / "train", classes=1)
    folder(tmp_path / "data" / "test", classes=2, each=4)
    monkeypatch.setattr(
        "selftaught.evaluation.evaluate.extract",
        lambda *args, **options: pytest.fail("features were made"),
    )
    with pytest.raises(UserError, match="of one class"):
        evaluate_run(
            begun, [tmp_path / "data"], protocols=[KNN(), SHORT], labels=["all"], workers=0
        )
    words = ["evaluate", str(begun), "--data", str(tmp_path / "data"), "--workers", "0"]
    assert main(words) == 2


@pytest.mark.parametrize("command", ["evaluate", "embed"])
def test_a_size_that_no_vit_takes_is_refused(
    command: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = argv(
        f"--data {images} --out {tmp_path}/vit --size 64 --backbone", "test_vit", *SMALL[4:]
    )
    assert main(["pretrain", *words, "--steps", "0"]) == 0
    words = ["--data", str(images), "--size", "50"]
    words += ["--out", str(tmp_path / "table.npz")] if command == "embed" else []
    assert main([command, str(tmp_path / "vit"), *words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "takes no images of 50 pixels: --size 48" in last


@pytest.mark.parametrize("flag", ["--finetune.epochs", "--knn.neighbours"])
def test_flags_of_a_protocol_that_is_not_used_are_refused(
    flag: str, begun: Path, capsys: Capture
) -> None:
    assert main(["evaluate", str(begun), "--protocol", "linear", flag, "3"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    name = flag.partition(".")[0][2:]
    assert f"--protocol {name}" in last
