"""The flags of `selftaught pretrain` and `adapt`, from the dataclasses, and what they ask for; over
200 lines with their table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from selftaught.cli.flag_values import reader
from selftaught.config import registry
from selftaught.config.overrides import FIELDS, GROUPS, Count, normalise, refuse_others
from selftaught.config.resolve import resolve_stage
from selftaught.config.stage import Data, Stage
from selftaught.data.index.build import Index
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.hard import HARD
from selftaught.hard.base import HardExample
from selftaught.methods import DEFAULT, METHODS
from selftaught.optim import OPTIMIZERS, Cosine
from selftaught.views.spec import Views

ABOUT = "Teach a backbone from images without labels, or adapt one that you have."

OPTIMIZER_NAME: Any = Literal[tuple(OPTIMIZERS)]

OWN = "package.module:Class"  # one's own

# What may be asked for in one word: name, type, how the value is called in the help, what it is,
# what happens without.
SUITED = "suited to data and hardware"
PLAIN: tuple[tuple[str, Any, str, str, str], ...] = (
    ("out", str, "FOLDER", "of the run", "required"),
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
        "class folders or a CSV; labels only serve to watch",
        "auto",
    ),
    (
        "subset",
        str | None,
        "all|10%|5|total:200",
        "of the training images: a share, labels a class, labels in all",
        "all",
    ),
    (
        "holdout",
        float | None,
        "SHARE",
        "of images kept out of training, where the folders make no split",
        "0.2",
    ),
    ("max_pixels", int | None, "PIXELS", "of an image; larger ones are left out", f"{MAX_PIXELS}"),
    ("method", str | None, "|".join((*METHODS, OWN)), "what to predict", DEFAULT),
    (
        "hard",
        tuple[str, ...] | None,
        " ".join((*HARD, OWN)),
        "hard examples to train on besides",
        "none",
    ),
    ("backbone", str | None, "NAME", "of a timm network, or package.module:function", SUITED),
    (
        "stem",
        Literal["imagenet", "cifar"] | None,
        "imagenet|cifar",
        "a resnet's first layers; cifar keeps detail",
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
        "norm: norm layers and the new head alone (HPT-BN)",
        "all",
    ),
    (
        "keep",
        Literal["last", "best"] | None,
        "last|best",
        "best: of the start and log-spaced checkpoints",
        "last",
    ),
    ("size", int | None, "PIXELS", "of a large view", SUITED),
    ("batch", int | None, "IMAGES", "a step, over all processes", SUITED),
    ("accumulate", int | None, "PARTS", "that a batch is worked through in", "1"),
    ("epochs", float | None, "PASSES", "over the training images", SUITED),
    ("steps", int | None, "STEPS", "instead of epochs", "by --epochs"),
    (
        "views",
        Literal["fast", "reference"] | None,
        "fast|reference",
        "reference: torchvision's, one by one",
        "fast",
    ),
    (
        "optimizer",
        OPTIMIZER_NAME | None,
        "|".join(OPTIMIZERS),
        "its settings are --optimizer.lr and so on",
        "sgd",
    ),
    (
        "combine",
        Literal["mean", "sum"] | None,
        "mean|sum",
        "how clean and hard losses are added",
        "mean",
    ),
    ("clip", float | None, "NORM", "at which gradients are clipped; 0 = never", "the method's"),
    (
        "precision",
        Literal["auto", "fp32", "bf16"] | None,
        "auto|fp32|bf16",
        "auto: bf16 if the processor has it",
        "auto",
    ),
    ("compile", bool, "", "the backbone by torch.compile, which takes a C++ compiler", "no"),
    ("seed", int | None, "NUMBER", "same seed, same run", "0"),
    ("config", str | None, "FILE", "a run.json to start from", "none"),
    ("resume", bool, "", "go on with the run in --out", "no"),
    ("device", Literal["auto", "cpu", "cuda"], "auto|cpu|cuda", "where to train", "auto"),
    (
        "threads",
        Count,
        "auto|THREADS",
        "that compute; auto: one for each free core",
        "auto; a resumed run keeps its own",
    ),
    (
        "workers",
        Count,
        "auto|PROCESSES",
        "that decode images, where these are not held in memory",
        "auto: at most 2",
    ),
    (
        "on_collapse",
        Literal["stop", "warn"],
        "stop|warn",
        "when the features fall into one point",
        "stop",
    ),
    ("save_every", float, "SECONDS", "between checkpoints", "120"),
    (
        "fsdp",
        bool,
        "",
        "let each of several processes hold its share of weights, gradients and optimizer",
        "no",
    ),
    (
        "log",
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
        "tensorboard|wandb|mlflow ...",
        "metrics, pictures and scores go there, too",
        "the run's journal alone",
    ),
)
# What `selftaught adapt` takes besides, and what it takes otherwise.
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
        "images for a stage in between, many and of a similar kind",
        "none",
    ),
    ("source_steps", int | None, "STEPS", "of the stage in between", SUITED),
    (
        "plan",
        str | None,
        "FILE.yaml",
        "stages in any chain or tree, each with flags of its own",
        "none",
    ),
)
# what happens without, where it is not as in pretrain
OTHERWISE = {"statistics": "data", "keep": "best"}
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
    """The dataclass of all flags, for one method, one optimizer and some hard examples."""
    plain = []
    for name, kind, metavar, text, without in table:
        default = (
            dataclasses.field(default=DEFAULTS.get(name)) if name != "out" else dataclasses.field()
        )
        flag = name.replace("_", "-")
        said = arg(name=flag, help=text, metavar=metavar or None, help_behavior_hint=f"({without})")
        typed = (
            Annotated[kind, said]
            if kind is bool
            else Annotated[kind, said, reader(flag, kind, metavar)]
        )
        plain.append((name, typed, default))
    kinds: dict[str, type] = {
        "method": registry.find_method(method).Config,
        "hard": hard_fields(hard),
        "views": Views,
        "optimizer": registry.find_optimizer(optimizer),
        "schedule": Cosine,
    }
    nested = []
    for name in GROUPS:
        kind = kinds[name]
        about = arg(
            name=name,
            help=f"of {method}, scaled to the data unless given" if name == "method" else "",
        )
        nested.append((f"{name}_fields", Annotated[kind, about], dataclasses.field(default=kind())))
    flags = dataclasses.make_dataclass("Pretrain", [*plain, *nested], kw_only=True)
    flags.__doc__ = ABOUT
    return flags


def hard_fields(names: Sequence[str]) -> type:
    """The dataclass of the fields of every hard example of this package, and of those named."""
    kinds = {**HARD, **{registry.hard_word(k): k for k in map(registry.find_hard, names)}}
    fields: list[tuple[str, type[HardExample], Any]] = [
        (word, kind, dataclasses.field(default=kind())) for word, kind in kinds.items()
    ]
    return dataclasses.make_dataclass("Hard", fields, frozen=True)


def parse(args: Sequence[str], base: Stage | None = None) -> Any:
    """Read the flags of `selftaught pretrain`. Raises UserError, or ends as argparse does."""
    flags = pretrain_flags(*kinds_asked(args, base))
    default = flags(out=chosen(args, "out") or tyro.MISSING)
    return tyro.cli(flags, prog="selftaught pretrain", args=list(args), default=default)


def parse_adapt(args: Sequence[str]) -> Any:
    """Read the flags of `selftaught adapt`: those of a target, a source or a plan, and what both
    stages share.
    """
    shared = [row for row in PLAIN if row[0] not in ("data", "config", "resume")]
    table = [*ADAPT, *((*row[:4], OTHERWISE.get(row[0], row[4])) for row in shared)]
    flags = pretrain_flags(*kinds_asked(args, None), table)
    return tyro.cli(
        flags,
        prog="selftaught adapt",
        args=list(args),
        default=flags(out=chosen(args, "out") or tyro.MISSING),
    )


def kinds_asked(args: Sequence[str], base: Stage | None) -> tuple[str, str, list[str]]:
    """The names of method, optimizer and hard examples; raises UserError where a flag is another
    one's.
    """
    method = chosen(args, "method") or (registry.method_name(base) if base else DEFAULT)
    optimizer = chosen(args, "optimizer") or (registry.optimizer_name(base) if base else "sgd")
    hard = [word for name, values in grouped(args) if name == "hard" for word in values]
    hard = hard or [registry.hard_name(h) for h in (base.hard if base else ())]
    configs = {name: m.Config for name, m in METHODS.items()}
    for group, name, kind, among in (
        ("method", method, registry.find_method(method).Config, configs),
        ("optimizer", optimizer, registry.find_optimizer(optimizer), OPTIMIZERS),
    ):
        fields = [field for of, field in map(field_of, names(args)) if of == group]
        refuse_others(fields, group, name, kind, among)
    for one in hard:
        registry.find_hard(one)
    return method, optimizer, hard


def overrides_of(args: Sequence[str], asked: Any) -> dict[str, Any]:
    """What was typed of a stage, by name: its values are in `asked`, as `parse` reads them."""
    found: dict[str, Any] = {}
    for typed in names(args):
        group, field = field_of(typed)
        if group:
            value = getattr(asked, f"{group}_fields")
            for part in field.split("."):
                value = getattr(value, part)
            found[f"{group}.{field}"] = value
        elif (name := normalise(typed.removeprefix("no-"))) in FIELDS and hasattr(asked, name):
            found[name] = getattr(asked, name)
    return found


def stage_from(
    args: Sequence[str],
    base: Stage | None,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> Stage:
    """The stage that the flags of `selftaught pretrain` ask for: see `resolve_stage`."""
    overrides = overrides_of(args, parse(args, base))
    return resolve_stage(overrides, base, device, index_of, say)


# ---------------------------------------------------------------------------------- words, before
# they are parsed


def chosen(args: Sequence[str], flag: str) -> str | None:
    """The last word after `--flag`, before anything else is known."""
    found = [values[0] for name, values in grouped(args) if name == flag and values]
    return found[-1] if found else None


def names(args: Sequence[str]) -> list[str]:
    """Of the flags that were typed."""
    return [name for name, _ in grouped(args)]


def field_of(name: str) -> tuple[str, str]:
    """("method", "symmetric") of method.no-symmetric; ("", "") of what is no field of a group."""
    group, dot, field = name.partition(".")
    if not dot or group not in GROUPS:
        return "", ""
    *above, last = field.split(".")
    return group, normalise(".".join([*above, last.removeprefix("no-")]))


def grouped(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What was typed, flag by flag: [("hard", ["adversarial", "cutmix"]), ...]."""
    found: list[tuple[str, list[str]]] = []
    for word in args:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.append((name.replace("_", "-"), [value] if equals else []))
        elif found:
            found[-1][1].append(word)
    return found
