"""Defects that a review found: each test failed first."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

import selftaught
from selftaught import distributed
from selftaught.cli.main import main
from selftaught.config import defaults
from selftaught.distributed import synchronise_norms
from selftaught.errors import UserError
from selftaught.hard import Adversarial, CutMix
from selftaught.method import Setting
from selftaught.methods.clustering.pcl import PCL
from selftaught.methods.clustering.swav import SwAV
from selftaught.methods.contrastive.simclr import SimCLR
from selftaught.methods.parts import kmeans
from selftaught.models import backbone as backbone_module
from selftaught.models.weights import io as weights_io
from selftaught.optim import SGD
from selftaught.runs import folder as run_folder
from selftaught.training.loop import Loop, fit
from selftaught.training.session import build_session
from selftaught.training.step import Step
from tests.laws.toys import batch, build
from tests.pictures import folder
from tests.several import spawned

SMALL = [
    "--backbone",
    "test_resnet",
    "--size",
    "32",
    "--batch",
    "8",
    "--precision",
    "fp32",
    "--workers",
    "0",
    "--steps",
    "3",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


def test_synchronised_norms_keep_timms_activations() -> None:
    network = timm.create_model("test_efficientnet", num_classes=0).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = network(pixels)
        from timm.layers import convert_sync_batchnorm

        torch.testing.assert_close(convert_sync_batchnorm(network)(pixels), before)


def test_a_backbone_that_a_method_holds_twice_keeps_them_too() -> None:
    """The second visit took timm's synchronised norms for plain ones, and their activations
    away.
    """
    backbone = backbone_module.create("test_efficientnet", image_size=32)
    method = SimCLR(SimCLR.Config(hidden=16, dim=8), backbone, 64)
    step, pixels = Step(method).eval(), torch.rand(2, 3, 32, 32)
    names = set(step.state_dict())
    with torch.no_grad():
        before = backbone(pixels)
        synchronise_norms(step, torch.device("cuda"))
        torch.testing.assert_close(backbone(pixels), before)
    plain = [
        m
        for m in step.modules()
        if isinstance(m, _BatchNorm) and not isinstance(m, torch.nn.SyncBatchNorm)
    ]
    assert not plain
    assert set(step.state_dict()) == names


def test_norms_of_their_own_may_come_in_later() -> None:
    """torch's fused SGD wants a momentum of all parameters of a group or of none."""
    step = Step(build("moco-v2"), (CutMix(norm="auxiliary", start=0.5),))
    optimizer = SGD(lr=0.01).build(step.named_parameters())
    stream = [batch(8, seed=i) for i in range(6)]
    loop = Loop(steps=6, steps_per_epoch=6, schedule=lambda progress: 1)
    reports = list(fit(step, step.method, lambda *_: stream, optimizer, loop))
    assert ["cutmix" in report.losses for report in reports] == [False] * 3 + [True] * 3


def test_bfloat16_is_not_chosen_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not defaults.faster_in_bf16("resnet18", "imagenet", 32, "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("clusters", [10, 3000, 100_000])
def test_clusters_are_compared_in_blocks_that_fit(device: str, clusters: int) -> None:
    """Blocks of 65,536 points took 26 GB for the 100,000 clusters that PCL makes of ImageNet."""
    assert clusters <= clusters * kmeans.block(torch.device(device), clusters) <= 2**28


def waited() -> float:
    """With collectives that may take two seconds, once all have joined, while rank 0 takes six."""
    dist.barrier()
    two = timedelta(seconds=2)
    getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)(two)
    dist.distributed_c10d._get_default_store().set_timeout(two)
    began = time.perf_counter()
    if dist.get_rank() == 0:
        time.sleep(6)
    distributed.wait_for_rank0()
    return time.perf_counter() - began


def test_others_wait_for_rank_0_as_long_as_it_takes(tmp_path: Path) -> None:
    """While it looks through a large set, or waits for another job; ten minutes were the end of
    that.
    """
    assert min(spawned(waited, tmp_path)) > 3


def test_nothing_held_out_is_fine(images: Path, tmp_path: Path) -> None:
    words = ["--data", str(images), "--out", str(tmp_path / "run"), "--holdout", "0", *SMALL]
    assert main(["pretrain", *words]) == 0
    other = folder(tmp_path / "other", seed=5)
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                "--data",
                str(other),
                "--labels",
                "all",
                "--workers",
                "0",
            ]
        )
        == 0
    )


