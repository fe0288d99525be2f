"""SimCLR-v2's three steps: the head crosses from stage to stage, the teacher teaches, and
classifiers can be scored.
"""

import contextlib
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from selftaught.cli.main import main
from selftaught.data.loading.images import Images, default_canvas
from selftaught.features.extract import extract
from selftaught.losses import soft_cross_entropy
from selftaught.method import Setup
from selftaught.methods.distillation.logits import Distillation
from selftaught.models import heads
from selftaught.models.layers import mlp
from selftaught.models.teacher import FrozenTeacher
from selftaught.models.weights import io as weights_io
from selftaught.pipeline import execute, plan
from selftaught.pipeline.plan import with_defaults
from selftaught.runs import folder as run_folder
from selftaught.training import checkpoint, loop, selection
from selftaught.training.session import Session, build_session
from selftaught.training.step import Step
from tests.commands import argv, succeed
from tests.fixtures import Capture, Patch, Places
from tests.laws.toys import IMAGES, Toy, batch, build, rng
from tests.pictures import folder

pytestmark = pytest.mark.usefixtures("quick_scores")

HERE = ["--workers", "0"]
SMALL = ["--size", "32", "--batch", "8", "--precision", "fp32", "--steps", "2", *HERE]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images") / "three")


FIRST = {"method.head-layers": 1}
UNLABELLED = {"backbone": "test_vit", "labels_from": "none"}


def three_steps(images: Path, file: Path, **change: dict[str, Any]) -> Path:
    """Pretrain, fine-tune from the head's first layer with six labels a class, distil into another
    network.
    """
    written: dict[str, dict[str, Any]] = {
        "pretrain": {"method": "simclr-v2", "backbone": "test_resnet"},
        "tuned": {"after": "pretrain", "method": "supervised", "subset": 6, **FIRST},
        "student": {"teacher": "tuned", "method": "distillation", **UNLABELLED},
    }
    for name, more in change.items():
        written[name] = {**written.get(name, {}), **more}
    common = {"data": str(images), "size": 32, "batch": 8, "precision": "fp32", "steps": 4}
    file.write_text(yaml.safe_dump({"defaults": common, "stages": written}, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: Places) -> Path:
    out = tmp_path_factory.mktemp("runs") / "semi"
    file = three_steps(images, out.with_suffix(".yaml"))
    assert main(["adapt", "--plan", str(file), "--out", str(out), *HERE]) == 0
    return out


def stages(out: Path) -> dict[str, Path]:
    written = json.loads((out / "plan.json").read_text())["stages"]
    return {name: out / stage["folder"] for name, stage in written.items()}


def begun(place: Path, **change: Any) -> Session:
    """A stage as it began."""
    stage = replace(run_folder.read_run(place).stage, **change)
    return build_session(stage, stage.data.index(stage.seed), torch.device("cpu"), 0)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refused(words: list[str], capsys: Capture) -> str:
    """The line in which a command is refused."""
    capsys.readouterr()
    assert main(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("selftaught: ")
    return last


# -------------------------------------------------------------------------------------------------
# the formula


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.1, 3), st.integers(0, 2**31))
def test_the_loss_is_the_papers(b: int, k: int, temperature: float, seed: int) -> None:
    """Chen et al., 2020, equations 2 and 3."""
    student, teacher = torch.randn(2, b, k, generator=rng(seed), dtype=torch.float64)
    method = build("distillation")
    method.temperature = temperature

    class Says(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return teacher

    method.teacher = Says()
    expected = 0.0
    for x in range(b):
        over = [
            sum(math.exp(f[x, y].item() / temperature) for y in range(k))
            for f in (teacher, student)
        ]
        for y in range(k):
            by_teacher, by_student = (
                math.exp(f[x, y].item() / temperature) / z
                for f, z in zip((teacher, student), over, strict=True)
            )
            expected -= by_teacher * math.log(by_student) / b
    assert method.loss(student, method.targets(batch(b), None)).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_the_gradient_is_the_losses() -> None:
    logits = torch.randn(3, 4, generator=rng(), dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 4, generator=rng(1), dtype=torch.float64).softmax(1)
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x / 0.5, target), logits)


def test_what_the_teacher_says_adds_up_in_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        text = build("distillation").targets(batch(), None)
    torch.testing.assert_close(text.sum(1), torch.ones(len(text)))


