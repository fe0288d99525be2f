"""Defaults of a stage, from the data and the hardware."""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from selftaught.config import precision
from selftaught.config.recipes import find_recipe
from selftaught.data.index.build import Index
from selftaught.method import Defaults, Method, Setting
from selftaught.models import backbone as backbone_module
from selftaught.models.batch_norm import running_statistics
from selftaught.models.vit import patch_side
from selftaught.optim import LARS, SGD, AdamW, Optimizer
from selftaught.views.spec import Views

FIXED_NORMS_CLIP = 1.0  # chosen on training labels (docs/LOG.md)
# AdamW's values for networks with layer norms. From random weights: DINO's. The rate from trained
# weights was chosen on training labels (docs/LOG.md).
LAYER_NORM_LR = 5e-4
LAYER_NORM_TRAINED_LR = 4e-4
LAYER_NORM_CLIP = 3.0


def size_for(index: Index, device: str, begun: bool) -> int:
    """Choose the pixels of a view, by the images' median side and the device's speed.

    Trained weights get at least 64 pixels on a CPU and 128 on a GPU: images that are enlarged to
    the size that the weights know have better features than small ones (docs/LOG.md).
    """
    side = int(index.sizes.min(dim=1).values.float().median())
    most, least = (224, 128) if device == "cuda" else (64, 64)
    size = next((s for s in (224, 128, 96, 64) if s <= min(side, most)), 32)
    return max(size, least) if begun else size


def backbone_for(index: Index, size: int, device: str, method: type[Method]) -> str:
    """Choose a ResNet-50 for many large images on a GPU, else a ResNet-18.

    A method that masks patches gets a ViT: a small one on a GPU, else a tiny one.
    """
    if method.masks_patches:
        return f"vit_{'small' if device == 'cuda' else 'tiny'}_patch16_224"
    large = device == "cuda" and size >= 128 and len(index.train) >= 50_000
    return "resnet50" if large else "resnet18"


def stem_for(backbone: str, size: int) -> Literal["imagenet", "cifar"]:
    """Choose the stem. ImageNet's divides the sides by four, which is too much for small images."""
    return "cifar" if size <= 40 and re.match(r"resnet\d+", backbone) else "imagenet"


def batch_for(index: Index, device: str, begun: bool) -> int:
    """Choose the images of a step: a power of two, at most 256 on a GPU and 128 on a CPU.

    Trained weights get at most 64 on a CPU, where they are trained on few images.
    """
    most = 256 if device == "cuda" else 64 if begun else 128
    # at least about four steps an epoch
    return max(2, min(most, 2 ** (len(index.train).bit_length() - 3)))


def epochs_for(index: Index, device: str, begun: bool, fixed_norms: bool) -> int:
    """Choose 10 to 400 epochs: 4,000,000 images in all on a GPU, 300,000 on a CPU.

    Trained weights need less (Reed et al., 2021): a third of that on a GPU. On a CPU they get about
    15,000 images, or 5,000 where batch norms do not normalise by the batch (`fixed_norms`), and one
    epoch at least. That is some minutes. With such norms twice as many images lifted
    EfficientNet-Lite0 no further on training labels (docs/LOG.md).
    """
    if begun and device != "cuda":
        images = 5_000 if fixed_norms else 15_000
        return min(max(round(images / len(index.train)), 1), 400)
    total = (4_000_000 if device == "cuda" else 300_000) // (3 if begun else 1)
    return int(min(max(total / len(index.train), 10), 400))


