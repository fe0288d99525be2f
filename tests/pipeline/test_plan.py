"""Plans of stages: what a stage takes over, what moves, which weights are kept, and that breaking
off changes nothing.
"""

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import selftaught
from selftaught.cli import flags
from selftaught.cli.main import main
from selftaught.config import defaults
from selftaught.config.stage import Data, Stage
from selftaught.data.index import build
from selftaught.data.index.build import Index
from selftaught.data.index.scan import Root, Scan
from selftaught.data.loading.images import Images, default_canvas, statistics
from selftaught.errors import UserError
from selftaught.evaluation import evaluate
from selftaught.loggers.terminal import Progress
from selftaught.models import backbone as backbone_module
from selftaught.models.anchor import Anchor
from selftaught.models.weights import io as weights_io
from selftaught.pipeline import execute, plan
from selftaught.pipeline.plan import with_defaults
from selftaught.runs import folder as run_folder
from selftaught.training import checkpoint, loop, selection, trainer
from selftaught.training.runtime import Runtime
from selftaught.training.session import build_session
from selftaught.views.augment import centre
from selftaught.visualize import snapshots
from tests.commands import argv, succeed
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder
from tests.several import spawned
from tests.stopping import stopped_at

pytestmark = pytest.mark.usefixtures("quick_scores")

BETWEEN = [f"step-6-share-{share}" for share in selection.SHARES]
HERE = ["--workers", "0"]
SMALL = argv("--size 32 --batch 8 --precision fp32", *HERE)
Chain = tuple[list[str], Path, str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    """Three data sets."""
    root = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("base", "source", "target")):
        folder(root / name, seed=seed)
    return root


