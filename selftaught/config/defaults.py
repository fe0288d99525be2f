"""Defaults of a stage, from the data and the hardware."""

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import torch

from selftaught.config import precision
from selftaught.config.recipes import find_recipe
from selftaught.data.index.build import Index
from selftaught.method import Defaults, Method, Setting
from selftaught.models import backbone as backbone_module
from selftaught.optim import LARS, SGD, AdamW, Optimizer
from selftaught.views.spec import Views

# ----------------------------------------------------------------------------------------------
# defaults


def size_for(index: Index, device: str) -> int:
    """Pixels of a view: what the images hold, and what the device bears."""
    side = int(index.sizes.min(dim=1).values.float().median())
    most = 224 if device == "cuda" else 64
    return next((s for s in (224, 128, 96, 64) if s <= min(side, most)), 32)


def backbone_for(index: Index, size: int, device: str) -> str:
    return (
        "resnet50"
        if device == "cuda" and size >= 128 and len(index.train) >= 50_000
        else "resnet18"
    )


def stem_for(backbone: str, size: int) -> Literal["imagenet", "cifar"]:
    """The usual stem divides a picture's sides by four, which leaves nothing of a small one."""
    return "cifar" if size <= 40 and re.match(r"resnet\d+", backbone) else "imagenet"


def batch_for(index: Index, device: str) -> int:
    most = 256 if device == "cuda" else 128
    # at least some four steps an epoch
    return max(2, min(most, 2 ** (len(index.train).bit_length() - 3)))


def epochs_for(index: Index, device: str, begun: bool) -> int:
    """Small sets are gone through more often; some millions of images are shown on a GPU, 300,000
    on a CPU, and a third of that where weights to begin from are there: they need less (Reed et
    al., 2021).
    """
    shown = (4_000_000 if device == "cuda" else 300_000) // (3 if begun else 1)
    return int(min(max(shown / len(index.train), 10), 400))


def defaults_for(method: type[Method], setting: Setting) -> Defaults[Any]:
    """The method's own defaults; its rate and clip are the tuned ones, where `recipes` has some.
    Pretrained weights are moved at the common rate at most.
    """
    defaults: Defaults[Any] = method.Config().defaults(setting)
    if recipe := find_recipe(method):
        defaults = dataclasses.replace(defaults, lr=recipe.lr, clip=recipe.clip)
    lr = min(defaults.lr, Defaults.lr) if setting.begun else defaults.lr
    return dataclasses.replace(defaults, lr=lr)


def views_for(method: type[Method], fields: Mapping[str, Any], size: int, views: Views) -> Views:
    """`views`, with what the method's defaults change of them. Blur in proportion to MoCo-v2's 224
    pixels; none where an image is too small to bear it.
    """
    sigma = (0.1, max(2.0 * size / 224, 0.2))
    views = dataclasses.replace(views, **fields)
    return dataclasses.replace(
        views, large=method.views, blur=views.blur if size > 40 else 0.0, blur_sigma=sigma
    )


def optimizer_for(name: str, lr: float, batch: int) -> Optimizer:
    """The peak rate grows with the batch (Goyal et al., 2017). `lr`: SGD's, for 256 images a
    step.
    """
    if name == "sgd":
        return SGD(lr=round(lr * batch / 256, 6))
    reference: Optimizer = {"adamw": AdamW, "lars": LARS}[name]()
    return dataclasses.replace(reference, lr=round(reference.lr * batch / 256, 6))


@lru_cache
def features_of(backbone: str) -> int:
    with torch.device("meta"):
        return backbone_module.create(backbone).features


def faster_in_bf16(
    backbone: str, stem: Literal["imagenet", "cifar"], size: int, device: str
) -> bool:
    """Whether bf16 is chosen here for this network."""
    return precision.choose(backbone, stem, size, device)[0]


def precision_reason(
    backbone: str, stem: Literal["imagenet", "cifar"], size: int, device: str
) -> str:
    """Why `faster_in_bf16` says so."""
    return precision.choose(backbone, stem, size, device)[1]


# ------------------------------------------------------------------------------------ written down,
# read back

# of an image, Pillow's limit, for stages from before there was a choice
OLD_MAX_PIXELS = 178_956_970
