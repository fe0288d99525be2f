"""Configurations and plans: --config, --plan, and the files of a run, with what they should not
hold.
"""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

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
    rows,
    two_classes,
)

pytestmark = pytest.mark.abuse

CONFIG = ("pretrain", "--config", "x.json", "--out", "out", "--workers", "0")
PLAN = ("adapt", "--plan", "x.yaml", "--out", "out", "--workers", "0")
STAGE = "{data: photos, backbone: test_resnet, size: 32, batch: 8, precision: fp32, steps: 0}"


def config(
    id: str, what: str, content: str | bytes, promise: str = REFUSED, names: tuple[str, ...] = ()
) -> Case:
    return Case(
        id=f"config-{id}",
        what=what,
        words=CONFIG,
        promise=promise,
        names=names,
        prepare=lambda s: s.write("x.json", content),
    )


def changed(
    id: str,
    what: str,
    change: Callable[[dict[str, Any]], object],
    promise: str = REFUSED,
    names: tuple[str, ...] = (),
) -> Case:
    """The run.json of a good run with a change to its configuration."""

    def prepare(sandbox: Sandbox) -> None:
        written = json.loads((sandbox / "run" / "run.json").read_text())
        change(written["config"])
        sandbox.write("x.json", json.dumps(written))

    return Case(
        id=f"config-{id}", what=what, words=CONFIG, promise=promise, names=names, prepare=prepare
    )


def plan(
    id: str,
    what: str,
    content: str | bytes,
    promise: str = REFUSED,
    names: tuple[str, ...] = (),
    then: Callable[[Sandbox, Outcome], object] = lambda sandbox, outcome: None,
) -> Case:
    return Case(
        id=f"plan-{id}",
        what=what,
        words=PLAN,
        promise=promise,
        names=names,
        then=then,
        prepare=lambda s: s.write("x.yaml", content),
    )


def not_carried_out(sandbox: Sandbox, outcome: Outcome) -> None:
    assert not (sandbox / "owned").exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

