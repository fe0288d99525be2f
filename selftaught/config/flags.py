"""The flags of `selftaught pretrain`, from the dataclasses, and the stage they ask for; over 200
lines with their table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from selftaught.config import defaults as recipe
from selftaught.config import registry
from selftaught.config.batch_check import refuse_few
from selftaught.config.flag_values import Count, reader
from selftaught.config.stage import Data, Stage
from selftaught.data.index.build import Index
from selftaught.data.io.filesystem import normalize_location
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.errors import UserError, require
from selftaught.hard import HARD
from selftaught.method import Setting
from selftaught.methods import DEFAULT, METHODS
from selftaught.optim import OPTIMIZERS, Cosine
from selftaught.views.spec import Views

ABOUT = "Teach a backbone from images without labels, or adapt one that you have."

METHOD_NAME: Any = Literal[tuple(METHODS)]
HARD_NAME: Any = Literal[tuple(HARD)]
OPTIMIZER_NAME: Any = Literal[tuple(OPTIMIZERS)]

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
    ("method", METHOD_NAME | None, "|".join(METHODS), "what to predict", DEFAULT),
    (
        "hard",
        tuple[HARD_NAME, ...] | None,
        f"{' '.join(HARD)}",
        "hard examples to train on besides",
        "none",
    ),
    ("backbone", str | None, "NAME", "of a timm network", SUITED),
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
# How it is done, which changes no outcome, or its last digits alone.
# how a stage is carried out, which changes no outcome: for all stages of a plan
CONDUCT = {"device", "threads", "workers", "on-collapse", "save-every", "fsdp", "log"}
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
# whose fields are flags: --method.temperature
GROUPS = ("method", "hard", "views", "optimizer", "schedule")


HARD_FIELDS = dataclasses.make_dataclass(
    "Hard",
    [(name, kind, dataclasses.field(default=kind())) for name, kind in HARD.items()],
    frozen=True,
)


def pretrain_flags(
    method: str, optimizer: str, table: Sequence[tuple[str, Any, str, str, str]] = PLAIN
) -> type:
    """The dataclass of all flags, for one method and one optimizer."""
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
        "method": METHODS[method].Config,
        "hard": HARD_FIELDS,
        "views": Views,
        "optimizer": OPTIMIZERS[optimizer],
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


def chosen(args: Sequence[str], flag: str) -> str | None:
    """The word after `--flag`, before anything else is known."""
    for i, word in enumerate(args):
        if word == f"--{flag}" and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(f"--{flag}="):
            return word.partition("=")[2]
    return None


def parse(args: Sequence[str], base: Stage | None, defaults: dict[str, Any] | None = None) -> Any:
    """Read the flags; what is not given is None, and in the groups it is `defaults`."""
    method, optimizer = kinds_asked(args, base)
    flags = pretrain_flags(method, optimizer)
    compiled = base is not None and base.compile
    default = flags(out=chosen(args, "out") or tyro.MISSING, compile=compiled, **(defaults or {}))
    return tyro.cli(flags, prog="selftaught pretrain", args=list(args), default=default)


def parse_adapt(args: Sequence[str]) -> Any:
    """Read the flags of `selftaught adapt`: those of a target, a source or a plan, and what both
    stages share.
    """
    method, optimizer = kinds_asked(args, None)
    shared = [row for row in PLAIN if row[0] not in ("data", "config", "resume")]
    table = [*ADAPT, *((*row[:4], OTHERWISE.get(row[0], row[4])) for row in shared)]
    flags = pretrain_flags(method, optimizer, table)
    return tyro.cli(
        flags,
        prog="selftaught adapt",
        args=list(args),
        default=flags(out=chosen(args, "out") or tyro.MISSING),
    )


def kinds_asked(args: Sequence[str], base: Stage | None) -> tuple[str, str]:
    """The method's and the optimizer's name; raises UserError where a flag is another one's."""
    method = registry.find_name(name_of(args, base, "method"), METHODS, "method")
    optimizer = registry.find_name(name_of(args, base, "optimizer"), OPTIMIZERS, "optimizer")
    refuse_others(args, "method", method, {name: m.Config for name, m in METHODS.items()})
    refuse_others(args, "optimizer", optimizer, OPTIMIZERS)
    return method, optimizer


