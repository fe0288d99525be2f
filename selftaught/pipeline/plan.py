"""A plan: stages that begin from one another's weights. Hierarchical pretraining is a chain of
them, a study a tree.

(HPT: Reed et al., 2021, https://arxiv.org/abs/2103.12718.) A stage is asked for by overrides, as
`config.overrides` has them, so that whatever can be trained alone can be trained as a part of a
plan.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selftaught.config.overrides import CONDUCT, flag, normalise
from selftaught.config.resolve import find_method
from selftaught.errors import UserError

RESERVED = {"out", "resume", "config"}  # what a plan decides itself
TOP = {"init", "defaults", "stages"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One stage of a plan."""

    name: str
    overrides: Mapping[str, Any]  # what is asked for of it
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
        flags = {normalise(str(key)): value for key, value in {**defaults, **asked}.items()}
        after, init = flags.pop("after", None), flags.pop("init", written.get("init"))
        teacher = flags.pop("teacher", None)
        if after is not None and asked.get("init") is not None:
            raise UserError(
                f"{where}: stage {name} is to begin from init and after another stage: choose one"
            )
        if taken := RESERVED & flags.keys():
            raise UserError(
                f"{where}: stage {name}: {', '.join(sorted(taken))} is for the plan to decide"
            )
        if shared := CONDUCT & flags.keys():
            said = ", ".join(map(flag, sorted(shared)))
            raise UserError(
                f"{where}: stage {name}: give {said} to `selftaught adapt`, for all stages"
            )
        node = Node(
            name=str(name),
            overrides=flags,
            after=None if after is None else str(after),
            teacher=None if teacher is None else str(teacher),
            init=None if after is not None or init is None else str(init),
        )
        nodes.append(node)
    return Plan(nodes=tuple(nodes))


# of a chain, what is asked for of its target alone
_TARGET_ALONE = ("trainable", "steps", "epochs", "keep", "subset", "labels_from")


def chain(
    overrides: Mapping[str, Any],
    target: Any,
    source: Any = None,
    init: str | None = None,
    source_steps: int | None = None,
) -> Plan:
    """Base -> Source -> Target. What moves, hard examples and the length are the target's.

    target, source: images, as `data` is asked for. Raises UserError where there is nothing to
    adapt.
    """
    if not target:
        raise UserError(
            "nothing to adapt to: name the target's images by --target, or a plan by --plan"
        )
    if not init and not source:
        raise UserError(
            "nothing to adapt: name weights by --init, a --source, or both; or train anew by"
            " `selftaught pretrain`"
        )
    asked = {normalise(name): value for name, value in overrides.items()}
    common = {
        name: value
        for name, value in asked.items()
        if not (name.partition(".")[0] == "hard" or name in _TARGET_ALONE)
    }
    last = Node(
        name="target",
        overrides={**asked, "data": target},
        after="source" if source else None,
        init=None if source else init,
    )
    if not source:
        return Plan(nodes=(last,))
    first = Node(
        name="source", overrides={**common, "data": source, "steps": source_steps}, init=init
    )
    return Plan(nodes=(first, last))


def with_defaults(asked: Plan) -> Plan:
    """Pixels are normalised by each stage's own data, and a plan's outcome is never worse than its
    start unless that is asked for.
    """

    def settled(node: Node) -> Node:
        overrides: dict[str, Any] = {"statistics": "data"}
        if node in asked.leaves and (node.after or node.init) and not _classifies(node):
            # by the features: it does not tell which classifier is best
            overrides["keep"] = "best"
        return replace(node, overrides={**overrides, **node.overrides})

    return Plan(nodes=tuple(settled(node) for node in asked.nodes))


def _classifies(node: Node) -> bool:
    try:
        return find_method(node.overrides).classifies
    except UserError:  # it is refused with its stage, later
        return False
