"""The stage that is asked for: what is given, and defaults from data and hardware for all else."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from selftaught.config import defaults as recipe
from selftaught.config import registry
from selftaught.config.batch_check import refuse_few
from selftaught.config.overrides import (
    Overrides,
    flag,
    read_overrides,
    refuse_others,
    replace_fields,
)
from selftaught.config.stage import Data, Stage, method_of
from selftaught.data.index.build import Index
from selftaught.data.io.filesystem import normalize_location
from selftaught.errors import UserError, require
from selftaught.hard.base import HardExample
from selftaught.method import Method, Setting
from selftaught.methods import DEFAULT, METHODS
from selftaught.models.backbone import is_own
from selftaught.optim import OPTIMIZERS, Cosine, Optimizer
from selftaught.views.spec import Views


def resolve_stage(
    overrides: Mapping[str, Any],
    base: Stage | None,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> Stage:
    """The stage that `overrides` ask for, on top of `base` where there is one, else of what suits
    the data.

    A value that is given whole, such as a method's Config, is taken as it is. Raises UserError for
    what does not fit.
    """
    asked = read_overrides(overrides)
    given = asked.values
    method, config = _find_method(asked, base)
    method_name = registry.kind_name(method, METHODS)
    optimizer_name = _optimizer_name(asked, base)
    hard = _hard(asked, base)
    refuse_idle(asked.fields, method, method_name, [registry.hard_word(type(h)) for h in hard])
    data = _data(given, base)
    seed = given.get("seed", base.seed if base else 0)
    index, begun = index_of(data, seed), bool(given.get("init"))

    def pick(name: str, default: Callable[[], Any]) -> Any:
        """As given, else as in the base, else by default."""
        return given[name] if name in given else getattr(base, name) if base else default()

    size = pick("size", lambda: recipe.size_for(index, device))
    backbone = pick("backbone", lambda: recipe.backbone_for(index, size, device))
    usual = begun or is_own(backbone)
    stem = pick("stem", lambda: "imagenet" if usual else recipe.stem_for(backbone, size))
    batch = pick("batch", lambda: recipe.batch_for(index, device))
    require(batch >= 1, "--batch", "1 or more", batch)
    if given.get("steps") != 0:
        refuse_few(method_name, len(index.train))
    if (images := len(index.train)) < batch:
        raise UserError(
            f"{images} training images are fewer than a batch of {batch}: --batch {images} or less"
        )
    steps = count_steps(given, base, index, batch, device)
    accumulate = pick("accumulate", lambda: 1)
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
    config = replace_fields("method", config or own.config, asked.fields["method"])
    if getattr(config, "classes", len(index.classes)) != len(index.classes):
        if "classes" in asked.fields["method"]:
            raise UserError(
                f"these images have {len(index.classes)} classes: leave out --method.classes"
            )
        config = dataclasses.replace(config, classes=len(index.classes))
    optimizer = given.get("optimizer")
    if not isinstance(optimizer, Optimizer):
        same = base is not None and registry.optimizer_name(base) == optimizer_name
        optimizer = (
            base.optimizer if base and same else recipe.optimizer_for(optimizer_name, own.lr, batch)
        )
    precision = pick("precision", lambda: "auto")
    if precision == "auto":
        precision = "bf16" if recipe.faster_in_bf16(backbone, stem, size, device) else "fp32"
        say(f"precision: {precision} ({recipe.precision_reason(backbone, stem, size, device)})")
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
        method=config,
        hard=hard,
        combine=pick("combine", lambda: "mean"),
        views=_views(asked, base, method, method_name, own.views, size),
        optimizer=replace_fields("optimizer", optimizer, asked.fields["optimizer"]),
        schedule=replace_fields("schedule", pick("schedule", Cosine), asked.fields["schedule"]),
        clip=pick("clip", lambda: own.clip),
        batch=batch,
        accumulate=accumulate,
        steps=steps,
        precision=precision,
        compile=pick("compile", lambda: False),
        seed=seed,
    )


def _data(given: Mapping[str, Any], base: Stage | None) -> Data:
    was = base.data if base else Data(roots=())
    data = Data(
        roots=tuple(normalize_location(root) for root in given.get("data", ())) or was.roots,
        labels=given.get("labels_from", was.labels),
        holdout=given.get("holdout", was.holdout),
        subset=given.get("subset", was.subset),
        max_pixels=given.get("max_pixels", was.max_pixels),
    )
    if not data.roots:
        raise UserError("no images: give folders or files with --data")
    return data


def find_method(overrides: Mapping[str, Any]) -> type[Method]:
    """The method that overrides ask for, or the one without."""
    return _find_method(read_overrides(overrides), None)[0]


def _find_method(asked: Overrides, base: Stage | None) -> tuple[type[Method], Method.Config | None]:
    """The method, and its hyperparameters where they need not follow the data."""
    given = asked.values.get("method")
    config = given if isinstance(given, Method.Config) else None
    if config is None and base is not None and given in (None, registry.method_name(base)):
        config = base.method
    method = method_of(config) if config is not None else registry.find_method(given or DEFAULT)
    refuse_others(
        asked.fields["method"],
        "method",
        registry.kind_name(method, METHODS),
        method.Config,
        {name: m.Config for name, m in METHODS.items()},
    )
    return method, config


def _optimizer_name(asked: Overrides, base: Stage | None) -> str:
    given = asked.values.get("optimizer")
    if isinstance(given, Optimizer):
        name = registry.kind_name(type(given), OPTIMIZERS)
    else:
        name = given or (registry.optimizer_name(base) if base else "sgd")
    kind = registry.find_optimizer(name)
    refuse_others(asked.fields["optimizer"], "optimizer", name, kind, OPTIMIZERS)
    return name


def _hard(asked: Overrides, base: Stage | None) -> tuple[HardExample, ...]:
    """Hard examples as given, as in the base where it has one of the name, else by default."""
    known = {registry.hard_name(h): h for h in base.hard} if base else {}
    chosen = asked.values.get("hard", base.hard if base else ())
    made = []
    for one in chosen:
        value = one
        if isinstance(one, str):
            value = known.get(one) or registry.find_hard(one)()
        word = registry.hard_word(type(value))
        fields = {
            field.partition(".")[2]: given
            for field, given in asked.fields["hard"].items()
            if field.partition(".")[0] == word
        }
        made.append(replace_fields(f"hard.{word}", value, fields))
    return tuple(made)


def _views(
    asked: Overrides,
    base: Stage | None,
    method: type[Method],
    name: str,
    own: Mapping[str, Any],
    size: int,
) -> Views:
    given = asked.values.get("views")
    if isinstance(given, Views):
        views = given
        if views.large not in (Views().large, method.views):
            raise UserError(f"{name} takes {method.views} large views, and not {views.large}")
        if views.small and not method.multi_crop:
            raise UserError(f"{name} takes no small views")
    else:
        views = base.views if base else recipe.views_for(method, own, size, Views())
        if given is not None:
            views = dataclasses.replace(views, pipeline=given)
    views = replace_fields("views", views, asked.fields["views"])
    return dataclasses.replace(views, large=method.views)


def refuse_idle(
    fields: Mapping[str, Mapping[str, Any]], method: type[Method], name: str, hard: list[str]
) -> None:
    """Refuse what would do nothing."""
    for field in fields["hard"]:
        typed, word = flag(f"hard.{field}"), field.partition(".")[0]
        if word not in hard:
            raise UserError(f"{typed} does nothing without {word}: add it to --hard")
        if field.endswith(".crops") and not method.multi_crop:
            raise UserError(f"{name} takes no small views: leave out {typed}")
    for field in fields["views"]:
        if field.startswith("small") and not method.multi_crop:
            able = ", ".join(other for other, m in METHODS.items() if m.multi_crop)
            raise UserError(f"{name} takes no small views ({flag(f'views.{field}')}); {able} do")
        if field == "large":
            raise UserError(f"{name} takes {method.views} large views: leave out --views.large")


def count_steps(
    given: Mapping[str, Any], base: Stage | None, index: Index, batch: int, device: str
) -> int:
    if "steps" in given and "epochs" in given:
        raise UserError("give --steps or --epochs, not both")
    if "steps" in given:
        return int(given["steps"])
    if "epochs" not in given and base:
        return base.steps
    epochs = (
        given["epochs"]
        if "epochs" in given
        else recipe.epochs_for(index, device, bool(given.get("init")))
    )
    require(epochs > 0, "--epochs", "above 0", epochs)
    steps = round(epochs * (len(index.train) // batch))
    if steps < 1:
        raise UserError("there is nothing to train: give --steps or --epochs above 0")
    return steps