CONFIGS = [
    Case(
        id="config-missing",
        what="--config of a file that is not there",
        words=CONFIG,
        promise=REFUSED,
        names=("x.json",),
    ),
    Case(
        id="config-folder",
        what="--config of a folder",
        words=CONFIG,
        promise=REFUSED,
        names=("x.json",),
        prepare=lambda s: (s / "x.json").mkdir(),
    ),
    config("empty", "an empty --config", "", names=("x.json",)),
    config("broken", "a --config that is no JSON", "{size: 32,", names=("x.json",)),
    config(
        "cut-off", "a --config cut off", '{"config": {"data": {"roots": ["pho', names=("x.json",)
    ),
    config("binary", "a --config of random bytes", b"\xff\xfe\x00\x80" * 99, names=("x.json",)),
    config("list", "a --config that is a list", "[1, 2]"),
    config("number", "a --config that is a number", "7"),
    config("null", "a --config that is null", "null"),
    config("deep", "a --config of 100,000 brackets", "[" * 100_000, names=("x.json",)),
    config("nothing", "a --config without anything", "{}"),
    config(
        "huge-number",
        "a --config with a number of 10,000 digits",
        '{"config": {"size": ' + "9" * 10_000 + "}}",
    ),
    changed(
        "unknown-key",
        "a --config with a key that is none",
        lambda c: c.update(colour="red"),
        names=("colour",),
    ),
    changed(
        "wrong-type",
        'a --config with "size": "big"',
        lambda c: c.update(size="big"),
        names=("size",),
    ),
    changed(
        "null-size", 'a --config with "size": null', lambda c: c.update(size=None), names=("size",)
    ),
    changed("size-zero", 'a --config with "size": 0', lambda c: c.update(size=0), names=("size",)),
    changed("float-steps", 'a --config with "steps": 1.5', lambda c: c.update(steps=1.5), EITHER),
    changed("no-data", "a --config without data", lambda c: c.pop("data"), names=("data",)),
    changed(
        "roots-word",
        "a --config whose roots are a word and no list",
        lambda c: c["data"].update(roots="photos"),
        EITHER,
    ),
    changed("no-method", "a --config without a method's name", lambda c: c["method"].pop("name")),
    changed(
        "other-method",
        "a --config with a method that is none",
        lambda c: c["method"].update(name="simcrl"),
        names=("simclr",),
    ),
    changed("method-list", "a --config whose method is a list", lambda c: c.update(method=[1])),
    changed(
        "hard-word", "a --config whose hard examples are a word", lambda c: c.update(hard="cutmix")
    ),
    changed(
        "trainable",
        "a --config with a wrong word in trainable",
        lambda c: c.update(trainable="everything"),
        names=("trainable",),
    ),
    changed(
        "backbone",
        "a --config with a backbone that is none",
        lambda c: c.update(backbone="test_resnt"),
        names=("test_resnet",),
    ),
    changed(
        "stem",
        "a --config with a stem that is none",
        lambda c: c.update(stem="vgg"),
        names=("stem",),
    ),
    changed(
        "roots-gone",
        "a --config whose images are gone",
        lambda c: c["data"].update(roots=["nowhere"]),
        names=("nowhere",),
    ),
    Case(
        id="plan-missing",
        what="--plan of a file that is not there",
        words=PLAN,
        promise=REFUSED,
        names=("x.yaml",),
    ),
    Case(
        id="plan-folder",
        what="--plan of a folder",
        words=PLAN,
        promise=REFUSED,
        names=("x.yaml",),
        prepare=lambda s: (s / "x.yaml").mkdir(),
    ),
    plan("good", "a plan of one stage", f"stages: {{a: {STAGE}}}", DONE),
    plan("empty", "an empty plan", "", names=("x.yaml", "stages")),
    plan("broken", "a plan that is no YAML", "stages: {a: [", names=("x.yaml",)),
    plan("tabs", "a plan with tabs", "stages:\n\ta:\n\t\tdata: photos\n", names=("x.yaml",)),
    plan("binary", "a plan of random bytes", b"\xff\xfe\x00\x80" * 99, names=("x.yaml",)),
    plan("list", "a plan that is a list", "- a\n- b\n", names=("x.yaml", "stages")),
    plan("no-stages", "a plan without stages", "stages: {}"),
    plan("stages-list", "a plan whose stages are a list", "stages: [a, b]", names=("stages",)),
    plan("stage-number", "a stage that is a number", "stages: {a: 7}", names=("a",)),
    plan(
        "unknown-top",
        "a plan with a word that is none",
        f"stagse: {{}}\nstages: {{a: {STAGE}}}",
        names=("stagse",),
    ),
    plan(
        "unknown-flag",
        "a stage with a flag that is none",
        f"stages: {{a: {STAGE[:-1]}, colour: red}}}}",
        names=("a", "colour"),
    ),
    plan(
        "misspelt-flag",
        "a stage with a misspelt flag, bacth",
        "stages: {a: {data: photos, bacth: 8}}",
        names=("a", "batch"),
    ),
    plan(
        "wrong-type",
        "a stage with size: big",
        f"stages: {{a: {STAGE.replace('32', 'big')}}}",
        names=("a", "size"),
    ),
    plan("no-data", "a stage without images", "stages: {a: {size: 32}}", names=("a", "data")),
    plan(
        "data-gone",
        "a stage whose images are gone",
        f"stages: {{a: {STAGE.replace('photos', 'nowhere')}}}",
        names=("a", "nowhere"),
    ),
    plan(
        "init-gone",
        "weights that are gone",
        f"init: nowhere.pth\nstages: {{a: {STAGE}}}",
        names=("nowhere.pth",),
    ),
    plan(
        "own-out",
        "a stage with an --out of its own",
        f"stages: {{a: {STAGE[:-1]}, out: elsewhere}}}}",
        names=("a", "out"),
    ),
    plan(
        "circle",
        "two stages that begin after each other",
        f"stages: {{a: {STAGE[:-1]}, after: b}}, b: {STAGE[:-1]}, after: a}}}}",
        names=("a", "b"),
    ),
    plan(
        "itself",
        "a stage that begins after itself",
        f"stages: {{a: {STAGE[:-1]}, after: a}}}}",
        names=("a",),
    ),
    plan(
        "after-none",
        "a stage after one that is not there",
        f"stages: {{a: {STAGE[:-1]}, after: zero}}}}",
        names=("zero",),
    ),
    plan(
        "after-list",
        "a stage after a list",
        f"stages: {{a: {STAGE[:-1]}, after: [b]}}}}",
        names=("a",),
    ),
    plan(
        "init-and-after",
        "a stage with init and after",
        f"stages: {{a: {STAGE}, b: {STAGE[:-1]}, after: a, init: x.pth}}}}",
        names=("b",),
    ),
    plan(
        "teacher-none",
        "a teacher that is not there",
        f"stages: {{a: {STAGE[:-1]}, teacher: zero}}}}",
        names=("zero",),
    ),
    plan(
        "same-name", "two stages of one name", f"stages: {{a: {STAGE}, a: {STAGE}}}", names=("a",)
    ),
    plan(
        "nested",
        "a flag with fields inside",
        f"stages: {{a: {STAGE[:-1]}, optimizer: {{lr: 1}}}}}}",
        names=("optimizer",),
    ),
    plan("null-name", "a stage without a name", f"stages: {{null: {STAGE}}}", EITHER),
    plan("climbing-name", "a stage called ../../x", f"stages: {{../../x: {STAGE}}}", EITHER),
    plan(
        "code",
        "YAML that asks for a program to be run",
        f"stages: {{a: {STAGE}}}\ndefaults: !!python/object/apply:os.system ['touch owned']\n",
        names=("x.yaml",),
        then=not_carried_out,
    ),
    plan(
        "bomb",
        "YAML of a kilobyte that unfolds to a billion words",
        BOMB + f"stages: {{a: {STAGE}}}\n",
    ),
    plan(
        "bomb-stage",
        "the same as a stage's flag",
        BOMB + f"stages: {{a: {STAGE[:-1]}, hard: *i}}}}\n",
    ),
    plan(
        "circle-inside", "YAML that holds itself", f"x: &x {{stages: *x}}\nstages: {{a: {STAGE}}}\n"
    ),
    plan("deep", "YAML of 20,000 brackets", "[" * 20_000, names=("x.yaml",)),
    Case(
        id="plan-flags",
        what="--plan together with --steps",
        words=(*PLAN, "--steps", "3"),
        promise=REFUSED,
        names=("--steps",),
        prepare=lambda s: s.write("x.yaml", f"stages: {{a: {STAGE}}}"),
    ),
    Case(
        id="study-empty",
        what="a study with an empty plan",
        words=("study", "separability", "--plan", "x.yaml", "--out", "out"),
        promise=REFUSED,
        names=("x.yaml",),
        prepare=lambda s: s.write("x.yaml", ""),
    ),
    Case(
        id="study-broken",
        what="a study with a plan that is no YAML",
        words=("study", "labels", "--plan", "x.yaml", "--out", "out"),
        promise=REFUSED,
        names=("x.yaml",),
        prepare=lambda s: s.write("x.yaml", "bases: ["),
    ),
    Case(
        id="study-unknown",
        what="a study with a plan of unknown words",
        words=("study", "labels", "--plan", "x.yaml", "--out", "out"),
        promise=REFUSED,
        names=("bases",),
        prepare=lambda s: s.write("x.yaml", "colour: red"),
    ),
]


