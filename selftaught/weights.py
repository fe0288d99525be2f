"""Weights out to files, and in from files: our own, timm's, and those of other tools of self-supervision.

Over 200 lines, because a file is read, recognised, compared and either taken whole or refused with a reason, and these
steps are best read in one place. Which layouts and names there are is said in `layouts` and `dialects`.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from selftaught import checkpoint, inert
from selftaught.backbones import Backbone, base, build, create, nearest
from selftaught.data.pixel_range import PixelRange
from selftaught.dialects import State
from selftaught.distributed import rank, whole
from selftaught.errors import UserError
from selftaught.layouts import LAYOUTS, Reading, readings
from selftaught.likeness import candidates, looks_like, small_stem
from selftaught.trainable import plain_state

_OURS = ("name", "stem", "mean", "std", "image_size")
_PICKLED = (".pth", ".pt")
_FILE_SUFFIXES = (".safetensors", *_PICKLED, ".bin", ".ckpt", ".tar", ".pkl", ".torch")
_HEADS = ("fc.", "head.", "head_dist.", "classifier.")  # what timm's networks, and those named like them, classify with


# Out


def save(backbone: Backbone, path: str | Path, extra: Mapping[str, str] | None = None) -> None:
    """Write the network's weights under timm's own names, by suffix as `.safetensors` or `.pth`; atomic.

    Beside them stand name, stem, mean, std, image_size, pixel_range and `extra` as strings: a safetensors file's metadata,
    or the entry "metadata" beside "state_dict" in a `.pth`, which `torch.load(weights_only=True)` reads.
    `backbones.recipe` says in Python how to use the weights without this package. Where the network is shared out over
    several processes, all of them call it; rank 0 writes.
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
    if backbone.pixel_range is not None:
        metadata["pixel_range"] = json.dumps(backbone.pixel_range.to_json())
    if clash := metadata.keys() & (extra or {}).keys():
        raise ValueError(f"extra must not replace {', '.join(sorted(clash))}")
    metadata.update(extra or {})
    state = portable(plain_state(backbone.network))
    if rank() != 0:
        return

    def write(draft: Path) -> None:
        with draft.open("wb") as file:
            if path.suffix == ".safetensors":
                file.write(safetensors.torch.save(state, metadata))
            else:
                torch.save({"state_dict": state, "metadata": metadata}, file)

    checkpoint.atomic(path, write)


def portable(state: State) -> State:
    """As others can read it: brought together where several processes share it, and on the CPU."""
    return {key: whole(value).detach().cpu().contiguous() for key, value in state.items()}


def _stated(values: Tensor) -> str:
    # The shortest digits that give the same float32 again: .485 and not .48500001430511475.
    return json.dumps([float(str(value)) for value in values.cpu().numpy()])


# In


@dataclass(frozen=True)
class Content:
    """What a file holds: nested dicts with tensors, what it says of itself, and names of pickled objects left closed."""

    path: Path
    data: Any
    metadata: Mapping[str, str]
    closed: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return all(isinstance(self.metadata.get(key), str) for key in _OURS)

    def __str__(self) -> str:
        return str(self.path)


def load(path: str | Path) -> Backbone:
    """The backbone in a file written by `save`; random numbers elsewhere are not disturbed."""
    content = _read(_file(path))
    if not content.ours:
        raise UserError(
            f"{content} does not say which network it holds: give a file that selftaught wrote, or take this one in first: "
            f"selftaught pretrain --init {content} --backbone NAME --data IMAGES --steps 0 --out FOLDER"
        )
    mean, std = _statistics(content)
    name, stem, size = (content.metadata[key] for key in ("name", "stem", "image_size"))
    with torch.random.fork_rng(devices=[]):
        backbone = create(name, stem=stem, mean=mean, std=std, image_size=int(size) if size.isdigit() else None)
    _take(backbone.network, _fitting(content, backbone.network, name).state)
    if "pixel_range" in content.metadata:
        backbone.pixel_range = _pixel_range(content)
    return backbone


