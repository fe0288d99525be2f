"""What a run is made of: good defaults from the data and the hardware, and a stage written down and read back."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import cattrs
import torch

from selftaught import precision
from selftaught.data.index.build import Index
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.hard.base import HardExample
from selftaught.method import Method, Setting
from selftaught.methods import METHODS
from selftaught.models import backbone as backbones
from selftaught.optim import LARS, OPTIMIZERS, SGD, AdamW, Optimizer
from selftaught.recipes import find_recipe
from selftaught.stage import Stage, method_of
from selftaught.views.spec import Views


def find(name: str, among: Iterable[str], what: str) -> str:
    """`name`, if it is one of them; else a UserError with the nearest."""
    names = sorted(among)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
    raise UserError(f"there is no {what} '{name}'; did you mean {' or '.join(near)}?")


def method_name(stage: Stage) -> str:
    return next(name for name, method in METHODS.items() if method is method_of(stage.method))


def optimizer_name(stage: Stage) -> str:
    return next(name for name, kind in OPTIMIZERS.items() if kind is type(stage.optimizer))


def hard_name(hard: HardExample) -> str:
    return next(name for name, kind in HARD.items() if kind is type(hard))


def summary(stage: Stage) -> str:
    """What was chosen, by hand or by default."""
    hard = "".join(f" + {hard_name(h)}" for h in stage.hard)
    network = f"{stage.backbone} ({stage.stem} stem), {stage.size} pixels, {stage.precision}"
    how = f"{stage.steps:,} steps of {stage.batch}, {optimizer_name(stage)} at {stage.optimizer.lr:g}"
    return f"{method_name(stage)}{hard}: {network}, {how}; all settings are in run.json"


# ---------------------------------------------------------------------------------------------- defaults


def size_for(index: Index, device: str) -> int:
    """Pixels of a view: what the images hold, and what the device bears."""
    side = int(index.sizes.min(dim=1).values.float().median())
    most = 224 if device == "cuda" else 64
    return next((s for s in (224, 128, 96, 64) if s <= min(side, most)), 32)


def backbone_for(index: Index, size: int, device: str) -> str:
    return "resnet50" if device == "cuda" and size >= 128 and len(index.train) >= 50_000 else "resnet18"


def stem_for(backbone: str, size: int) -> Literal["imagenet", "cifar"]:
    """The usual stem divides a picture's sides by four, which leaves nothing of a small one."""
    return "cifar" if size <= 40 and re.match(r"resnet\d+", backbone) else "imagenet"


def batch_for(index: Index, device: str) -> int:
    most = 256 if device == "cuda" else 128
    return max(2, min(most, 2 ** (len(index.train).bit_length() - 3)))  # at least some four steps an epoch


def epochs_for(index: Index, device: str, begun: bool) -> int:
    """Small sets are gone through more often; some millions of images are shown on a GPU, 300,000 on a CPU, and a third
    of that where weights to begin from are there: they need less (Reed et al., 2021).
    """
    shown = (4_000_000 if device == "cuda" else 300_000) // (3 if begun else 1)
    return int(min(max(shown / len(index.train), 10), 400))


def views_for(method: type[Method], size: int, views: Views) -> Views:
    """As the method has them. Blur in proportion to MoCo-v2's 224 pixels; none where an image is too small to bear it."""
    sigma = (0.1, max(2.0 * size / 224, 0.2))
    views = dataclasses.replace(views, **method.augment)
    return dataclasses.replace(views, large=method.views, blur=views.blur if size > 40 else 0.0, blur_sigma=sigma)


def optimizer_for(method: type[Method], name: str, batch: int, begun: bool) -> Optimizer:
    """The peak rate grows with the batch (Goyal et al., 2017); `recipes` knows what SGD bears. Weights that one
    begins from are moved at the common rate at most.
    """
    if name == "sgd":
        tuned = find_recipe(method).lr
        lr = min(tuned, Method.lr) if begun else tuned
        return SGD(lr=round(lr * batch / 256, 6))
    reference: Optimizer = {"adamw": AdamW, "lars": LARS}[name]()
    return dataclasses.replace(reference, lr=round(reference.lr * batch / 256, 6))


def config_for(method: type[Method], setting: Setting, classes: int) -> Method.Config:
    config = method.Config().suited(setting)
    return dataclasses.replace(config, classes=classes) if method.needs_labels else config  # type: ignore[call-arg]


@lru_cache
def features_of(backbone: str) -> int:
    with torch.device("meta"):
        return backbones.create(backbone).features


def faster_in_bf16(backbone: str, stem: Literal["imagenet", "cifar"], size: int, device: str) -> bool:
    """Whether bf16 is chosen here for this network."""
    return precision.choose(backbone, stem, size, device)[0]


def precision_reason(backbone: str, stem: Literal["imagenet", "cifar"], size: int, device: str) -> str:
    """Why `faster_in_bf16` says so."""
    return precision.choose(backbone, stem, size, device)[1]


# ------------------------------------------------------------------------------------ written down, read back

OLD_MAX_PIXELS = 178_956_970  # of an image, Pillow's limit, for stages from before there was a choice
_NAMED: dict[type, dict[str, type]] = {
    Method.Config: {name: method.Config for name, method in METHODS.items()},
    HardExample: dict(HARD),
    Optimizer: dict(OPTIMIZERS),
}


def _converter() -> cattrs.Converter:
    """Plain JSON types for every dataclass; one of several kinds says its name. Unknown fields are refused."""
    plain = cattrs.Converter(forbid_extra_keys=True)
    converter = plain.copy()
    for base, kinds in _NAMED.items():

        def unstructure(value: Any, kinds: dict[str, type] = kinds) -> dict[str, Any]:
            name = next(name for name, kind in kinds.items() if kind is type(value))
            return {"name": name, **plain.unstructure(value)}

        def structure(value: dict[str, Any], _: type, kinds: dict[str, type] = kinds, base: type = base) -> Any:
            what = {Method.Config: "method", HardExample: "hard example", Optimizer: "optimizer"}[base]
            kind = kinds[find(value["name"], kinds, what)]
            return plain.structure({k: v for k, v in value.items() if k != "name"}, kind)

        converter.register_unstructure_hook(base, unstructure)
        converter.register_structure_hook(base, structure)
    return converter


def to_json(stage: Stage) -> dict[str, Any]:
    written: dict[str, Any] = _converter().unstructure(stage)
    return written


def from_json(written: dict[str, Any]) -> Stage:
    """Raises UserError that names what does not fit."""
    if not isinstance(written, dict):
        raise UserError("this configuration does not fit: it is no JSON object")
    if isinstance(written.get("data"), dict):
        written = {**written, "data": {"max_pixels": OLD_MAX_PIXELS, **written["data"]}}
    try:
        return _converter().structure(written, Stage)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        reasons = cattrs.transform_error(error) if isinstance(error, cattrs.BaseValidationError) else [repr(error)]
        raise UserError(f"this configuration does not fit: {'; '.join(reasons)}") from error
