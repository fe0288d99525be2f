"""Design of studies: the plan file, the five experiments, and their cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import cattrs

from selftaught.config.mismatch import describe_mismatch
from selftaught.config.overrides import CONDUCT, flag, normalise, read_overrides
from selftaught.data.index.label_budget import Budget
from selftaught.errors import UserError
from selftaught.evaluation.finetune import FineTune
from selftaught.pipeline.execute import network_of
from selftaught.pipeline.plan import RESERVED, Node, Plan, read_yaml, with_defaults

Flags = Mapping[str, Any]
# flags that the study or its command sets
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
# flags of which trained weights have other defaults than random ones
SHARED = ("size", "batch")

# Views with fewer and fewer augmentations, in the order of the paper, where "no colour" has grey.
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
    """Weights to start from: a run, a file, or a name in timm."""

    init: str
    backbone: str | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """Images to adapt to, and their labels."""

    data: tuple[str, ...]
    source: tuple[str, ...] = ()  # images of the intermediate stage
    labels: str = "auto"
    # flags that extend or replace those of the study
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Steps of pretraining, for batches of 256 (Reed et al., 2021, https://arxiv.org/abs/2103.12718)."""

    hpt: tuple[int, ...] = HPT_STEPS  # from a base
    target: tuple[int, ...] = TARGET_STEPS  # from random weights
    hpt_bn: tuple[int, ...] = (5000,)
    source: int = 5000
    refresh: int = 50  # batches for the norm statistics of a base

    def __post_init__(self) -> None:
        lengths = (self.hpt, self.target, self.hpt_bn)
        if not all(lengths) or min(*chain.from_iterable(lengths), self.source, self.refresh) < 1:
            raise UserError("steps: every way needs one length or more, of 1 step or more")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The plan of a study. Raises UserError for values out of range."""

    bases: dict[str, Base]
    targets: dict[str, Target]
    settings: dict[str, Any]  # flags of every pretraining
    steps: Lengths = Lengths()
    seeds: tuple[int, ...] = (0, 1)
    # hard examples: every variant that trains on the target is repeated with them
    hard: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("all",)  # numbers of labels for the linear probe and kNN
    few: tuple[str, ...] = ("total:1000", "all")  # numbers of labels for fine-tuning
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
                    f"shares: {share} is no share of the images: give 0% to 100%, as in 10%"
                )
        for flags in (self.settings, *(target.settings for target in self.targets.values())):
            if reserved := DECIDED & {normalise(str(name)) for name in flags}:
                named = ", ".join(name.replace("_", "-") for name in sorted(reserved))
                raise UserError(f"settings: {named} is for the study to decide, or for its command")
            read_overrides(flags)  # raises UserError for unknown flags
        for name, target in self.targets.items():
            given = {normalise(str(word)) for word in (*self.settings, *target.settings)}
            if missing := [word for word in SHARED if word not in given]:
                raise UserError(
                    f"settings: {name} needs {' and '.join(missing)}, as in size: 64, batch: 128."
                    " Defaults of trained and of random weights differ, and a study compares both"
                )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a figure: a chain of stages for one seed, and the evaluation of its outcome."""

    target: str
    base: str
    variant: str
    # position on the figure's axis: steps, labels, augmentations or share of the data
    x: str
    seed: int
    nodes: tuple[Node, ...]
    data: tuple[str, ...]  # the target's images, whose test side is evaluated
    labels_from: str
    protocols: tuple[str, ...]
    labels: tuple[str, ...]
    finetune: FineTune | None  # if it is among the protocols

    @property
    def inputs(self) -> dict[str, Any]:
        """The values that its scores depend on.

        Names are omitted: B+T of one study is HPT of another, and is evaluated once.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        names = ("target", "base", "variant", "x")
        return {
            **{name: value for name, value in values.items() if name not in names},
            "nodes": [node_facts(node) for node in self.nodes],
            "finetune": self.finetune and asdict(self.finetune),
        }

    @property
    def key(self) -> str:
        """Hash of the inputs; the name of the cell's file."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.target}, {self.base}, {self.variant} ({self.x}), seed {self.seed}"


