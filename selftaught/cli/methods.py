"""`selftaught methods`: a list of methods, hard examples and optimizers."""

import dataclasses
import json
from typing import Annotated, Any, get_args, get_origin

from selftaught.cli.options import option, parse_options
from selftaught.hard import HARD
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS
from selftaught.ranges import ranges_of


@dataclasses.dataclass(kw_only=True)
class Methods:
    """List methods, hard examples and optimizers, with their fields and papers."""

    json: bool = option("", "print a JSON list", default=False)


def methods(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Methods, "methods", words)
    from selftaught.report import console_tables

    if options.json:
        print(json.dumps(catalogue(), indent=2))
    else:
        console_tables.show(console_tables.methods(catalogue()))
    return 0


def catalogue() -> list[dict[str, Any]]:
    """Rows {kind, name, summary, paper, fields: [{name, type, range, default}]}."""
    methods = [row("method", name, m, m.Config, m.paper) for name, m in METHODS.items()]
    hard = [
        row("hard example", name, h, h, "Li et al., 2020, https://arxiv.org/abs/2012.13493")
        for name, h in HARD.items()
    ]
    return [*methods, *hard, *(row("optimizer", name, o, o, "") for name, o in OPTIMIZERS.items())]


def row(kind: str, name: str, cls: type, config: type, paper: str) -> dict[str, Any]:
    """The row of one class; `config` is the dataclass of its fields."""
    about = (cls.__doc__ or "").strip().splitlines()[0]
    ranges = ranges_of(config)
    fields = [
        {
            "name": f.name,
            "type": describe_type(f.type),
            "range": str(ranges.get(f.name, "")),
            "default": f.default,
        }
        for f in dataclasses.fields(config)
    ]
    return {"kind": kind, "name": name, "summary": about, "paper": paper, "fields": fields}


def describe_type(kind: Any) -> str:
    """The name of a field's type; of one with a range, that of its numbers."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")