@pytest.mark.parametrize("case", rows(CONFIGS))
def test_a_configuration_or_plan_is_carried_out_or_refused(case: Case, trained: Sandbox) -> None:
    carry_out(case, trained)
    if case.promise == REFUSED:
        assert not list((trained / "out").rglob("backbone.safetensors"))


# ------------------------------------------------------------------------------------------ a run's
# own files

COMMANDS: dict[str, tuple[str, ...]] = {
    "resume": ("pretrain", "--out", "run", "--resume", "--workers", "0"),
    "again": ("pretrain", "--data", "photos", "--out", "run", *SMALL, "--steps", "0"),
    "evaluate": (
        "evaluate",
        "run",
        "--protocol",
        "knn",
        "--labels",
        "all",
        "--against",
        "random",
        "--workers",
        "0",
    ),
    "show": ("show", "run"),
    "report": ("report", "run", "--out", "page.html"),
    "export": ("export", "run", "--to", "x.safetensors"),
    "init": (
        "pretrain",
        "--data",
        "photos",
        "--init",
        "run",
        "--out",
        "out",
        *SMALL,
        "--steps",
        "0",
    ),
}
DAMAGES: dict[str, tuple[str, Callable[[str], str | bytes]]] = {
    "empty": ("is empty", lambda text: ""),
    "cut-off": ("is cut off", lambda text: text[: len(text) // 2]),
    "binary": ("holds random bytes", lambda text: b"\xff\xfe\x00\x80" * 99),
    "list": ("is a list", lambda text: "[]"),
    "no-config": (
        "has no configuration",
        lambda text: json.dumps({**json.loads(text), "config": None}),
    ),
    "no-outcome": (
        "has no outcome",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "outcome"}),
    ),
    "newer": (
        "has a field of a later version",
        lambda text: text.replace('"size": 32', '"size": 32, "later": 1'),
    ),
}