def node_facts(node: Node) -> dict[str, Any]:
    """A stage as part of a cell's inputs.

    Settings are in the form of flags, as in older versions, so that finished cells remain valid.
    """
    words: list[str] = []
    for name, value in node.overrides.items():
        if isinstance(value, bool):  # --compile, --no-compile; --method.no-symmetric
            group, dot, last = name.rpartition(".")
            words.append(flag(name) if value else flag(f"{group}{dot}no-{last}"))
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [flag(name), *map(str, values)]
    facts = {"after": node.after, "teacher": node.teacher, "init": node.init}
    return {"name": node.name, "words": words, **facts}


def read(file: Path) -> Setup:
    """Read a study's plan from YAML. Raises UserError if the file is not one."""
    content = read_yaml(file)
    if not isinstance(content, Mapping) or not content.get("bases") or not content.get("targets"):
        raise UserError(
            f"{file} is no study: it needs bases and targets, each a mapping from names"
        )
    try:
        return _converter().structure(content, Setup)
    except (cattrs.BaseValidationError, TypeError, ValueError) as error:
        raise UserError(f"{file} does not fit: {describe_mismatch(error)}") from error


def _converter() -> cattrs.Converter:
    """A converter that refuses unknown fields.

    A single value becomes a list, weights become a base, and images become a target.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook_func(
        lambda kind: kind == tuple[str, ...], lambda value, _: several(value)
    )
    plain = converter.copy()

    def base(value: Any, _: type) -> Base:
        return Base(init=value) if isinstance(value, str) else plain.structure(value, Base)

    def target(value: Any, _: type) -> Target:
        return plain.structure({"data": value} if isinstance(value, (str, list)) else value, Target)

    converter.register_structure_hook(Base, base)
    converter.register_structure_hook(Target, target)
    return converter


def several(value: Any) -> tuple[str, ...]:
    """A value or a list of values, as a tuple of texts."""
    return tuple(str(v) for v in (value if isinstance(value, (list, tuple)) else [value]))


# Chains of stages


@dataclass(frozen=True)
class Chains:
    """The chains of stages for one target, base and seed. They can share stages."""

    setup: Setup
    base: Base
    target: Target
    seed: int
    network: Flags  # that of the base, also for stages that start from random weights

    def node(
        self, name: str, data: tuple[str, ...], flags: Flags, after: str | None, init: str | None
    ) -> Node:
        """One stage with the study's and the target's settings."""
        settings = {
            **self.setup.settings,
            **self.target.settings,
            "data": data,
            "seed": self.seed,
            "statistics": "data",
        }
        # The split of the labels holds out the test images, so none of them is trained on.
        if data == self.target.data:
            settings["labels_from"] = self.target.labels
        settings |= flags
        if self.base.backbone:
            settings["backbone"] = self.base.backbone
        if init is None:
            settings = {**self.network, **settings}
        settings = {normalise(str(name)): value for name, value in settings.items()}
        return Node(name=name, overrides=settings, after=after, init=None if after else init)

    def random(self) -> tuple[Node, ...]:
        """The network with random weights."""
        return (self.node("random", self.target.data, {"steps": 0}, None, None),)

    def as_is(self) -> tuple[Node, ...]:
        """The base without any training."""
        return (self.node("base", self.target.data, {"steps": 0}, None, self.base.init),)

    def refreshed(self) -> tuple[Node, ...]:
        """Base: the base with norm statistics of the target's images."""
        flags = {"trainable": "none", "steps": self.setup.steps.refresh}
        return (self.node("base", self.target.data, flags, None, self.base.init),)

    def source(self) -> tuple[Node, ...]:
        """B+S: the base trained on the source. Raises UserError for a target without a source."""
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
        """HPT: B+T, or B+S+T after the stages `before`."""
        after = before[-1].name if before else None
        return (
            *before,
            self.node("target", self.target.data, {"steps": steps, **flags}, after, self.base.init),
        )

    def adapted_by_default(self, steps: int, flags: Flags) -> tuple[Node, ...]:
        """B+T with the defaults of `selftaught adapt`: an anchor, and the best weights kept."""
        nodes = self.adapted(steps, {"statistics": "weights", **flags})
        return with_defaults(Plan(nodes=nodes)).nodes

    def anew(self, steps: int, flags: Flags) -> tuple[Node, ...]:
        """Target: the same network, trained from random weights."""
        return (self.node("target", self.target.data, {"steps": steps, **flags}, None, None),)