def test_a_loaded_backbone_is_ready_for_use(images: Path, tmp_path: Path) -> None:
    out = selftaught.pretrain(
        images, out=tmp_path / "run", backbone="test_resnet", size=32, batch=8, steps=3
    )
    assert not selftaught.load(out).training
    with pytest.raises(UserError):
        selftaught.pretrain(images, out=tmp_path / "other", bogus=1)


def test_what_is_no_in_python_is_no(images: Path, tmp_path: Path) -> None:
    """It was left out: `freeze_patches` stayed at its default, which is yes."""
    small = {"backbone": "test_vit", "size": 32, "batch": 8, "steps": 1, "workers": 0}
    out = selftaught.pretrain(
        images,
        out=tmp_path / "run",
        method="moco-v3",
        method__freeze_patches=False,
        resume=False,
        **small,
    )
    assert out.stage.method.freeze_patches is False  # type: ignore[attr-defined]


def test_resuming_on_other_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = folder(tmp_path / "images")
    out = tmp_path / "run"
    assert main(["pretrain", "--data", str(images), "--out", str(out), *SMALL]) == 0
    before = (out / "run.json").read_text()
    folder(images, each=20, seed=3)
    assert main(["pretrain", "--out", str(out), "--resume"]) == 2
    assert "changed" in capsys.readouterr().err
    assert (out / "run.json").read_text() == before


def test_one_of_several_processes_ends_without_being_taken_apart() -> None:
    """torch aborted there, now and then, after all was done; what is registered for the end is done
    all the same.
    """
    program = (
        "import atexit, os, sys\nfrom selftaught.cli import main\nclass Abort:\n    def"
        " __del__(self, end=os.abort):\n        end()\nheld = Abort()\natexit.register(print,"
        " 'tidied up')\nsys.argv = ['selftaught', *sys.argv[1:]]\nsys.exit(main())"
    )
    for words, code in ((["--version"], 0), (["prétrain"], 2)):
        asked = [sys.executable, "-c", program, *words]
        done = subprocess.run(
            asked,
            env={**os.environ, "WORLD_SIZE": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "tidied up" in done.stdout) == (code, True), done.stderr


def test_a_start_that_failed_does_not_occupy_its_folder(images: Path, tmp_path: Path) -> None:
    words = [
        "pretrain",
        "--data",
        str(images),
        "--out",
        str(tmp_path / "run"),
        "--method",
        "moco-v2",
        *SMALL,
    ]
    assert main([*words, "--method.queue", "0"]) == 2
    assert main(words) == 0


def test_the_latest_checkpoint_is_not_starved_by_the_best(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "pretrain",
        "--data",
        str(images),
        "--out",
        str(out),
        *SMALL[:-1],
        "60",
        "--save-every",
        "0",
    ]
    assert main(words) == 0
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["next"] == 60


@pytest.mark.parametrize(
    ("words", "said"),
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
        (["--method", "simclr", "--accumulate", "8"], "compares"),
        (["--method", "swav", "--accumulate", "8"], "compares"),
        (["--method", "deepcluster", "--accumulate", "8"], "needs 2 images in each part"),
        (["--method", "swav", "--method.epsilon", "0.01"], "--method.epsilon"),
        (["--hard", "cutmix", "--hard.cutmix.crops", "all"], "small"),
        (
            ["--method", "swav", "--backbone", "test_vit", "--size", "48", "--views.small", "2"],
            "patches",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL, *words])
        == 2
    )
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("selftaught: ")
    assert said in text


def test_epochs_that_are_no_number_are_refused(images: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL[:-2]]
    assert main([*words, "--epochs", "nan"]) == 2