@pytest.fixture(scope="module")
def brought(images: Path, tmp_path_factory: Places) -> Path:
    """The run that a user has already."""
    out = tmp_path_factory.mktemp("runs") / "brought"
    words = [*argv(f"--data {images}/base --backbone test_resnet --steps 3 --seed 5"), *SMALL]
    assert main(["pretrain", *words, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def chain(images: Path, brought: Path, tmp_path_factory: Places) -> Chain:
    """Base -> Source -> Target: the command, its folder, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "hpt"
    data = argv(f"--init {brought} --source {images}/source --target {images}/target")
    words = ["adapt", *data, *argv("--method moco-v2 --hard cutmix --source-steps 2 --steps 6")]
    words += [*SMALL, "--out", str(out)]

    def draw(_: Any, album: Path) -> None:
        album.mkdir()
        Image.new("RGB", (8, 8)).save(album / "views.png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "draw", draw)
        return words, out, printed(words)


def to_target(brought: Path, images: Path) -> list[str]:
    """Flags of `adapt`: from the weights that were brought to the target's images."""
    return ["--init", str(brought), "--target", str(images / "target")]


def printed(words: list[str], code: int = 0) -> str:
    """What a command writes to standard output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == code
    return out.getvalue()


def stages(out: Path) -> dict[str, Path]:
    written = json.loads((out / "plan.json").read_text())
    return {name: out / stage["folder"] for name, stage in written["stages"].items()}


def tensors(file: Path) -> dict[str, Tensor]:
    return load_file(file / "backbone.safetensors" if file.is_dir() else file)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return one.keys() == other.keys() and all(
        one[k].numpy().tobytes() == other[k].numpy().tobytes() for k in one
    )


def times(root: Path) -> dict[str, int]:
    """When each file was written; a lock says nothing."""
    return {
        str(file): file.stat().st_mtime_ns
        for file in root.rglob("*")
        if file.is_file() and file.suffix != ".lock"
    }


def stated(file: Path) -> tuple[list[float], list[float]]:
    """The mean and std that a file's pixels are normalised by."""
    with safe_open(file, framework="pt") as opened:
        output = opened.metadata()
    return json.loads(output["mean"]), json.loads(output["std"])


def of_data(stage: Stage) -> tuple[list[float], list[float]]:
    """The mean and std of the images that a stage trains on."""
    index = stage.data.index(stage.seed)
    images = Images(index.paths, index.sizes, default_canvas(index.sizes, 32))
    mean, std = statistics(images, index.train)
    return list(mean), list(std)


def index_of(data: Data, seed: int) -> Index:
    return data.index(seed)


def settled(written: Any, out: Path = Path("out")) -> dict[str, execute.ResolvedStage]:
    """A plan's stages as they would be trained."""
    return execute.resolve_plan(
        with_defaults(plan.from_mapping(written, "plan")), out, "cpu", index_of
    )


# ------------------------------------------------------------------------------------------------
# the command


def test_the_first_line_says_what_was_kept(chain: Chain) -> None:
    _, out, text = chain
    first, second = text.splitlines()
    assert first == run_folder.read_run(out).facts["choice"]["text"]
    assert first.startswith(("kept: step ", "training did not help: "))
    assert second == f"the backbone is in {out / 'backbone.safetensors'}"


def test_a_plan_leaves_its_folder(chain: Chain, brought: Path) -> None:
    words, out, _ = chain
    written = json.loads((out / "plan.json").read_text())
    assert written["command"] == " ".join(["selftaught", *words])
    assert (written["base"], written["outcome"]) == (str(brought), "target")
    assert {name: (s["after"], s["init"]) for name, s in written["stages"].items()} == {
        "source": (None, str(brought)),
        "target": ("source", None),
    }
    assert {place.parent for place in stages(out).values()} == {out / "stages"}
    for name, place in stages(out).items():
        facts = run_folder.read_run(place).facts
        assert (facts["outcome"], "choice" in facts) == ("done", name == "target")
        assert (place / "album" / "views.png").is_file()
    source, target = (run_folder.read_run(place).stage for place in stages(out).values())
    # the hard examples are the target's
    assert (source.steps, source.hard, source.keep) == (2, (), "last")
    assert (target.steps, len(target.hard), target.keep) == (6, 1, "best")
    assert source.backbone == target.backbone == "test_resnet"  # as the weights say
    assert {
        file.name for file in (stages(out)["target"] / "checkpoints").glob("*.safetensors")
    } == {f"{name}.safetensors" for name in ("base", "step-0", "step-6", *BETWEEN)}
    name = Path(run_folder.read_run(out).facts["choice"]["file"]).stem
    assert same(
        tensors(stages(out)["target"]),
        tensors(stages(out)["target"] / "checkpoints" / f"{name}.safetensors"),
    )
    assert not list(out.rglob(".*"))  # no drafts left
    assert list(out.rglob("*.png"))
    names = Scan([Root.parse(out.parent)]).files.names
    assert not [name for name in names if name.startswith(f"{out.name}/")]


def test_show_tells_the_lineage(chain: Chain, brought: Path) -> None:
    _, out, _ = chain
    rows = json.loads(printed(["show", str(out), "--json"]))
    assert [(r["stage"], r["from"], r["outcome"]) for r in rows] == [
        ("source", str(brought), "done"),
        ("target", "source", "done"),
    ]
    assert rows[1]["choice"] == run_folder.read_run(out).facts["choice"]
    text = printed(["show", str(out)])
    order = [str(brought), "source: done", "target: done", rows[1]["choice"]["text"]]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "cutmix" in text
    # a stage knows its ancestors by itself
    alone = json.loads(printed(["show", str(stages(out)["target"]), "--json"]))
    assert [r["folder"] for r in alone] == [str(p) for p in (brought, *stages(out).values())]
    assert main(["show", str(out / "stages")]) == 2


def test_evaluate_report_and_export_take_the_outcome(
    chain: Chain, brought: Path, tmp_path: Path, capsys: Capture
) -> None:
    _, out, _ = chain
    words = argv(f"evaluate {out} --against random init --protocol knn --labels all --json")
    assert main([*words, *HERE]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["backbone"] for row in rows} == {str(out), "random", "init"}
    assert (stages(out)["target"] / "evaluation.json").is_file()
    compared = evaluate.load_backbones(
        out, run_folder.read_run(out), ["random", "init"], Progress(show=False)
    )
    # what the user brought, not the source's
    assert same(dict(compared["init"].network.state_dict()), tensors(brought))
    assert same(dict(compared[str(out)].network.state_dict()), tensors(stages(out)["target"]))
    text = " ".join(printed(["show", str(out)]).split())  # a long verdict is wrapped
    assert json.loads((stages(out)["target"] / "evaluation.json").read_text())[0]["verdict"] in text
    assert main(["export", str(out), "--to", str(tmp_path / "b.safetensors")]) == 0
    assert same(tensors(tmp_path / "b.safetensors"), tensors(stages(out)["target"]))
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert "cutmix" in (tmp_path / "page.html").read_text()
    assert selftaught.load(out)(torch.rand(2, 3, 32, 32)).shape == (2, 96)


def test_what_is_done_is_not_done_again(chain: Chain, images: Path, brought: Path) -> None:
    words, out, text = chain
    before = times(out / "stages")
    assert printed(words) == text
    assert times(out / "stages") == before
    source = stages(out)["source"]
    written = out.parent / "plan.yaml"  # another plan, in other words, that shares the first stage
    common = {"method": "moco-v2", "size": 32, "batch": 8, "precision": "fp32"}
    first = {"data": [str(images / "source")], "steps": 2}
    second = {"after": "one", "data": str(images / "target"), "steps": 2, "trainable": "norm"}
    content = {"one": first, "two": {**second, "keep": "last"}}
    plan_ = {"init": str(brought), "defaults": common, "stages": content}
    written.write_text(yaml.safe_dump(plan_))
    assert main(["adapt", "--plan", str(written), "--out", str(out), *HERE]) == 0
    assert stages(out)["one"] == source
    assert before.items() <= times(out / "stages").items()
    assert sum(place.is_dir() for place in (out / "stages").iterdir()) == 3
    assert run_folder.read_run(out).stage.trainable == "norm"
    assert printed(words) == text  # and back again


def test_another_plan_that_began_there_meanwhile_is_not_told_of(
    chain: Chain, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Two plans may share a folder and its stages. Each says at its end what it did itself, and
    names its stage's folder where the other's outcome may come into the shared one.
    """
    words, out, text = chain
    stage = stages(out)["target"].relative_to(out)
    shutil.copytree(out, tmp_path / "shared")
    real = execute.execute_plan

    def disturbed(*args: Any) -> Any:
        folders = real(*args)
        noted = json.loads((tmp_path / "shared" / "plan.json").read_text())
        noted["stages"]["target"]["folder"] = "stages/of-the-other-plan"
        (tmp_path / "shared" / "plan.json").write_text(json.dumps(noted))
        return folders

    monkeypatch.setattr(execute, "execute_plan", disturbed)
    assert printed([*words[:-1], str(tmp_path / "shared")]) == text.replace(
        str(out), str(tmp_path / "shared" / stage)
    )


def test_a_plans_folder_is_weights_to_begin_from(
    chain: Chain, images: Path, tmp_path: Path
) -> None:
    _, out, _ = chain
    words = ["--init", str(out), "--target", str(images / "base"), "--steps", "1", *SMALL]
    assert main(["adapt", *words, "--out", str(tmp_path / "more")]) == 0
    begun = stages(tmp_path / "more")["target"] / "checkpoints" / "step-0.safetensors"
    assert same(tensors(begun), tensors(stages(out)["target"]))
    start = run_folder.read_run(tmp_path / "more").start()
    assert start is not None
    assert same(dict(start.network.state_dict()), tensors(stages(out)["target"]))
    words = ["--init", str(out), "--data", str(images / "base"), "--steps", "0", *SMALL]
    assert main(["pretrain", *words, "--out", str(tmp_path / "alone")]) == 0
    assert same(tensors(tmp_path / "alone"), tensors(stages(out)["target"]))


# ----------------------------------------------------------------------------------------- the
# outcome's own place


@pytest.mark.parametrize("links", [True, False])
def test_the_outcome_lies_in_the_plans_own_folder(
    chain: Chain, tmp_path: Path, links: bool, monkeypatch: Patch
) -> None:
    out, place = tmp_path / "out", stages(chain[1])["target"]
    shutil.copytree(chain[1], out)
    for name in ("backbone.safetensors", "run.json"):
        (out / name).unlink()
    if not links:
        monkeypatch.setattr(
            Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here"))
        )
    assert printed([*chain[0][:-1], str(out)]) == chain[2].replace(str(chain[1]), str(out))
    own, there = out / "backbone.safetensors", stages(out)["target"] / "backbone.safetensors"
    assert own.read_bytes() == there.read_bytes()
    assert own.samefile(there) is links  # nothing is there twice
    facts = json.loads((out / "run.json").read_text())
    assert facts["copied_from"] == str(place.relative_to(chain[1]))
    assert facts["outcome"] == "done"
    # commands look into the stage, as long as it is there
    assert run_folder.read_run(out).folder == stages(out)["target"]
    base = run_folder.read_run(out).base
    shutil.rmtree(out / "stages")
    assert run_folder.read_run(out).folder == out
    assert run_folder.read_run(out).base == base
    assert same(dict(run_folder.open_backbone(out).network.state_dict()), tensors(place))
    assert main(["show", str(out)]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    (out / "plan.json").unlink()
    assert run_folder.read_run(out).folder == out


def test_another_outcome_takes_its_place(
    chain: Chain, tmp_path: Path, images: Path, brought: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(chain[1], out)
    before = tensors(out)
    words = [*argv(f"--init {brought} --target {images}/base --steps 1 --keep last"), *SMALL]
    with stopped_at(1):
        assert main(["adapt", *words, "--out", str(out)]) == 0
    assert same(tensors(out), before)  # the one that is finished stays till the next one is
    assert (
        main(argv(f"evaluate {out} --protocol knn --labels all", *HERE)) == 2
        or not run_folder.read_run(out).facts["finished"]
    )
    assert main(["adapt", *words, "--out", str(out)]) == 0
    assert not same(tensors(out), before)
    assert same(tensors(out), tensors(stages(out)["target"]))


def test_a_plan_and_a_run_do_not_share_a_folder(
    chain: Chain, images: Path, brought: Path, capsys: Capture
) -> None:
    _, out, _ = chain
    before = times(out)
    data = ["--data", str(images / "target"), *SMALL, "--steps", "1"]
    for words in (["--resume"], data, [*data, "--resume"]):
        assert main(["pretrain", "--out", str(out), *words]) == 2
        assert "adapt" in capsys.readouterr().err.splitlines()[-1]
    target = [*to_target(brought, images), *SMALL]
    assert main(["adapt", *target, "--out", str(brought)]) == 2
    assert "--out" in capsys.readouterr().err.splitlines()[-1]
    assert times(out) == before


def test_a_stage_of_an_older_version_is_gone_on_with(
    images: Path, brought: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """It is named by the sizes of its images."""

    def build_as_before(*args: Any, **more: Any) -> Index:
        index = real(*args, **more)
        return replace(index, fingerprint=index.listing)

    real, request, out = build.build_index, written_plan(images, brought), tmp_path / "out"
    new = [s.identity for s in settled(request, out).values()]
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_index", build_as_before)
        older = [s.identity for s in settled(request, out).values()]
    assert not set(older) & set(new)
    for identity in older:
        shutil.copytree(brought, out / "stages" / identity)
    assert [s.identity for s in settled(request, out).values()] == older


# --------------------------------------------------------------------------------------------------
# identity


def written_plan(images: Path, brought: Path, **change: Any) -> dict[str, Any]:
    defaults = {"size": 32, "batch": 8, "steps": 3, "holdout": 0.25}
    source = {"data": str(images / "source")}
    target = {"after": "source", "data": str(images / "target"), **change}
    stages = {"source": source, "target": target}
    return {"init": str(brought), "defaults": defaults, "stages": stages}


def test_a_stage_is_named_by_what_decides_it(
    images: Path, brought: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    probed = itertools.cycle([True, False, False])
    monkeypatch.setattr(defaults, "faster_in_bf16", lambda *_: next(probed))

    def names(of: dict[str, Any], out: str = "out") -> list[str]:
        return [s.identity for s in settled(of, tmp_path / out).values()]

    first = names(written_plan(images, brought))
    assert names(written_plan(images, brought), "elsewhere") == first
    # what a probe chooses decides nothing
    assert names(written_plan(images, brought, precision="auto")) == first
    shutil.copytree(images, tmp_path / "copy")
    shutil.copytree(brought, tmp_path / "copied run")
    assert names(written_plan(tmp_path / "copy", brought)) == first
    assert names(written_plan(tmp_path / "copy", tmp_path / "copied run")) == first
    assert names(written_plan(images, brought / "backbone.safetensors")) == first
    other = names(written_plan(images, brought, seed=1))
    assert (other[0], other[1] != first[1]) == (first[0], True)
    assert names(written_plan(images, brought, compile=False)) == first
    for change in ({"steps": 4}, {"hard": ["cutmix"]}, {"precision": "bf16"}, {"compile": True}):
        changed = names(written_plan(images, brought, **change))
        assert changed[0] == first[0]
        assert changed[1] != first[1]
    source = written_plan(images, brought)
    source["stages"]["source"]["seed"] = 1
    assert not set(names(source)) & set(first)  # an ancestor changes all that follow
    (tmp_path / "copy" / "target" / "class 0" / "000.png").unlink()
    fewer = names(written_plan(tmp_path / "copy", brought))
    assert (fewer[0] == first[0], fewer[1] == first[1]) == (True, False)
    words = [*argv(f"--data {images}/base --backbone test_resnet --steps 0 --seed 6"), *SMALL]
    assert main(["pretrain", *words, "--out", str(tmp_path / "other base")]) == 0
    assert not set(names(written_plan(images, tmp_path / "other base"))) & set(first)


def test_labels_count_by_what_they_say_and_not_by_where_they_lie(
    images: Path, brought: Path, tmp_path: Path
) -> None:
    files = sorted((images / "target").rglob("*.png"))
    lines = (f"{file.relative_to(images / 'target')},{file.parent.name}" for file in files)
    table = "\n".join(["file,class", *lines])
    common = {"size": 32, "steps": 2, "precision": "fp32"}
    names = []
    for place in ("here", "there"):
        shutil.copytree(images / "target", tmp_path / place)
        (tmp_path / f"{place}.csv").write_text(table)
        labels = str(tmp_path / f"{place}.csv")
        of = {**common, "data": str(tmp_path / place), "labels_from": labels}
        names.append(settled({"init": str(brought), "stages": {"only": of}})["only"].identity)
    of = {**common, "data": str(images / "target"), "labels_from": "none"}
    names.append(settled({"init": str(brought), "stages": {"only": of}})["only"].identity)
    assert names[0] == names[1] != names[2]


# --------------------------------------------------------------------------------------------------
# plans


def test_a_tree_from_yaml(images: Path, brought: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(f"""
        init: {brought}
        defaults: {{size: 32, batch: 8, precision: fp32, steps: 1}}
        stages:
          source: {{data: "{images / "source"}"}}
          left: {{after: source, data: "{images / "target"}", hard: [cutmix],
                  hard.cutmix.weight: 0.5}}
          alone: {{init: null, backbone: test_resnet, data: ["{images / "target"}"],
                   optimizer: adamw, optimizer.lr: 0.001}}
          right: {{after: source, data: "{images / "target"}", trainable: norm, keep: last}}
    """)
    out = tmp_path / "out"
    assert main(["adapt", "--plan", str(file), "--out", str(out), *HERE]) == 0
    lookup = stages(out)
    result = {name: run_folder.read_run(place) for name, place in lookup.items()}
    source = str(lookup["source"])
    assert {name: r.stage.init for name, r in result.items()} == {
        **{"source": str(brought), "left": source, "alone": None, "right": source}
    }
    assert result["left"].stage.hard[0].weight == 0.5
    assert result["alone"].stage.optimizer.lr == 0.001
    assert [result[n].stage.keep for n in ("source", "left", "alone", "right")] == [
        *("last", "best", "last", "last")
    ]
    assert run_folder.read_run(out).folder == lookup["right"]  # the last leaf is the outcome
    assert json.loads((out / "plan.json").read_text())["base"] == str(brought)
    rows = json.loads(printed(["show", str(out), "--json"]))
    assert [r["from"] for r in rows] == [str(brought), "source", "random weights", "source"]
    assert "random weights" in printed(["show", str(out)])


def test_yes_and_no_are_flags_of_their_own() -> None:
    words = ["--out", "x", "--method", "moco-v2", "--compile", "--method.no-symmetric"]
    expected = {"method": "moco-v2", "compile": True, "method.symmetric": False}
    assert flags.overrides_of(words, flags.parse(words)) == expected


GOOD = "data: {target}, backbone: test_resnet, size: 32, batch: 8, precision: fp32, steps: 2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: {only: {GOOD}}\nstage: 1", ["stage not understood", "defaults, init, stages"]),
        (
            "stages: {one: {GOOD, after: two}, two: {GOOD, after: one}}",
            ["one", "after two", "no such stage before it"],
        ),
        ("stages: {one: {GOOD, after: one}}", ["one is to begin after one"]),
        ("stages: {one: {GOOD, after: nobody}}", ["nobody", "no such stage"]),
        ("stages: {one: {GOOD}, two: {GOOD, after: one, init: base.pth}}", ["two", "choose one"]),
        ("stages: {only: {GOOD, out: x}}", ["only", "out", "for the plan to decide"]),
        ("stages: {only: {GOOD, resume: true}}", ["only", "resume", "for the plan to decide"]),
        ("stages: {only: {GOOD, config: x.json}}", ["only", "config", "for the plan to decide"]),
        (
            "stages: {only: {GOOD, on_collapse: warn}}",
            ["only", "--on-collapse", "selftaught adapt"],
        ),
        ("stages: {only: {GOOD, fsdp: true}}", ["only", "--fsdp", "selftaught adapt"]),
        (
            "defaults: {device: cuda}\nstages: {only: {GOOD}}",
            ["only", "--device", "selftaught adapt"],
        ),
        ("stages: {one: {GOOD}, two: {GOOD, stepz: 3}}", ["stage two: ", "--stepz", "steps"]),
        ("stages: {one: {GOOD}, two: {GOOD, seed: x}}", ["stage two: --seed takes a whole number"]),
        ("stages: {one: {GOOD}, two: {GOOD, help: 1}}", ["stage two: ", "--help"]),
        ("stages: {one: {GOOD}, two: {GOOD, method: moco}}", ["stage two: ", "moco-v2"]),
        ("stages: {one: {GOOD}, two: {GOOD, optimizer: {lr: 1}}}", ["optimizer.lr"]),
        (
            "stages: {one: {GOOD}, two: {GOOD, hard.cutmix.weight: 2}}",
            ["stage two: ", "--hard.cutmix.weight", "cutmix"],
        ),
        ("stages: {one: {GOOD}, two: {data: {nowhere}, steps: 2}}", ["stage two: ", "nowhere"]),
        ("stages: {one: {GOOD}, two: {steps: 2, after: one}}", ["stage two: ", "no images"]),
        ("stages: {one: {GOOD}, two: {GOOD, init: nowhere.pth}}", ["stage two: ", "nowhere.pth"]),
        ("stages: {one: {GOOD}, two: {GOOD, init: {target}}}", ["stage two: ", "not a run"]),
        ("stages: {one: {GOOD}, two: {GOOD, subset: five}}", ["stage two: ", "five"]),
        ("stages: {only: {GOOD}, only: {GOOD}}", ["only is there twice (line 1)"]),
        ("stages: {only: {GOOD, steps: 3}}", ["steps is there twice"]),
        ("stages: {1: {GOOD}, '1': {GOOD}}", ["1 is there twice"]),
        ("stages: {}", ["no stages"]),
        ("stages: [source, target]", ["stages:", "mapping"]),
        ("stages: {only: }", ["only", "needs flags"]),
        ("stages: {only: 5}", ["only", "needs flags"]),
        ("defaults: 5\nstages: {only: {GOOD}}", ["defaults", "needs flags"]),
        ("stages: {only: {GOOD", ["cannot be read", "plan.yaml"]),
        ("stages: !!python/object/apply:os.getpid []", ["cannot be read"]),
        ("just words", ["is no plan"]),
        ("", ["is no plan"]),
    ],
)
def test_a_bad_plan_is_refused_before_anything_is_trained(
    text: str, words: list[str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "plan.yaml"
    text = text.replace("GOOD", GOOD).replace("{target}", f'"{images / "target"}"')
    file.write_text(text.replace("{nowhere}", f'"{images / "nowhere"}"'))
    assert main(["adapt", "--plan", str(file), "--out", str(tmp_path / "out"), *HERE]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("selftaught: ")
    for word in words:
        assert word in last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ([], "--target"),
        (["--target", "{target}"], "--init"),
        (["--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["--plan", "plan.yaml", "--target", "{target}"], "--target and --plan"),
        (["--plan", "plan.yaml", "--seed=3"], "--seed and --plan"),
        (["--init", "nowhere.pth", "--target", "{target}"], "nowhere.pth"),
        (["--init", "{target}", "--target", "{target}"], "not a run"),
        (["--init", "{brought}", "--target", "{target}", "--backbone", "resnet19"], "resnet18"),
        (["--init", "{brought}", "--target", "{target}", "--method", "moco"], "moco-v2"),
        (
            ["--init", "{brought}", "--target", "{target}", "--steps", "2", "--epochs", "2"],
            "not both",
        ),
        (["--init", "{brought}", "--target", "{target}", "--source-steps", "7"], "--source-steps"),
    ],
)
def test_a_bad_command_is_refused(
    words: list[str], word: str, images: Path, brought: Path, tmp_path: Path, capsys: Capture
) -> None:
    lookup = {"{target}": str(images / "target"), "{brought}": str(brought)}
    request = ["adapt", "--out", str(tmp_path / "out"), *HERE, *(lookup.get(w, w) for w in words)]
    assert main(request) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("selftaught: ")
    assert word in last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [{"anchor": 1.0}, {"anchor": 1.0, "anchor.kind": "gram"}, {"norm_statistics": "weights"}],
)
def test_a_source_from_random_weights_has_nothing_to_hold(flags: dict[str, Any]) -> None:
    source, target = plan.chain(flags, target="t", source="s").nodes
    held = ("anchor", "norm_statistics")
    assert not any(name.startswith(held) for name in source.overrides)
    assert flags.items() <= target.overrides.items()
    source, _ = plan.chain(flags, target="t", source="s", init="w.pth").nodes
    assert flags.items() <= source.overrides.items()


# ------------------------------------------------------------------------------------- what
# crosses, what moves


def test_only_the_backbone_crosses(chain: Chain, brought: Path) -> None:
    _, out, _ = chain
    source, target = stages(out).values()
    begun = target / "checkpoints" / "step-0.safetensors"
    assert same(tensors(begun), tensors(source))
    assert any(key.endswith("running_var") for key in tensors(begun))
    for one, other in zip(
        stated(brought / "backbone.safetensors"),
        of_data(run_folder.read_run(brought).stage),
        strict=True,
    ):
        assert one == pytest.approx(other, rel=1e-6)
    first, *others = (stated(place / "backbone.safetensors") for place in (brought, source, target))
    assert others == [first, first] == [stated(begun)] * 2
    stage = run_folder.read_run(target).stage
    index = stage.data.index(stage.seed)
    heir, new = (
        dict(build_session(s, index, torch.device("cpu"), 0).step.state_dict())
        for s in (stage, replace(stage, init=None, anchor=None))
    )
    crossed = {key for key in heir if not torch.equal(heir[key], new[key])}
    assert any("running_var" in key for key in crossed)
    assert all(
        key.startswith(("method.backbone.", "method.network.0.", "method.teacher.network.0."))
        for key in crossed
    )
    # head, queue and all else are as in a run that never had a parent
    assert "method.queue" in heir.keys() - crossed


def moving(network: nn.Module) -> set[str]:
    """What HPT-BN may move: affine parameters and statistics of norm layers."""
    norms = [(name, m) for name, m in network.named_modules() if "Norm" in type(m).__name__]
    return {f"{name}.{key}" for name, m in norms for key in m.state_dict()}


def check_norms_alone(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    may = moving(backbone_module.create("test_resnet").network)
    assert same(
        {k: v for k, v in after.items() if k not in may},
        {k: v for k, v in before.items() if k not in may},
    )
    moved = {key.rpartition(".")[2] for key in may if not torch.equal(after[key], before[key])}
    assert moved == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def test_hpt_bn_moves_the_norms_alone(images: Path, brought: Path, tmp_path: Path) -> None:
    words = [*to_target(brought, images), "--trainable", "norm", "--steps", "4"]
    hard = ["--hard", "adversarial", "cutmix"]
    assert (
        main(["adapt", *words, *hard, "--keep", "last", *SMALL, "--out", str(tmp_path / "bn")]) == 0
    )
    check_norms_alone(tensors(brought), tensors(stages(tmp_path / "bn")["target"]))


def state_after(words: list[str], out: Path) -> dict[str, Tensor]:
    lookup: list[Any] = []
    trainer.build_session = lambda *args, **more: (
        lookup.append(build_session(*args, **more)) or lookup[0]
    )
    # so that what each process saw is still to be seen in its norms
    trainer.broadcast_tensors = selection.broadcast_tensors = lambda _: None
    stage = flags.stage_from(["--out", "x", *words], None, "cpu", index_of)
    trainer.train(stage, out, Runtime(workers=0))
    return dict(lookup[0].step.state_dict())


def test_hpt_bn_moves_the_norms_alone_in_two_processes(
    images: Path, brought: Path, tmp_path: Path
) -> None:
    words = [*argv(f"--init {brought} --data {images}/target --trainable norm --steps 4"), *SMALL]
    words += ["--backbone", "test_resnet", "--method", "simclr"]
    one, other = spawned(state_after, tmp_path, words, tmp_path / "run")
    check_norms_alone(tensors(brought), tensors(tmp_path / "run"))
    own = {key for key in one if not torch.equal(one[key], other[key])}
    assert own  # each process has seen images of its own,
    # and yet all that learns is the same: the norms' gradients are shared
    assert all("running_" in key for key in own)


def test_none_refreshes_the_statistics_and_moves_nothing_else(
    images: Path, brought: Path, tmp_path: Path
) -> None:
    words = argv(f"--init {brought} --data {images}/target --trainable none --size 32")
    # all at once
    whole = ["--batch", "39", "--steps", "1", "--precision", "fp32", "--statistics", "data"]
    assert main(["pretrain", *words, *whole, *HERE, "--out", str(tmp_path / "refreshed")]) == 0
    before, after = tensors(brought), tensors(tmp_path / "refreshed")
    ends = (".running_mean", ".running_var", ".num_batches_tracked")
    seen = {key for key in before if key.endswith(ends)}
    assert same(
        {k: v for k, v in before.items() if k not in seen},
        {k: v for k, v in after.items() if k not in seen},
    )
    stage = run_folder.read_run(tmp_path / "refreshed").stage
    index = stage.data.index(stage.seed)
    assert len(index.train) == 39
    pixels = Images(index.paths, index.sizes, default_canvas(index.sizes, 32))
    backbone = run_folder.open_backbone(tmp_path / "refreshed").train()
    expected: dict[str, Tensor] = {}

    def measure(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            x = args[0].transpose(0, 1).flatten(1).double()
            expected[f"{name}.running_mean"], expected[f"{name}.running_var"] = x.mean(1), x.var(1)

        return hook

    for name, module in backbone.network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(measure(name))
    with torch.no_grad():
        backbone(centre(pixels.read(index.train)[0], pixels.aspect[index.train], 32))
    assert expected.keys() == {key for key in seen if "running" in key}
    for key, value in expected.items():
        torch.testing.assert_close(after[key].double(), value, rtol=1e-3, atol=1e-4)
        assert not torch.equal(after[key], before[key])


def test_none_over_several_batches_is_their_mean(
    images: Path, brought: Path, tmp_path: Path
) -> None:
    words = [*to_target(brought, images), "--trainable", "none", "--keep", "last"]
    assert main(["adapt", *words, "--steps", "4", *SMALL, "--out", str(tmp_path / "out")]) == 0
    place = stages(tmp_path / "out")["target"]
    stage = run_folder.read_run(place).stage
    trainee = build_session(stage, stage.data.index(stage.seed), torch.device("cpu"), 0)
    first = next(m for m in trainee.backbone.network.modules() if isinstance(m, nn.BatchNorm2d))
    name = next(n for n, m in trainee.backbone.network.named_modules() if m is first)
    means: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, args: means.append(args[0].mean((0, 2, 3))))
    with torch.no_grad():
        for raw in trainee.batches.epoch(0):
            trainee.backbone(centre(raw.pixels, raw.aspect, 32))
    assert len(means) == 4
    torch.testing.assert_close(tensors(place)[f"{name}.running_mean"], torch.stack(means).mean(0))


# ------------------------------------------------------------------------------------------- what
# is kept


@pytest.mark.parametrize("rate", ["50", "1e30"])  # that makes it no better; that breaks it
def test_when_training_makes_it_worse_the_start_is_returned(
    rate: str, images: Path, brought: Path, tmp_path: Path
) -> None:
    words = [*to_target(brought, images), "--steps", "10", "--on-collapse", "warn"]
    text = printed(
        ["adapt", *words, "--optimizer.lr", rate, *SMALL, "--out", str(tmp_path / "out")]
    )
    assert text.startswith(
        ("training did not help: ", "nothing that was trained could be scored; kept: the start")
    )
    assert "kept: the start" in text.splitlines()[0]
    result = run_folder.read_run(tmp_path / "out")
    assert result.facts["choice"]["worse"]
    assert same(tensors(result.folder), tensors(brought))
    json.loads(
        (result.folder / "run.json").read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
    )


def test_a_collapse_hands_out_the_start_and_is_said(
    images: Path, brought: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = [*to_target(brought, images), "--steps", "30", "--optimizer.lr", "1e30"]
    assert main(["adapt", *words, *SMALL, "--out", str(tmp_path / "out")]) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("selftaught: target: ")
    assert "--optimizer.lr" in last
    result = run_folder.read_run(tmp_path / "out")
    assert not result.facts["finished"]
    assert same(tensors(result.folder), tensors(brought))


def test_without_labels_the_rank_decides(images: Path, brought: Path, tmp_path: Path) -> None:
    words = [*to_target(brought, images), "--labels-from", "none", "--steps", "6"]
    text = printed(["adapt", *words, *SMALL, "--out", str(tmp_path / "out")])
    assert (
        "effective rank: without labels, or with too few to score by, nothing better can be said"
        in text.splitlines()[0]
    )
    result = run_folder.read_run(tmp_path / "out")
    chosen = result.facts["choice"]
    assert "linear" not in chosen["start"]
    assert chosen["worse"] == (chosen["best"]["rank"] <= chosen["start"]["rank"])
    assert same(tensors(result.folder), tensors(result.folder / chosen["file"]))


def test_the_best_weights_between_start_and_end_are_kept(
    images: Path, brought: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    scores = iter([0.7, 0.6, 0.8, 0.9, 0.65])  # start, end, and a quarter, half and more of the way
    monkeypatch.setattr(
        selection, "label_scores", lambda *_: dict.fromkeys(("knn", "linear"), next(scores))
    )
    words = [*to_target(brought, images), "--steps", "6", *SMALL]
    text = printed(["adapt", *words, "--out", str(tmp_path / "out")])
    result = run_folder.read_run(tmp_path / "out").facts["choice"]
    assert (result["kept"], result["share"], result["worse"]) == (6, 0.5, False)
    assert text.splitlines()[0] == result["text"]
    place = stages(tmp_path / "out")["target"]
    start, kept = tensors(brought), tensors(place)
    end = tensors(place / "checkpoints/step-6.safetensors")
    assert not same(start, end)
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (start[name] + end[name]) / 2)


def test_an_adapted_backbone_is_anchored(chain: Chain) -> None:
    source, target = (run_folder.read_run(place).stage for place in stages(chain[1]).values())
    assert source.anchor == target.anchor == Anchor()
    # a run of the same size: its norms follow the data
    assert source.norm_statistics == target.norm_statistics == "data"


def test_norms_of_weights_from_elsewhere_keep_their_statistics(
    images: Path, brought: Path, tmp_path: Path
) -> None:
    """Also in a later stage, and where a run is adapted at another size."""
    foreign = tmp_path / "w.safetensors"  # as timm would write it
    save_file(load_file(brought / "backbone.safetensors"), foreign)
    steps = argv("--steps 2 --source-steps 2 --backbone test_resnet")
    words = ["--init", foreign, "--source", images / "source", "--target", images / "target"]
    succeed("adapt", *words, *steps, "--out", tmp_path / "out", *SMALL)
    before = tensors(brought)
    ends = (".running_mean", ".running_var", ".num_batches_tracked")
    source, target = stages(tmp_path / "out").values()
    for place, after in (
        (source, tensors(source)),
        (target, tensors(target / "checkpoints" / "step-2.safetensors")),
    ):
        assert run_folder.read_run(place).stage.norm_statistics == "weights"
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert not any(name.endswith(ends) for name in changed)
    words = ["--init", brought, "--target", images / "target", "--steps", 0, "--size", 40]
    succeed("adapt", *words, "--out", tmp_path / "size", *SMALL[2:])
    assert run_folder.read_run(tmp_path / "size").stage.norm_statistics == "weights"


@pytest.mark.parametrize("what", ["norm", "none"])
def test_statistics_follow_the_data_where_the_stage_is_about_them(what: str) -> None:
    begun, other = (
        plan.with_defaults(plan.chain({"trainable": t}, "t", init="w.pth")).nodes[0]
        for t in (what, "last-1")
    )
    assert "norm_statistics" not in begun.overrides
    assert other.overrides["norm_statistics"] == plan.BY_WEIGHTS


def test_a_source_that_made_it_worse_is_noticed(
    images: Path, brought: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """What the user brought competes with what came of the stage in between, and with the target's
    checkpoints.
    """
    scores = iter([0.9, 0.5, 0.6, 0.7, 0.7, 0.7])  # what was brought, start, end and between
    monkeypatch.setattr(
        selection, "label_scores", lambda *_: dict.fromkeys(("knn", "linear"), next(scores))
    )
    words = argv(f"adapt --init {brought} --source {images}/source --target {images}/target")
    text = printed([*words, *argv(f"--source-steps 2 --steps 4 --out {tmp_path}/out"), *SMALL])
    assert text.startswith(
        "training did not help: 90.0 % as it was brought, 70.0 % at best, after 4 steps"
    )
    assert same(tensors(stages(tmp_path / "out")["target"]), tensors(brought))


def test_zero_steps_take_the_weights_in_and_write_them(
    images: Path, brought: Path, tmp_path: Path
) -> None:
    words = ["--init", str(brought), "--steps", "0", *SMALL]
    succeed("pretrain", *words, "--data", images / "target", "--out", tmp_path / "taken")
    request = ["adapt", *words, "--target", str(images / "target")]
    text = printed([*request, "--out", str(tmp_path / "adapted")])
    assert text.startswith("the backbone is in ")  # nothing was chosen
    pixels = torch.rand(4, 3, 32, 32)
    expected = selftaught.load(brought)(pixels)
    for place in ("taken", "adapted"):
        assert same(tensors(run_folder.read_run(tmp_path / place).folder), tensors(brought))
        assert torch.equal(selftaught.load(tmp_path / place)(pixels), expected)
    # the same weights, the pixels by their own data
    assert main([*request, "--statistics", "data", "--out", str(tmp_path / "own")]) == 0
    own = run_folder.read_run(tmp_path / "own")
    assert same(tensors(own.folder), tensors(brought))
    assert stated(own.folder / "backbone.safetensors")[0] == pytest.approx(
        of_data(own.stage)[0], rel=1e-6
    )


# ----------------------------------------------------------------------------------------------
# breaking off


def three_stages(
    images: Path, file: Path, lengths: tuple[int, int, int] = (6, 5, 12), **more: Any
) -> Path:
    one, two, three = lengths
    defaults = {"backbone": "test_resnet", "size": 32, "batch": 8, "precision": "fp32", **more}
    hard = ["adversarial", "cutmix"]
    base = {"data": str(images / "base"), "steps": one, "method": "moco-v2", "hard": hard}
    source = {"after": "base", "data": str(images / "source"), "steps": two, "method": "byol"}
    target = {"after": "source", "data": str(images / "target"), "steps": three}
    stages = {"base": base, "source": source, "target": {**target, "trainable": "norm"}}
    file.write_text(yaml.safe_dump({"defaults": defaults, "stages": stages}, sort_keys=False))
    return file


def check_same_plan(one: Path, other: Path) -> None:
    for a, b in zip(stages(one).values(), stages(other).values(), strict=True):
        facts, others = run_folder.read_run(a).facts, run_folder.read_run(b).facts
        assert a.name == b.name
        assert facts["outcome"] == others["outcome"] == "done"
        assert same(tensors(a), tensors(b))
        assert facts.get("choice") == others.get("choice")
    assert "choice" in run_folder.read_run(one).facts


class Crash(Exception):
    """As if the machine went down."""


def test_broken_off_anywhere_it_ends_as_if_it_never_broke(
    images: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    file = three_stages(images, tmp_path / "plan.yaml", (4, 3, 5), labels_from="none")
    words = argv(f"adapt --plan {file}", *HERE)
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    counts: dict[str, int] = {}
    left: set[tuple[str, int]] = set()

    def sabotage(module: Any, name: str, at: dict[int, int | None]) -> None:
        """Break off at these calls of a function, all tries counted: by a signal, or (None) by a
        crash within.
        """
        real, label = getattr(module, name), f"{module.__name__}.{name}"
        left.update((label, number) for number in at)

        def broken(*args: Any, **more: Any) -> Any:
            counts[label] = number = counts.get(label, 0) + 1
            left.discard((label, number))
            if number in at:
                if (request := at[number]) is None:
                    raise Crash
                signal.raise_signal(request)
            return real(*args, **more)

        monkeypatch.setattr(module, name, broken)

    # 12 steps, and those that are done again
    sabotage(loop, "backward", {3: signal.SIGTERM, 6: signal.SIGUSR1, 10: None})
    sabotage(checkpoint, "save_checkpoint", {2: None, 14: None})
    sabotage(weights_io, "save_backbone", {4: None})  # of a candidate
    sabotage(trainer.run_folder, "write_run", {4: None})
    tries = 0
    while not (tmp_path / "parts" / "plan.json").exists() or not finished(tmp_path / "parts"):
        tries += 1
        assert tries < 20
        with contextlib.suppress(Crash):
            assert main([*words, "--save-every", "0", "--out", str(tmp_path / "parts")]) == 0
    assert not left, "some places were never reached"
    check_same_plan(tmp_path / "whole", tmp_path / "parts")


def finished(out: Path) -> bool:
    """Whether all stages of a plan are done."""
    places = stages(out).values()
    return all(
        (place / "run.json").exists() and run_folder.read_run(place).facts["finished"]
        for place in places
    )


def test_what_a_signal_stopped_is_shown_and_gone_on_with(
    images: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = three_stages(images, tmp_path / "plan.yaml")
    words = argv(f"adapt --plan {file} --out {tmp_path}/out", *HERE)
    with stopped_at(1, by=signal.SIGUSR1):
        assert main(words) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "the same command goes on with it" in output.err.strip().splitlines()[-1]
    assert [
        r["outcome"] for r in json.loads(printed(["show", str(tmp_path / "out"), "--json"]))
    ] == ["stopped", "not begun", "not begun"]
    assert "target: not begun" in printed(["show", str(tmp_path / "out")])
    assert main(["evaluate", str(tmp_path / "out")]) == 2
    assert main(argv(f"adapt --init {tmp_path}/out --target {images}/target --out x")) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments_it_ends_as_if_it_never_was(
    images: Path, tmp_path: Path
) -> None:
    file = three_stages(images, tmp_path / "plan.yaml", (60, 50, 60))
    words = argv(f"adapt --plan {file} --save-every 0.2", *HERE)
    log = tmp_path / "log"

    def start(out: Path) -> subprocess.Popen[bytes]:
        """The command in a process of its own, once it has begun to work."""
        with log.open("wb") as opened:
            process = subprocess.Popen(
                [sys.executable, "-m", "selftaught", *words, "--out", str(out)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=opened,
                stderr=opened,
                start_new_session=True,
            )
        while process.poll() is None and b" steps, in " not in log.read_bytes():
            time.sleep(0.01)
        return process

    whole = start(tmp_path / "whole")
    began = time.perf_counter()
    assert whole.wait(timeout=600) == 0, log.read_text()
    lasted = time.perf_counter() - began
    rng = random.Random()
    kills, moments = 0, []
    parts = tmp_path / "parts"
    while kills < 10 or not finished(parts):
        if (
            kills < 10 and (parts / "plan.json").exists() and finished(parts)
        ):  # too soon: once more from the start
            check_same_plan(tmp_path / "whole", parts)
            shutil.rmtree(parts)
        process = start(parts)
        try:
            process.wait(timeout=rng.uniform(0, lasted / 6) if kills < 10 else 600)
            assert process.returncode == 0, log.read_text()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            kills += 1
            moments.append(reached(parts))
    assert len(set(moments)) > 3, moments  # at steps and in stages of all kinds
    check_same_plan(tmp_path / "whole", parts)


def reached(out: Path) -> tuple[tuple[str, int], ...]:
    """Where a plan was broken off: its stages' journals."""
    result = sorted(out.glob("stages/*/journal.jsonl"))
    return tuple((file.parent.name, len(file.read_bytes())) for file in result)


# ------------------------------------------------------------------------------------------------ a
# part of the data


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: Places) -> Index:
    """40, 40, 40 and 4 images."""
    root = folder(tmp_path_factory.mktemp("uneven"), each=40, size=16)
    for i in range(4):
        (root / "rare").mkdir(exist_ok=True)
        shutil.copy(root / "class 0" / f"{i:03}.png", root / "rare" / f"{i}.png")
    return build.build_index([root])


def held(index: Index) -> set[str]:
    return {str(index.paths[i]) for i in index.held_out.tolist()}


def shown(index: Index) -> set[str]:
    return {str(index.paths[i]) for i in index.train.tolist()}


@pytest.mark.parametrize(
    "parts",
    [("1%", "10%", "25%", "100%"), ("1", "2", "5", "100"), ("total:4", "total:9", "total:50")],
)
def test_smaller_parts_lie_within_larger_ones(parts: tuple[str, ...], uneven: Index) -> None:
    smaller: set[str] = set()
    for part in parts:
        index = uneven.subset(part, 3)
        assert smaller <= shown(index) <= shown(uneven)
        assert held(index) == held(uneven)  # what is kept for evaluation stays
        smaller = shown(index)
        assert shown(uneven.subset(part, 3)) == smaller
    assert shown(uneven.subset(parts[1], 4)) != shown(uneven.subset(parts[1], 3))


def test_every_class_is_there(uneven: Index) -> None:
    assert uneven.labels is not None
    for part, counts in (("1", [1, 1, 1, 1]), ("5", [3, 5, 5, 5]), ("total:4", [1, 1, 1, 1])):
        index = uneven.subset(part, 0)
        assert index.labels is not None
        assert sorted(torch.bincount(index.labels[index.train]).tolist()) == counts
    for total in (4, 7, 30):
        index = uneven.subset(f"total:{total}", 0)
        assert index.labels is not None
        assert len(index.train) == total
        assert len(index.labels[index.train].unique()) == 4


def test_a_share_is_of_the_training_images(uneven: Index) -> None:
    count = len(uneven.train)
    sizes = [len(uneven.subset(p, 0).train) for p in ("0.1%", "10%", "12.5%", "100%")]
    assert sizes == [1, round(0.1 * count), round(0.125 * count), count]
    assert uneven.subset("all", 0) is uneven
    index = uneven.subset("10%", 0)
    assert f"10% of the training images: {len(index.train)} of {count}" in index.describe()
    assert (
        len({uneven.subset(p, 0).fingerprint for p in ("all", "10%", "20%", "5", "total:9")}) == 5
    )


@pytest.mark.parametrize(
    "part",
    ["0%", "101%", "-5%", "x%", "%", "five", "0", "-1", "1.5", "total:3", "total:0", "total:x", ""],
)
def test_a_part_that_makes_no_sense_is_refused(part: str, uneven: Index) -> None:
    with pytest.raises(UserError):
        uneven.subset(part, 0)


def test_labels_cannot_be_counted_where_there_are_none(uneven: Index) -> None:
    bare = replace(uneven, labels=None, classes=())
    assert len(bare.subset("10%", 0).train) == round(0.1 * len(uneven.train))
    for part in ("5", "total:20"):
        with pytest.raises(UserError, match=r"these images have none: give a share such as 10%"):
            bare.subset(part, 0)


def test_a_stage_takes_a_part_of_its_data(images: Path, brought: Path) -> None:
    only = {"data": str(images / "target"), "size": 32, "batch": 4, "precision": "fp32"}
    only |= {"steps": 2, "subset": "50%"}
    half, all_of_it = (
        settled({"init": str(brought), "stages": {"only": s}})["only"]
        for s in (only, {**only, "subset": "all"})
    )
    assert len(half.stage.data.index(0).train) == round(
        0.5 * len(all_of_it.stage.data.index(0).train)
    )
    assert half.identity != all_of_it.identity


def test_a_plan_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("stages: " + "[" * 1000)
    with pytest.raises(UserError, match="nested too deeply"):
        plan.read(tmp_path / "plan.yaml")