Variants = Iterator[tuple[str, str, tuple[Node, ...]]]  # variant, x, chain


def separability(c: Chains, flags: Flags) -> Variants:
    """Yield variants for linear probe and kNN over the steps of pretraining."""
    steps = c.setup.steps
    for n in steps.hpt:
        yield "HPT", str(n), c.adapted(n, flags)
    for n in steps.hpt_bn:
        yield "HPT-BN", str(n), c.adapted(n, {**flags, "trainable": "norm"})
    for n in steps.target:
        yield "Target", str(n), c.anew(n, flags)


def labels(c: Chains, flags: Flags) -> Variants:
    """Yield variants for fine-tuning with few and all labels, after the longest pretraining."""
    steps = c.setup.steps
    yield "HPT", "", c.adapted(max(steps.hpt), flags)
    yield "HPT-BN", "", c.adapted(max(steps.hpt_bn), {**flags, "trainable": "norm"})
    yield "adapt", "", c.adapted_by_default(max(steps.hpt), flags)
    yield "Target", "", c.anew(max(steps.target), flags)


def sequential(c: Chains, flags: Flags) -> Variants:
    """Yield variants without and with an intermediate source: B+T and B+S+T."""
    n = max(c.setup.steps.hpt)
    yield "B+T", "", c.adapted(n, flags)
    yield "B+S+T", "", c.adapted(n, flags, c.source())


def augmentations(c: Chains, flags: Flags) -> Variants:
    """Yield variants with fewer and fewer augmentations."""
    for name, fewer in AUGMENTATIONS.items():
        yield "HPT", name, c.adapted(max(c.setup.steps.hpt), {**flags, **fewer})
        yield "Target", name, c.anew(max(c.setup.steps.target), {**flags, **fewer})


def data(c: Chains, flags: Flags) -> Variants:
    """Yield variants with shares of the target's images."""
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
# variants that do not depend on the axis of the study; figures show them as lines
REFERENCES: dict[str, tuple[str, ...]] = {
    "separability": ("random", "base as is", "Base"),
    "labels": ("random", "base as is", "Base"),
    "sequential": ("B", "B+S"),
    "augmentations": ("Base",),
    "data": ("Base",),
}


def cells(study: str, setup: Setup) -> list[Cell]:
    """Build every cell of a study. Seeds vary slowest, so that a whole figure is complete early."""
    tuned = study in ("labels", "sequential")
    networks = {base: network_of(b.init) for base, b in setup.bases.items()}
    study_cells: list[Cell] = []
    for seed, (target, t), (base, b) in product(
        setup.seeds, setup.targets.items(), setup.bases.items()
    ):
        chains = Chains(setup, b, t, seed, networks[base])
        references: dict[str, Callable[[], tuple[Node, ...]]] = {
            "random": chains.random,
            "base as is": chains.as_is,
            "Base": chains.refreshed,
            "B": chains.refreshed,
            "B+S": chains.source,
        }
        variants = [(name, "", references[name]()) for name in REFERENCES[study]]
        variants += STUDIES[study](chains, {})
        if setup.hard:
            variants += [
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
        study_cells += [
            replace(common, variant=variant, x=x, nodes=nodes) for variant, x, nodes in variants
        ]
    return study_cells
