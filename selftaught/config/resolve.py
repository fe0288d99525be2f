"""Resolves settings to a stage. Defaults for the others come from the data and the hardware."""

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
from selftaught.method import Defaults, Method, Setting
from selftaught.methods import DEFAULT, METHODS
from selftaught.models.anchor import Anchor
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
    """Return a stage with `overrides`. Other fields come from `base`, or else from defaults.

    A whole value in `overrides`, such as a method's Config, is used as it is. `say` gets a line on
    the choice of precision. Raises UserError for settings that do not fit each other or the data.
    """
    request = read_overrides(overrides)
    values = request.values
    method, config = _find_method(request, base)
    method_name = registry.kind_name(method, METHODS)
    hard = _hard(request, base)
    refuse_idle(request.fields, method, method_name, [registry.hard_word(type(h)) for h in hard])
    data = _data(values, base)
    seed = values.get("seed", base.seed if base else 0)
    index, pretrained = index_of(data, seed), bool(values.get("init"))

    def pick(name: str, default: Callable[[], Any]) -> Any:
        """Return the override, else the base's value, else the default."""
        return values[name] if name in values else getattr(base, name) if base else default()

    size = pick("size", lambda: recipe.size_for(index, device, pretrained))
    backbone = pick("backbone", lambda: recipe.backbone_for(index, size, device, method))
    if "size" not in values and not base:
        size = recipe.fit_size(backbone, size)
    usual = pretrained or is_own(backbone)
    stem = pick("stem", lambda: "imagenet" if usual else recipe.stem_for(backbone, size))
    batch = pick("batch", lambda: recipe.batch_for(index, device, pretrained))
    require(batch >= 1, "--batch", "1 or more", batch)
    if values.get("steps") != 0:
        refuse_few(method_name, len(index.train))
    if (images := len(index.train)) < batch:
        raise UserError(
            f"{images} training images are fewer than a batch of {batch}: --batch {images} or less"
        )
    norm_statistics = pick("norm_statistics", lambda: "data")
    fixed_norms = norm_statistics == "weights" and recipe.has_batch_norm(backbone)
    steps = count_steps(values, base, index, batch, device, fixed_norms)
    accumulate = pick("accumulate", lambda: 1)
    setting = Setting(
        images=images,
        batch=batch,
        steps=steps,
        features=recipe.features_of(backbone),
        size=size,
        parts=max(accumulate, 1),
        pretrained=pretrained,
        classes=len(index.classes),
    )
    layer_norms = recipe.has_layer_norm(backbone)
    own = recipe.defaults_for(method, setting, fixed_norms=fixed_norms, layer_norms=layer_norms)
    config = replace_fields("method", config or own.config, request.fields["method"])
    if getattr(config, "classes", len(index.classes)) != len(index.classes):
        if "classes" in request.fields["method"]:
            raise UserError(
                f"these images have {len(index.classes)} classes: leave out --method.classes"
            )
        config = dataclasses.replace(config, classes=len(index.classes))
    optimizer_name = _optimizer_name(request, base, own)
    optimizer = values.get("optimizer")
    if not isinstance(optimizer, Optimizer):
        if base and registry.optimizer_name(base) == optimizer_name:
            optimizer = base.optimizer
        else:
            optimizer = recipe.optimizer_for(optimizer_name, own, batch)
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
        norm_statistics=norm_statistics,
        base=base.base if base else None,
        keep=pick("keep", lambda: "last"),
        method=config,
        hard=hard,
        combine=pick("combine", lambda: "mean"),
        anchor=_anchor(request, base),
        views=recipe.fit_small_size(
            backbone, size, _views(request, base, method, method_name, own.views, size)
        ),
        optimizer=replace_fields("optimizer", optimizer, request.fields["optimizer"]),
        schedule=replace_fields("schedule", pick("schedule", Cosine), request.fields["schedule"]),
        clip=pick("clip", lambda: own.clip),
        batch=batch,
        accumulate=accumulate,
        steps=steps,
        precision=precision,
        compile=pick("compile", lambda: False),
        seed=seed,
    )


def _data(values: Mapping[str, Any], base: Stage | None) -> Data:
    default = base.data if base else Data(roots=())
    data = Data(
        roots=tuple(normalize_location(root) for root in values.get("data", ())) or default.roots,
        labels=values.get("labels_from", default.labels),
        holdout=values.get("holdout", default.holdout),
        subset=values.get("subset", default.subset),
        max_pixels=values.get("max_pixels", default.max_pixels),
    )
    if not data.roots:
        raise UserError("no images: give folders or files with --data")
    return data


def find_method(overrides: Mapping[str, Any]) -> type[Method]:
    """Return the method in `overrides`, or the default one."""
    return _find_method(read_overrides(overrides), None)[0]


