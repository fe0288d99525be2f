"""Backbones: a name becomes a network from pixels to features; its weights go to files and come from files.

Over 200 lines, because checkpoints of others nest, prefix and decorate the same tensors in many ways: each
layout that is understood here is understood strictly, and every other is refused with a reason.
"""

import difflib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import safetensors
import safetensors.torch
import timm
import timm.layers
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.resnet import ResNet
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Encoder

State = dict[str, Tensor]

STEMS = ("imagenet", "cifar")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_OURS = ("name", "stem", "mean", "std", "image_size")
_PICKLED = (".pth", ".pt")
_FILE_SUFFIXES = (".safetensors", *_PICKLED, ".bin", ".ckpt", ".tar", ".pkl")
_NESTED_UNDER = ("state_dict", "model")
_WRAPPERS, _PARTS = ("", "module.", "model."), ("", "backbone.", "encoder_q.", "network.", "model.")
_PREFIXES = tuple(wrapper + part for wrapper, part in product(_WRAPPERS, _PARTS))
_HEADS = ("fc", "head", "classifier")
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {  # (blocks a layer, bottleneck blocks?) -> name
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# timm's own normalisations that are not subclasses of torch's; older timm lacks some of them.
_TIMM_NORMS = ("RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d")
_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm, SyncBatchNorm and InstanceNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    *(getattr(timm.layers, name) for name in _TIMM_NORMS if hasattr(timm.layers, name)),
)


class Backbone(Encoder):
    """Pixels [B, 3, H, W] in [0, 1] -> features [B, D]. It normalises by `mean` and `std`; nobody else does.

    name, stem, image_size: as given to `create`. features: D. network: timm's model, pooled, no classifier.
    """

    mean: Tensor
    std: Tensor

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
        """`options`: the arguments, besides `num_classes=0`, by which timm builds the same network again."""
        super().__init__()
        self.name = name
        self.stem = stem
        self.image_size = image_size
        self.options = dict(options or {})
        self.network = network
        self.features = _width(network)
        self.channels = int(network.num_features)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(self._normal(pixels))

    def with_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        found = network.forward_features(self._normal(pixels))
        return network.forward_head(found), _map(network, found, pixels)

    def _normal(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean[:, None, None]) / self.std[:, None, None]

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replace the normalisation, as [3] numbers each in units of [0, 1] pixels."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))


def create(
    name: str,
    *,
    stem: str = "imagenet",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    image_size: int | None = None,
) -> Backbone:
    """A randomly initialised backbone, from torch's global generator.

    name: of a timm model; a pretrained tag (`resnet50.a1_in1k`) is allowed and loads nothing.
    stem: "cifar" makes a ResNet's first convolution 3x3, stride 1, without max-pool (He et al. 2016, 4.2).
    image_size: pixels; matters where parameters depend on it, such as a ViT's position embedding.
    Raises UserError for an unknown name (with the nearest), an unknown stem, or a size that does not fit.
    """
    if stem not in STEMS:
        raise UserError(f'There is no stem "{stem}": choose "imagenet" or "cifar".')
    network, options = _make(name, image_size)
    if stem == "cifar":
        _small_stem(network, name)
    return Backbone(network, name=name, stem=stem, mean=mean, std=std, image_size=image_size, options=options)