def damaged_run(command: str, damage: str) -> Case:
    what, change = DAMAGES[damage]

    def prepare(sandbox: Sandbox) -> None:
        file = sandbox / "run" / "run.json"
        content = change(file.read_text())
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    promise = (
        EITHER
        if command in ("report", "show", "export", "init") or damage == "no-outcome"
        else REFUSED
    )
    names = ("run",) if command != "again" else ()
    return Case(
        id=f"run-json-{damage}-{command}",
        what=f"a run.json that {what}: `{' '.join(COMMANDS[command][:2])}`"
        + (f" ({command})" if command in ("resume", "again", "init") else ""),
        words=COMMANDS[command],
        promise=promise,
        names=names,
        prepare=prepare,
        writes=("run",),
    )


RUNS = [damaged_run(command, damage) for damage in DAMAGES for command in COMMANDS]


@pytest.mark.parametrize("case", rows(RUNS))
def test_a_run_whose_run_json_is_damaged_is_refused_or_told_of(
    case: Case, trained: Sandbox
) -> None:
    carry_out(case, trained)


def with_file(name: str, content: bytes | None) -> Callable[[Sandbox], None]:
    """That file of the run holds something else; None: it is not there."""

    def prepare(sandbox: Sandbox) -> None:
        file = sandbox / "run" / name
        if content is None:
            file.unlink()
        else:
            sandbox.write(f"run/{name}", content)

    return prepare


def as_folder(name: str) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        file = sandbox / "run" / name
        if file.is_file():
            file.unlink()
        file.mkdir(parents=True, exist_ok=True)

    return prepare


def torn_journal(sandbox: Sandbox) -> None:
    file = sandbox / "run" / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-40])


def journal_of(line: str) -> Callable[[Sandbox], None]:
    def prepare(sandbox: Sandbox) -> None:
        file = sandbox / "run" / "journal.jsonl"
        file.write_text(line + "\n" + file.read_text())

    return prepare


def old_features(sandbox: Sandbox) -> None:
    assert_done(sandbox.run(*COMMANDS["evaluate"], writes=("run",)))
    for file in (sandbox / "run" / "features").iterdir():
        file.write_bytes(file.read_bytes()[:30])


def no_longer_a_folder(sandbox: Sandbox) -> None:
    sandbox.write("run/features", b"")


def images_elsewhere(sandbox: Sandbox) -> None:
    """The run was trained on a folder that is no more."""
    file = sandbox / "run" / "run.json"
    written = json.loads(file.read_text())
    written["config"]["data"]["roots"] = [os.path.join(sandbox.path, "gone", "photos")]
    file.write_text(json.dumps(written))


