"""The five studies: the cells they consist of, carrying them out, and what is said and drawn of
them.
"""

import contextlib
import csv
import io
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from selftaught import errors
from selftaught.cli.main import main
from selftaught.config.stage import Data
from selftaught.data.index import build
from selftaught.data.index.build import Index
from selftaught.data.index.scan import Root, Scan
from selftaught.errors import Collapsed, Diverged, UserError
from selftaught.evaluation.finetune import FineTune
from selftaught.loggers.terminal import Progress
from selftaught.pipeline import execute
from selftaught.pipeline.plan import BY_WEIGHTS, Plan
from selftaught.study import design, figures, report, runner, tables
from selftaught.study.design import AUGMENTATIONS, STUDIES, Base, Cell, Lengths, Setup, Target
from selftaught.study.runner import Shard
from selftaught.training.runtime import Runtime
from selftaught.views.spec import Views
from tests.commands import argv, succeed
from tests.fixtures import Capture, Patch, Places
from tests.pictures import folder
from tests.several import together
from tests.stopping import stopped_at

SETUP = Setup(
    bases={"moco": Base(init="nowhere"), "lite": Base(init="resnet18.a1_in1k")},
    targets={
        "tile": Target(data=("t",), source=("s",)),
        "field": Target(data=("f",), source=("s",), labels="f.csv"),
    },
    settings={"size": 32, "batch": 16},
    steps=Lengths(hpt=(12, 50), target=(50, 200), hpt_bn=(20,), source=30, refresh=5),
    seeds=(0, 1),
    few=("total:100", "all"),
    shares=("10%", "100%"),
)
Done = tuple[Path, dict[str, Any]]
ONE = replace(
    SETUP, bases={"moco": Base(init="nowhere")}, targets={"tile": SETUP.targets["tile"]}, seeds=(0,)
)


def ways(study: str, setup: Setup = ONE) -> dict[tuple[str, str], Cell]:
    """Cells by variant and x."""
    result = design.cells(study, setup)
    assert len({(c.variant, c.x) for c in result}) == len(result)
    return {(c.variant, c.x): c for c in result}


def flags(cell: Cell) -> list[dict[str, str]]:
    """What is asked for of every stage, as cells are known by it."""
    told = [design.node_facts(node)["words"] for node in cell.nodes]
    return [
        {w[2:]: n for w, n in zip(words, (*words[1:], ""), strict=True) if w.startswith("--")}
        for words in told
    ]


# ------------------------------------------------------------------------------------------- the
# designs


TARGETS = ["Target 50", "Target 200"]


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        (
            "separability",
            ["random", "base as is", "Base", "HPT 12", "HPT 50", "HPT-BN 20", *TARGETS],
        ),
        ("labels", ["random", "base as is", "Base", "HPT", "HPT-BN", "adapt", "Target"]),
        ("sequential", ["B", "B+S", "B+T", "B+S+T"]),
        (
            "augmentations",
            ["Base", *(f"{v} {a}" for a in AUGMENTATIONS for v in ("HPT", "Target"))],
        ),
        (
            "data",
            ["Base", *(f"{v} {s}" for s in ("10%", "100%") for v in ("HPT", "HPT-BN", "Target"))],
        ),
    ],
)
def test_a_study_has_the_articles_cells(study: str, expected: list[str]) -> None:
    result = ways(study)
    assert [f"{variant} {x}".strip() for variant, x in result] == expected
    tuned = study in ("labels", "sequential")
    for cell in result.values():
        assert cell.protocols == (("finetune",) if tuned else ("knn", "linear"))
        assert cell.labels == (("total:100", "all") if tuned else ("all",))
        assert (cell.finetune is None) == (not tuned)
    assert len(design.cells(study, SETUP)) == 8 * len(expected)  # two targets, two bases, two seeds
    for reference in design.REFERENCES[study]:
        assert not result[reference, ""].x


def test_what_each_way_does() -> None:
    result = ways("separability")
    ways_of = [("HPT", "50"), ("HPT-BN", "20"), ("Target", "200"), ("Base", "")]
    ways_of += [("base as is", ""), ("random", "")]
    hpt, bn, target, base, as_is, random = (flags(result[way])[0] for way in ways_of)
    assert (hpt["steps"], bn["steps"], target["steps"], base["steps"]) == ("50", "20", "200", "5")
    assert (as_is["steps"], random["steps"]) == ("0", "0")
    assert (bn["trainable"], base["trainable"]) == ("norm", "none")
    assert not any("trainable" in stage for stage in (hpt, target, as_is, random))
    inits = {way: cell.nodes[0].init for way, cell in result.items()}
    fresh = {("random", ""), ("Target", "50"), ("Target", "200")}
    assert {way for way, init in inits.items() if init is None} == fresh
    assert {init for init in inits.values() if init} == {"nowhere"}
    for cell in result.values():
        assert len(cell.nodes) == 1
        common = {"data": "t", "size": "32", "seed": "0", "statistics": "data"}
        assert flags(cell)[0].items() >= common.items()


def test_the_study_of_few_labels_has_a_stage_with_the_defaults_of_adapt() -> None:
    result = ways("labels")
    (node,) = result["adapt", ""].nodes
    (hpt,) = result["HPT", ""].nodes
    expected = {"anchor": 2.0, "norm_statistics": BY_WEIGHTS, "keep": "best"}
    assert node.overrides == {**hpt.overrides, "statistics": "weights", **expected}
    assert (node.init, hpt.init) == ("nowhere", "nowhere")