def test_several_classes_an_image_from_start_to_end(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", each=12)
    rows = [
        f"{file.relative_to(images)},{'a|b' if i % 3 == 0 else 'abc'[i % 3]}"
        for i, file in enumerate(sorted(images.rglob("*.png")))
    ]
    (images / "labels.csv").write_text("\n".join(["path,label", *rows]))
    words = [
        "--data",
        str(images),
        "--method",
        "supervised",
        "--out",
        str(tmp_path / "run"),
        *SMALL,
    ]
    assert main(["pretrain", *words]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--labels", "all", "--workers", "0"]) == 0
    rows_found = json.loads((tmp_path / "run" / "evaluation.json").read_text())[0]["rows"]
    assert {row["metric"] for row in rows_found} == {"auroc"}


def test_messages_for_what_is_not_there(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "typo"), "--data", str(images)]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL]) == 0
    (tmp_path / "run" / "backbone.safetensors").unlink()
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "x.pth")]) == 2
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "list.json").write_text("[]")
    assert (
        main(["pretrain", "--config", str(tmp_path / "list.json"), "--out", str(tmp_path / "new")])
        == 2
    )
    assert run_folder.has_run(tmp_path / "run")


def test_pseudo_labels_are_made_of_other_views_than_those_that_must_predict_them(
    images: Path, tmp_path: Path
) -> None:
    """The clustering met the very pixels that were then trained on: nothing asked for
    invariance.
    """
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL]) == 0
    stage = run_folder.read_run(tmp_path / "run").stage
    trainee = build_session(stage, stage.data.index(stage.seed), torch.device("cpu"), 0)
    labelled, trained = next(iter(trainee.overview(1))), next(iter(trainee.epochs(1, 0)))
    assert torch.equal(labelled.index, trained.index)
    assert not torch.equal(labelled.views[0], trained.views[0])
    # and a resumed run meets them again
    assert torch.equal(labelled.views[0], next(iter(trainee.overview(1))).views[0])

    seen: list[str] = []
    step = Step(build("simclr"))
    step.method.before_epoch = seen.extend  # type: ignore[assignment, method-assign, arg-type]
    loop = Loop(steps=2, steps_per_epoch=1, schedule=lambda progress: 1)
    optimizer = SGD(lr=0.01).build(step.named_parameters())
    list(
        fit(
            step,
            step.method,
            lambda *_: [batch(8)],
            optimizer,
            loop,
            overview=lambda n: [f"of {n}"],
        )
    )  # type: ignore[arg-type, return-value]
    assert seen == ["of 0", "of 1"]


@pytest.mark.parametrize(
    ("method", "flag"),
    [("byol", "momentum"), ("pcl", "warmup"), ("swav", "queue-start"), ("densecl", "dense")],
)
def test_a_share_above_all_is_refused(
    method: str, flag: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher of momentum 1.5 diverged, a warmup of 3 never clustered: in silence."""
    words = [
        "pretrain",
        "--data",
        str(images),
        "--out",
        str(tmp_path / "run"),
        "--method",
        method,
        f"--method.{flag}",
        "1.5",
    ]
    assert main([*words, *SMALL]) == 2
    assert f"--method.{flag} must be a share, from 0 to 1, and not 1.5" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_queue_of_swav_counts_what_a_loss_sees() -> None:
    """Of a batch in parts each loss balances one part alone; the queue was left out as though it
    saw all.
    """
    whole, parts = (
        Setting(images=10_000, batch=512, steps=1000, features=64, parts=n, begun=True)
        for n in (1, 8)
    )
    assert SwAV.Config().suited(whole).queue == 0
    assert SwAV.Config().suited(parts).queue >= 512


def test_prototypes_are_found_in_a_run_of_one_epoch_or_two() -> None:
    """Clusterings come at the starts of epochs: the first lay within the warmup, and PCL was MoCo,
    but for an end maybe.
    """
    of = {
        steps: PCL.Config().suited(Setting(images=640, batch=64, steps=steps, features=64)).warmup
        for steps in (20, 21)
    }
    assert of == {20: 0.0, 21: 0.1}


def test_norms_stay_apart_where_keys_are_dealt_to_other_company() -> None:
    """Synchronised ones gave query and key one batch's statistics: what dealing is to prevent."""
    for name, apart in (
        ("moco-v2", True),
        ("densecl", True),
        ("pcl", True),
        ("infomin", True),
        ("simclr", False),
    ):
        step = Step(build(name, norm=True))
        synchronise_norms(step, torch.device("cuda"))
        assert apart != any(isinstance(m, torch.nn.SyncBatchNorm) for m in step.modules())


def test_a_collapse_stays_one_when_it_is_resumed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no step left the run was called done, and the exit code was 0."""
    out = tmp_path / "run"
    words = [
        "pretrain",
        "--data",
        str(images),
        "--out",
        str(out),
        "--method",
        "simsiam",
        "--optimizer.lr",
        "100",
        *SMALL,
    ]
    assert main([*words, "--steps", "60"]) == 3
    reason = run_folder.read_run(out).facts["reason"]
    capsys.readouterr()
    for _ in range(2):
        assert main(["pretrain", "--out", str(out), "--resume"]) == 3
        assert reason in " ".join(capsys.readouterr().err.split())
        assert run_folder.read_run(out).facts["outcome"] == "collapsed"
    assert main(["export", str(out), "--to", str(tmp_path / "b.safetensors")]) == 0
    assert "do not use this backbone" in " ".join(capsys.readouterr().err.split())


def test_an_attack_passes_over_inputs_that_nothing_is_predicted_from() -> None:
    """`inputs` gives all views unless a method says otherwise."""

    class First(SimCLR):
        def predict(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return super().predict((inputs[0], inputs[0]))

    method = First(SimCLR.Config(hidden=16, dim=8), build("simclr").backbone, 64)
    losses = Step(method, (Adversarial(steps=3, stride=1),))(
        batch(), torch.Generator().manual_seed(0)
    ).parts
    assert set(losses) == {"clean", "adversarial"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--trainable", "lora"], "lora"), (["--batch", "8", "--accumulate", "3"], "--accumulate")],
)
def test_a_plan_is_checked_whole_before_its_first_stage_is_trained(
    flags: list[str], told: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source was trained for hours before the target was refused."""
    words = [
        "--source",
        str(images),
        "--target",
        str(images),
        "--source-steps",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["adapt", *words, *SMALL, *flags]) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "out").rglob("backbone.safetensors"))


