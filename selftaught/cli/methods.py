"""`selftaught methods`: methods, hard examples and optimizers, and the flags of their fields."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from selftaught.cli.comments import find_comments
from selftaught.cli.options import option, parse_options
from selftaught.config.registry import find_name
from selftaught.hard import HARD
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS
from selftaught.ranges import ranges_of

HEXA = "Li et al., 2020, https://arxiv.org/abs/2012.13493"
WORDS = {int: "whole number", float: "number", str: "text"}


@dataclasses.dataclass(kw_only=True)
class Methods:
    """List methods, hard examples and optimizers, or the fields of some of them."""

    names: tuple[str, ...] = option("NAME ...", "show their fields", positional=True, default=())
    json: bool = option("", "print a JSON list, with all fields", default=False)


def methods(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Methods, "methods", words)
    from selftaught.report import console_tables

    entries = catalogue(options.names)
    if options.json:
        print(json.dumps(entries, indent=2))
    elif options.names:
        for entry in entries:
            console_tables.show(console_tables.method_fields(entry))
        print("Defaults can depend on the data and the network: run.json has those of a run.")
    else:
        console_tables.show(console_tables.method_list(entries))
        print("`selftaught methods NAME` shows the fields of one, and its paper.")
    return 0


def catalogue(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return entries {kind, family, name, summary, paper, fields}.

    fields: [{name, flag, values, default, meaning}]. names: those to return; all if empty. Raises
    UserError for a name that does not exist.
    """
    known = [*METHODS, *HARD, *OPTIMIZERS]
    what = "method, hard example or optimizer"
    return [describe(find_name(name, known, what)) for name in names or known]


def describe(name: str) -> dict[str, Any]:
    """Return the entry of a method, a hard example or an optimizer."""
    if name in METHODS:
        method = METHODS[name]
        cls, config, group = method, method.Config, "--method"
        kind, family, paper = "method", find_family(method), method.paper
    elif name in HARD:
        cls = config = HARD[name]
        group, kind, family, paper = f"--hard.{name}", "hard example", "", HEXA
    else:
        cls = config = OPTIMIZERS[name]
        group, kind, family, paper = "--optimizer", "optimizer", "", ""
    return {
        "kind": kind,
        "family": family,
        "name": name,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "paper": paper,
        "fields": describe_fields(config, group),
    }


def find_family(method: type) -> str:
    """Return the family of a method, which its folder names: "self-distillation"."""
    return method.__module__.split(".")[-2].replace("_", "-")


def describe_fields(config: type, group: str) -> list[dict[str, Any]]:
    """Return the fields of a dataclass; `group` is that of their flags, as "--method"."""
    hints, ranges = get_type_hints(config), ranges_of(config)
    comments = find_comments(config)
    fields = []
    for field in dataclasses.fields(config):
        word, hint = field.name.replace("_", "-"), hints[field.name]
        values = (
            f"no value, or {group}.no-{word}"
            if hint is bool
            else describe_values(hint, str(ranges.get(field.name, "")))
        )
        fields.append(
            {
                "name": field.name,
                "flag": f"{group}.{word}",
                "values": values,
                "default": field.default,
                "meaning": comments.get(field.name, ""),
            }
        )
    return fields


def describe_values(kind: Any, limits: str = "") -> str:
    """Return the values of a type and a range, as "number, above 0", or choices: "nce|softmax"."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    one = get_origin(kind) is not tuple
    words = WORDS[kind] if one else " ".join(map(describe_values, get_args(kind)))
    return f"{words}, {limits}" if limits else words