def test_a_source_comes_in_between_once() -> None:
    result = ways("sequential")
    source, chain = result["B+S", ""].nodes, result["B+S+T", ""].nodes
    assert chain[:-1] == source  # the very stage
    assert (chain[-1].after, chain[-1].init) == (source[0].name, None)
    assert flags(result["B+S", ""])[0].items() >= {"data": "s", "steps": "30"}.items()
    assert "labels-from" not in flags(result["B+S", ""])[0]
    assert result["B+T", ""].nodes[0].overrides == chain[-1].overrides
    assert {cell.data for cell in result.values()} == {("t",)}  # all are judged on the target


def test_studies_share_what_they_can() -> None:
    longest = ways("separability")
    for study, way in (("labels", ""), ("augmentations", "all"), ("data", "100%")):
        result = ways(study)
        assert result["HPT", way].nodes == longest["HPT", "50"].nodes
        assert result["Target", way].nodes == longest["Target", "200"].nodes
        assert result["Base", ""].nodes == longest["Base", ""].nodes
    assert ways("sequential")["B+T", ""].nodes == longest["HPT", "50"].nodes
    assert ways("sequential")["B", ""].nodes == longest["Base", ""].nodes
    assert ways("data")["HPT-BN", "100%"].nodes == longest["HPT-BN", "20"].nodes
    assert flags(ways("data")["HPT-BN", "10%"])[0]["subset"] == "10%"


def test_augmentations_go_in_the_articles_order() -> None:
    """rm_color is not nested: gray comes back (spec 2.7)."""
    default = Views()
    kinds = {"jitter", "gray", "blur", "flip"}
    left = {}
    for name, fewer in AUGMENTATIONS.items():
        changed = {flag.removeprefix("views."): value for flag, value in fewer.items()}
        views = replace(default, **changed)
        assert views.scale == default.scale  # the crop stays
        left[name] = {kind for kind in kinds if getattr(views, kind) > 0}
    assert list(left.items()) == [
        ("all", kinds),
        ("no gray", {"jitter", "blur", "flip"}),
        ("no colour", {"gray", "blur", "flip"}),
        ("crop and blur", {"blur"}),
        ("crop", set()),
    ]
    result = ways("augmentations")
    assert [x for variant, x in result if variant == "HPT"] == list(AUGMENTATIONS)
    none = {"views.blur": "0", "views.flip": "0"}
    assert flags(result["Target", "crop"])[0].items() >= none.items()


@pytest.mark.parametrize("study", STUDIES)
def test_hard_examples_are_of_every_training_on_the_target(study: str) -> None:
    plain, hard = ways(study), ways(study, replace(ONE, hard=("adversarial", "cutmix")))
    added = [way for way in hard if way not in plain]
    assert all(hard[way].nodes == cell.nodes for way, cell in plain.items())
    assert added == [(f"{v} + hard", x) for v, x in plain if v not in design.REFERENCES[study]]
    for variant, x in added:
        *before, last = hard[variant, x].nodes
        assert last.overrides["hard"] == ("adversarial", "cutmix")
        assert tuple(before) == plain[variant.removesuffix(" + hard"), x].nodes[:-1]


def test_from_random_weights_it_is_the_bases_network() -> None:
    """Else a 32 px resnet would have another stem than the base's, and the comparison would be of
    networks.
    """
    for init, known in (("nowhere", False), ("resnet18.a1_in1k", True)):
        result = ways("separability", replace(ONE, bases={"b": Base(init=init)}))
        for variant, x in (("random", ""), ("Target", "50")):
            options = flags(result[variant, x])[0]
            network = ("resnet18", "imagenet") if known else (None, None)
            assert (options.get("backbone"), options.get("stem")) == network
        assert "backbone" not in flags(result["HPT", "12"])[0]  # its weights say
    base = Base(init="resnet18.a1_in1k", backbone="resnet18d")
    said = ways("separability", replace(ONE, bases={"b": base}))
    assert {flags(cell)[0]["backbone"] for cell in said.values()} == {"resnet18d"}
    options = replace(
        ONE,
        bases={"b": Base(init="resnet18.a1_in1k")},
        settings={**SETUP.settings, "stem": "cifar"},
    )
    assert flags(ways("separability", options)["Target", "50"])[0]["stem"] == "cifar"


def test_test_images_are_the_same_for_training_and_judging(tmp_path: Path) -> None:
    """The split depends on the labels, so both must read the same ones."""
    images = folder(tmp_path / "images")
    files = sorted(images.rglob("*.png"))
    table = tmp_path / "labels.csv"  # neither the folders' classes nor where `auto` would look
    table.write_text(
        "path,class\n" + "".join(f"{f},{'ab'[i % 5 == 0]}\n" for i, f in enumerate(files))
    )
    target = Target(data=(str(images),), labels=str(table))
    cell = ways("data", replace(ONE, targets={"t": target}))["Target", "10%"]
    small = {"backbone": "test_resnet", "batch": 2, "precision": "fp32"}
    overrides = {**cell.nodes[0].overrides, **small}
    plan = Plan(nodes=(replace(cell.nodes[0], overrides=overrides),))
    (settled,) = execute.resolve_plan(plan, tmp_path, "cpu", Data.index).values()
    trained_on = settled.stage.data.index(0)
    judged_on = build.build_index([images], labels=cell.labels_from)
    by_folders = build.build_index([images])

    def names(index: Index, held_out: bool) -> set[str]:
        return {str(index.paths[i]) for i in (index.held_out if held_out else index.train).tolist()}

    assert not names(trained_on, False) & names(judged_on, True)
    assert names(by_folders, False) & names(judged_on, True)  # as it would be otherwise