def refuse_others(args: Sequence[str], group: str, name: str, kinds: Mapping[str, Any]) -> None:
    """Refuse --GROUP.FIELD that `name` lacks, where other kinds have it; what none has is for tyro
    to refuse.
    """
    for flag, _ in grouped(args):
        if flag.startswith(f"{group}."):
            field = flag.removeprefix(f"{group}.").removeprefix("no-").replace("-", "_")
            able = [
                other
                for other, kind in kinds.items()
                if field in (f.name for f in dataclasses.fields(kind))
            ]
            if able and name not in able:
                raise UserError(f"{name} has no --{flag}: it is of {', '.join(able)}")


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


def of_base(base: Stage, method: str, optimizer: str) -> dict[str, Any]:
    """The groups' defaults, from a stage to start from; a group of another kind starts from its
    own.
    """
    groups: dict[str, Any] = {"views_fields": base.views, "schedule_fields": base.schedule}
    if registry.method_name(base) == method:
        groups["method_fields"] = base.method
    if registry.optimizer_name(base) == optimizer:
        groups["optimizer_fields"] = base.optimizer
    groups["hard_fields"] = HARD_FIELDS(**{registry.hard_name(h): h for h in base.hard})
    return groups


def stage_from(
    args: Sequence[str],
    base: Stage | None,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> Stage:
    """The stage that the flags ask for, on top of `base` where there is one, else of what suits the
    data.
    """
    first = parse(args, base)
    method_name, optimizer_name = name_of(args, base, "method"), name_of(args, base, "optimizer")
    method = METHODS[method_name]
    given = {k: getattr(first, k) for k in (name for name, *_ in PLAIN)}
    data = Data(
        roots=tuple(normalize_location(root) for root in given["data"])
        or (base.data.roots if base else ()),
        labels=given["labels_from"] or (base.data.labels if base else "auto"),
        holdout=given["holdout"]
        if given["holdout"] is not None
        else base.data.holdout
        if base
        else Data.holdout,
        subset=given["subset"] or (base.data.subset if base else "all"),
        max_pixels=given["max_pixels"]
        if given["max_pixels"] is not None
        else base.data.max_pixels
        if base
        else MAX_PIXELS,
    )
    if not data.roots:
        raise UserError("no images: give folders or files with --data")
    seed = given["seed"] if given["seed"] is not None else base.seed if base else 0
    index, begun = index_of(data, seed), bool(given["init"])

    def pick(name: str, default: Callable[[], Any]) -> Any:
        """As given, else as in the base, else by default."""
        value = given[name]
        return value if value is not None else getattr(base, name) if base else default()

    size = pick("size", lambda: recipe.size_for(index, device))
    backbone = pick("backbone", lambda: recipe.backbone_for(index, size, device))
    stem = pick("stem", lambda: "imagenet" if begun else recipe.stem_for(backbone, size))
    batch = pick("batch", lambda: recipe.batch_for(index, device))
    require(batch >= 1, "--batch", "1 or more", batch)
    if given["steps"] != 0:
        refuse_few(method_name, len(index.train))
    if (images := len(index.train)) < batch:
        raise UserError(
            f"{images} training images are fewer than a batch of {batch}: --batch {images} or less"
        )
    steps = steps_of(given, base, index, batch, device)
    accumulate = pick("accumulate", lambda: 1)
    defaults = of_base(base, method_name, optimizer_name) if base else {}
    setting = Setting(
        images=images,
        batch=batch,
        steps=steps,
        features=recipe.features_of(backbone),
        parts=max(accumulate, 1),
        begun=begun,
        classes=len(index.classes),
    )
    own = recipe.defaults_for(method, setting)
    defaults.setdefault("method_fields", own.config)
    defaults.setdefault("views_fields", recipe.views_for(method, own.views, size, Views()))
    defaults.setdefault("optimizer_fields", recipe.optimizer_for(optimizer_name, own.lr, batch))
    asked = parse(args, base, defaults)
    precision = pick("precision", lambda: "auto")
    if precision == "auto":
        precision = "bf16" if recipe.faster_in_bf16(backbone, stem, size, device) else "fp32"
        say(f"precision: {precision} ({recipe.precision_reason(backbone, stem, size, device)})")
    names = (
        given["hard"]
        if given["hard"] is not None
        else [registry.hard_name(h) for h in base.hard]
        if base
        else ()
    )
    refuse_idle(args, method_name, names)
    views: Views = asked.views_fields
    fields = asked.method_fields
    if getattr(fields, "classes", len(index.classes)) != len(index.classes):
        if any(word.startswith("--method.classes") for word in args):
            raise UserError(
                f"these images have {len(index.classes)} classes: leave out --method.classes"
            )
        fields = dataclasses.replace(fields, classes=len(index.classes))
    if given["views"]:
        views = dataclasses.replace(views, pipeline=given["views"])
    return Stage(
        data=data,
        size=size,
        backbone=backbone,
        stem=stem,
        init=pick("init", lambda: None),
        statistics=pick("statistics", lambda: "weights"),
        trainable=pick("trainable", lambda: "all"),
        base=base.base if base else None,
        keep=pick("keep", lambda: "last"),
        method=fields,
        hard=tuple(getattr(asked.hard_fields, name) for name in names),
        combine=pick("combine", lambda: "mean"),
        views=dataclasses.replace(views, large=method.views),
        optimizer=asked.optimizer_fields,
        schedule=asked.schedule_fields,
        clip=pick("clip", lambda: own.clip),
        batch=batch,
        accumulate=accumulate,
        steps=steps,
        precision=precision,
        compile=given["compile"],
        seed=seed,
    )


def refuse_idle(args: Sequence[str], method: str, hard: Sequence[str]) -> None:
    """Refuse flags that would do nothing."""
    for word in args:
        name = (
            word.removeprefix("--hard.").partition(".")[0] if word.startswith("--hard.") else None
        )
        if name and name not in hard:
            raise UserError(f"{word} does nothing without {name}: add it to --hard")
        if name and word.partition("=")[0].endswith(".crops") and not METHODS[method].multi_crop:
            raise UserError(f"{method} takes no small views: leave out {word}")
        if word.startswith("--views.small") and not METHODS[method].multi_crop:
            able = ", ".join(name for name, m in METHODS.items() if m.multi_crop)
            raise UserError(f"{method} takes no small views ({word}); {able} do")
        if word.startswith("--views.large"):
            raise UserError(f"{method} takes {METHODS[method].views} large views: leave out {word}")


def name_of(args: Sequence[str], base: Stage | None, what: Literal["method", "optimizer"]) -> str:
    named = {
        "method": (registry.method_name, DEFAULT),
        "optimizer": (registry.optimizer_name, "sgd"),
    }
    of, default = named[what]
    return chosen(args, what) or (of(base) if base else default)


def steps_of(
    given: dict[str, Any], base: Stage | None, index: Index, batch: int, device: str
) -> int:
    if given["steps"] is not None and given["epochs"] is not None:
        raise UserError("give --steps or --epochs, not both")
    if given["steps"] is not None:
        steps = int(given["steps"])
    elif given["epochs"] is None and base:
        steps = base.steps
    else:
        epochs = (
            given["epochs"]
            if given["epochs"] is not None
            else recipe.epochs_for(index, device, bool(given["init"]))
        )
        require(epochs > 0, "--epochs", "above 0", epochs)
        steps = round(epochs * (len(index.train) // batch))
    if steps < 1 and given["steps"] is None:
        raise UserError("there is nothing to train: give --steps or --epochs above 0")
    return steps


def differences(one: Stage, other: Stage) -> list[str]:
    """The fields in which two stages differ, by name."""
    return [
        f.name for f in dataclasses.fields(Stage) if getattr(one, f.name) != getattr(other, f.name)
    ]