def fit_size(backbone: str, size: int) -> int:
    """Lower `size` to a multiple of the backbone's patches, of which it has one at least."""
    side = patch_of(backbone)
    return max(size // side, 1) * side


def fit_small_size(backbone: str, size: int, views: Views) -> Views:
    """Set the size of small views where half of `size` would not fit the backbone's patches."""
    side = patch_of(backbone) if views.small and not views.small_size else 1
    if (size // 4 * 2) % side == 0:
        return views
    return dataclasses.replace(views, small_size=fit_size(backbone, size // 2))


def optimizer_of(method: type[Method]) -> str:
    """Return the name of the optimizer that a ResNet is trained with by default."""
    usual = Setting(images=10_000, batch=64, steps=1000, features=512)
    return method.Config().defaults(usual).optimizer


def defaults_for(
    method: type[Method], setting: Setting, *, fixed_norms: bool = False, layer_norms: bool = False
) -> Defaults[Any]:
    """Return the method's own defaults, with the tuned rate and clip where `recipes` has some.

    Trained weights get the common rate at most. Where their batch norms do not normalise by the
    batch (`fixed_norms`), nothing bounds their activations, so gradients are clipped. A network
    with layer norms, such as a ViT, gets AdamW in place of SGD: SGD's rates are those of ResNets.
    """
    defaults: Defaults[Any] = method.Config().defaults(setting)
    if layer_norms and defaults.optimizer == "sgd":
        lr = LAYER_NORM_TRAINED_LR if setting.pretrained else LAYER_NORM_LR
        defaults = dataclasses.replace(defaults, optimizer="adamw", lr=lr, clip=LAYER_NORM_CLIP)
    elif recipe := find_recipe(method):
        defaults = dataclasses.replace(defaults, lr=recipe.lr, clip=recipe.clip)
    lr = min(defaults.lr, Defaults.lr) if setting.pretrained else defaults.lr
    clip = min(defaults.clip or math.inf, FIXED_NORMS_CLIP) if fixed_norms else defaults.clip
    return dataclasses.replace(defaults, lr=lr, clip=clip)


def views_for(method: type[Method], fields: Mapping[str, Any], size: int, views: Views) -> Views:
    """Return `views` with the `fields` that the method changes.

    The blur's sigma is in proportion to the size, as MoCo-v2's is for 224 pixels. Images of 40
    pixels or less are not blurred.
    """
    sigma = (0.1, max(2.0 * size / 224, 0.2))
    views = dataclasses.replace(views, **fields)
    return dataclasses.replace(
        views, large=method.views, blur=views.blur if size > 40 else 0.0, blur_sigma=sigma
    )


def optimizer_for(name: str, own: Defaults[Any], batch: int) -> Optimizer:
    """Return an optimizer whose peak rate grows with the batch (Goyal et al., 2017).

    `own`: the method's defaults, whose rate holds for its own optimizer alone.
    """
    reference: Optimizer = {"sgd": SGD, "adamw": AdamW, "lars": LARS}[name]()
    lr = own.lr if name == own.optimizer else reference.lr
    rate = lr * batch / 256
    # six places are too few for the rates of AdamW in small batches
    return dataclasses.replace(
        reference, lr=round(rate, 6) if rate > 1e-5 else float(f"{rate:.2g}")
    )


def features_of(backbone: str) -> int:
    """Return the width of a backbone's features."""
    return _shape_of(backbone).features


def patch_of(backbone: str) -> int:
    """Return the pixels of which the side of an image must be a multiple."""
    return _shape_of(backbone).patch


def has_batch_norm(backbone: str) -> bool:
    """Whether a backbone has norms with running statistics."""
    return _shape_of(backbone).batch_norm


def has_layer_norm(backbone: str) -> bool:
    """Whether a backbone has layer norms, as ViTs and ConvNeXts have."""
    return _shape_of(backbone).layer_norm


class _Shape(NamedTuple):
    """The facts of a backbone that defaults depend on."""

    features: int  # their width
    patch: int  # pixels of a side; 1 for networks without patches
    batch_norm: bool  # with running statistics
    layer_norm: bool


@lru_cache
def _shape_of(backbone: str) -> _Shape:
    with torch.device("meta"):
        network = backbone_module.create(backbone)
    return _Shape(
        features=network.features,
        patch=patch_side(network.network),
        batch_norm=bool(running_statistics(network)),
        layer_norm=any(isinstance(layer, nn.LayerNorm) for layer in network.modules()),
    )


def faster_in_bf16(
    backbone: str, stem: Literal["imagenet", "cifar"], size: int, device: str
) -> bool:
    """Whether this machine trains this network faster in bf16."""
    return precision.choose(backbone, stem, size, device)[0]


def precision_reason(
    backbone: str, stem: Literal["imagenet", "cifar"], size: int, device: str
) -> str:
    """Return the reason for the result of `faster_in_bf16`."""
    return precision.choose(backbone, stem, size, device)[1]


# Pillow's limit for one image: the value in stages of versions without this setting
OLD_MAX_PIXELS = 178_956_970