def load_weights(backbone: Backbone, source: str | Path, own_statistics: bool = True) -> str:
    """Fill `backbone` from `source`; return one line that says what was loaded, and what was left aside.

    source: a file of ours or a run's folder; a file of any layout in `layouts.LAYOUTS`, its names timm's or of a dialect
    in `dialects.DIALECTS`; or the name of pretrained weights in timm, which needs the network. A classifier's head is
    dropped, and a ViT's position embedding is resampled to the backbone's image size. The source's own mean and std are
    taken over where it states them, unless the backbone is to keep those that it has. No pickled code is ever run.
    Raises UserError when any tensor of the network is missing, left over, or of another shape.
    """
    path = Path(source)
    if not path.exists() and path.suffix not in _FILE_SUFFIXES and os.sep not in str(source):
        return _load_pretrained(backbone, str(source), own_statistics)
    content = _read(_file(path))
    if content.ours:
        _check_same_kind(backbone, content)
    fit = _fitting(content, backbone.network, backbone.name)
    _take(backbone.network, fit.state)
    notes = [f"{len(fit.state)} tensors", *_said(fit.reading, content, plain=content.ours), *fit.notes]
    if not own_statistics:
        notes.append("mean and std of the images")
    elif content.ours:
        backbone.set_statistics(*_statistics(content))
        notes.append("with its mean and std")
    else:
        notes.append("mean and std kept, as the file states none")
    return f"{backbone.name} starts from {content}: {', '.join(notes)}."


def guess_name(source: str | Path) -> str | None:
    """timm's name of the network that a file holds, or None where that is unclear; its stem is `guess(source)[1]`."""
    found = guess(source)
    return found[0] if found else None


def guess(source: str | Path) -> tuple[str, str] | None:
    """Name and stem of the network that a file holds, as it says itself or as its tensors' shapes say.

    None where nothing fits, or where several networks of the same shapes compute different things (timm's own names do
    not tell efficientnet_b0 from tf_efficientnet_b0). Raises UserError when there is no such file, or it is unreadable.
    """
    path = Path(source)
    if not path.exists() and timm.is_model(str(source)):
        return base(str(source)), "imagenet"
    content = _read(_file(path))
    if content.ours:
        return content.metadata["name"], content.metadata["stem"]
    said = content.data.get("arch") if isinstance(content.data, dict) else None
    for reading in readings(content.data):
        stem = "cifar" if small_stem(reading.state) else "imagenet"
        for name in (*([said] if isinstance(said, str) else []), *candidates(reading)):
            if timm.is_model(name) and not _fit(reading, _skeleton(name, stem), name).trouble:
                return name, stem
    return None


def _skeleton(name: str, stem: str) -> nn.Module:
    """The network with shapes alone, which costs no time and no memory."""
    try:
        with torch.device("meta"):
            return create(name, stem=stem).network
    except (RuntimeError, NotImplementedError):  # some compute with numbers while they are built
        with torch.random.fork_rng(devices=[]):
            return create(name, stem=stem).network


