"""The words of all commands: errors of one line, and help without types of Python."""

import dataclasses
import importlib
from typing import Any

import pytest

from selftaught.cli.argv import check_words, leaves
from selftaught.cli.flags import pretrain_flags
from selftaught.cli.main import COMMANDS, main
from selftaught.cli.options import option, parse_options
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS
from tests.commands import argv
from tests.fixtures import Capture


@dataclasses.dataclass(kw_only=True)
class Toy:
    """Options of each type."""

    run: str = option("RUN", "a run's folder", positional=True)
    out: str = option("FILE", "the page")
    size: int | None = option("PIXELS", "side of an image", "the run's", default=None)
    share: float = option("SHARE", "part of the images", default=0.5)
    names: tuple[str, ...] = option("NAME ...", "names", default=())
    range: tuple[float, float] = option("LOW HIGH", "a range", default=(0.0, 1.0))
    json: bool = option("", "print JSON", default=False)


def toy(words: str) -> Toy:
    return parse_options(Toy, "toy", argv(words))


def test_words_become_options() -> None:
    assert toy("a --out b") == toy("--out=b a") == toy("--json --no-json a --out b")
    found = toy("a --out b --size 3 --share -1 --names x y --range 2 3 --json")
    assert isinstance(found, Toy)
    assert dataclasses.astuple(found) == ("a", "b", 3, -1.0, ("x", "y"), (2.0, 3.0), True)
    assert toy("--json a --out b").run == toy("--names --out b a").run == "a"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--out b", "RUN is missing: a run's folder"),
        ("a", "--out FILE is missing: the page"),
        ("a --out", "--out has no value: give FILE"),
        ("a --out b c", "'c' belongs to no flag"),
        ("a c --out b", "'c' belongs to no flag"),
        ("a -o b", "there is no -o: flags begin with --"),
        ("a --out b --json yes", "'yes' belongs to no flag"),
        ("a --out b --siez 3", "there is no --siez; did you mean --size?"),
        ("a --out b --Size 3", "there is no --Size; did you mean --size?"),
        ("a --out b --zzz 3", "there is no --zzz: `selftaught toy --help` lists the flags"),
        ("a --out b --no-size", "there is no --no-size; did you mean --size?"),
        ("a --out b --size big", "--size takes a whole number, and not 'big'"),
        ("a --out b --size None", "--size takes a whole number, and not 'None'"),
        ("a --out b --range 2", "--range takes 2 values, and not 1"),
        ("a --out b --range 2 x", "--range takes a number, and not 'x'"),
    ],
)
def test_words_that_do_not_fit_are_refused_in_one_line(words: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        toy(words)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("pretrain --out x --lr 1", "there is no --lr; did you mean --optimizer.lr?"),
        ("pretrain --out x --method SimCLR", "there is no method 'SimCLR'; did you mean simclr o"),
        ("pretrain --out x --views.scale 1", "--views.scale takes 2 values, and not 1"),
        ("pretrain --out x --size", "--size has no value: give PIXELS"),
        ("adapt --target x", "--out FOLDER is missing: folder of the run"),
        ("evaluate", "RUN is missing: a run's folder, or a backbone's file"),
        ("evaluate x --knn.k 3", "there is no --knn.k; did you mean --knn.neighbours or"),
        ("evaluate x --protocol kn", "--protocol takes knn, linear, finetune, classifier, and"),
        ("study dat --plan x --out y", "STUDY takes separability, labels, sequential, augmenta"),
        ("export x", "--to FILE is missing: file of weights: .safetensors or .pth"),
        ("embed x --to y", "there is no --to: `selftaught embed --help` lists the flags"),
        ("report --out x", "RUN ... is missing: folders of runs"),
        ("show x y", "'y' belongs to no flag"),
        ("pack x --quality good", "--quality takes a whole number, and not 'good'"),
        ("demo --steps", "--steps has no value: give STEPS"),
        ("demo simclr", "'simclr' belongs to no flag"),
        ("methods simclr --steps 3", "there is no --steps: `selftaught methods --help`"),
    ],
)
def test_every_command_refuses_them_in_one_line(words: str, line: str, capsys: Capture) -> None:
    assert main(argv(words)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"selftaught: {line}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_no_types_of_python(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert not [word for word in ("STR", "None", "(default: )") if word in text]


def test_every_default_is_a_value_of_its_flag() -> None:
    """So the check before tyro refuses nothing that tyro takes."""
    kinds = [pretrain_flags(name, "sgd", [*HARD]) for name in METHODS]
    kinds += [pretrain_flags("simclr", name, []) for name in OPTIMIZERS]
    kinds.append(importlib.import_module("selftaught.cli.evaluate").Evaluate)
    for kind in kinds:
        needed = [leaf for leaf in leaves(kind) if leaf.required]
        start = [f"--{leaf.name}" for leaf in needed if not leaf.positional]
        words = [word for flag in start for word in (flag, "x")]
        check_words(kind, "pretrain", words)
        for leaf in leaves(kind):
            if (default := default_of(kind, leaf.name)) is not None:
                check_words(kind, "pretrain", [*words, *typed(leaf.name, default)])


def default_of(kind: Any, name: str) -> Any:
    """The default of a value, None if there is none."""
    value = kind
    *groups, last = name.replace("-", "_").split(".")
    for part in (*groups, last):
        fields = {field.name: field for field in dataclasses.fields(value)}
        field = (part != last and fields.get(f"{part}_fields")) or fields[part]
        if field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            return None
    return value


def typed(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
