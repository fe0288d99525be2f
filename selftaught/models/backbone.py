"""Backbones: a name becomes a network from pixels to features. Its weights go out and come in by
`weights`.
"""

import copy
import difflib
import hashlib
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

__all__ = [
    "Backbone",
    "build",
    "check_patches",
    "create",
    "given_backbone",
    "norm_parameters",
    "recipe",
    "set_trainable",
]

STEMS = ("imagenet", "cifar")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(Encoder):
    """Pixels [B, 3, H, W] in [0, 1] -> features [B, D]. It normalises by `mean` and `std`; nobody
    else does.

    name, stem, image_size: as given to `create`. features: D. network: timm's model, pooled, no
    classifier. pixel_range: which values of more than 8 bits were 0 and 1 in training.
    """

    mean: Tensor
    std: Tensor
    pixel_range: PixelRange | None = None
    # frozen parts of the network that never leave evaluation mode
    resting: frozenset[str] = frozenset()

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
        """`options`: the arguments, besides `num_classes=0`, by which timm builds the same network
        again.
        """
        super().__init__()
        self.name = name
        self.stem = stem
        self.image_size = image_size
        self.options = dict(options or {})
        self.network = replace_strided_convs(network)
        self.features = _width(network)
        self.channels = int(network.num_features)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, pixels: Tensor, mapped: bool = False, staged: bool = False) -> Any:
        """Features; `mapped`: what `with_map` returns; `staged`: what `maps` returns."""
        network: Any = self.network
        if mapped and not hasattr(network, "forward_features"):
            raise UserError(
                f"{self.name} gives no maps, which this method needs: add forward_features(pixels)"
                " -> [B, C, h, w] and forward_head(maps) -> [B, D] to it"
            )
        normal = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        if staged:
            found = network.forward_intermediates(normal, intermediates_only=True)
            names = [info["module"] for info in network.feature_info]
            return dict(zip(names, found, strict=True))
        if not mapped:
            return network(normal)
        found = network.forward_features(normal)
        return network.forward_head(found), _map(network, found, pixels)

    def maps(self, pixels: Tensor) -> dict[str, Tensor]:
        """The map [B, C, h, w] of every stage, by timm's name of it, before any last norm."""
        maps: dict[str, Tensor] = self(pixels, staged=True)
        return maps

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.resting:
            self.network.get_submodule(name).eval()
        return self

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replace the normalisation, as [3] numbers each in units of [0, 1] pixels."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))


# networks that were given as objects, by their names: see `given_backbone`
_GIVEN: dict[str, nn.Module] = {}
_OBJECT = "object:"


@contextmanager
def given_backbone(network: nn.Module | None) -> Iterator[str | None]:
    """Let `create` build copies of `network` meanwhile, under the name that comes back.

    The name holds the class and a hash of the shapes of its weights: another network has another
    name. None: nothing is given.
    """
    if network is None:
        yield None
        return
    shapes = [(key, tuple(value.shape)) for key, value in network.state_dict().items()]
    kind = type(network)
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]
    name = f"{_OBJECT}{kind.__module__}.{kind.__qualname__}/{digest}"
    before = _GIVEN.get(name)
    _GIVEN[name] = network
    try:
        yield name
    finally:
        if before is None:
            del _GIVEN[name]
        else:
            _GIVEN[name] = before


def is_own(name: str) -> bool:
    """Whether a backbone is a user's own, and none of timm's: an object, or
    `package.module:function`.
    """
    return ":" in name