def _load_pretrained(backbone: Backbone, name: str, own_statistics: bool) -> str:
    if not timm.is_model(name) or not timm.is_model_pretrained(name):
        known = timm.list_pretrained(f"{base(backbone.name)}.*") or timm.list_pretrained()
        raise UserError(f'"{name}" is neither a file nor weights that timm knows.{nearest(name, known)}')
    if base(name) != base(backbone.name):
        raise UserError(f"{name} are weights of {base(name)}, but the backbone is {backbone.name}: choose one.")
    if backbone.stem != "imagenet":
        raise UserError(f"{name} has the imagenet stem, and the backbone the {backbone.stem} stem: use imagenet.")
    try:
        with torch.random.fork_rng(devices=[]):
            network, _ = build(name, backbone.image_size, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds, each for the same reason to the user
        raise UserError(
            f"The weights {name} could not be fetched ({type(error).__name__}): this needs the network once. "
            "Or give a file with weights instead."
        ) from error
    _take(backbone.network, network.state_dict())
    stated: Any = network.pretrained_cfg
    if not own_statistics or not (stated.get("mean") and stated.get("std")):
        return f"{backbone.name} starts from timm's {name}, mean and std kept."
    backbone.set_statistics(stated["mean"], stated["std"])
    return f"{backbone.name} starts from timm's {name}, with its mean and std."


# A file


def _file(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / "backbone.safetensors"  # a run's folder
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    return path


def _read(path: Path) -> Content:
    """Nothing in the file can run code: what is not plain data is left closed."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                data = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return Content(path, data, file.metadata() or {})
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is no readable safetensors file: {error}.") from None
    closed: list[str] = []
    try:
        inert.refuse_archives(path)
        with warnings.catch_warnings():  # of old formats, which are read all the same
            warnings.simplefilter("ignore")
            try:
                data = torch.load(path, map_location="cpu", weights_only=True)
            except UnpicklingError:
                data, closed = inert.load(path)
    except Exception as error:  # broken bytes make the reader fail in many ways, each for the same reason
        reason = (str(error).splitlines() or [""])[0]
        reason = reason if " " in reason else type(error).__name__  # of a KeyError, the key says nothing
        raise UserError(f"{path} is broken, or no PyTorch file: {reason.rstrip('.')}.") from None
    metadata = data.get("metadata") if isinstance(data, dict) else None
    return Content(path, data, metadata if isinstance(metadata, dict) else {}, tuple(closed))


def _statistics(content: Content) -> tuple[list[float], list[float]]:
    stated = content.metadata
    try:
        mean, std = ([float(value) for value in json.loads(stated[key])] for key in ("mean", "std"))
    except (ValueError, TypeError):
        mean, std = [], []
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"{content} states no usable mean and std: {stated['mean']} and {stated['std']}.")
    return mean, std


def _pixel_range(content: Content) -> PixelRange:
    try:
        return PixelRange.from_json(json.loads(content.metadata["pixel_range"]))
    except (ValueError, UserError):
        raise UserError(f"{content} states no usable pixel_range: {content.metadata['pixel_range']}.") from None


def _check_same_kind(backbone: Backbone, content: Content) -> None:
    name, stem = content.metadata["name"], content.metadata["stem"]
    if base(name) != base(backbone.name):
        raise UserError(f"{content} holds weights of {name}, but the backbone is {backbone.name}: choose one.")
    if stem != backbone.stem:
        raise UserError(f"{content} has the {stem} stem, and the backbone the {backbone.stem} stem: use {stem}.")


# What a file's content is for a network


@dataclass(frozen=True)
class Fit:
    """A reading compared with a network: without `trouble`, `state` has all that the network wants and nothing else."""

    reading: Reading
    state: State
    notes: tuple[str, ...]
    trouble: str
    hits: int


def _fitting(content: Content, network: nn.Module, name: str) -> Fit:
    """The first reading that fits exactly; raises UserError about the one that comes nearest."""
    fits: list[Fit] = []
    for reading in readings(content.data):
        if content.ours and reading.layout is not LAYOUTS[-1]:
            continue
        fits.append(_fit(reading, network, name))
        if not fits[-1].trouble:
            return fits[-1]
    if not fits:
        held = "" if not content.closed else f" Pickled objects in it stay closed ({_some(content.closed)})."
        raise UserError(
            f'{content} holds no state dict, neither at its top nor under "state_dict", "model" or where other tools '
            f"keep it.{held} Save the network's state_dict() alone and give that."
        )
    nearest_fit = max(fits, key=lambda fit: (fit.hits, -len(fit.reading.over)))  # the first of several
    raise UserError(f"{content} does not fit {nearest_fit.trouble} {looks_like(nearest_fit.reading.state)}")


def _fit(reading: Reading, network: nn.Module, name: str) -> Fit:
    own, state, notes = network.state_dict(), dict(reading.state), []
    if head := sorted(key for key in state if key not in own and key.startswith(_HEADS)):
        notes.append(f"its head dropped ({_some(head)})")
        state = {key: value for key, value in state.items() if key not in head}
    notes += _fit_positions(network, state)
    # A counter, not a weight: files from before PyTorch 0.4.1 and some converters leave it out.
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in state}
    missing = [key for key in own if key not in state and key not in counters]
    over = [*(key for key in state if key not in own), *reading.over]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    troubles = (("missing", missing), ("left over", over), ("of another shape", shapes))
    trouble = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in troubles if keys)
    if trouble:
        trouble = f"the backbone's {len(own)} tensors: {trouble}."
    elif why := _otherwise(reading, name):
        trouble = f"{name}: {why}."
    return Fit(reading, {**state, **counters}, tuple(notes), trouble, sum(key in state for key in own))


def _otherwise(reading: Reading, name: str) -> str:
    """Why a network of the same shapes would compute something else with these weights, if it would."""
    for other, why in reading.layout.unlike.items():
        if name.startswith(other):
            return why
    dialect = reading.dialect
    if dialect and dialect.unlike:
        return dialect.unlike
    if dialect and dialect.networks and not any(fnmatch(base(name), known) for known in dialect.networks):
        return (
            f"weights in the names of {dialect.whose} would compute something else in it; "
            f"they are for {', '.join(dialect.networks)}"
        )
    return ""


def _fit_positions(network: Any, state: State) -> list[str]:
    """Resample a ViT's absolute position embedding when the weights come from another image size."""
    here, there = getattr(network, "pos_embed", None), state.get("pos_embed")
    if here is None or there is None or there.shape == here.shape or there.ndim != 3:
        return []
    prefix = 0 if getattr(network, "no_embed_class", False) else int(getattr(network, "num_prefix_tokens", 0))
    new = list(network.patch_embed.grid_size)
    old = round((there.shape[1] - prefix) ** 0.5)
    if there.shape[2] != here.shape[2] or old * old + prefix != there.shape[1]:
        return []  # the strict check says what is wrong
    state["pos_embed"] = resample_abs_pos_embed(there, new_size=new, num_prefix_tokens=prefix)
    return [f"position embedding resampled from {old}x{old} to {new[0]}x{new[1]}"]


def _take(network: nn.Module, state: State) -> None:
    network.load_state_dict(state)  # strict: what `_fit` compared is compared once more


def _said(reading: Reading, content: Content, plain: bool) -> list[str]:
    """What the user should know of how the file was read."""
    if plain:
        return []
    layout, notes = reading.layout, []
    if layout.tool:
        notes.append(f"read as a file of {layout.tool}" + (f" (the {layout.which})" if layout.which else ""))
    if reading.dialect:
        notes.append(f"in the names of {reading.dialect.whose}")
    if reading.prefix:
        notes.append(f'found under "{reading.prefix}"')
    if reading.count:
        notes.append(f"left aside outside of it: {reading.count} ({', '.join(reading.aside)})")
    if others := _others(content.data, reading.under):
        notes.append(f"not looked at: {_some(others)}")
    if content.closed:
        notes.append(f"pickled objects left closed: {_some(content.closed)}")
    return notes


def _others(data: Any, under: Sequence[str]) -> list[str]:
    """State dicts beside the one that was taken, such as another network or an average of the weights."""
    if not under or not isinstance(data, dict):
        return []
    return [
        str(key)
        for key, value in data.items()
        if key != under[0] and isinstance(value, dict) and any(isinstance(tensor, Tensor) for tensor in value.values())
    ]


def _some(keys: Sequence[str], show: int = 3) -> str:
    return ", ".join(keys[:show]) + (", ..." if len(keys) > show else "")
