"""Values of flags that are refused: exit code 2, one line, and the name of the flag."""

from pathlib import Path

import pytest

from selftaught.cli.main import main
from tests.commands import argv
from tests.fixtures import Capture, Places
from tests.pictures import folder

SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32"]
SMALL += ["--workers", "0", "--steps", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize(
    ("words", "essential"),
    [
        (["--batch", "0"], "--batch"),
        (["--size", "0"], "--size"),
        (["--workers", "-1"], "--workers"),
        (["--accumulate", "0"], "--accumulate"),
        (["--optimizer.lr", "-1"], "--optimizer.lr"),
        (["--schedule.warmup", "2"], "--schedule.warmup"),
        (["--hard", "cutmix", "cutmix"], "cutmix"),
        (["--hard", "adversarial", "--hard.adversarial.eps", "-1"], "eps"),
        (["--hard.adversarial.eps", "8"], "--hard"),
        (["--method", "moco-v2", "--method.queue", "0"], "--method.queue"),
        (["--method.temperature", "0"], "--method.temperature"),
        (["--views.small", "4"], "small"),
        (["--views.large", "5"], "large"),
        (["--method", "swav", "--method.queue", "100000"], "--method.queue"),
        (["--method", "supervised", "--method.classes", "2"], "--method.classes"),
        (["--method", "simclr", "--accumulate", "8"], "--accumulate"),
        (["--method", "swav", "--accumulate", "8"], "--accumulate"),
        (["--method", "deepcluster", "--accumulate", "8"], "--accumulate"),
        (["--method", "swav", "--method.epsilon", "0.01"], "--method.epsilon"),
        (["--hard", "cutmix", "--hard.cutmix.crops", "all"], "small"),
        (
            ["--backbone=test_vit", "--method", "swav", "--views.small=2", "--views.small-size=24"],
            "patches",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], essential: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert (
        main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL, *words])
        == 2
    )
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("selftaught: ")
    assert essential in text


def test_epochs_that_are_no_number_are_refused(images: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL[:-2]]
    assert main([*words, "--epochs", "nan"]) == 2


@pytest.mark.parametrize(
    ("method", "flag"),
    [("byol", "momentum"), ("pcl", "warmup"), ("swav", "queue-start"), ("densecl", "dense")],
)
def test_a_share_above_one_is_refused(
    method: str, flag: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A teacher of momentum 1.5 diverged, a warmup of 3 never clustered: in silence."""
    words = argv(f"pretrain --data {images} --out {tmp_path}/run --method {method}")
    words += [f"--method.{flag}", "1.5"]
    assert main([*words, *SMALL]) == 2
    error = capsys.readouterr().err
    assert f"--method.{flag}" in error
    assert "1.5" in error


@pytest.mark.parametrize(
    ("words", "essential"),
    [
        (["--batch", "many"], ("--batch", "many")),
        (["--epochs", "1,5"], ("--epochs", "1,5")),
        (["--precision", "fp8"], ("--precision", "auto, fp32, bf16", "fp8")),
        (["--hard", "cutmix", "mixdown"], ("cutmix", "mixup", "mixdown")),
        (["--device", "tpu"], ("--device", "auto, cpu, cuda", "tpu")),
    ],
)
def test_a_word_that_makes_no_sense_is_one_line(
    words: list[str], essential: tuple[str, ...], capsys: Capture
) -> None:
    for command in (["pretrain", "--data", "here"], ["adapt", "--target", "here"]):
        assert main([*command, "--out", "there", *words]) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        assert all(word in error for word in essential)


@pytest.mark.parametrize(
    "command", ["pretrain --data", "adapt --init test_resnet.r160_in1k --target"]
)
def test_a_file_in_the_place_of_out_is_refused_before_any_image_is_read(
    command: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "file"
    file.write_text("here already")
    assert main(argv(command, images, "--out", file, *SMALL)) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert str(file) in error
    assert "--out" in error
    assert file.read_text() == "here already"


def test_a_bad_flag_makes_no_run(images: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["pretrain", "--data", str(images), *out, *SMALL, "--save-every", "-1"]) == 2
    assert "--save-every" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "essential"),
    [(["--trainable", "lora"], "lora"), (["--batch", "8", "--accumulate", "3"], "--accumulate")],
)
def test_a_plan_is_checked_whole_before_its_first_stage_is_trained(
    flags: list[str], essential: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The source was trained for hours before the target was refused."""
    words = argv(f"--source {images} --target {images} --source-steps 2 --out {tmp_path}/out")
    assert main(["adapt", *words, *SMALL, *flags]) == 2
    assert essential in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "out").rglob("backbone.safetensors"))


def test_the_help_of_adapt_says_what_adapt_does(capsys: Capture) -> None:
    def default(command: str, flag: str) -> str:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = " ".join(capsys.readouterr().out.replace("│", " ").split())
        return words.partition(f"--{flag} ")[2].partition("(")[2].partition(")")[0]

    assert default("pretrain", "norm-statistics") == "data"
    own = "weights, but for own ones of this size"
    assert default("adapt", "norm-statistics") == own
    assert default("pretrain", "statistics") == default("adapt", "statistics") == "weights"
    assert default("pretrain", "keep") == "last"
    assert default("adapt", "keep") == "best"
