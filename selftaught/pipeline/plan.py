"""Plans: stages that start from the weights of other stages.

Hierarchical pretraining is a chain of stages (HPT; Reed et al., 2021,
https://arxiv.org/abs/2103.12718), and a study is a tree. A stage is given as overrides, as in
`config.overrides`. So every stage that can be trained alone can be part of a plan.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selftaught.config.overrides import CONDUCT, flag, normalise
from selftaught.config.resolve import find_method
from selftaught.errors import UserError, read_error
from selftaught.models.anchor import Anchor

RESERVED = {"out", "resume", "config"}  # flags that a plan sets itself
TOP = {"init", "defaults", "stages"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One stage of a plan."""

    name: str
    overrides: Mapping[str, Any]  # settings that differ from the defaults
    after: str | None = None  # the stage whose backbone it starts from
    teacher: str | None = None  # the stage whose classifier or backbone it learns from
    # without `after`: the weights that it starts from (a run, a file, a name in timm), or random
    init: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages in an order in which they can be trained.

    Raises UserError for a stage that starts from or learns from a later or missing one.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UserError("the plan has no stages")
        names: set[str] = set()
        for node in self.nodes:
            if node.name in names:
                raise UserError(f"the plan has two stages called {node.name}")
            if node.after is not None and node.after not in names:
                raise UserError(
                    f"{node.name} is to begin after {node.after}: the plan has no such stage"
                    " before it"
                )
            if node.teacher is not None and node.teacher not in names:
                raise UserError(
                    f"{node.name} is to be taught by {node.teacher}: the plan has no such stage"
                    " before it"
                )
            names.add(node.name)

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
        """The stages that no other one starts from or learns from: the results of the plan."""
        used = {name for node in self.nodes for name in (node.after, node.teacher)}
        return tuple(node for node in self.nodes if node.name not in used)


def read(file: Path) -> Plan:
    """Read a plan from YAML:

        init: base.pth  # start of stages without `after`; by default random weights
        defaults: {method: moco-v2, size: 64}
        stages:
          source: {data: big/, steps: 5000}
          target: {after: source, data: mine/, steps: 500, trainable: norm, hard: [cutmix]}

    A stage with `init: null` starts from random weights. `teacher: tuned` names the stage that
    teaches, as distillation and feature-distillation require. Raises UserError if the file is not
    a plan.
    """
    return from_mapping(read_yaml(file), str(file))


def read_yaml(file: Path) -> Any:
    """Read the content of a plan's file. Raises UserError if it is no YAML."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise read_error(f"--plan {file}", error) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise UserError(f"--plan {file} cannot be read as YAML: {reason}") from error
    except RecursionError:
        raise UserError(f"--plan {file} cannot be read: its lists are nested too deeply") from None


class Loader(yaml.SafeLoader):
    """A YAML loader that refuses two entries of one name, instead of dropping the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise yaml.YAMLError(
                f"{', '.join(twice)} is there twice (line {node.start_mark.line + 1})"
            )
        return node


def from_mapping(content: Any, where: str) -> Plan:
    """Build a plan from the content of its file; `where` names the file in errors."""
    if not isinstance(content, Mapping) or not isinstance(content.get("stages"), Mapping):
        raise UserError(
            f"{where} is no plan: it needs `stages:`, a mapping from names to the flags of"
            " `selftaught pretrain`"
        )
    if unknown := set(content) - TOP:
        raise UserError(
            f"{where}: {', '.join(sorted(map(str, unknown)))} not understood; a plan has"
            f" {', '.join(sorted(TOP))}"
        )
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, Mapping):
        raise UserError(f"{where}: defaults needs flags, such as {{size: 64}}")
    nodes = []
    for name, settings in content["stages"].items():
        if not isinstance(settings, Mapping):
            raise UserError(
                f"{where}: stage {name} needs flags, such as {{data: photos/, steps: 500}}"
            )
        flags = {normalise(str(key)): value for key, value in {**defaults, **settings}.items()}
        after, init = flags.pop("after", None), flags.pop("init", content.get("init"))
        teacher = flags.pop("teacher", None)
        if after is not None and settings.get("init") is not None:
            raise UserError(f"{where}: stage {name} has both init and after: choose one")
        if reserved := RESERVED & flags.keys():
            raise UserError(
                f"{where}: stage {name}: {', '.join(sorted(reserved))} is for the plan to decide"
            )
        if shared := CONDUCT & flags.keys():
            names = ", ".join(map(flag, sorted(shared)))
            raise UserError(
                f"{where}: stage {name}: give {names} to `selftaught adapt`, for all stages"
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


BY_WEIGHTS = "by the weights"  # norm_statistics that depend on the weights of the start
# settings of a chain that hold for its target only
_TARGET_ALONE = ("trainable", "steps", "epochs", "keep", "subset", "labels_from")


def chain(
    overrides: Mapping[str, Any],
    target: Any,
    source: Any = None,
    init: str | None = None,
    source_steps: int | None = None,
) -> Plan:
    """Build the plan Base -> Source -> Target.

    target, source: images, as for `data`. Hard examples, trainable layers and length hold for the
    target only. Raises UserError if there are no images or no weights to adapt.
    """
    if not target:
        raise UserError(
            "nothing to adapt to: name the target's images by --target, or a plan by --plan"
        )
    if not init and not source:
        raise UserError(
            "nothing to adapt: name weights by --init, a --source, or both; or train from random"
            " weights by `selftaught pretrain`"
        )
    settings = {normalise(name): value for name, value in overrides.items()}
    common = {
        name: value
        for name, value in settings.items()
        if not (name.partition(".")[0] == "hard" or name in _TARGET_ALONE)
    }
    last = Node(
        name="target",
        overrides={**settings, "data": target},
        after="source" if source else None,
        init=None if source else init,
    )
    if not source:
        if source_steps is not None:
            raise UserError("--source-steps does nothing without --source: name its images")
        return Plan(nodes=(last,))
    if not init:  # random weights, which nothing should hold
        held = ("anchor", "norm_statistics")
        common = {k: v for k, v in common.items() if k.partition(".")[0] not in held}
    first = Node(
        name="source", overrides={**common, "data": source, "steps": source_steps}, init=init
    )
    return Plan(nodes=(first, last))


def with_defaults(plan: Plan) -> Plan:
    """Add the defaults of adapting to a plan.

    Stages that start from weights have an anchor, and may keep the statistics of their batch norms
    (`execute.resolve_node` decides). The last stages keep the best weights, so the outcome is not
    worse than the start.
    """

    def add_defaults(node: Node) -> Node:
        overrides: dict[str, Any] = {}
        if (node.after or node.init) and not _classifies(node):
            overrides["anchor"] = Anchor().weight
            # HPT-BN and Base are about these statistics.
            if node.overrides.get("trainable") not in ("norm", "none"):
                overrides["norm_statistics"] = BY_WEIGHTS
            if node in plan.leaves:
                # Candidates are scored by features, which does not select the best classifier.
                overrides["keep"] = "best"
        return replace(node, overrides={**overrides, **node.overrides})

    return Plan(nodes=tuple(add_defaults(node) for node in plan.nodes))


def _classifies(node: Node) -> bool:
    try:
        return find_method(node.overrides).classifies
    except UserError:  # resolving the stage raises it later
        return False
