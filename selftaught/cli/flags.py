"""The flags of `selftaught pretrain` and `adapt`, built from dataclasses, and their overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from tyro.conf import arg

from selftaught.cli.argv import group_words, words_before
from selftaught.cli.options import (
    MAX_PIXELS_HELP,
    THREADS_HELP,
    WORKERS_DEFAULT,
    WORKERS_HELP,
    Option,
    annotate,
    parse_annotated,
)
from selftaught.config import registry
from selftaught.config.defaults import optimizer_of
from selftaught.config.overrides import FIELDS, GROUPS, Count, normalise, refuse_others
from selftaught.config.resolve import resolve_stage
from selftaught.config.stage import Data, Stage
from selftaught.data.index.build import Index
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.methods import DEFAULT, METHODS
from selftaught.models.anchor import Anchor
from selftaught.optim import OPTIMIZERS, Cosine
from selftaught.views.spec import Views

ABOUT = "Teach a backbone from images without labels, or adapt one that you have."

# pyrefly: ignore[invalid-literal]
OPTIMIZER_NAME: Any = Literal[tuple(OPTIMIZERS)]

OWN = "package.module:Class"  # a class of the user

# Flags outside of groups: name, type, metavar, help, default in the help.
SUITED = "suited to data and hardware"
PLAIN: tuple[tuple[str, Any, str, str, str], ...] = (
    ("out", str, "FOLDER", "folder of the run", "required"),
    (
        "data",
        tuple[str, ...],
        "PATH ...",
        "folders of images, packs, Parquet files, or URLs",
        "required for a new run",
    ),
    (
        "labels_from",
        str | None,
        "auto|folders|none|FILE.csv",
        "class folders or a CSV; for monitoring, choosing weights, and methods that need labels",
        "auto",
    ),
    (
        "subset",
        str | None,
        "all|10%|5|total:200",
        "part of the training images: a share, labels a class, labels in all",
        "all",
    ),
    (
        "holdout",
        float | None,
        "SHARE",
        "share of held-out images, if the folders have no split",
        "0.2",
    ),
    ("max_pixels", int | None, "PIXELS", MAX_PIXELS_HELP, f"{MAX_PIXELS}"),
    ("method", str | None, "|".join((*METHODS, OWN)), "what to predict", DEFAULT),
    (
        "hard",
        tuple[str, ...] | None,
        " ".join((*HARD, OWN)),
        "hard examples, trained on in addition; cutmix helps after hundreds of passes",
        "none",
    ),
    ("backbone", str | None, "NAME", "a timm network, or package.module:function", SUITED),
    (
        "stem",
        Literal["imagenet", "cifar"] | None,
        "imagenet|cifar",
        "first layers of a resnet; cifar keeps more detail",
        SUITED,
    ),
    (
        "init",
        str | None,
        "WEIGHTS",
        "to start from: a run, a file or folder of weights, or a name in timm",
        "random",
    ),
    (
        "statistics",
        Literal["weights", "data"] | None,
        "weights|data",
        "whose mean and std normalise the pixels",
        "weights",
    ),
    (
        "trainable",
        str | None,
        "all|norm|none|last-K|lora",
        "norm: norm layers and the new head only (HPT-BN)",
        "all",
    ),
    (
        "norm_statistics",
        Literal["weights", "data"] | None,
        "weights|data",
        "statistics of batch norms: weights = keep those of --init",
        "data",
    ),
    (
        "keep",
        Literal["last", "best"] | None,
        "last|best",
        "best: the best of the start, the end, and weights between them",
        "last",
    ),
    ("size", int | None, "PIXELS", "side of a large view", SUITED),
    ("batch", int | None, "IMAGES", "images in a step, over all processes", SUITED),
    ("accumulate", int | None, "PARTS", "number of parts that a batch is split into", "1"),
    ("epochs", float | None, "PASSES", "passes over the training images", SUITED),
    ("steps", int | None, "STEPS", "length in steps, instead of --epochs", "by --epochs"),
    (
        "views",
        Literal["fast", "reference"] | None,
        "fast|reference",
        "reference: torchvision's operations, one image at a time",
        "fast",
    ),
    (
        "optimizer",
        OPTIMIZER_NAME | None,
        "|".join(OPTIMIZERS),
        "its settings are --optimizer.lr and others",
        "the method's; adamw for networks with layer norms",
    ),
    (
        "combine",
        Literal["mean", "sum"] | None,
        "mean|sum",
        "how clean and hard losses are added",
        "mean",
    ),
    (
        "anchor",
        float | None,
        "WEIGHT",
        "hold the backbone near the weights of --init; 0 = do not",
        "0",
    ),
    ("clip", float | None, "NORM", "maximum norm of gradients; 0 = no clipping", "the method's"),
    (
        "precision",
        Literal["auto", "fp32", "bf16"] | None,
        "auto|fp32|bf16",
        "auto: bf16 if the processor supports it",
        "auto",
    ),
    ("compile", bool, "", "compile the backbone by torch.compile; requires a C++ compiler", "no"),
    ("seed", int | None, "NUMBER", "the same seed gives the same run", "0"),
    ("config", str | None, "FILE", "a run.json with other defaults", "none"),
    ("resume", bool, "", "continue the run in --out", "no"),
    ("device", Literal["auto", "cpu", "cuda"], "auto|cpu|cuda", "device of the training", "auto"),
    ("threads", Count, "auto|THREADS", THREADS_HELP, "auto; a resumed run keeps its own"),
    ("workers", Count, "auto|PROCESSES", WORKERS_HELP, WORKERS_DEFAULT),
    (
        "on_collapse",
        Literal["stop", "warn"],
        "stop|warn",
        "action when the features collapse",
        "stop",
    ),
    ("save_every", float, "SECONDS", "time between checkpoints", "120"),
    ("fsdp", bool, "", "shard weights, gradients and optimizer state over the processes", "no"),
    (
        "log",
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
        "tensorboard|wandb|mlflow ...",
        "loggers of metrics, pictures and scores",
        "the run's journal only",
    ),
)
# Additional flags of `selftaught adapt`
ADAPT: tuple[tuple[str, Any, str, str, str], ...] = (
    (
        "target",
        tuple[str, ...],
        "PATH ...",
        "images to adapt to, as for --data",
        "required without --plan",
    ),
    (
        "source",
        tuple[str, ...],
        "PATH ...",
        "images of an intermediate stage, many and similar to the target",
        "none",
    ),
    ("source_steps", int | None, "STEPS", "length of the intermediate stage", SUITED),
    (
        "plan",
        str | None,
        "FILE.yaml",
        "any chain or tree of stages, each with its own flags",
        "none",
    ),
)
# defaults of `adapt` that differ from those of `pretrain`
OTHERWISE = {
    "norm_statistics": "weights, but for own ones of this size",
    "keep": "best",
    "anchor": f"{Anchor().weight:g}",
}
ADAPTING = {"target", "source", "source-steps", "plan", "init", "data"}
DEFAULTS: dict[str, Any] = {
    "data": (),
    "target": (),
    "source": (),
    "compile": False,
    "resume": False,
    "device": "auto",
    "threads": "auto",
    "workers": "auto",
    "on_collapse": "stop",
    "save_every": 120.0,
    "fsdp": False,
    "log": (),
}


def pretrain_flags(
    method: str,
    optimizer: str,
    hard: Sequence[str],
    table: Sequence[tuple[str, Any, str, str, str]] = PLAIN,
) -> type:
    """Build the dataclass of all flags, for a method, an optimizer and hard examples."""
    plain = []
    for name, kind, metavar, text, without in table:
        default = (
            dataclasses.field(default=DEFAULTS.get(name)) if name != "out" else dataclasses.field()
        )
        about = Option(metavar, text, without, positional=False)
        plain.append((name, annotate(name, kind, about), default))
    kinds: dict[str, type] = {
        "method": registry.find_method(method).Config,
        "hard": hard_fields(hard),
        "views": Views,
        "optimizer": registry.find_optimizer(optimizer),
        "schedule": Cosine,
        "anchor": Anchor,
    }
    depends = {
        "method": f"of {method}; defaults depend on the data",
        "optimizer": "the default rate depends on the method, the network and the batch",
        "views": "defaults depend on the method",
    }
    nested = []
    for name in GROUPS:
        kind = kinds[name]
        about = arg(name=name, help=depends.get(name, ""))
        nested.append((f"{name}_fields", Annotated[kind, about], dataclasses.field(default=kind())))
    flags = dataclasses.make_dataclass("Pretrain", [*plain, *nested], kw_only=True)
    flags.__doc__ = ABOUT
    return flags


def hard_fields(names: Sequence[str]) -> type:
    """Build the dataclass of all hard examples of the package, and of those in `names`."""
    kinds = {**HARD, **{registry.hard_word(k): k for k in map(registry.find_hard, names)}}
    # With a help text tyro does not search the source of the class: a third of the time of parsing.
    fields: list[tuple[str, Any, Any]] = [
        (word, Annotated[kind, arg(help=summarise(kind))], dataclasses.field(default=kind()))
        for word, kind in kinds.items()
    ]
    return dataclasses.make_dataclass("Hard", fields, frozen=True)


def summarise(kind: type) -> str:
    """The docstring of a dataclass on one line; empty if `dataclass` wrote it."""
    text = " ".join((kind.__doc__ or "").split())
    return "" if text.startswith(f"{kind.__name__}(") else text


def parse(args: Sequence[str], base: Stage | None = None) -> Any:
    """Parse the flags of `selftaught pretrain`. Raises UserError; SystemExit after the help."""
    refuse_first_word(args, "data")
    return parse_annotated(pretrain_flags(*find_kinds(args, base)), "pretrain", args)


def parse_adapt(args: Sequence[str]) -> Any:
    """Parse the flags of `selftaught adapt`: its own ones, and those of its stages."""
    refuse_first_word(args, "target")
    if "data" in names(args):
        raise UserError("adapt has no --data: name the images by --target, and others by --source")
    shared = [row for row in PLAIN if row[0] not in ("data", "config", "resume")]
    table = [*ADAPT, *((*row[:4], OTHERWISE.get(row[0], row[4])) for row in shared)]
    return parse_annotated(pretrain_flags(*find_kinds(args, None), table), "adapt", args)


def refuse_first_word(args: Sequence[str], images: str) -> None:
    """Raise UserError for a word before the first flag.

    images: the flag that names images.
    """
    for word in words_before(args)[:1]:
        if word != "-h":
            raise UserError(f"'{word}' belongs to no flag: name images by --{images}")


def find_kinds(args: Sequence[str], base: Stage | None) -> tuple[str, str, list[str]]:
    """The names of method, optimizer and hard examples.

    Raises UserError for a flag of another method or optimizer.
    """
    method = find_value(args, "method") or (registry.method_name(base) if base else DEFAULT)
    usual = registry.optimizer_name(base) if base else optimizer_of(registry.find_method(method))
    optimizer = find_value(args, "optimizer")
    if optimizer is None:
        optimizer = usual if base else optimizer_with(fields_of(args, "optimizer"), usual)
    hard = [word for name, values in group_words(args) if name == "hard" for word in values]
    hard = hard or [registry.hard_name(h) for h in (base.hard if base else ())]
    configs = {name: m.Config for name, m in METHODS.items()}
    for group, name, kind, among in (
        ("method", method, registry.find_method(method).Config, configs),
        ("optimizer", optimizer, registry.find_optimizer(optimizer), OPTIMIZERS),
    ):
        refuse_others(fields_of(args, group), group, name, kind, among)
    for word in hard:
        registry.find_hard(word)  # raises UserError for unknown ones
    return method, optimizer, hard


def optimizer_with(fields: Sequence[str], usual: str) -> str:
    """Return `usual` if it has all `fields`, else the first optimizer that does, else `usual`.

    The default depends on the network, which is not known before the images are read. Then
    `resolve_stage` refuses fields that the stage's optimizer lacks.
    """
    able = [
        name
        for name in (usual, *OPTIMIZERS)
        if {*fields} <= {field.name for field in dataclasses.fields(registry.find_optimizer(name))}
    ]
    return able[0] if able else usual


def overrides_of(args: Sequence[str], options: Any) -> dict[str, Any]:
    """The settings of a stage that are present in `args`, by name, with values from `parse`."""
    overrides: dict[str, Any] = {}
    for flag in names(args):
        group, field = field_of(flag)
        if group:
            value = getattr(options, f"{group}_fields")
            for part in field.split("."):
                value = getattr(value, part)
            overrides[f"{group}.{field}"] = value
        elif (name := normalise(flag.removeprefix("no-"))) in FIELDS and hasattr(options, name):
            overrides[name] = getattr(options, name)
    return overrides


def stage_from(
    args: Sequence[str],
    base: Stage | None,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> Stage:
    """The stage of the flags of `selftaught pretrain`; see `resolve_stage`."""
    overrides = overrides_of(args, parse(args, base))
    return resolve_stage(overrides, base, device, index_of, say)


# Words before they are parsed


def find_value(args: Sequence[str], flag: str) -> str | None:
    """The last value of `--flag`; None if it is absent."""
    values = [words[0] for name, words in group_words(args) if name == flag and words]
    return values[-1] if values else None


def names(args: Sequence[str]) -> list[str]:
    """The names of the flags in `args`."""
    return [name for name, _ in group_words(args)]


def fields_of(args: Sequence[str], group: str) -> list[str]:
    """The fields of a group that `args` name: ["betas"] for --optimizer.betas 0.9 0.95."""
    return [field for of, field in map(field_of, names(args)) if of == group]


def field_of(name: str) -> tuple[str, str]:
    """("method", "symmetric") for method.no-symmetric; ("", "") for flags outside of groups."""
    group, dot, field = name.partition(".")
    if not dot or group not in GROUPS:
        return "", ""
    *above, last = field.split(".")
    return group, normalise(".".join([*above, last.removeprefix("no-")]))