def _find_method(
    request: Overrides, base: Stage | None
) -> tuple[type[Method], Method.Config | None]:
    """Return the method, and its hyperparameters where they do not depend on the data."""
    choice = request.values.get("method")
    config = choice if isinstance(choice, Method.Config) else None
    if config is None and base is not None and choice in (None, registry.method_name(base)):
        config = base.method
    method = method_of(config) if config is not None else registry.find_method(choice or DEFAULT)
    refuse_others(
        request.fields["method"],
        "method",
        registry.kind_name(method, METHODS),
        method.Config,
        {name: m.Config for name, m in METHODS.items()},
    )
    return method, config


def _optimizer_name(request: Overrides, base: Stage | None, own: Defaults[Any]) -> str:
    choice = request.values.get("optimizer")
    if isinstance(choice, Optimizer):
        name = registry.kind_name(type(choice), OPTIMIZERS)
    else:
        name = choice or (registry.optimizer_name(base) if base else own.optimizer)
    kind = registry.find_optimizer(name)
    refuse_others(request.fields["optimizer"], "optimizer", name, kind, OPTIMIZERS)
    return name


def _hard(request: Overrides, base: Stage | None) -> tuple[HardExample, ...]:
    """Return the hard examples. A name stands for the base's one of that name, or for defaults."""
    base_hard = {registry.hard_name(h): h for h in base.hard} if base else {}
    hard = []
    for choice in request.values.get("hard", base.hard if base else ()):
        value = choice
        if isinstance(choice, str):
            value = base_hard.get(choice) or registry.find_hard(choice)()
        word = registry.hard_word(type(value))
        fields = {
            field.partition(".")[2]: content
            for field, content in request.fields["hard"].items()
            if field.partition(".")[0] == word
        }
        hard.append(replace_fields(f"hard.{word}", value, fields))
    return tuple(hard)


def _anchor(request: Overrides, base: Stage | None) -> Anchor | None:
    anchor = request.values.get("anchor", base.anchor if base else None)
    fields = request.fields["anchor"]
    if not isinstance(anchor, Anchor | None):
        weight, others = anchor, base.anchor if base and base.anchor else Anchor()
        anchor = dataclasses.replace(others, weight=weight) if weight else None
    if anchor is None:
        for field in fields:
            raise UserError(f"{flag(f'anchor.{field}')} does nothing without --anchor: add it")
        return None
    return replace_fields("anchor", anchor, fields)


def _views(
    request: Overrides,
    base: Stage | None,
    method: type[Method],
    name: str,
    own: Mapping[str, Any],
    size: int,
) -> Views:
    choice = request.values.get("views")
    if isinstance(choice, Views):
        views = choice
        if views.large not in (Views().large, method.views):
            raise UserError(f"{name} takes {method.views} large views, and not {views.large}")
        if views.small and not method.multi_crop:
            raise UserError(f"{name} takes no small views")
    else:
        views = base.views if base else recipe.views_for(method, own, size, Views())
        if choice is not None:
            views = dataclasses.replace(views, pipeline=choice)
    views = replace_fields("views", views, request.fields["views"])
    return dataclasses.replace(views, large=method.views)


def refuse_idle(
    fields: Mapping[str, Mapping[str, Any]], method: type[Method], name: str, hard: list[str]
) -> None:
    """Raise UserError for settings that would have no effect."""
    for field in fields["hard"]:
        typed, word = flag(f"hard.{field}"), field.partition(".")[0]
        if word not in hard:
            raise UserError(f"{typed} does nothing without {word}: add it to --hard")
        if field.endswith(".crops") and not method.multi_crop:
            raise UserError(f"{name} takes no small views: leave out {typed}")
    for field in fields["views"]:
        if field.startswith("small") and not method.multi_crop:
            others = ", ".join(other for other, m in METHODS.items() if m.multi_crop)
            raise UserError(f"{name} takes no small views ({flag(f'views.{field}')}); {others} do")
        if field == "large":
            raise UserError(f"{name} takes {method.views} large views: leave out --views.large")


def count_steps(
    values: Mapping[str, Any],
    base: Stage | None,
    index: Index,
    batch: int,
    device: str,
    fixed_norms: bool,
) -> int:
    """Return the steps of a stage, from --steps, --epochs, the base or the default epochs.

    Raises UserError where there would be none, or where both flags are set.
    """
    if "steps" in values and "epochs" in values:
        raise UserError("give --steps or --epochs, not both")
    if "steps" in values:
        return int(values["steps"])
    if "epochs" not in values and base:
        return base.steps
    if "epochs" in values:
        epochs = values["epochs"]
    else:
        epochs = recipe.epochs_for(index, device, bool(values.get("init")), fixed_norms)
    require(epochs > 0, "--epochs", "above 0", epochs)
    steps = round(epochs * (len(index.train) // batch))
    if steps < 1:
        raise UserError("there is nothing to train: give --steps or --epochs above 0")
    return steps
