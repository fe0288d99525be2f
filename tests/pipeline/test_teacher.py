"""A teacher by run, file, name in timm and plan: found, recorded, resumed and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selftaught.cli.main import main
from selftaught.config.stage import Data
from selftaught.models import backbone as backbone_module
from selftaught.models.weights import io as weights_io
from selftaught.pipeline import execute, plan
from selftaught.runs import folder as run_folder
from selftaught.training.session import Session, build_session
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder
from tests.stopping import stopped_at

SMALL = ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--precision", "fp32"]
SMALL += ["--steps", "3", "--workers", "0"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images") / "three")


@pytest.fixture(scope="module")
def taught(images: Path, tmp_path_factory: Places) -> Path:
    """A run of a student whose teacher is a file of this package, a ViT."""
    place = tmp_path_factory.mktemp("taught")
    torch.manual_seed(1)
    weights_io.save_backbone(
        backbone_module.create("test_vit", image_size=32), place / "vit.safetensors"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(words(images, "vit.safetensors", place / "run")) == 0
    return place / "run"


def words(images: Path, teacher: Path | str, out: Path) -> list[str]:
    method = ["--method", "feature-distillation", "--method.teacher", str(teacher)]
    return ["pretrain", "--data", str(images), "--out", str(out), *SMALL, *method]


def begun(place: Path) -> Session:
    stage = run_folder.read_run(place).stage
    return build_session(stage, stage.data.index(stage.seed), torch.device("cpu"), 0)


def teacher_of(place: Path) -> dict[str, Tensor]:
    return dict(begun(place).method.teacher.network.network.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refused(line: list[str], capsys: Capture) -> str:
    capsys.readouterr()
    assert main(line) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("selftaught: ")
    return last


def test_a_file_teaches(taught: Path) -> None:
    assert same(teacher_of(taught), load_file(taught.parent / "vit.safetensors"))
    run = run_folder.read_run(taught)
    assert run.facts["config"]["method"]["teacher"] == "vit.safetensors"  # as it was typed
    assert run.facts["places"]["vit.safetensors"] == str(taught.parent / "vit.safetensors")
    assert run.stage.method.teacher == str(taught.parent / "vit.safetensors")
    assert run.facts["lineage"][-1]["teacher"] == "vit.safetensors"
    assert run.backbone().name == "test_resnet"
    assert not (taught / "head.safetensors").exists()


def test_a_run_teaches(taught: Path, images: Path, tmp_path: Path) -> None:
    assert main(words(images, taught, tmp_path / "run")) == 0
    assert same(teacher_of(tmp_path / "run"), load_file(taught / "backbone.safetensors"))


def test_a_file_of_another_tool_teaches(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = timm.create_model("resnet18", num_classes=10).state_dict()
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    assert main(words(images, tmp_path / "weights.pth", tmp_path / "run")) == 0
    network = begun(tmp_path / "run").method.teacher.network
    assert network.name == "resnet18"
    assert torch.equal(network.network.conv1.weight, state["conv1.weight"])


def test_weights_of_timm_teach(images: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    create_model, request = timm.create_model, []

    def download(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        network: nn.Module = create_model(name, **options)
        if pretrained:
            request.append(name)
            nn.init.constant_(network.conv1.weight, 0.25)
        return network

    monkeypatch.setattr(timm, "create_model", download)
    assert main(words(images, "resnet18.a1_in1k", tmp_path / "run")) == 0
    session = begun(tmp_path / "run")
    assert set(request) == {"resnet18.a1_in1k"}
    network = session.method.teacher.network
    assert network.network.conv1.weight.eq(0.25).all()
    torch.testing.assert_close(network.mean, torch.tensor(backbone_module.IMAGENET_MEAN))
    assert run_folder.read_run(tmp_path / "run").facts["places"] == {}  # a name is no path


@pytest.mark.parametrize("method", ["moco-v2", "supervised"])
def test_a_stage_of_a_plan_teaches(method: str, images: Path, tmp_path: Path) -> None:
    """It needs no classifier, unlike the teacher of distillation."""
    common = {"data": str(images), "size": 32, "batch": 8, "precision": "fp32", "steps": 2}
    stages = {
        "big": {"method": method, "backbone": "test_vit"},
        "small": {"teacher": "big", "method": "feature-distillation", "backbone": "test_resnet"},
    }
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({"defaults": common, "stages": stages}, sort_keys=False))
    out = tmp_path / "out"
    assert main(["adapt", "--plan", str(file), "--out", str(out), "--workers", "0"]) == 0
    places = {
        name: out / stage["folder"]
        for name, stage in json.loads((out / "plan.json").read_text())["stages"].items()
    }
    assert same(teacher_of(places["small"]), load_file(places["big"] / "backbone.safetensors"))
    assert run_folder.read_run(out).folder == places["small"]


def test_a_student_is_named_by_its_teachers_content(images: Path, tmp_path: Path) -> None:
    weights, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for seed, file in enumerate((weights, other)):
        torch.manual_seed(seed)
        weights_io.save_backbone(backbone_module.create("test_resnet"), file)

    common = {"data": str(images), "backbone": "test_resnet", "size": 32, "batch": 8}
    common |= {"precision": "fp32", "steps": 2}

    def identity(teacher: Path | str) -> str:
        student = {"method": "feature-distillation", "method.teacher": str(teacher), **common}
        request = plan.from_mapping({"stages": {"student": student}}, "plan")
        stages = execute.resolve_plan(request, tmp_path / "out", "cpu", Data.index)
        return stages["student"].identity

    first = identity(weights)
    shutil.copy(weights, tmp_path / "copy.safetensors")
    assert identity(tmp_path / "copy.safetensors") == first
    assert identity(other) != first
    assert identity("resnet18.a1_in1k") not in (first, identity(other))
    shutil.copy(other, weights)
    assert identity(weights) == identity(other)


def test_a_resumed_run_ends_as_the_whole_one(
    taught: Path, images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """It finds its teacher from another working directory, too."""
    shutil.copy(taught.parent / "vit.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    with stopped_at(2):
        main(words(images, "vit.safetensors", tmp_path / "run"))
    assert run_folder.read_run(tmp_path / "run").facts["outcome"] == "stopped"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume", "--workers", "0"]) == 0
    one, other = (
        torch.load(place / "checkpoints" / "last.pt", weights_only=True)["step"]
        for place in (taught, tmp_path / "run")
    )
    tensors = [key for key, value in one.items() if isinstance(value, Tensor)]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in tensors)
    assert any("standardize.mean0" in key for key in tensors)


def test_what_cannot_teach_is_refused(
    taught: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"

    def distil(teacher: Path | str) -> str:
        text = refused(words(images, teacher, out), capsys)
        assert not out.exists()
        return text

    without = words(images, "x", out)
    assert "--method.teacher" in refused(without[:-2], capsys)
    assert "resnet18.a1_in1k" in distil("resnet18.a1_in2k")
    assert "nowhere" in distil(tmp_path / "nowhere")
    assert "gone.pth" in distil("gone.pth")
    assert str(out) in distil(out)  # the run that is to be begun
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth" in distil(tmp_path / "text.pth")
    save_file({"strange.weight": torch.ones(3)}, tmp_path / "strange.safetensors")
    text = distil(tmp_path / "strange.safetensors")
    assert "--backbone" in text
    assert "--steps 0" in text
    # a run that has begun is not overwritten, though it could teach
    assert "--resume" in refused(words(images, taught, taught), capsys)
    resumed = ["pretrain", "--out", str(taught), "--resume", "--method.teacher", str(taught)]
    assert "method" in refused(resumed, capsys)


def test_a_teacher_that_went_away_is_missed_when_a_run_is_resumed(
    taught: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(taught.parent / "vit.safetensors", tmp_path / "vit.safetensors")
    with stopped_at(2):
        main(words(images, tmp_path / "vit.safetensors", tmp_path / "run"))
    (tmp_path / "vit.safetensors").unlink()
    last = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    text = refused(["pretrain", "--out", str(tmp_path / "run"), "--resume"], capsys)
    assert str(tmp_path / "vit.safetensors") in text
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == last


def test_a_plan_refuses_a_teacher_before_anything_is_trained(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    student = {"method": "feature-distillation", "method.teacher": str(tmp_path / "gone.pth")}
    common = {"data": str(images), "size": 32, "batch": 8, "steps": 1, "backbone": "test_resnet"}
    file = tmp_path / "plan.yaml"
    stages = {"first": {"method": "moco-v2"}, "student": student}
    file.write_text(yaml.safe_dump({"defaults": common, "stages": stages}, sort_keys=False))
    text = refused(["adapt", "--plan", str(file), "--out", str(tmp_path / "out")], capsys)
    assert "stage student" in text
    assert "gone.pth" in text
    assert not (tmp_path / "out").exists()