FILES = [
    Case(
        id="journal-torn",
        what="a journal whose last line is torn",
        prepare=torn_journal,
        words=COMMANDS["resume"],
    ),
    Case(
        id="journal-gone",
        what="a journal that is gone",
        prepare=with_file("journal.jsonl", None),
        words=COMMANDS["resume"],
    ),
    Case(
        id="journal-binary",
        what="a journal of random bytes",
        prepare=with_file("journal.jsonl", b"\xff\xfe\x80" * 99),
        words=COMMANDS["resume"],
        promise=EITHER,
    ),
    Case(
        id="journal-number",
        what="a journal with a line that is a number",
        prepare=journal_of("7"),
        words=COMMANDS["resume"],
        promise=EITHER,
    ),
    Case(
        id="journal-object",
        what="a journal with a line without a step",
        prepare=journal_of("{}"),
        words=COMMANDS["resume"],
        promise=EITHER,
    ),
    Case(
        id="journal-report",
        what="the same, in a report",
        prepare=journal_of("{}"),
        words=COMMANDS["report"],
        promise=EITHER,
    ),
    Case(
        id="journal-folder",
        what="a journal that is a folder",
        prepare=lambda s: (as_folder("journal.jsonl")(s), s.write("run/journal.jsonl/x", b"")),
        words=COMMANDS["resume"],
        promise=REFUSED,
        names=("journal.jsonl",),
    ),
    Case(
        id="evaluation-empty",
        what="an empty evaluation.json",
        prepare=with_file("evaluation.json", b""),
        words=COMMANDS["evaluate"],
        writes=("run",),
        right="the scores are shown",
    ),
    Case(
        id="evaluation-object",
        what="an evaluation.json that is no list",
        prepare=with_file("evaluation.json", b"{}"),
        words=COMMANDS["evaluate"],
        writes=("run",),
        right="the scores are shown",
    ),
    Case(
        id="evaluation-show",
        what="an empty evaluation.json: `show`",
        prepare=with_file("evaluation.json", b""),
        words=COMMANDS["show"],
        promise=EITHER,
        names=("evaluation.json",),
    ),
    Case(
        id="evaluation-report",
        what="an empty evaluation.json: `report`",
        prepare=with_file("evaluation.json", b""),
        words=COMMANDS["report"],
        promise=EITHER,
        names=("evaluation.json",),
    ),
    Case(
        id="features-damaged",
        what="remembered features that are cut off",
        prepare=old_features,
        words=COMMANDS["evaluate"],
        writes=("run",),
        right="they are made again",
    ),
    Case(
        id="features-file",
        what="a file where the features' folder was",
        prepare=no_longer_a_folder,
        words=COMMANDS["evaluate"],
        writes=("run",),
        promise=EITHER,
        names=("features",),
    ),
    Case(
        id="album-gone",
        what="an album that is gone",
        prepare=lambda s: shutil.rmtree(s / "run" / "album"),
        words=COMMANDS["report"],
    ),
    Case(
        id="album-broken",
        what="an album of broken pictures",
        prepare=lambda s: [f.write_bytes(b"broken") for f in (s / "run" / "album").iterdir()],
        words=COMMANDS["report"],
        promise=EITHER,
        names=("album",),
    ),
    Case(
        id="backbone-gone",
        what="a run whose backbone is gone: `export`",
        prepare=with_file("backbone.safetensors", None),
        words=COMMANDS["export"],
        promise=REFUSED,
        names=("run",),
    ),
    Case(
        id="backbone-gone-evaluate",
        what="a run whose backbone is gone: `evaluate`",
        prepare=with_file("backbone.safetensors", None),
        words=COMMANDS["evaluate"],
        promise=REFUSED,
        names=("run",),
    ),
    Case(
        id="backbone-cut-off",
        what="a run whose backbone is cut off",
        prepare=with_file("backbone.safetensors", b"\x10\0\0\0"),
        words=COMMANDS["evaluate"],
        promise=REFUSED,
        names=("backbone.safetensors",),
    ),
    Case(
        id="plan-json-empty",
        what="an empty plan.json",
        prepare=lambda s: s.write("plans/plan.json", b""),
        words=("show", "plans"),
        promise=REFUSED,
        names=("plan",),
    ),
    Case(
        id="plan-json-keys",
        what="a plan.json without its keys",
        prepare=lambda s: s.write("plans/plan.json", b"{}"),
        words=("show", "plans"),
        promise=REFUSED,
        names=("plan",),
    ),
    Case(
        id="plan-json-init",
        what="--init of a plan's folder whose plan.json is cut off",
        prepare=lambda s: s.write("plans/plan.json", b'{"stages": {'),
        words=(
            "pretrain",
            "--data",
            "photos",
            "--init",
            "plans",
            "--out",
            "out",
            *SMALL,
            "--steps",
            "0",
        ),
        promise=REFUSED,
        names=("plan",),
    ),
    Case(
        id="report-twice",
        what="`report` of the same run twice",
        words=("report", "run", "run", "--out", "page.html"),
    ),
    Case(
        id="report-to-folder",
        what="`report --out` of a folder",
        words=("report", "run", "--out", "photos"),
        promise=REFUSED,
        names=("photos",),
    ),
    Case(
        id="report-new-folder",
        what="`report --out` into a folder that is not there yet",
        words=("report", "run", "--out", "new/page.html"),
        promise=EITHER,
        names=("new",),
        writes=("new",),
    ),
    Case(
        id="images-gone",
        what="--resume after the images are gone",
        prepare=images_elsewhere,
        words=COMMANDS["resume"],
        promise=REFUSED,
        names=("photos",),
    ),
]


@pytest.mark.parametrize("case", rows(FILES))
def test_the_other_files_of_a_run(case: Case, trained: Sandbox) -> None:
    carry_out(case, trained)


def test_settings_of_a_run_that_is_there_are_not_changed(trained: Sandbox) -> None:
    """Another run's flags on an --out that holds one."""
    two_classes(trained)
    before = {
        file.name: file.read_bytes() for file in (trained / "run").iterdir() if file.is_file()
    }
    for words in (("--size", "64"), ("--method", "byol"), ("--seed", "5")):
        assert trained.run(*COMMANDS["resume"], *words).code == 2
    assert {
        file.name: file.read_bytes() for file in (trained / "run").iterdir() if file.is_file()
    } == before