def test_what_cannot_be_carried_out_is_refused_before_any_image_is_read(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here already")
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "file"), *SMALL]) == 2
    assert (
        capsys.readouterr().err.strip()
        == f"selftaught: {tmp_path / 'file'} is a file: choose another --out"
    )
    adapting = ["--init", "test_resnet.r160_in1k", "--target", str(images)]
    assert main(["adapt", *adapting, "--out", str(tmp_path / "file"), *SMALL]) == 2
    assert (
        capsys.readouterr().err.strip()
        == f"selftaught: {tmp_path / 'file'} is a file: choose another --out"
    )
    assert (tmp_path / "file").read_text() == "here already"
    assert (
        main(
            [
                "pretrain",
                "--data",
                str(images),
                "--out",
                str(tmp_path / "run"),
                *SMALL,
                "--save-every",
                "-1",
            ]
        )
        == 2
    )
    assert (
        capsys.readouterr().err.strip() == "selftaught: --save-every must be 0 or more, and not -1"
    )
    assert not (tmp_path / "run").exists()


def test_a_reason_is_said_in_words(tmp_path: Path) -> None:
    # whose reader fails with a KeyError, which says nothing
    (tmp_path / "junk.pth").write_bytes(b"junk\x00\n")
    with pytest.raises(UserError, match=r"is broken, or no PyTorch file: \w+\.$"):
        weights_io.load_backbone(tmp_path / "junk.pth")


def test_the_help_of_adapt_says_what_adapt_does(capsys: pytest.CaptureFixture[str]) -> None:
    def default(command: str, flag: str) -> str:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        words = " ".join(capsys.readouterr().out.replace("│", " ").split())
        return words.partition(f"--{flag} ")[2].partition("(")[2].partition(")")[0]

    assert default("pretrain", "statistics") == "weights"
    assert default("adapt", "statistics") == "data"
    assert default("pretrain", "keep") == "last"
    assert default("adapt", "keep") == "best"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "many"], "--batch takes a whole number, and not 'many'"),
        (["--epochs", "1,5"], "--epochs takes a number, and not '1,5'"),
        (["--precision", "fp8"], "--precision takes auto, fp32, bf16, and not 'fp8'"),
        (
            ["--hard", "cutmix", "mixdown"],
            "--hard takes adversarial, cutmix, mixup, and not 'mixdown'",
        ),
        (["--device", "tpu"], "--device takes auto, cpu, cuda, and not 'tpu'"),
    ],
)
def test_a_word_that_makes_no_sense_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["pretrain", "--data", "here"], ["adapt", "--target", "here"]):
        assert main([*command, "--out", "there", *words]) == 2
        assert capsys.readouterr().err.strip() == f"selftaught: {said}"
