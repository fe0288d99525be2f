"""`selftaught methods`: the list, and the fields of those that are named."""

import json
import re

import pytest

from selftaught.cli.main import main
from selftaught.cli.methods import catalogue
from selftaught.methods import METHODS
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
        r"--optimizer.betas +0.9 0.999 +number number",
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
    }


def test_a_name_that_does_not_exist(capsys: Capture) -> None:
    assert main(["methods", "simcrl"]) == 2
    assert "did you mean simclr" in capsys.readouterr().err


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry["name"])
def test_plain_words(entry: dict[str, object]) -> None:
    """No signature of Python is shown: `dataclass` writes one where a class has no docstring."""
    assert re.fullmatch(r"[A-Z][^*\[\]]+\.", str(entry["summary"]))
    for field in entry["fields"]:
        assert re.fullmatch(r"[\w ,.|-]+", field["values"]), field
