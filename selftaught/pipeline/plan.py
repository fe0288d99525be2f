"""A plan: stages that begin from one another's weights. Hierarchical pretraining is a chain of
them, a study a tree.

(HPT: Reed et al., 2021, https://arxiv.org/abs/2103.12718.) A stage is asked for in the words of
`selftaught pretrain`, so that whatever can be trained alone can be trained as a part of a plan.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selftaught.config.flags import CONDUCT
from selftaught.errors import UserError

RESERVED = {"out", "resume", "config"}  # what a plan decides itself
TOP = {"init", "defaults", "stages"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One stage of a plan."""

    name: str
    words: tuple[str, ...]  # as `selftaught pretrain` takes them
    after: str | None = None  # the stage whose backbone it begins from
    teacher: str | None = None  # the stage whose classifier it learns from
    init: str | None = None  # or else weights: a run, a file, a name in timm; neither: random ones


@dataclass(frozen=True, kw_only=True)
class Plan:
    nodes: tuple[Node, ...]  # each after the one that it begins from

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UserError("the plan has no stages")
        seen: set[str] = set()
        for node in self.nodes:
            if node.name in seen:
                raise UserError(f"the plan has two stages called {node.name}")
            if node.after is not None and node.after not in seen:
                raise UserError(
                    f"{node.name} is to begin after {node.after}: the plan has no such stage"
                    " before it"
                )
            if node.teacher is not None and node.teacher not in seen:
                raise UserError(
                    f"{node.name} is to be taught by {node.teacher}: the plan has no such stage"
                    " before it"
                )
            seen.add(node.name)

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def ancestors(self, name: str) -> Iterator[Node]:
        """The stages before `name`, the nearest first."""
        after = self[name].after
        while after is not None:
            yield self[after]
            after = self[after].after

    @property
    def leaves(self) -> tuple[Node, ...]:
        """The stages that no other begins from or is taught by: what the plan is for."""
        begun = {name for node in self.nodes for name in (node.after, node.teacher)}
        return tuple(node for node in self.nodes if node.name not in begun)


def read(file: Path) -> Plan:
    """From YAML:

        init: base.pth                      # weights that stages without `after` begin from; random
        ones if left out
        defaults: {method: moco-v2, size: 64}
        stages:
          source: {data: big/, steps: 5000}
          target: {after: source, data: mine/, steps: 500, trainable: norm, hard: [cutmix],
          optimizer.lr: 0.03}

    `init: null` in a stage begins it from random weights; `teacher: tuned` lets the stage `tuned`
    teach it, which `method: distillation` needs. Raises UserError for what is no plan.
    """
    try:
        written = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--plan {file} cannot be read: {' '.join(str(error).split())}") from error
    return from_mapping(written, str(file))


class Loader(yaml.SafeLoader):
    """YAML that does not drop the first of two entries of one name."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.YAMLError(
                f"{', '.join(twice)} is there twice (line {node.start_mark.line + 1})"
            )
        return node


def from_mapping(written: Any, where: str) -> Plan:
    if not isinstance(written, Mapping) or not isinstance(written.get("stages"), Mapping):
        raise UserError(
            f"{where} is no plan: it needs `stages:`, a mapping from names to the flags of"
            " `selftaught pretrain`"
        )
    if strange := set(written) - TOP:
        raise UserError(
            f"{where}: {', '.join(sorted(map(str, strange)))} not understood; a plan has"
            f" {', '.join(sorted(TOP))}"
        )
    defaults = written.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        raise UserError(f"{where}: defaults needs flags, such as {{size: 64}}")
    nodes = []
    for name, asked in written["stages"].items():
        if not isinstance(asked, Mapping):
            raise UserError(
                f"{where}: stage {name} needs flags, such as {{data: photos/, steps: 500}}"
            )
        flags = {**defaults, **asked}
        after, init = flags.pop("after", None), flags.pop("init", written.get("init"))
        teacher = flags.pop("teacher", None)
        if after is not None and asked.get("init") is not None:
            raise UserError(
                f"{where}: stage {name} is to begin from init and after another stage: choose one"
            )
        names = {str(flag).replace("_", "-") for flag in flags}
        if taken := RESERVED & names:
            raise UserError(
                f"{where}: stage {name}: {', '.join(sorted(taken))} is for the plan to decide"
            )
        if taken := CONDUCT & names:
            said = ", ".join(f"--{flag}" for flag in sorted(taken))
            raise UserError(
                f"{where}: stage {name}: give {said} to `selftaught adapt`, for all stages"
            )
        node = Node(
            name=str(name),
            words=words(flags),
            after=None if after is None else str(after),
            teacher=None if teacher is None else str(teacher),
            init=None if after is not None or init is None else str(init),
        )
        nodes.append(node)
    return Plan(nodes=tuple(nodes))


def words(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """{"data": "big/", "hard": ["adversarial", "cutmix"], "optimizer.lr": 0.1} as it is typed."""
    found: list[str] = []
    for name, value in flags.items():
        if isinstance(value, Mapping):
            raise UserError(
                f"{name}: write its fields one by one, as {name}.{next(iter(value), 'field')}: ..."
            )
        name = str(name).replace("_", "-")
        if isinstance(value, bool):  # --compile, --no-compile; --method.no-symmetric
            group, dot, last = name.rpartition(".")
            found.append(f"--{name}" if value else f"--{group}{dot}no-{last}")
            continue
        values = value if isinstance(value, list | tuple) else [value]
        found += [f"--{name}", *(str(v) for v in values)]
    return tuple(found)