# ------------------------------------------------------------------------------------------- cells


def everything(setup: Setup) -> list[Cell]:
    return [cell for study in STUDIES for cell in design.cells(study, setup)]


def test_keys_are_stable_and_distinct() -> None:
    keys = [cell.key for cell in everything(SETUP)]
    assert keys == [cell.key for cell in everything(SETUP)]
    assert len(set(keys)) == len({repr(cell.inputs) for cell in everything(SETUP)})
    for study in STUDIES:
        cells = design.cells(study, SETUP)
        assert len({cell.key for cell in cells}) == len(cells)
    assert all(len(key) == 12 and key.isalnum() for key in keys)


def test_one_chain_is_judged_once_whatever_studies_call_it() -> None:
    tuned, between = ways("labels"), ways("sequential")
    assert between["B", ""].key == tuned["Base", ""].key
    assert between["B+T", ""].key == tuned["HPT", ""].key
    # the same stages, judged otherwise
    assert tuned["HPT", ""].key != ways("separability")["HPT", "50"].key


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"size": 64, "batch": 16}},
        {"bases": {"moco": Base(init="elsewhere")}},
        {"targets": {"tile": replace(ONE.targets["tile"], data=("u",))}},
        {"targets": {"tile": replace(ONE.targets["tile"], labels="other.csv")}},
        {"seeds": (1,)},
        {"few": ("all",)},
        {"finetune": FineTune(rates=(0.1,))},
    ],
)
def test_another_plan_is_other_cells(change: dict[str, Any]) -> None:
    """What is there already must not be taken for what is asked now."""
    before, after = (
        {cell.key for cell in design.cells("sequential", s)} for s in (ONE, replace(ONE, **change))
    )
    if "bases" in change or "settings" in change or "targets" in change or "seeds" in change:
        assert not before & after
    assert len(before - after) == len(before)


def test_longer_lengths_leave_the_cells_that_are_there() -> None:
    longer = replace(ONE, steps=replace(ONE.steps, hpt=(12, 50, 400)))
    before, after = ({c.key for c in design.cells("separability", s)} for s in (ONE, longer))
    assert before < after


def test_fine_tuning_is_drawn_anew_with_each_seed() -> None:
    for cell in design.cells("labels", SETUP):
        assert cell.finetune == replace(SETUP.finetune, seed=cell.seed)


@pytest.mark.parametrize("n", [1, 3, 8, 100])
def test_shards_share_the_cells_out(n: int) -> None:
    cells = design.cells("separability", SETUP)
    parts = [Shard(i, n).of(cells) for i in range(1, n + 1)]
    result = list(itertools.chain.from_iterable(parts))
    assert len(result) == len(cells)
    assert {c.key for c in result} == {c.key for c in cells}
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_whole_figure_comes_before_its_second_seed() -> None:
    seeds = [cell.seed for cell in design.cells("data", SETUP)]
    assert seeds == sorted(seeds)


# ------------------------------------------------------------------------------------------- plans


def test_a_plan_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "bases: {moco: base, lite0: {init: l.pth, backbone: tf_efficientnet_lite0}}\n"
        "targets:\n  a: [x, y]\n  b: {data: z, source: w, labels: t.csv, settings: {size: 32}}\n"
        "settings: {method: moco-v2, size: 48, batch: 16, views.blur: 0}\n"
        "steps: {hpt: [12, 50]}\nhard: cutmix\nfew: total:100\n"
        "finetune: {steps: [100], epochs: []}\n"
    )
    setup = design.read(file)
    lite = Base(init="l.pth", backbone="tf_efficientnet_lite0")
    assert setup.bases == {"moco": Base(init="base"), "lite0": lite}
    assert setup.targets["a"] == Target(data=("x", "y"))
    assert setup.targets["b"] == Target(
        data=("z",), source=("w",), labels="t.csv", settings={"size": 32}
    )
    assert (setup.hard, setup.few, setup.labels) == (("cutmix",), ("total:100",), ("all",))
    assert setup.steps == Lengths(hpt=(12, 50))
    assert setup.finetune == FineTune(steps=(100,), epochs=())
    cell, *_ = design.cells("sequential", replace(setup, targets={"b": setup.targets["b"]}))
    options = {"size": "32", "method": "moco-v2", "views.blur": "0", "labels-from": "t.csv"}
    assert flags(cell)[0].items() >= options.items()


@pytest.mark.parametrize("name", ["hpt", "hpt_labels", "hpt_moco", "hpt_hexa"])
def test_the_plans_of_the_benchmark_fit(name: str) -> None:
    setup = design.read(Path(__file__).parents[2] / "benchmarks" / "plans" / f"{name}.yaml")
    assert all(design.cells(study, setup) for study in STUDIES)