def create(
    name: str,
    *,
    stem: str = "imagenet",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    image_size: int | None = None,
) -> Backbone:
    """A randomly initialised backbone, from torch's global generator.

    name: of a timm model; a pretrained tag (`resnet50.a1_in1k`) is allowed and loads nothing. Or
    `package.module:function`, which is called and returns a network from pixels [B, 3, H, W] in
    [0, 1] to features [B, D]; it normalises for itself. Or the name of `given_backbone`: a copy.
    stem: "cifar" makes a ResNet's first convolution 3x3, stride 1, without max-pool (He et al.
    2016, 4.2).
    image_size: pixels; matters where parameters depend on it, such as a ViT's position embedding.
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


def _own_network(name: str, size: int) -> nn.Module:
    """A user's own network, with `num_features`: how wide its features are. It is on torch's
    default device.
    """
    wanted = torch.empty(0).device
    with torch.random.fork_rng(devices=[], enabled=wanted.type == "meta"), torch.device("cpu"):
        if name.startswith(_OBJECT):
            if name not in _GIVEN:
                others = f", and not {', '.join(_GIVEN)}" if _GIVEN else ""
                raise UserError(
                    f"{name} was given as an object: give it again, by backbone=... in"
                    f" Python{others}"
                )
            network = copy.deepcopy(_GIVEN[name])
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
    return network.to(wanted)


def redraw(network: nn.Module, name: str) -> None:
    """Draw a given object's weights anew, from torch's global generator, as its layers begin.

    Raises UserError where some parameters have no `reset_parameters` to draw them.
    """
    layers = [m for m in network.modules() if callable(getattr(m, "reset_parameters", None))]
    drawn = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    if left := [key for key, p in network.named_parameters() if id(p) not in drawn]:
        raise UserError(
            f"{name.removeprefix(_OBJECT)} cannot be drawn anew, as {left[0]} is of no layer with"
            " reset_parameters(): name a function that builds it, as package.module:function"
        )
    for layer in layers:
        layer.reset_parameters()  # type: ignore[operator]


def is_given(name: str) -> bool:
    """Whether a backbone is one that was given as an object."""
    return name.startswith(_OBJECT)


def build(
    name: str, image_size: int | None, *, pretrained: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """timm's model and the size option that it took."""
    # Checked first because timm would take "hf-hub:..." for an address and go to the network.
    if ":" in name or not timm.is_model(name):
        raise UserError(f'timm has no model "{name}".{nearest(name, timm.list_models())}')
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    # An embedding that adapts lets a ViT see multi-crop's small views; most networks take neither
    # option.
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
    if is_own(name):
        return name
    return name.partition(".")[0]  # without the tag of pretrained weights


def check_patches(network: nn.Module, name: str, image_size: int | None) -> None:
    side = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if image_size is None or not isinstance(side, tuple) or image_size % side[0] == 0:
        return
    near = sorted({max(1, image_size // side[0]) * side[0], (image_size // side[0] + 1) * side[0]})
    raise UserError(
        f"{name} cuts the image into patches of {side[0]} pixels, which {image_size} is no multiple"
        f" of: choose an image size of {' or '.join(map(str, near))}."
    )


def _small_stem(network: Any, name: str) -> None:
    if not isinstance(network, ResNet):
        raise UserError(
            f"The cifar stem exists for ResNets only, and {name} is none: use the imagenet stem."
        )
    conv = nn.Conv2d(3, int(network.bn1.num_features), 3, padding=1, bias=False)
    # as timm starts the others
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = conv, nn.Identity()


def _width(network: Any) -> int:
    # MobileNetV3, VGG and others keep a hidden layer behind the pooling, which `num_features` does
    # not count.
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _map(network: Any, found: Tensor, pixels: Tensor) -> Tensor:
    """What comes before pooling, as [B, C, h, w]: some networks have the channels last, ViTs a row
    of tokens.
    """
    if found.ndim == 3:
        patches = found[:, network.num_prefix_tokens :]
        side = network.patch_embed.patch_size
        return patches.transpose(1, 2).unflatten(
            2, (pixels.shape[2] // side[0], pixels.shape[3] // side[1])
        )
    return found.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else found


def nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f" Nearest: {', '.join(near)}." if near else ""


def recipe(backbone: Backbone, path: str | Path) -> str:
    """Python lines that rebuild `backbone` as the function `features` from an exported file, with
    timm alone.
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
                f"    # {what} were brought there by ((values - {low:g}) /"
                f" {high - low:g}).clip(0, 1)"
            )
    lines += ["    return network((pixels - mean[:, None, None]) / std[:, None, None])"]
    return "\n".join(lines) + "\n"