def _make(name: str, image_size: int | None, *, pretrained: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """timm's model and the size option that it took."""
    # Checked first because timm would take "hf-hub:..." for an address and go to the network.
    if ":" in name or not timm.is_model(name):
        raise UserError(f'timm has no model "{name}".{_nearest(name, timm.list_models())}')
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    # An embedding that adapts lets a ViT see multi-crop's small views; most networks take neither option.
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
            tags = timm.list_pretrained(f"{_base(name)}.*")
            raise UserError(f'timm has no weights "{name}".{_nearest(name, tags)}') from None
        check_patches(network, name, image_size)
        return network, {key: value for key, value in options.items() if key == "img_size"}
    raise AssertionError("the last attempt has no options")


def _base(name: str) -> str:
    return name.partition(".")[0]  # without the tag of pretrained weights


def check_patches(network: nn.Module, name: str, image_size: int | None) -> None:
    side = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if image_size is None or not isinstance(side, tuple) or image_size % side[0] == 0:
        return
    near = sorted({max(1, image_size // side[0]) * side[0], (image_size // side[0] + 1) * side[0]})
    raise UserError(
        f"{name} cuts the image into patches of {side[0]} pixels, which {image_size} is no multiple of: "
        f"choose an image size of {' or '.join(map(str, near))}."
    )


def _small_stem(network: Any, name: str) -> None:
    if not isinstance(network, ResNet):
        raise UserError(f"The cifar stem exists for ResNets only, and {name} is none: use the imagenet stem.")
    conv = nn.Conv2d(3, int(network.bn1.num_features), 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm starts the others
    network.conv1, network.maxpool = conv, nn.Identity()


def _width(network: Any) -> int:
    # MobileNetV3, VGG and others keep a hidden layer behind the pooling, which `num_features` does not count.
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _map(network: Any, found: Tensor, pixels: Tensor) -> Tensor:
    """What comes before pooling, as [B, C, h, w]: some networks have the channels last, ViTs a row of tokens."""
    if found.ndim == 3:
        patches = found[:, network.num_prefix_tokens :]
        side = network.patch_embed.patch_size
        return patches.transpose(1, 2).unflatten(2, (pixels.shape[2] // side[0], pixels.shape[3] // side[1]))
    return found.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else found


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f" Nearest: {', '.join(near)}." if near else ""


# What may move


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The affine parameters of every norm layer: batch, instance, group, layer, RMS norms, and timm's own."""
    norms = [part for part in module.modules() if isinstance(part, _NORMS)]
    # Not recursive: a norm-and-activation layer of timm may hold a PReLU, whose slope is no affine parameter.
    return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


def set_trainable(backbone: nn.Module, what: Literal["all", "norm"]) -> None:
    """Let everything learn, or the norm layers' affine parameters alone (HPT-BN, Reed et al. 2021)."""
    if what not in ("all", "norm"):
        raise UserError(f'trainable must be "all" or "norm", not "{what}".')
    affine = norm_parameters(backbone)
    if what == "norm" and not affine:
        raise UserError("This backbone has no norm layer with parameters: train all of it.")
    backbone.requires_grad_(what == "all")
    for parameter in affine:
        parameter.requires_grad_(True)


# Weights out


def save(backbone: Backbone, path: str | Path, extra: Mapping[str, str] | None = None) -> None:
    """Write the network's weights under timm's own names, by suffix as `.safetensors` or `.pth`; atomic.

    Beside them stand name, stem, mean, std, image_size and `extra` as strings: a safetensors file's metadata,
    or the entry "metadata" beside "state_dict" in a `.pth`, which `torch.load(weights_only=True)` reads.
    `recipe` says in Python how to use the weights without this package.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *_PICKLED):
        raise UserError(f"Weights are written as .safetensors or .pth, not as {path.name}.")
    metadata = {
        "format": "pt",
        "name": backbone.name,
        "stem": backbone.stem,
        "mean": _stated(backbone.mean),
        "std": _stated(backbone.std),
        "image_size": str(backbone.image_size or ""),
    }
    if clash := metadata.keys() & (extra or {}).keys():
        raise ValueError(f"extra must not replace {', '.join(sorted(clash))}")
    metadata.update(extra or {})
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            if path.suffix == ".safetensors":
                file.write(safetensors.torch.save(state, metadata))
            else:
                torch.save({"state_dict": state, "metadata": metadata}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _stated(values: Tensor) -> str:
    # The shortest digits that give the same float32 again: .485 and not .48500001430511475.
    return json.dumps([float(str(value)) for value in values.cpu().numpy()])


def recipe(backbone: Backbone, path: str | Path) -> str:
    """Python lines that rebuild `backbone.network` as `network` from an exported file, with timm alone."""
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
    return "\n".join(lines) + "\n"


# Weights in


def load(path: str | Path) -> Backbone:
    """The backbone in a file written by `save`; random numbers elsewhere are not disturbed."""
    path = _file(path)
    state, metadata = _read(path)
    if not _is_ours(metadata):
        raise UserError(f"{path} does not say which network it holds: give a file that selftaught wrote.")
    mean, std = _statistics(path, metadata)
    name, stem, size = metadata["name"], metadata["stem"], metadata["image_size"]
    with torch.random.fork_rng(devices=[]):
        backbone = create(name, stem=stem, mean=mean, std=std, image_size=int(size) if size.isdigit() else None)
    _load_strictly(backbone.network, state, str(path))
    return backbone


def load_weights(backbone: Backbone, source: str | Path) -> str:
    """Fill `backbone` from `source`; return one line that says what was loaded, and what was left aside.

    source: a file of ours or a run's folder; a plain timm or torchvision-ResNet state dict in a .pth, .pt or
    .safetensors file; or the name of pretrained weights in timm, which needs the network. State dicts may lie
    under "state_dict" or "model" and behind prefixes ("module.", "backbone.", "module.encoder_q.", ...); a
    classifier's head is dropped, and a ViT's position embedding is resampled to the backbone's image size.
    The source's own mean and std are taken over where it states them. No pickled code is ever run.
    Raises UserError when any tensor of the network is missing, left over, or of another shape.
    """
    path = Path(source)
    if not path.exists() and path.suffix not in _FILE_SUFFIXES and os.sep not in str(source):
        return _load_pretrained(backbone, str(source))
    path = _file(path)
    state, metadata = _read(path)
    notes: list[str] = []
    if _is_ours(metadata):
        _check_same_kind(backbone, path, metadata)
    else:
        state = _plain(state, backbone.network.state_dict().keys(), notes)
    _fit_positions(backbone.network, state, notes)
    _load_strictly(backbone.network, state, str(path))
    if _is_ours(metadata):
        backbone.set_statistics(*_statistics(path, metadata))
        notes.append("with its mean and std")
    else:
        notes.append("mean and std kept, as the file states none")
    return f"{backbone.name} starts from {path}: {', '.join([f'{len(state)} tensors', *notes])}."


def _load_pretrained(backbone: Backbone, name: str) -> str:
    if not timm.is_model(name) or not timm.is_model_pretrained(name):
        known = timm.list_pretrained(f"{_base(backbone.name)}.*") or timm.list_pretrained()
        raise UserError(f'"{name}" is neither a file nor weights that timm knows.{_nearest(name, known)}')
    if _base(name) != _base(backbone.name):
        raise UserError(f"{name} are weights of {_base(name)}, but the backbone is {backbone.name}: choose one.")
    if backbone.stem != "imagenet":
        raise UserError(f"{name} has the imagenet stem, and the backbone the {backbone.stem} stem: use imagenet.")
    try:
        with torch.random.fork_rng(devices=[]):
            network, _ = _make(name, backbone.image_size, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds, each for the same reason to the user
        raise UserError(
            f"The weights {name} could not be fetched ({type(error).__name__}): this needs the network once. "
            "Or give a file with weights instead."
        ) from error
    _load_strictly(backbone.network, network.state_dict(), name)
    stated: Any = network.pretrained_cfg
    if not (stated.get("mean") and stated.get("std")):
        return f"{backbone.name} starts from timm's {name}, mean and std kept."
    backbone.set_statistics(stated["mean"], stated["std"])
    return f"{backbone.name} starts from timm's {name}, with its mean and std."


def _file(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / "backbone.safetensors"  # a run's folder
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    return path


def _read(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and metadata of a file, un-nested; nothing in it can run code."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is no readable safetensors file: {error}.") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UserError(
            f"{path} is broken or holds more than tensors, and opening it could run code: "
            "save its state dict alone (torch.save(model.state_dict(), ...)) and give that."
        ) from None
    except Exception as error:  # broken bytes make the reader fail in many ways, each for the same reason
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no readable PyTorch file: {reason}.") from None
    metadata = content.get("metadata") if isinstance(content, dict) else None
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _NESTED_UNDER if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise UserError(f'{path} holds no state dict, neither at its top nor under "state_dict" or "model".')
    return state, metadata if isinstance(metadata, dict) else {}


def _is_ours(metadata: Mapping[str, str]) -> bool:
    return all(isinstance(metadata.get(key), str) for key in _OURS)


def _statistics(path: Path, metadata: Mapping[str, str]) -> tuple[list[float], list[float]]:
    try:
        mean, std = ([float(value) for value in json.loads(metadata[key])] for key in ("mean", "std"))
    except (ValueError, TypeError):
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"{path} states no usable mean and std: {metadata['mean']} and {metadata['std']}.")
    return mean, std


def _check_same_kind(backbone: Backbone, path: Path, metadata: Mapping[str, str]) -> None:
    name, stem = metadata["name"], metadata["stem"]
    if _base(name) != _base(backbone.name):
        raise UserError(f"{path} holds weights of {name}, but the backbone is {backbone.name}: choose one.")
    if stem != backbone.stem:
        raise UserError(f"{path} has the {stem} stem, and the backbone the {backbone.stem} stem: use {stem}.")


def _plain(state: State, wanted: Collection[str], notes: list[str]) -> State:
    """Strip the prefix under which most of the wanted names lie; drop what lies outside it, and a head."""
    wanted = set(wanted)
    hits = {prefix: sum(prefix + key in state for key in wanted) for prefix in _PREFIXES}
    prefix = max(_PREFIXES, key=lambda p: (hits[p], -len(p)))
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if prefix:
        notes.append(f'found under "{prefix}"')
    if outside := len(state) - len(inside):
        notes.append(f"left aside outside of it: {outside}")
    head = [key for key in inside if key not in wanted and key.split(".")[0] in _HEADS]
    if head:
        notes.append(f"its head dropped ({_some(sorted(head))})")
    return {key: value for key, value in inside.items() if key not in head}


def _fit_positions(network: Any, state: State, notes: list[str]) -> None:
    """Resample a ViT's absolute position embedding when the weights come from another image size."""
    here, there = getattr(network, "pos_embed", None), state.get("pos_embed")
    if here is None or there is None or there.shape == here.shape or there.ndim != 3:
        return
    prefix = 0 if getattr(network, "no_embed_class", False) else int(getattr(network, "num_prefix_tokens", 0))
    new = list(network.patch_embed.grid_size)
    old = round((there.shape[1] - prefix) ** 0.5)
    if there.shape[2] != here.shape[2] or old * old + prefix != there.shape[1]:
        return  # the strict check says what is wrong
    state["pos_embed"] = resample_abs_pos_embed(there, new_size=new, num_prefix_tokens=prefix)
    notes.append(f"position embedding resampled from {old}x{old} to {new[0]}x{new[1]}")


def _load_strictly(network: nn.Module, state: State, source: str) -> None:
    own = network.state_dict()
    # A counter, not a weight: files from before PyTorch 0.4.1 and some converters leave it out.
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in state}
    state = {**state, **counters}
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    troubles = (("missing", missing), ("left over", extra), ("of another shape", shapes))
    wrong = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in troubles if keys)
    if wrong:
        raise UserError(f"{source} does not fit the backbone's {len(own)} tensors: {wrong}. {_looks_like(state)}")
    network.load_state_dict(state)


def _some(keys: Sequence[str], show: int = 3) -> str:
    return ", ".join(keys[:show]) + (", ..." if len(keys) > show else "")


def _looks_like(state: State) -> str:
    """A guess at what a state dict is, from its names and shapes, for the error line."""
    blocks = [m for key in state if (m := re.search(r"(?:^|\.)layer([1-4])\.(\d+)\.conv([1-3])\.weight$", key))]
    if blocks:
        depths = tuple(max((int(m[2]) + 1 for m in blocks if m[1] == layer), default=0) for layer in "1234")
        bottleneck = any(m[3] == "3" for m in blocks)
        guess = _RESNETS.get((depths, bottleneck), f"a ResNet of {depths} blocks")
        small = any(
            re.search(r"(?:^|\.)conv1\.weight$", key) and "layer" not in key and value.shape[-1] == 3
            for key, value in state.items()
        )
        return f"It looks like {guess}{' with the cifar stem' if small else ''}."
    if any("encoder_layer_" in key for key in state):
        return "It looks like torchvision's ViT, whose names differ from timm's."
    patch = next((value for key, value in state.items() if key.endswith("patch_embed.proj.weight")), None)
    if patch is not None:
        depth = len({m[1] for key in state if (m := re.search(r"blocks\.(\d+)\.", key))})
        return f"It looks like a ViT of width {patch.shape[0]}, depth {depth}, patch {patch.shape[-1]}."
    if any(key.startswith("features.") for key in state):
        return "It looks like a network of torchvision, whose names differ from timm's (only ResNets agree)."
    return f"Its first names are {_some(list(state))}."