def test_the_teacher_rests() -> None:
    """It judges each image alone, by the statistics that it has learnt, and learns nothing more."""
    method = build("distillation").train()
    assert isinstance(method.teacher, FrozenTeacher)
    assert not any(part.training for part in method.teacher.modules())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    data = batch()
    together = method.targets(data, None)
    alone = method.targets(batch(1), None)
    torch.testing.assert_close(together.sum(1), torch.ones(len(together)))
    torch.testing.assert_close(
        method.targets(replace(data, views=(data.views[0][:1],)), None), together[:1]
    )
    assert alone.shape == (1, 5)
    step = Step(method)
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.1)
    step(data, rng()).loss.backward()
    optimizer.step()
    assert same(before, dict(method.teacher.state_dict()))


def test_a_student_at_its_teachers_place_learns_nothing() -> None:
    torch.manual_seed(0)
    twin = nn.Sequential(Toy(norm=True), mlp(6, 5))
    method = Distillation(
        Distillation.Config(teacher="x"), Setup(Toy(norm=True), IMAGES, previous=twin)
    ).eval()
    method.network.load_state_dict(twin.state_dict())
    method.loss(method.predict(batch().views[0]), method.targets(batch(), None)).backward()
    assert all(p.grad.abs().max() < 1e-6 for p in method.network.parameters())


# ------------------------------------------------------------------------------------------- what
# crosses, and is left


def test_the_heads_first_layer_crosses(done: Path) -> None:
    place = stages(done)
    left = load_file(place["pretrain"] / "head.safetensors")
    tuned = begun(place["tuned"]).method
    kinds = [type(layer) for layer in tuned.classifier]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    state = tuned.classifier.state_dict()
    first = {key: value for key, value in state.items() if not key.startswith("3.")}
    assert same(first, {key: value for key, value in left.items() if key[0] in "012"})
    assert tuned.classifier[3].out_features == 3
    plain = begun(
        place["tuned"],
        method=replace(run_folder.read_run(place["tuned"]).stage.method, head_layers=0),
    ).method
    assert [type(layer) for layer in plain.classifier] == [nn.Linear]
    assert plain.classifier[0].in_features == plain.backbone.features


def test_the_teacher_is_what_was_fine_tuned(done: Path, images: Path) -> None:
    place = stages(done)
    student = begun(place["student"])
    teacher = student.method.teacher.network
    assert same(
        dict(teacher[0].network.state_dict()), load_file(place["tuned"] / "backbone.safetensors")
    )
    assert same(dict(teacher[1].state_dict()), load_file(place["tuned"] / "head.safetensors"))
    assert student.classes == ("class 0", "class 1", "class 2")
    assert student.backbone.name == "test_vit"
    assert run_folder.read_run(done).stage.init is None
    assert len(student.index.train) > len(begun(place["tuned"]).batches.positions) == 18
    assert heads.classifier(place["student"]).classes == ("class 0", "class 1", "class 2")
    assert not heads.load_head(place["pretrain"]).classes
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["show", str(done)]) == 0
    assert f"taught by {place['tuned']}" in text.getvalue()
    written = json.loads((done / "plan.json").read_text())
    assert (written["outcome"], written["stages"]["student"]["teacher"]) == ("student", "tuned")


def test_without_a_plan_it_is_the_same(done: Path, images: Path, tmp_path: Path) -> None:
    place = stages(done)
    words = argv(f"pretrain --data {images}", *SMALL, "--steps", "4")
    start = argv(f"--init {place['pretrain']} --method.head-layers 1 --subset 6")
    succeed(*words, "--method", "supervised", *start, "--out", tmp_path / "tuned")
    student = argv(f"--method distillation --method.teacher {tmp_path}/tuned --backbone test_vit")
    succeed(*words, *student, "--labels-from", "none", "--out", tmp_path / "student")
    for name in ("tuned", "student"):
        for file in ("backbone.safetensors", "head.safetensors"):
            assert same(load_file(tmp_path / name / file), load_file(place[name] / file))
    # which stands for its outcome
    again = ["--method.teacher", str(done), "--out", str(tmp_path / "of a plan")]
    succeed(*words, *student[:2], *again, "--steps", "1")
    assert run_folder.read_run(tmp_path / "of a plan").stage.method.teacher == str(place["student"])


