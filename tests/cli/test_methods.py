"""`selftaught methods`: the list, and the fields of those that are named."""

import json
import re
from dataclasses import dataclass, fields

import pytest
from tyro._docstrings import get_field_docstring

from selftaught.cli.comments import find_comments
from selftaught.cli.main import main
from selftaught.cli.methods import catalogue
from selftaught.hard import HARD
from selftaught.methods import METHODS
from selftaught.models.anchor import Anchor
from selftaught.optim import OPTIMIZERS, Cosine
from selftaught.views.spec import Views
from tests.fixtures import Capture


def test_a_line_for_each(capsys: Capture) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {*METHODS, "cutmix", "adamw"} <= {line.split()[0] for line in lines if line.strip()}
    assert " contrastive methods" in "\n".join(lines)
    assert "0.1" not in "\n".join(lines)  # fields are for those that are named


def test_fields_of_those_that_are_named(capsys: Capture) -> None:
    assert main(["methods", "cpc", "simclr", "cutmix", "adamw"]) == 0
    text = capsys.readouterr().out
    for words in (
        r"--method.temperature +0.1 +number, above 0",
        r"--method.norm +layer +layer\|batch",
        r"--method.stop-gradient +no +no value, or --method.no-stop-gradient",
        r"--hard.cutmix.crops +large +large\|all",
        r"--optimizer.betas +0.9 0.999 +number number, from 0 to below 1",
        "van den Oord et al., 2018",
    ):
        assert re.search(words, text), words
    assert "byol" not in text


def test_json_of_those_that_are_named(capsys: Capture) -> None:
    assert main(["methods", "dino", "--json"]) == 0
    (dino,) = json.loads(capsys.readouterr().out)
    assert dino["family"] == "self-distillation"
    centering = next(field for field in dino["fields"] if field["name"] == "centering")
    assert centering == {
        "name": "centering",
        "flag": "--method.centering",
        "values": "ema|sinkhorn",
        "default": "ema",
        "meaning": "against one prototype for all images",
    }


def test_a_name_that_does_not_exist(capsys: Capture) -> None:
    assert main(["methods", "simcrl"]) == 2
    assert "did you mean simclr" in capsys.readouterr().err


@dataclass
class Parent:
    # an inherited one
    first: int = 0


@dataclass
class Child(Parent):
    """A class with comments of all kinds."""

    beside: str = "#"  # on its line
    # of two
    # lines
    above: tuple[int, ...] = (
        1,  # no comment of the field
        2,
    )
    none: int = 0

    def method(self) -> None:
        local: int = 0  # no field
        del local


def test_comments_of_fields() -> None:
    assert find_comments(Child) == {
        "first": "an inherited one",
        "beside": "on its line",
        "above": "of two lines",
    }


CONFIGS = {name: method.Config for name, method in METHODS.items()}
CONFIGS |= HARD | OPTIMIZERS | {"views": Views, "schedule": Cosine, "anchor": Anchor}


@pytest.mark.parametrize("name", CONFIGS)
def test_help_takes_no_comment_of_another_field(name: str) -> None:
    """tyro's help takes a comment above a field for the fields below that field, too."""
    config = CONFIGS[name]
    comments = find_comments(config)
    for field in fields(config):
        words = get_field_docstring(config, field.name, ())
        assert words in (None, comments.get(field.name)), field.name


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry["name"])
def test_plain_words(entry: dict[str, object]) -> None:
    """No signature of Python is shown: `dataclass` writes one where a class has no docstring."""
    assert re.fullmatch(r"[A-Z][^*\[\]]+\.", str(entry["summary"]))
    for field in entry["fields"]:
        assert re.fullmatch(r"[\w ,.|-]+", field["values"]), field
