"""What a study tries: its plan file, and the cells that it consists of; over 200 lines with the
five designs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import cattrs
import yaml
from cattrs.v import format_exception

from selftaught.config.overrides import CONDUCT, flag, normalise, read_overrides
from selftaught.data.index.label_budget import Budget
from selftaught.errors import UserError
from selftaught.evaluation.finetune import FineTune
from selftaught.pipeline.execute import network_of
from selftaught.pipeline.plan import RESERVED, Loader, Node

Flags = Mapping[str, Any]
# by the study itself
DECIDED = {
    *RESERVED,
    *CONDUCT,
    "data",
    "labels_from",
    "init",
    "statistics",
    "steps",
    "epochs",
    "seed",
}

# Views with less and less of the augmentation, in the article's order; "no colour" brings grey
# back, as there.
AUGMENTATIONS: dict[str, Flags] = {
    "all": {},
    "no gray": {"views.gray": 0},
    "no colour": {"views.jitter": 0},
    "crop and blur": {"views.gray": 0, "views.jitter": 0, "views.flip": 0},
    "crop": {"views.gray": 0, "views.jitter": 0, "views.flip": 0, "views.blur": 0},
}
HPT_STEPS, TARGET_STEPS = (50, 500, 5000, 50_000), (5000, 50_000, 100_000, 200_000)


@dataclass(frozen=True, kw_only=True)
class Base:
    init: str
    backbone: str | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    data: tuple[str, ...]
    source: tuple[str, ...] = ()
    labels: str = "auto"
    # flags of its own, on top of the study's
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Steps of pretraining, as the article has them for batches of 256."""

    hpt: tuple[int, ...] = HPT_STEPS  # from a base
    target: tuple[int, ...] = TARGET_STEPS  # from random weights
    hpt_bn: tuple[int, ...] = (5000,)
    source: int = 5000
    refresh: int = 50  # batches that a base's norm statistics are taken from

    def __post_init__(self) -> None:
        ways = (self.hpt, self.target, self.hpt_bn)
        if not all(ways) or min(*chain.from_iterable(ways), self.source, self.refresh) < 1:
            raise UserError("steps: every way needs one length or more, of 1 step or more")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A study's plan: on what, from what, for how long. `settings` are flags of every
    pretraining.
    """

    bases: dict[str, Base]
    targets: dict[str, Target]
    settings: dict[str, Any]
    steps: Lengths = Lengths()
    seeds: tuple[int, ...] = (0, 1)
    hard: tuple[
        str, ...
    ] = ()  # hard examples: every variant that trains on the target is done with them as well
    labels: tuple[str, ...] = ("all",)  # of the linear probe and kNN
    few: tuple[str, ...] = ("total:1000", "all")  # of fine-tuning
    shares: tuple[str, ...] = ("1%", "10%", "25%", "100%")
    finetune: FineTune = FineTune()

    def __post_init__(self) -> None:
        if not self.seeds or not self.labels or not self.few or not self.shares:
            raise UserError("seeds, labels, few and shares need one value or more each")
        for labels in (*self.labels, *self.few):
            Budget.parse(labels)
        for share in self.shares:
            number = share.removesuffix("%")
            if (
                number == share
                or not number.replace(".", "", 1).isdecimal()
                or not 0 < float(number) <= 100
            ):
                raise UserError(
                    f"shares: {share} is no share of the images: say 10%, above 0% and at most 100%"
                )
        for flags in (self.settings, *(target.settings for target in self.targets.values())):
            if taken := DECIDED & {normalise(str(name)) for name in flags}:
                named = ", ".join(name.replace("_", "-") for name in sorted(taken))
                raise UserError(f"settings: {named} is for the study to decide, or for its command")
            read_overrides(flags)  # refuses what there is not


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a figure: a chain of stages for one seed, and how its outcome is judged."""

    target: str
    base: str
    variant: str
    # where it stands on the figure's axis: steps, labels, augmentations or share of the data
    x: str
    seed: int
    nodes: tuple[Node, ...]
    data: tuple[str, ...]  # what it is judged on: the target's test images
    labels_from: str
    protocols: tuple[str, ...]
    labels: tuple[str, ...]
    finetune: FineTune | None  # where that is among the protocols

    @property
    def judged(self) -> dict[str, Any]:
        """What its scores depend on. Not on what a study calls it: B+T of one is HPT of another,
        and is judged once.
        """
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        left_out = ("target", "base", "variant", "x")
        return {
            **{name: value for name, value in told.items() if name not in left_out},
            "nodes": [node_facts(node) for node in self.nodes],
            "finetune": self.finetune and asdict(self.finetune),
        }

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.judged, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.target}, {self.base}, {self.variant} ({self.x}), seed {self.seed}"