def test_where_nothing_was_learnt_no_head_is_left(done: Path, images: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--data", str(images), "--init", str(stages(done)["pretrain"]), *SMALL]
    succeed(*words, "--method", "supervised", "--steps", "0", "--out", tmp_path / "none")
    assert not (tmp_path / "none" / "head.safetensors").exists()
    assert main([*words, "--method", "moco-v2", "--out", str(tmp_path / "moco")]) == 0
    assert not (tmp_path / "moco" / "head.safetensors").exists()


@pytest.mark.parametrize("best", [0, 2])
def test_the_kept_head_is_that_of_the_kept_backbone(
    best: int, done: Path, images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    def choose(candidates: list[Any]) -> Any:
        kept = next(c for c in candidates if c.step == best)
        return selection.Choice(kept=kept, start=candidates[0], best=candidates[-1])

    monkeypatch.setattr(selection, "choose", choose)
    words = argv(f"--data {images} --init {stages(done)['pretrain']} --keep best", *SMALL)
    succeed("pretrain", *words, "--method", "supervised", "--out", tmp_path / "run")
    kept, there = tmp_path / "run" / "head.safetensors", tmp_path / "run" / "checkpoints"
    assert kept.exists() == (best > 0)
    if best:
        assert kept.read_bytes() == (there / "step-2-head.safetensors").read_bytes()


def test_a_classifier_is_kept_as_it_ended(images: Path, tmp_path: Path) -> None:
    """The best by features need not be the best classifier: a plan does not choose among them
    unasked.
    """
    request = with_defaults(
        plan.read(three_steps(images, tmp_path / "p.yaml", other={"after": "pretrain"}))
    )
    assert len(request.nodes) == 4
    assert [n.name for n in request.nodes if n.overrides.get("keep") == "best"] == ["other"]
    assert [node.name for node in request.leaves] == ["student", "other"]


# ---------------------------------------------------------------------------------------- identity,
# and breaking off


def test_a_student_is_named_by_its_teacher_too(done: Path, images: Path, tmp_path: Path) -> None:
    def names(out: str = "out", of: Path = images, **change: dict[str, Any]) -> dict[str, str]:
        request = with_defaults(plan.read(three_steps(of, tmp_path / "plan.yaml", **change)))
        settled = execute.resolve_plan(
            request, tmp_path / out, "cpu", lambda data, seed: data.index(seed)
        )
        return {name: s.identity for name, s in settled.items()}

    first = names()
    assert names("elsewhere") == first
    assert first == {name: place.name for name, place in stages(done).items()}
    shutil.copytree(images, tmp_path / "copy")
    assert names(of=tmp_path / "copy") == first
    other = names(tuned={"method.head-layers": 2})
    assert [other[name] == first[name] for name in first] == [True, False, False]
    assert names(student={"method.temperature": 0.1})["tuned"] == first["tuned"]
    tuned = stages(done)["tuned"]
    outside = names(student={"teacher": None, "method.teacher": str(tuned)})["student"]
    shutil.copytree(tuned, tmp_path / "moved")
    assert (
        names(student={"teacher": None, "method.teacher": str(tmp_path / "moved")})["student"]
        == outside
    )
    for file in ("head.safetensors", "backbone.safetensors"):  # both are what teaches
        shutil.copytree(tuned, tmp_path / file)
        shutil.copy(
            stages(done)["student" if file[0] == "h" else "pretrain"] / file, tmp_path / file / file
        )
        assert (
            names(student={"teacher": None, "method.teacher": str(tmp_path / file)})["student"]
            != outside
        )
    begins = {"after": None, "init": str(stages(done)["pretrain"])}
    alone = names(tuned=begins)["tuned"]
    shutil.copytree(begins["init"], tmp_path / "brought")
    heads.save_head(mlp(96, 96, 96, 128), (), False, tmp_path / "brought" / "head.safetensors")
    assert names(tuned={**begins, "init": str(tmp_path / "brought")})["tuned"] != alone


class Crash(Exception):
    """As if the machine went down."""


def test_broken_off_anywhere_it_ends_the_same(
    done: Path, images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    file = three_steps(images, tmp_path / "plan.yaml")
    words = argv(f"adapt --plan {file} --out {tmp_path}/out", *HERE)
    left = set()

    def crash(module: Any, name: str, *at: int) -> None:
        """Before these calls of a function, all tries counted."""
        real, calls = getattr(module, name), []
        left.update((name, number) for number in at)

        def broken(*args: Any, **more: Any) -> Any:
            calls.append(None)
            if len(calls) in at:
                left.discard((name, len(calls)))
                raise Crash
            return real(*args, **more)

        monkeypatch.setattr(module, name, broken)

    crash(loop, "backward", 3, 8, 14)  # in each of the stages
    crash(heads, "save_head", 1, 3)  # between the last checkpoint and the head,
    crash(weights_io, "save_backbone", 2, 4)  # and between the head and the backbone
    crash(checkpoint, "save_checkpoint", 4, 9)
    for _ in range(20):
        with contextlib.suppress(Crash):
            assert main([*words, "--save-every", "0"]) == 0
            break
    assert not left, "some places were never reached"
    for name, place in stages(tmp_path / "out").items():
        assert run_folder.read_run(place).facts["outcome"] == "done"
        for file in ("backbone.safetensors", "head.safetensors"):
            assert same(load_file(place / file), load_file(stages(done)[name] / file)), (name, file)


# --------------------------------------------------------------------------------------------- the
# classifier's accuracy


def test_the_own_classifier_is_scored(done: Path, images: Path, capsys: Capture) -> None:
    place = stages(done)
    words = ["evaluate", str(place["tuned"]), "--protocol", "classifier", "--json", *HERE]
    capsys.readouterr()
    assert main([*words, "--against", "random", str(place["student"])]) == 0
    text = capsys.readouterr()
    rows = json.loads(text.out)
    assert [(r["backbone"], r["protocol"], r["labels"], r["draws"]) for r in rows] == [
        (str(place[name]), "classifier", "own", 1) for name in ("tuned", "student")
    ]
    assert "random has no classifier of its own" in text.err
    stage = run_folder.read_run(place["tuned"]).stage
    index = replace(stage.data, subset="all").index(stage.seed)
    shown = Images(index.paths, index.sizes, default_canvas(index.sizes, 32))
    logits = extract(heads.load_head(place["tuned"]).network, shown, index.held_out, size=32)
    labels = index.labels[index.held_out]
    right = [(logits.argmax(1) == labels)[labels == c].double().mean() for c in range(3)]
    assert rows[0]["mean"] == pytest.approx(float(sum(right) / 3))
    noted = json.loads((place["tuned"] / "evaluation.json").read_text())[-1]
    assert noted["differences"][0]["labels"] == "own"
    assert main(["report", str(place["tuned"]), "--out", str(done / "page.html")]) == 0
    assert "Own classifier, as it was trained" in (done / "page.html").read_text()


def test_a_run_without_classifier_is_left_out(done: Path, capsys: Capture) -> None:
    place = stages(done)
    words = ["evaluate", str(place["tuned"]), "--protocol", "classifier", "--json", *HERE]
    assert main([*words, "--against", str(place["pretrain"])]) == 0
    text = capsys.readouterr()
    assert [row["backbone"] for row in json.loads(text.out)] == [str(place["tuned"])]
    assert f"{place['pretrain']} has no classifier: omitted" in text.err


def test_a_teacher_of_several_classes_an_image_is_refused_at_once(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = [
        f"{file.relative_to(images)},{i % 2},{i // 2 % 2}"
        for i, file in enumerate(sorted(images.rglob("*.png")))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["file,a,b", *rows]) + "\n")
    labels = {"labels_from": str(tmp_path / "table.csv")}
    file = three_steps(images, tmp_path / "plan.yaml", tuned={**labels, "subset": "all"})
    assert main(["adapt", "--plan", str(file), "--out", str(tmp_path / "out"), *HERE]) == 2
    assert "tuned predicts several classes an image" in capsys.readouterr().err
    assert not (tmp_path / "out" / "stages").exists()


def test_columns_go_by_the_names_of_classes(
    done: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A classifier whose classes are in another order says the same."""
    tuned, other = stages(done)["tuned"], tmp_path / "other"
    shutil.copytree(tuned, other)
    head_content = heads.load_head(tuned)
    order = [2, 0, 1]
    last = head_content.network[1][-1]
    last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    heads.save_head(
        head_content.network[1],
        tuple(head_content.classes[i] for i in order),
        False,
        other / "head.safetensors",
    )
    means = []
    for place in (tuned, other):
        capsys.readouterr()
        succeed("evaluate", place, "--protocol", "classifier", "--against", "--json", *HERE)
        means.append(json.loads(capsys.readouterr().out)[0]["mean"])
    assert means[0] == means[1]


# --------------------------------------------------------------------------------------------------
# refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student": {"teacher": None}}, ["stage student", "needs a teacher", "--method.teacher"]),
        (
            {"student": {"teacher": "nobody"}},
            ["student is to be taught by nobody", "no such stage before it"],
        ),
        ({"student": {"teacher": "pretrain"}}, ["stage student", "pretrain tells no classes"]),
        ({"tuned": {"teacher": "pretrain"}}, ["stage tuned", "only distillation has a teacher"]),
        (
            {"tuned": {"method.head-layers": 3}},
            ["stage tuned", "--method.head-layers 3", "pretrain", "2 hidden layers"],
        ),
        (
            {"pretrain": {"method": "moco-v2"}},
            ["stage tuned", "--method.head-layers 1", "0 hidden layers"],
        ),
        (
            {"tuned": {"after": None, "backbone": "test_resnet"}},
            ["stage tuned", "--method.head-layers", "--init"],
        ),
        (
            {"student": {"data": "OTHER", "labels_from": "auto"}},
            ["student", "3 classes", "2 classes", "none"],
        ),
        ({"student": {"teacher": None, "method.teacher": "nowhere"}}, ["stage student", "nowhere"]),
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_trained(
    change: dict[str, Any], words: list[str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = folder(tmp_path / "other", classes=2)
    change = {
        name: {k: str(other) if v == "OTHER" else v for k, v in of.items()}
        for name, of in change.items()
    }
    file = three_steps(images, tmp_path / "plan.yaml", **change)
    text = refused(["adapt", "--plan", str(file), "--out", str(tmp_path / "out"), *HERE], capsys)
    assert all(word in text for word in words), text
    assert not (tmp_path / "out").exists()


def test_a_bad_command_is_refused(
    done: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    place = stages(done)
    out = ["--data", str(images), *SMALL, "--out", str(tmp_path / "out")]
    other = ["--data", str(folder(tmp_path / "other", classes=2)), *out[2:]]
    plain = tmp_path / "plain"
    shutil.copytree(place["tuned"], plain)
    (plain / "head.safetensors").unlink()
    broken = tmp_path / "broken"
    shutil.copytree(place["tuned"], broken)
    (broken / "head.safetensors").write_bytes(b"no head")
    several = tmp_path / "several"
    shutil.copytree(place["tuned"], several)
    head_content = heads.load_head(place["tuned"])
    heads.save_head(
        head_content.network[1], head_content.classes, True, several / "head.safetensors"
    )

    def distil(teacher: Path, of: list[str] = out) -> str:
        return refused(
            ["pretrain", "--method", "distillation", "--method.teacher", str(teacher), *of], capsys
        )

    assert "needs a teacher" in refused(["pretrain", "--method", "distillation", *out], capsys)
    assert f"{plain} has no head" in distil(plain)
    assert "has no head" in distil(tmp_path / "nowhere")
    assert "no classes" in distil(place["pretrain"])
    assert "no readable head" in distil(broken)
    assert "several classes an image" in distil(several)
    assert "2 classes (class 0, class 1)" in distil(place["tuned"], other)
    words = argv(f"pretrain --method distillation --method.teacher {place['tuned']}", *other)
    succeed(*words, *argv("--labels-from none --steps 1"))
    shutil.rmtree(tmp_path / "out")
    tuned = ["pretrain", "--method", "supervised", "--method.head-layers", "1", *out]
    assert "--init" in refused(tuned, capsys)
    assert f"{plain} has no head" in refused([*tuned, "--init", str(plain)], capsys)
    tuned[4] = "3"
    assert "2 hidden layers" in refused([*tuned, "--init", str(place["pretrain"])], capsys)
    score = ["evaluate", "--protocol", "classifier", "--against", *HERE]
    assert "no classes" in refused([*score[:1], str(place["pretrain"]), *score[1:]], capsys)
    alone = [str(place["tuned"] / "backbone.safetensors"), *score[1:], "--data", str(images)]
    assert "a backbone alone" in refused([*score[:1], *alone], capsys)
    text = refused([*score[:1], str(place["tuned"]), *score[1:], "--data", other[1]], capsys)
    assert "3 classes" in text
    assert "--labels-from" not in text