def test_without_a_word_it_is_the_articles_protocol() -> None:
    setup = Setup(
        bases={"b": Base(init="nowhere")},
        targets={"t": Target(data=("t",))},
        settings={"size": 224, "batch": 256},
    )
    assert setup.steps.hpt == (50, 500, 5000, 50_000)
    assert setup.steps.target == (5000, 50_000, 100_000, 200_000)
    assert (setup.steps.hpt_bn, setup.steps.source) == ((5000,), 5000)
    assert (setup.few, setup.shares) == (("total:1000", "all"), ("1%", "10%", "25%", "100%"))


WELL = {
    "bases": {"own": "resnet18.a1_in1k"},
    "targets": {"t": "t"},
    "settings": {"size": 32, "batch": 16},
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("bases: [", "cannot be read"),
        ("just words", "needs bases and targets"),
        ("bases: {}\ntargets: {}\n", "needs bases and targets"),
        ("bases: {a: b}\nbases: {c: d}\ntargets: {t: t}\nsettings: {}", "bases is there twice"),
        ({"bases": {"own": 5}}, "bases[own] takes fields with names"),
        ({"bases": ["own"]}, "bases"),
        ({"bases": {"own": {"backbone": "resnet18"}}}, "bases[own].init is missing"),
        ({"targets": {"t": None}}, "targets"),
        ({"targets": {"t": {"source": "s"}}}, "targets[t].data is missing"),
        ({"stepz": {}}, "does not fit: there is no field stepz\n"),
        ({"steps": {"hptt": [1]}}, "steps has no field hptt"),
        ({"steps": {"hpt": "fast"}}, "steps.hpt[0] takes a whole number"),
        ({"steps": {"hpt": []}}, "every way needs one length or more"),
        ({"steps": {"target": [0, 5]}}, "of 1 step or more"),
        ({"seeds": []}, "seeds"),
        ({"few": ["some"]}, "not 'some'"),
        ({"labels": "total:0"}, "1 or more"),
        ({"shares": ["10"]}, "10 is no share"),
        ({"shares": ["200%"]}, "200% is no share"),
        ({"finetune": {"rates": []}}, "--finetune.rates needs one number or more"),
        ({"finetune": {"batch": 0}}, "--finetune.batch must be 1 or more"),
        ({"finetune": {"sizes": 3}}, "sizes"),
        ({"settings": {}}, "does not fit: settings: t needs size and batch"),
        ({"settings": {"size": 32}}, "t needs batch"),
        ({"settings": {"data": "x"}}, "data is for the study to decide"),
        (
            {"settings": {"labels_from": "x", "device": "cuda"}},
            "device, labels-from is for the study to decide",
        ),
        ({"settings": {"fsdp": True}}, "fsdp is for the study to decide"),
        ({"targets": {"t": {"data": "t", "settings": {"seed": 3}}}}, "seed is for the study"),
        ({"settings": {"optimizer": {"lr": 1}}}, "optimizer.lr"),
    ],
)
def test_a_plan_that_does_not_fit_gets_one_line(
    text: str | dict[str, Any] | None, words: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "plan.yaml"
    if text is not None:
        file.write_text(text if isinstance(text, str) else yaml.safe_dump({**WELL, **text}))
    assert main(["study", "separability", "--plan", str(file), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("study", "change", "words"),
    [
        ("sequential", {}, "a source for every target"),
        ("separability", {}, "stage random: "),  # there is no folder t
        ("separability", {"settings": {**WELL["settings"], "sise": 32}}, "--sise"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    study: str, change: dict[str, Any], words: str, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**WELL, **change}))
    assert main(["study", study, "--plan", str(file), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("shard", ["3/2", "1", "x/2", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(shard: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(WELL))
    words = [*argv(f"study data --plan {file} --out {tmp_path}/out"), f"--shard={shard}"]
    assert main(words) == 2
    assert "which part of how many" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------
# carried out


@pytest.fixture(scope="module")
def plan(tmp_path_factory: Places) -> Path:
    """Of one target, one base and one seed."""
    root = tmp_path_factory.mktemp("study")
    small = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --workers 0")
    base = folder(root / "base", seed=1)
    succeed(*argv(f"pretrain --data {base} --steps 2"), *small, "--out", root / "brought")
    written = {
        "bases": {"own": str(root / "brought")},
        "targets": {"stripes": {"data": str(folder(root / "target")), "source": str(base)}},
        "settings": {"size": 32, "batch": 8, "precision": "fp32"},
        "steps": {"hpt": [2, 4], "target": [4], "hpt_bn": [3], "source": 2, "refresh": 2},
        "seeds": [0],
        "few": ["2", "all"],
        "finetune": {"steps": [2], "epochs": [], "rates": [0.01], "batch": 8, "folds": 2},
    }
    file = root / "plan.yaml"
    file.write_text(yaml.safe_dump(written))
    return file


def words(study: str, plan: Path, out: Path, *more: str) -> list[str]:
    return ["study", study, "--plan", str(plan), "--out", str(out), "--workers", "0", *more]


def said(words: list[str], code: int = 0) -> str:
    """What a command writes to standard output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == code
    return out.getvalue().strip()


@pytest.fixture(scope="module")
def done(plan: Path, tmp_path_factory: Places) -> Done:
    """A study that was stopped in the middle of a stage, looked at, and brought to its end; and how
    it was between.
    """
    out = tmp_path_factory.mktemp("studies") / "one"
    with stopped_at(4):  # the second step of the second HPT
        said(words("separability", plan, out))
    between: dict[str, Any] = {"cells": sorted(f.name for f in (out / "cells").iterdir())}
    between["unfinished"] = [
        f for f in out.glob("stages/*/run.json") if not json.loads(f.read_text())["finished"]
    ]
    said(words("separability", plan, out, "--shard", "0/1"))
    between["json"] = json.loads((out / "separability.json").read_text())
    between["page"] = (out / "separability.html").read_text()
    assert sorted(f.name for f in (out / "cells").iterdir()) == between["cells"]  # gathered alone
    assert said(words("separability", plan, out)) == str(out / "separability.html")
    return out, between


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"data": "typo"}, "typo"),
        ({"data": "unlabelled"}, "no labels"),
        ({"settings": {"trainable": "lora"}}, "lora"),
    ],
)
def test_what_does_not_fit_comes_to_light_before_anything_is_trained(
    plan: Path, tmp_path: Path, capsys: Capture, wrong: dict[str, Any], told: str
) -> None:
    """A second target's typo showed after the whole of the first."""
    written = yaml.safe_load(plan.read_text())
    (tmp_path / "unlabelled").mkdir()
    for i, file in enumerate(sorted(Path(written["targets"]["stripes"]["data"]).rglob("*.png"))):
        (tmp_path / "unlabelled" / f"{i}.png").write_bytes(file.read_bytes())
    if "data" in wrong:
        wrong = {"data": str(tmp_path / wrong["data"])}
    written["targets"]["second"] = {**written["targets"]["stripes"], **wrong}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(written))
    assert main(words("separability", tmp_path / "plan.yaml", tmp_path / "out")) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "second" in last
    assert told in last
    assert not list((tmp_path / "out").rglob("backbone.safetensors"))


def test_a_stopped_study_says_how_much_is_there(done: Done) -> None:
    _, between = done
    assert len(between["cells"]) == 4  # random, base as is, Base, HPT (2)
    assert len(between["unfinished"]) == 1
    assert (between["json"]["done"], between["json"]["cells"]) == (4, 7)
    assert "4 of 7 cells are done" in between["page"]


def test_a_study_leaves_table_figures_and_page(done: Done, plan: Path) -> None:
    out, _ = done
    assert len(list((out / "cells").iterdir())) == 7
    facts = json.loads((out / "separability.json").read_text())
    assert (facts["done"], facts["cells"], facts["plan"]) == (7, 7, plan.read_text())
    assert facts["command"].startswith("selftaught study separability --plan ")
    ways = [("random", ""), ("base as is", ""), ("Base", ""), ("HPT", "2"), ("HPT", "4")]
    ways += [("HPT-BN", "3"), ("Target", "4")]
    assert {(r["variant"], r["x"], r["protocol"]) for r in facts["rows"]} == {
        (*way, protocol) for way in ways for protocol in ("knn", "linear")
    }
    for row in facts["rows"]:
        assert row["outcome"] == "done"
        assert (out / row["folder"] / "backbone.safetensors").is_file()
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
    with (out / "separability.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(r["variant"], r["x"]) for r in table] == [w for w in ways for _ in range(2)]
    assert {r["seeds"] for r in table} == {"1"}
    for name in ("knn.png", "knn.svg", "linear.png", "linear.svg"):
        assert (out / f"separability-{name}").stat().st_size > 8000
    assert Scan([Root.parse(out.parent)]).files.names == []  # the figures are no images of a set
    text = (out / "separability.html").read_text()
    assert "http" not in text
    assert text.count("data:image/png;base64,") == 2
    assert "cells are done" not in text
    for row in table:
        assert f"<td>{row['variant']}</td>" in text
    assert facts["findings"][0].replace("'", "&#39;") in text


def test_every_stage_is_trained_once(done: Done) -> None:
    out, _ = done
    stages = [json.loads(f.read_text())["config"] for f in out.glob("stages/*/run.json")]
    assert not list(out.glob("stages/*/checkpoints")), "hundreds of stages would fill a disk"
    assert sorted((s["steps"], s["trainable"], s["init"] is None) for s in stages) == [
        (0, "all", False),
        (0, "all", True),
        (2, "all", False),
        (2, "none", False),
        (3, "norm", False),
        (4, "all", False),
        (4, "all", True),
    ]
    assert {s["backbone"] for s in stages} == {"test_resnet"}


@pytest.fixture
def undrawn(monkeypatch: Patch) -> None:
    """Figures take longer than the cells."""
    monkeypatch.setattr(figures, "draw", lambda *_: [])


@pytest.fixture
def own(done: Done, tmp_path: Path) -> Path:
    """A copy of the study that is done, which may be harmed."""
    return Path(shutil.copytree(done[0], tmp_path / "own"))


@pytest.fixture
def trainings(monkeypatch: Patch) -> list[str]:
    """The stages that are trained."""
    seen: list[str] = []
    real = execute.train

    def noted(stage: Any, out: Path, *args: Any) -> Path:
        seen.append(out.name)
        return real(stage, out, *args)

    monkeypatch.setattr(execute, "train", noted)
    return seen


@pytest.fixture
def judged(monkeypatch: Patch) -> list[str]:
    """The cells that are judged."""
    seen: list[str] = []
    real = runner.evaluate

    def noted(cell: Cell, *args: Any) -> list[dict[str, Any]]:
        seen.append(cell.key)
        return real(cell, *args)

    monkeypatch.setattr(runner, "evaluate", noted)
    return seen


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("harm", ["none", "gone", "empty", "half", "no scores", "of other images"])
def test_a_cell_that_is_gone_or_damaged_is_judged_again_and_no_other(
    own: Path, done: Done, plan: Path, trainings: list[str], judged: list[str], harm: str
) -> None:
    out, table = own, (own / "separability.csv").read_bytes()
    cell = cell_of(plan, "separability", "HPT-BN", "3")
    file = out / "cells" / f"{cell.key}.json"
    text = file.read_text()
    before = json.loads(text)
    if harm == "gone":
        file.unlink()
    elif harm == "of other images":
        others = [{**i, "fingerprint": "another"} for i in before["images"]]
        file.write_text(json.dumps({**before, "images": others}))
    elif harm != "none":
        file.write_text({"empty": "", "half": text[: len(text) // 2], "no scores": "{}"}[harm])
        # what is there is gathered all the same
        said(words("separability", plan, out, "--shard", "0/1"))
        assert len(json.loads((out / "separability.json").read_text())["rows"]) > 0
    said(words("separability", plan, out))
    assert judged == ([] if harm == "none" else [cell.key])
    assert not trainings
    assert json.loads(file.read_text().replace(str(own), str(done[0]))) == before
    assert (out / "separability.csv").read_bytes() == table


@pytest.mark.usefixtures("undrawn")
def test_in_parts_and_never_stopped_it_is_the_same(
    done: Done, plan: Path, tmp_path: Path, judged: list[str]
) -> None:
    out, _ = done
    said(words("separability", plan, tmp_path, "--shard", "2/2"))
    half = list(judged)
    assert 0 < len(half) < 7
    said(words("separability", plan, tmp_path, "--shard", "1/2"))
    assert len(judged) == len(set(judged)) == 7
    assert (tmp_path / "separability.csv").read_bytes() == (out / "separability.csv").read_bytes()
    assert backbones(tmp_path) == backbones(out)


def backbones(out: Path) -> dict[str, dict[str, bytes]]:
    """The weights that every stage ended with, exactly."""
    files = {file.parent.name: file for file in out.glob("stages/*/backbone.safetensors")}
    return {
        name: {key: value.numpy().tobytes() for key, value in load_file(f).items()}
        for name, f in files.items()
    }


@pytest.mark.slow
def test_several_processes_do_a_study_as_one_does(done: Done, plan: Path, tmp_path: Path) -> None:
    """What one writes the others must not yet read, nor take away."""
    together(tmp_path / "log", *words("separability", plan, tmp_path / "two", "--shard", "2/2"))
    result, expected = (
        json.loads((out / "separability.json").read_text()) for out in (tmp_path / "two", done[0])
    )
    assert result["done"] == len(Shard(2, 2).of(design.cells("separability", design.read(plan))))
    assert {(r["variant"], r["x"]) for r in result["rows"]} < {
        (r["variant"], r["x"]) for r in expected["rows"]
    }
    assert {r["outcome"] for r in result["rows"]} == {"done"}


def test_another_study_takes_the_stages_that_are_there(
    own: Path, plan: Path, trainings: list[str]
) -> None:
    """And fine-tunes them, with few labels and with all. The stage of `adapt` alone is new."""
    said(words("labels", plan, own))
    assert len(trainings) == 1
    rows = json.loads((own / "labels.json").read_text())["rows"]
    assert {(r["variant"], r["labels"], r["protocol"], r["metric"]) for r in rows} == {
        (variant, labels, "finetune", "balanced_accuracy")
        for variant in ("random", "base as is", "Base", "HPT", "HPT-BN", "adapt", "Target")
        for labels in ("2", "all")
    }
    assert (own / "labels-finetune.png").is_file()


def test_nothing_done_is_nothing_to_gather(plan: Path, tmp_path: Path, capsys: Capture) -> None:
    said(words("data", plan, tmp_path, "--shard", "0/4"), code=2)
    assert "no cell of data is done yet" in capsys.readouterr().err


def test_a_source_is_the_same_stage_with_and_without_what_follows(
    plan: Path, tmp_path: Path
) -> None:
    known: dict[tuple[Data, int], Index] = {}

    def index_of(data: Data, seed: int) -> Index:
        return known.setdefault((data, seed), data.index(seed))

    cells = {c.variant: c for c in design.cells("sequential", design.read(plan))}

    def names(cell: Cell) -> list[str]:
        stages = execute.resolve_plan(Plan(nodes=cell.nodes), tmp_path, "cpu", index_of)
        return [stage.identity for stage in stages.values()]

    identities = {variant: names(cell) for variant, cell in cells.items()}
    assert identities["B+S+T"][:1] == identities["B+S"]
    # B, S, T after B, T after S
    assert len({identity for result in identities.values() for identity in result}) == 4


def quiet() -> tuple[Runtime, Progress]:
    return Runtime(workers=0, monitor_images=64), Progress(show=False)


def cell_of(plan: Path, study: str, variant: str, x: str = "") -> Cell:
    return next(
        c for c in design.cells(study, design.read(plan)) if (c.variant, c.x) == (variant, x)
    )


@pytest.mark.parametrize(("end", "outcome"), [(Collapsed, "collapsed"), (Diverged, "diverged")])
def test_a_training_that_came_to_no_good_is_a_result_that_is_told(
    end: type[UserError], outcome: str, done: Done, plan: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """What would follow is left out, and what there is, is scored."""
    real = execute.execute_stage

    def carry_out(settled: execute.ResolvedStage, *args: Any) -> Path:
        folder = real(settled, *args)
        if settled.node.name == "source":
            raise end("source: why")
        return folder

    monkeypatch.setattr(execute, "execute_stage", carry_out)
    monkeypatch.setattr(runner, "evaluate", lambda cell, folder, *_: [ROW])
    cell = cell_of(plan, "sequential", "B+S+T")
    runner.carry_out([cell], tmp_path, *quiet())
    (row,) = runner.gather([cell], tmp_path)
    assert row["outcome"] == outcome
    # the source
    assert json.loads((tmp_path / row["folder"] / "run.json").read_text())["config"]["steps"] == 2
    assert len(list((tmp_path / "stages").glob("*/run.json"))) == 1
    said = f"stripes from own, B+S+T, seed 0: {outcome} in training, and scored so."
    assert tables.fallen([row]) == [said]
    sound = runner.gather(design.cells("separability", design.read(plan)), done[0])
    assert tables.fallen(sound) == []


ROW = {"protocol": "knn", "labels": "all", "metric": "auroc", "mean": 0.5, "low": 0.4, "high": 0.6}


def test_what_ends_a_cell_leaves_no_half_of_it(
    plan: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    def broken(*_: Any) -> Any:
        raise errors.Stopped("in the middle")

    monkeypatch.setattr(runner, "evaluate", broken)
    cell = cell_of(plan, "separability", "random")
    with pytest.raises(errors.Stopped):
        runner.carry_out([cell], tmp_path, *quiet())
    assert not (tmp_path / "cells").exists()
    assert runner.gather([cell], tmp_path) == []


# ------------------------------------------------------------------------------------------- what
# is said

Score = Callable[[Cell], float | None]


def made_up(
    study: str, setup: Setup, score: Score, metric: str = "balanced_accuracy"
) -> list[dict[str, Any]]:
    """Points of a study by hand; a cell without a score is not done yet."""
    cells = design.cells(study, setup)
    rows = [
        {"target": c.target, "base": c.base, "variant": c.variant, "x": c.x}
        | {"protocol": protocol, "labels": labels, "metric": metric}
        | dict.fromkeys(("mean", "low", "high"), value)
        for c in cells
        for protocol in c.protocols
        for labels in c.labels
        if (value := score(c)) is not None
    ]
    return tables.by_seed(rows, list(dict.fromkeys((c.variant, c.x) for c in cells)))


def linear(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [p for p in points if p["protocol"] == "linear"]


def test_points_are_means_with_their_range_in_the_studys_order() -> None:
    setup = replace(ONE, seeds=(0, 1, 2))
    points = linear(made_up("separability", setup, lambda c: 0.5 + 0.1 * c.seed))
    assert [(p["variant"], p["x"]) for p in points] == list(ways("separability"))
    for point in points:
        assert point["mean"] == pytest.approx(0.6)
        assert (point["low"], point["high"], point["seeds"]) == (0.5, 0.7, 3)
    few = made_up("labels", replace(ONE, few=("all", "total:20", "total:100", "5")), lambda c: 0.5)
    assert [p["labels"] for p in few if p["variant"] == "HPT"] == argv("5 total:20 total:100 all")
    one = tables.by_seed([{**ROW, "target": "t", "base": "b", "variant": "HPT", "x": ""}])
    assert (one[0]["low"], one[0]["mean"], one[0]["high"], one[0]["seeds"]) == (0.4, 0.5, 0.6, 1)
    head = next(csv.reader(io.StringIO(tables.as_csv(points))))
    assert head == [*tables.GROUP, "mean", "low", "high", "seeds"]
    assert tables.as_csv([]).startswith("target,base,variant")


def finding(hpt: tuple[float, float], target: tuple[float, float]) -> str:
    scores = {("HPT", "12"): hpt[0], ("HPT", "50"): hpt[1]}
    scores |= {("Target", "50"): target[0], ("Target", "200"): target[1]}
    points = made_up("separability", ONE, lambda c: scores.get((c.variant, c.x), 0.4))
    (line,) = tables.findings("separability", linear(points))
    return line


def test_how_much_sooner_hpt_is_there_is_said() -> None:
    line = finding(hpt=(0.5, 0.7), target=(0.55, 0.65))
    assert line.startswith(
        "tile from moco (linear probe, all labels, balanced accuracy): HPT 70.0, Target 65.0, "
    )
    assert line.endswith(" HPT is as good as Target's best (200 steps) after 50: 4x sooner.")
    # the fewest tried
    assert finding(hpt=(0.66, 0.7), target=(0.55, 0.65)).endswith("after 12: at least 17x sooner.")
    assert finding(hpt=(0.3, 0.6), target=(0.55, 0.65)).endswith(
        "HPT does not reach Target's best (of 200 steps) in the steps tried."
    )
    assert finding(hpt=(0.3, 0.7), target=(0.65, 0.6)).endswith(
        "best (50 steps) after 50: no sooner."
    )


def test_findings_name_the_ways_from_best_to_worst() -> None:
    order = {"B": 0.4, "B+S": 0.5, "B+T": 0.7, "B+S+T": 0.6, "B+T + hard": 0.8, "B+S+T + hard": 0.3}
    points = made_up(
        "sequential", replace(ONE, hard=("cutmix",), few=("5",)), lambda c: order[c.variant]
    )
    assert tables.findings("sequential", points) == [
        "tile from moco (fine-tuning, 5 labels a class, balanced accuracy): "
        "B+T + hard 80.0, B+T 70.0, B+S+T 60.0, B+S 50.0, B 40.0, B+S+T + hard 30.0."
    ]
    some = [p for p in points if p["variant"] in ("B", "B+T")]
    assert tables.findings("sequential", some)[0].endswith(": B+T 70.0, B 40.0.")
    assert tables.findings("sequential", []) == []


def test_what_is_taken_away_is_told_at_both_ends() -> None:
    points = linear(
        made_up("augmentations", ONE, lambda c: 0.9 - 0.1 * list(AUGMENTATIONS).index(c.x or "all"))
    )
    assert tables.findings("augmentations", points)[0].endswith(
        ": Base 90.0, HPT 90.0 (all) to 50.0 (crop), Target 90.0 (all) to 50.0 (crop)."
    )


def test_auroc_speaks_where_there_is_no_accuracy() -> None:
    auroc = made_up("data", ONE, lambda c: 0.8, "auroc")
    both = [*auroc, *made_up("data", ONE, lambda c: 0.6)]
    # kNN and linear
    assert len(tables.findings("data", auroc)) == len(tables.findings("data", both)) == 2
    assert all("AUROC): " in line and "80.0" in line for line in tables.findings("data", auroc))
    assert all(
        "balanced accuracy): " in line and "60.0" in line for line in tables.findings("data", both)
    )


# ------------------------------------------------------------------------------------------- what
# is drawn


@pytest.fixture
def panels(monkeypatch: Patch) -> list[Any]:
    """The figures that are drawn, as matplotlib has them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    seen: list[Any] = []
    real = pyplot.close

    def close(figure: Any) -> None:
        seen.append(figure)
        real(figure)

    monkeypatch.setattr(pyplot, "close", close)
    return seen


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_xticklabels()]


XS = {
    "separability": ["12", "20", "50", "200"],
    "labels": ["100 labels", "all labels"],
    "sequential": ["100 labels", "all labels"],
    "augmentations": list(AUGMENTATIONS),
    "data": ["10", "100"],
}


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_drawn(study: str, tmp_path: Path, panels: list[Any]) -> None:
    setup = replace(ONE, hard=("cutmix",), bases=SETUP.bases)
    points = made_up(study, setup, lambda c: 0.5 + 0.05 * c.seed)
    files = figures.draw(study, points, tmp_path)
    protocols = ("finetune",) if study in ("labels", "sequential") else ("knn", "linear")
    assert [f.name for f in files] == [
        f"{study}-{p}{suffix}" for p in protocols for suffix in (".png", ".svg")
    ]
    assert all(f.stat().st_size > 10_000 for f in files)
    for figure in panels:
        assert [axis.get_title() for axis in figure.axes] == ["tile, from lite", "tile, from moco"]
        assert sorted(legend(figure)) == sorted({p["variant"] for p in points})
        assert all(ticks(axis) == XS[study] for axis in figure.axes)
    text = report.write(
        study, points, ["found"], files, tmp_path, command="c", plan="p", done=1, total=2
    ).read_text()
    assert text.count("data:image/png;base64,") == len(protocols)
    assert "http" not in text


def test_a_panel_has_the_metric_of_its_target(tmp_path: Path, panels: list[Any]) -> None:
    """Where one target has one class an image and another has several, neither is left out."""
    points = [
        *made_up("data", SETUP, lambda c: 0.8, "auroc"),
        *(p for p in made_up("data", SETUP, lambda c: 0.6) if p["target"] == "tile"),
    ]
    figures.draw("data", points, tmp_path)
    labels = [axis.get_ylabel() for axis in panels[0].axes]
    assert labels == ["AUROC, %", "", "balanced accuracy, %", ""]  # field, tile
    assert [axis.lines[0].get_ydata()[0] for axis in panels[0].axes] == pytest.approx(
        [80, 80, 60, 60]
    )


def test_each_number_of_labels_has_a_figure_where_they_are_no_axis(
    tmp_path: Path, panels: list[Any]
) -> None:
    points = made_up("separability", replace(ONE, labels=("5", "total:100")), lambda c: 0.5)
    files = [f for f in figures.draw("separability", points, tmp_path) if f.suffix == ".png"]
    assert [f.stem for f in files] == [
        f"separability-{p}-{n}" for p in ("knn", "linear") for n in ("5", "total100")
    ]
    for figure in panels:
        hpt = next(line for line in figure.axes[0].lines if line.get_label() == "HPT")
        assert list(hpt.get_xdata()) == [12, 50]
    assert [report.heading(f.stem.removeprefix("separability-")) for f in files][
        1
    ] == "kNN, labels: total100"


def test_what_is_not_done_yet_is_no_error(tmp_path: Path, panels: list[Any]) -> None:
    for study in ("labels", "data"):
        points = made_up(
            study,
            SETUP,
            lambda c: 0.5 if (c.target, c.base) == ("tile", "moco") and not c.x else None,
        )
        other = made_up(
            study, SETUP, lambda c: 0.5 if (c.target, c.base) == ("field", "lite") else None
        )
        assert figures.draw(study, [*points, *other], tmp_path)
    texts = {text.get_text() for figure in panels for axis in figure.axes for text in axis.texts}
    assert texts == {"not done yet"}


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install"):
        figures.draw("data", made_up("data", ONE, lambda c: 0.5), tmp_path)