def node_facts(node: Node) -> dict[str, Any]:
    """A stage as cells are known by: what is asked for stands there in the words of flags, as it
    did when stages were asked for by these. A cell that is done stays so.
    """
    words: list[str] = []
    for name, value in node.overrides.items():
        if isinstance(value, bool):  # --compile, --no-compile; --method.no-symmetric
            group, dot, last = name.rpartition(".")
            words.append(flag(name) if value else flag(f"{group}{dot}no-{last}"))
            continue
        values = value if isinstance(value, list | tuple) else [value]
        words += [flag(name), *map(str, values)]
    facts = {"after": node.after, "teacher": node.teacher, "init": node.init}
    return {"name": node.name, "words": words, **facts}


def read(file: Path) -> Setup:
    """From YAML, with paths as they are typed; raises UserError for what does not fit."""
    try:
        written = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--plan {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(written, Mapping) or not written.get("bases") or not written.get("targets"):
        raise UserError(
            f"{file} is no study: it needs bases and targets, each a mapping from names"
        )
    try:
        return _converter().structure(written, Setup)
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
        reasons = (
            cattrs.transform_error(error, format_exception=reason)
            if isinstance(error, cattrs.BaseValidationError)
            else [repr(error)]
        )
        raise UserError(f"{file} does not fit: {'; '.join(reasons)}") from error


def _converter() -> cattrs.Converter:
    """Unknown fields are refused; one value stands for a list of it; a base may be weights alone, a
    target images alone.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook_func(
        lambda kind: kind == tuple[str, ...], lambda value, _: several(value)
    )
    plain = converter.copy()

    def base(value: Any, _: type) -> Base:
        return Base(init=value) if isinstance(value, str) else plain.structure(value, Base)

    def target(value: Any, _: type) -> Target:
        return plain.structure({"data": value} if isinstance(value, str | list) else value, Target)

    converter.register_structure_hook(Base, base)
    converter.register_structure_hook(Target, target)
    return converter


def reason(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, UserError) else format_exception(error, kind)


def several(value: Any) -> tuple[str, ...]:
    return tuple(str(v) for v in (value if isinstance(value, list | tuple) else [value]))


# ------------------------------------------------------------------------------------------- chains
# of stages


@dataclass(frozen=True)
class Chains:
    """The ways to a backbone for one target, base and seed. Each is a chain of stages that others
    share parts of.
    """

    setup: Setup
    base: Base
    target: Target
    seed: int
    network: Flags  # the base's, which what begins from random weights has as well

    def node(
        self, name: str, data: tuple[str, ...], flags: Flags, after: str | None, init: str | None
    ) -> Node:
        asked = {
            **self.setup.settings,
            **self.target.settings,
            "data": data,
            "seed": self.seed,
            "statistics": "data",
        }
        if (
            data == self.target.data
        ):  # held out is what the labels' split holds out, so that no test image is trained on
            asked["labels_from"] = self.target.labels
        asked |= flags
        if self.base.backbone:
            asked["backbone"] = self.base.backbone
        if init is None:
            asked = {**self.network, **asked}
        asked = {normalise(str(name)): value for name, value in asked.items()}
        return Node(name=name, overrides=asked, after=after, init=None if after else init)

    def random(self) -> tuple[Node, ...]:
        """The network before any training."""
        return (self.node("random", self.target.data, {"steps": 0}, None, None),)

    def as_is(self) -> tuple[Node, ...]:
        """The base as it came."""
        return (self.node("base", self.target.data, {"steps": 0}, None, self.base.init),)

    def refreshed(self) -> tuple[Node, ...]:
        """Base: its norm statistics are those of the target's images, and nothing else."""
        flags = {"trainable": "none", "steps": self.setup.steps.refresh}
        return (self.node("base", self.target.data, flags, None, self.base.init),)

    def source(self) -> tuple[Node, ...]:
        """B+S."""
        if not self.target.source:
            raise UserError("this study needs a source for every target")
        return (
            self.node(
                "source",
                self.target.source,
                {"steps": self.setup.steps.source},
                None,
                self.base.init,
            ),
        )

    def adapted(self, steps: int, flags: Flags, before: tuple[Node, ...] = ()) -> tuple[Node, ...]:
        """HPT: B+T, or B+S+T after a source."""
        after = before[-1].name if before else None
        return (
            *before,
            self.node("target", self.target.data, {"steps": steps, **flags}, after, self.base.init),
        )

    def anew(self, steps: int, flags: Flags) -> tuple[Node, ...]:
        """Target: from random weights, the same network."""
        return (self.node("target", self.target.data, {"steps": steps, **flags}, None, None),)


Variants = Iterator[tuple[str, str, tuple[Node, ...]]]  # variant, x, chain


def separability(c: Chains, flags: Flags) -> Variants:
    """Linear probe and kNN against the steps of pretraining."""
    steps = c.setup.steps
    for n in steps.hpt:
        yield "HPT", str(n), c.adapted(n, flags)
    for n in steps.hpt_bn:
        yield "HPT-BN", str(n), c.adapted(n, {**flags, "trainable": "norm"})
    for n in steps.target:
        yield "Target", str(n), c.anew(n, flags)


def labels(c: Chains, flags: Flags) -> Variants:
    """Fine-tuning with few labels and with all, of each way's longest pretraining."""
    steps = c.setup.steps
    yield "HPT", "", c.adapted(max(steps.hpt), flags)
    yield "HPT-BN", "", c.adapted(max(steps.hpt_bn), {**flags, "trainable": "norm"})
    yield "Target", "", c.anew(max(steps.target), flags)


def sequential(c: Chains, flags: Flags) -> Variants:
    """Is a source in between worth it: B+T against B+S+T."""
    n = max(c.setup.steps.hpt)
    yield "B+T", "", c.adapted(n, flags)
    yield "B+S+T", "", c.adapted(n, flags, c.source())


def augmentations(c: Chains, flags: Flags) -> Variants:
    """With fewer and fewer augmentations."""
    for name, fewer in AUGMENTATIONS.items():
        yield "HPT", name, c.adapted(max(c.setup.steps.hpt), {**flags, **fewer})
        yield "Target", name, c.anew(max(c.setup.steps.target), {**flags, **fewer})


def data(c: Chains, flags: Flags) -> Variants:
    """With less and less of the target's images."""
    steps = c.setup.steps
    for share in c.setup.shares:
        part = flags if float(share.removesuffix("%")) == 100 else {**flags, "subset": share}
        yield "HPT", share, c.adapted(max(steps.hpt), part)
        yield "HPT-BN", share, c.adapted(max(steps.hpt_bn), {**part, "trainable": "norm"})
        yield "Target", share, c.anew(max(steps.target), part)


STUDIES: dict[str, Callable[[Chains, Flags], Variants]] = {
    "separability": separability,
    "labels": labels,
    "sequential": sequential,
    "augmentations": augmentations,
    "data": data,
}
REFERENCES: dict[
    str, tuple[str, ...]
] = {  # what is drawn as a line: it depends on nothing that the study varies
    "separability": ("random", "base as is", "Base"),
    "labels": ("random", "Base"),
    "sequential": ("B", "B+S"),
    "augmentations": ("Base",),
    "data": ("Base",),
}


def cells(study: str, setup: Setup) -> list[Cell]:
    """Every cell of a study; seeds vary slowest, so that one whole figure is there first."""
    tuned = study in ("labels", "sequential")
    networks = {base: network_of(b.init) for base, b in setup.bases.items()}
    found: list[Cell] = []
    for seed, (target, t), (base, b) in product(
        setup.seeds, setup.targets.items(), setup.bases.items()
    ):
        chains = Chains(setup, b, t, seed, networks[base])
        ways: dict[str, Callable[[], tuple[Node, ...]]] = {
            "random": chains.random,
            "base as is": chains.as_is,
            "Base": chains.refreshed,
            "B": chains.refreshed,
            "B+S": chains.source,
        }
        tried = [(name, "", ways[name]()) for name in REFERENCES[study]]
        tried += STUDIES[study](chains, {})
        if setup.hard:
            tried += [
                (f"{v} + hard", x, nodes)
                for v, x, nodes in STUDIES[study](chains, {"hard": setup.hard})
            ]
        common = Cell(
            target=target,
            base=base,
            variant="",
            x="",
            seed=seed,
            nodes=(),
            data=t.data,
            labels_from=t.labels,
            protocols=("finetune",) if tuned else ("knn", "linear"),
            labels=setup.few if tuned else setup.labels,
            finetune=replace(setup.finetune, seed=seed) if tuned else None,
        )
        found += [replace(common, variant=variant, x=x, nodes=nodes) for variant, x, nodes in tried]
    return found
