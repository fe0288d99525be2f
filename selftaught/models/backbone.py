"""Backbones: networks from pixels to features, built by name."""

import copy
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError
from selftaught.method import Encoder
from selftaught.models.python_objects import import_object
from selftaught.models.strided_conv import replace_strided_convs
from selftaught.models.trainable import norm_parameters, set_trainable
from selftaught.models.vit import compute_tokens, find_patch_size, has_tokens

__all__ = [
    "Backbone",
    "build",
    "check_patches",
    "create",
    "given_backbone",
    "nearest_size",
    "norm_parameters",
    "recipe",
    "set_trainable",
]

STEMS = ("imagenet", "cifar")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(Encoder):
    """Pixels [B, 3, H, W] in [0, 1] -> features [B, D]. Only this class normalises pixels.

    name, stem, image_size: the arguments of `create`. features: D. network: timm's model, pooled,
    without a classifier. mean, std: [3], of pixels in [0, 1]. pixel_range: the values of more than
    8 bits that were 0 and 1 in training. view_size: pixels of the views in training, if known.
    norm_size: pixels of the views that the batch norms have statistics of, if known.
    """

    mean: Tensor
    std: Tensor
    pixel_range: PixelRange | None = None
    view_size: int | None = None
    norm_size: int | None = None
    # names of frozen parts of the network, which stay in evaluation mode
    frozen_parts: frozenset[str] = frozenset()

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        stem: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`options`: timm's arguments for the same network, besides `num_classes=0`."""
        super().__init__()
        self.name = name
        self.stem = stem
        self.image_size = image_size
        self.options = dict(options or {})
        self.network = replace_strided_convs(network)
        self.features = _width(network)
        # pyrefly: ignore[bad-argument-type]
        self.channels = int(network.num_features)
        self.has_map = hasattr(network, "forward_features")
        self.patch_size = find_patch_size(network) if has_tokens(network) else None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(
        self,
        pixels: Tensor,
        mapped: bool = False,
        staged: bool = False,
        tokens: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None,
    ) -> Any:
        """Return features [B, D].

        `mapped`: return the pair of `with_map` instead. `staged`: return those of `with_stages`.
        `tokens`: return the pair of `tokens`; mask, mask token and patches to keep. Raises
        UserError where the network has no maps.
        """
        network: Any = self.network
        if mapped and not hasattr(network, "forward_features"):
            raise UserError(
                f"{self.name} gives no maps, which this method needs: add forward_features(pixels)"
                " -> [B, C, h, w] and forward_head(maps) -> [B, D] to it"
            )
        normal = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        if tokens is not None:
            return compute_tokens(network, normal, *tokens)
        if staged:
            output, maps = network.forward_intermediates(normal)
            names = [info["module"] for info in network.feature_info]
            stages = dict(zip(names, maps, strict=True))
            return network.forward_head(output), _to_map(network, output, pixels), stages
        if not mapped:
            return network(normal)
        output = network.forward_features(normal)
        return network.forward_head(output), _to_map(network, output, pixels)

    def with_stages(self, pixels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Encoder.with_stages`. Names of stages are timm's."""
        # through __call__, because torch.compile and FSDP wrap the calls of a network
        features, feature_map, stages = self(pixels, staged=True)
        return features, feature_map, stages

    def tokens(
        self,
        pixels: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Encoder.tokens`. timm's VisionTransformer and Eva have patches here, others not."""
        if self.patch_size is None:
            return super().tokens(pixels)
        if (mask is None) != (mask_token is None):
            raise ValueError("a mask needs a mask token, and a mask token a mask")
        # through __call__, because torch.compile and FSDP wrap the calls of a network
        features, patches = self(pixels, tokens=(mask, mask_token, keep))
        return features, patches

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen_parts:
            self.network.get_submodule(name).eval()
        return self

    @property
    def usual_size(self) -> int:
        """Pixels of a side of the images that it is evaluated on, unless others are asked for."""
        return self.view_size or self.image_size or 224

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replace the normalisation: [3] numbers each, of pixels in [0, 1]."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))


# networks that the user passed as objects, by their names: see `given_backbone`
_OBJECTS: dict[str, nn.Module] = {}
_OBJECT = "object:"


@contextmanager
def given_backbone(network: nn.Module | None) -> Iterator[str | None]:
    """Make `network` available to `create` inside the context, by the name that it yields.

    The name has the class and a hash of the weights' shapes, so other networks have other names.
    With None as `network` it yields None.
    """
    if network is None:
        yield None
        return
    shapes = [(key, tuple(value.shape)) for key, value in network.state_dict().items()]
    kind = type(network)
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
    name = f"{_OBJECT}{kind.__module__}.{kind.__qualname__}/{digest}"
    previous = _OBJECTS.get(name)
    _OBJECTS[name] = network
    try:
        yield name
    finally:
        if previous is None:
            del _OBJECTS[name]
        else:
            _OBJECTS[name] = previous


def is_own(name: str) -> bool:
    """Whether a backbone is the user's own: an object, or `package.module:function`."""
    return name.startswith(_OBJECT) or re.fullmatch(r"[\w.]+:[\w.]+", name) is not None


def create(
    name: str,
    *,
    stem: str = "imagenet",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    image_size: int | None = None,
) -> Backbone:
    """Build a backbone with random weights, from torch's global generator.

    name: one of these three.
    - A timm model. A pretrained tag (`resnet50.a1_in1k`) is allowed, and loads no weights.
    - `package.module:function`. The function returns a network from pixels [B, 3, H, W] in [0, 1]
      to features [B, D]. The network normalises its pixels itself.
    - The name of `given_backbone`, for a copy of that network.
    stem: "cifar" makes a ResNet's first convolution 3x3, stride 1, without max-pool (He et al.
    2016, 4.2).
    image_size: pixels; some parameters depend on it, such as a ViT's position embedding.
    Raises UserError for an unknown name (with the nearest), an unknown stem, or a size that does
    not fit.
    """
    if stem not in STEMS:
        raise UserError(f'There is no stem "{stem}": choose "imagenet" or "cifar".')
    options: dict[str, Any] = {}
    if is_own(name):
        if stem != "imagenet":
            raise UserError(f"The cifar stem exists for timm's ResNets only, and {name} is none.")
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        network = _own_network(name, image_size or 64)
    else:
        network, options = build(name, image_size)
    if stem == "cifar":
        _small_stem(network, name)
    return Backbone(
        network, name=name, stem=stem, mean=mean, std=std, image_size=image_size, options=options
    )


def usual_statistics(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of pixels, [3] each, of timm's own weights of a network; else of ImageNet."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)


def _own_network(name: str, size: int) -> nn.Module:
    """Build the user's own network on torch's default device, and add `num_features` to it.

    Two black images pass it on the CPU, to check its outputs and to measure the features' width.
    """
    device = torch.empty(0).device
    with torch.random.fork_rng(devices=[], enabled=device.type == "meta"), torch.device("cpu"):
        if name.startswith(_OBJECT):
            if name not in _OBJECTS:
                others = f", and not {', '.join(_OBJECTS)}" if _OBJECTS else ""
                raise UserError(
                    f"{name} was given as an object: give it again, by backbone=... in"
                    f" Python{others}"
                )
            network = copy.deepcopy(_OBJECTS[name])
        else:
            builder = import_object(name, "backbone")
            if getattr(builder, "__module__", None) != name.partition(":")[0]:
                raise UserError(f"{name} is no backbone: name a function that is defined there")
            network = builder()
        if not isinstance(network, nn.Module):
            raise UserError(f"{name} is no backbone: it gives {type(network).__name__}, no module")
        network = network.cpu()
        modes = {module: module.training for module in network.modules()}
        with torch.no_grad():
            try:
                features = network.eval()(torch.zeros(2, 3, size, size))
            except (RuntimeError, ValueError, TypeError) as error:
                raise UserError(
                    f"{name} does not take pixels [2, 3, {size}, {size}]: {error}"
                ) from error
        for module, training in modes.items():
            module.training = training
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"{name} gives {shape} of 2 images: a backbone gives features [2, D]")
    width: Any = features.shape[1]
    network.head_hidden_size = width
    if not hasattr(network, "num_features"):
        network.num_features = width
    return network.to(device)


def redraw(network: nn.Module, name: str) -> None:
    """Reset the weights of a user's object by its layers' `reset_parameters`.

    They come from torch's global generator. Raises UserError where a parameter belongs to no such
    layer.
    """
    layers = [m for m in network.modules() if callable(getattr(m, "reset_parameters", None))]
    resettable = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    if rest := [key for key, p in network.named_parameters() if id(p) not in resettable]:
        raise UserError(
            f"{name.removeprefix(_OBJECT)} cannot get new random weights, as {rest[0]} belongs to"
            " no layer with reset_parameters(): name a function that builds the network, as"
            " package.module:function"
        )
    for layer in layers:
        # pyrefly: ignore[not-callable]
        layer.reset_parameters()


def is_given(name: str) -> bool:
    """Whether a backbone is an object that the user passed."""
    return name.startswith(_OBJECT)


def build(
    name: str, image_size: int | None, *, pretrained: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Build timm's model. Return it and the size option that it accepted.

    Raises UserError for an unknown model or unknown weights, and for a size that does not fit.
    """
    # checked first, because timm would download "hf-hub:..." names
    if ":" in name or not timm.is_model(name):
        raise UserError(f'timm has no model "{name}".{nearest(name, timm.list_models())}')
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    # `dynamic_img_size` lets a ViT take small views. Most networks have neither option.
    attempts: tuple[dict[str, Any], ...] = ({**size, "dynamic_img_size": True}, size, {})
    for options in attempts:
        try:
            network = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            if options and "img_size" in str(error):
                continue
            raise
        except RuntimeError as error:
            if "pretrained tag" not in str(error):
                raise
            tags = timm.list_pretrained(f"{base(name)}.*")
            raise UserError(f'timm has no weights "{name}".{nearest(name, tags)}') from None
        check_patches(network, name, image_size)
        return network, {key: value for key, value in options.items() if key == "img_size"}
    raise AssertionError("the last attempt has no options")


def base(name: str) -> str:
    """Return the name without the tag of pretrained weights."""
    return name if is_own(name) else name.partition(".")[0]


def check_patches(network: nn.Module, name: str, image_size: int | None) -> None:
    """Raise UserError where a ViT's patches do not divide the image."""
    side = find_patch_size(network)
    if image_size is None or side is None or image_size % side[0] == 0:
        return
    near = sorted({max(1, image_size // side[0]) * side[0], (image_size // side[0] + 1) * side[0]})
    raise UserError(
        f"{name} cuts the image into patches of {side[0]} pixels, and {image_size} is no multiple"
        f" of that: choose an image size of {' or '.join(map(str, near))}."
    )


def nearest_size(encoder: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """Return the height and width nearest to `size` that a network takes.

    A ViT takes multiples of its patches' side. A ViT that is built for one size, as BEiT is, takes
    that one. Of other networks nothing is known, and the result is `size`.
    """
    patches = getattr(getattr(encoder, "network", encoder), "patch_embed", None)
    side = getattr(patches, "patch_size", None)
    if not isinstance(side, tuple):
        return size[0], size[1]
    fixed = getattr(patches, "img_size", None)
    if getattr(patches, "strict_img_size", False) and isinstance(fixed, tuple):
        return fixed[0], fixed[1]
    height, width = (max(round(n / s), 1) * s for n, s in zip(size, side, strict=True))
    return height, width


def refuse_size(encoder: nn.Module, name: str, size: int) -> None:
    """Raise UserError if a network takes no square images of `size` pixels; it names the nearest
    size.
    """
    if (nearest := nearest_size(encoder, (size, size))) != (size, size):
        raise UserError(f"{name} takes no images of {size} pixels: --size {nearest[0]}")


def _small_stem(network: Any, name: str) -> None:
    if not isinstance(network, ResNet):
        raise UserError(
            f"The cifar stem exists for ResNets only, and {name} is none: use the imagenet stem."
        )
    conv = nn.Conv2d(3, int(network.bn1.num_features), 3, padding=1, bias=False)
    # the same initialisation as timm's other convolutions
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = conv, nn.Identity()


def _width(network: Any) -> int:
    # MobileNetV3, VGG and others have a hidden layer after the pooling. `num_features` is the width
    # before it.
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _to_map(network: Any, output: Tensor, pixels: Tensor) -> Tensor:
    """Convert a network's output before pooling to [B, C, h, w].

    ViTs output tokens [B, N, C], and some networks have the channels last.
    """
    if output.ndim == 3:
        patches = output[:, network.num_prefix_tokens :]
        side = network.patch_embed.patch_size
        grid = (pixels.shape[2] // side[0], pixels.shape[3] // side[1])
        return patches.transpose(1, 2).unflatten(2, grid)
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return output.permute(0, 3, 1, 2) if channels_last else output


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a sentence with the names that are most similar, or an empty string."""
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return f" Nearest: {', '.join(near)}." if near else ""


def recipe(backbone: Backbone, path: str | Path) -> str:
    """Return Python code that loads an exported file and defines the function `features`.

    `path`: the exported file. The code needs torch and timm, but not this package.
    """
    if is_own(backbone.name):
        module, _, function = backbone.name.removeprefix(_OBJECT).partition(":")
        lines = ["import torch", ""]
        if is_given(backbone.name):
            lines.append(f"network = ...  # your {module.partition('/')[0]}, as it was given")
        else:
            lines.insert(0, f"import {module}")
            lines.append(f"network = {module}.{function}()")
    else:
        options = "".join(f", {key}={value}" for key, value in backbone.options.items())
        lines = ["import timm", "import torch", ""]
        lines.append(f"network = timm.create_model({backbone.name!r}, num_classes=0{options})")
    if backbone.stem == "cifar":
        width = backbone.network.get_parameter("conv1.weight").shape[0]
        lines.append(f"network.conv1 = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)")
        lines.append("network.maxpool = torch.nn.Identity()")
    state = f"torch.load({str(path)!r}, weights_only=True)['state_dict']"
    if Path(path).suffix == ".safetensors":
        lines.insert(0, "import safetensors.torch")
        state = f"safetensors.torch.load_file({str(path)!r})"
    lines += [f"network.load_state_dict({state})", "network.eval()"]
    lines += [
        f"{name} = torch.tensor({value.tolist()})"
        for name, value in (("mean", backbone.mean), ("std", backbone.std))
    ]
    lines += [
        "",
        "",
        "def features(pixels):  # [B, 3, H, W] floats in [0, 1] (of uint8: pixels / 255) -> [B, D]",
    ]
    pixel_range = backbone.pixel_range or PixelRange()
    for what, pair in (("16-bit values", pixel_range.integers), ("floats", pixel_range.floats)):
        if pair is not None:
            low, high = pair
            lines.append(
                f"    # {what} were scaled to [0, 1] by ((values - {low:g}) /"
                f" {high - low:g}).clip(0, 1)"
            )
    lines += ["    return network((pixels - mean[:, None, None]) / std[:, None, None])"]
    return "\n".join(lines) + "\n"
