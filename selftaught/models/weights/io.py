"""Reading and writing of weights: files of this package, of timm and of other tools.

Files are described in `weight_files`, layouts in `formats`, names in `key_maps`, and the comparison
with a network in `matching`.
"""

import contextlib
import functools
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from selftaught import files
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import full_tensor, rank
from selftaught.errors import UserError
from selftaught.models.backbone import Backbone, base, build, create, nearest, usual_statistics
from selftaught.models.python_objects import MissingObject
from selftaught.models.trainable import plain_state
from selftaught.models.weights import formats
from selftaught.models.weights.architecture import has_small_stem, list_candidates
from selftaught.models.weights.formats import Reading
from selftaught.models.weights.key_maps import State
from selftaught.models.weights.matching import check_values, compare, find_fit
from selftaught.models.weights.weight_files import (
    SUFFIXES,
    Content,
    format_statistics,
    list_some,
    read,
)

_PICKLED = (".pth", ".pt")


class Stated(NamedTuple):
    """What weights state: timm's name and the stem of their network, and two sizes in pixels.

    Only weights of this package state sizes: see `Backbone.view_size` and `norm_size`.
    """

    network: tuple[str, str] | None
    size: int | None = None
    norm_size: int | None = None


# Writing


def save_backbone(backbone: Backbone, path: str | Path) -> None:
    """Write the network's weights under timm's names, atomically, as `.safetensors` or `.pth`.

    The metadata are name, stem, mean, std, image_size, pixel_range and sizes, as strings. In a
    `.pth` they are the entry "metadata" beside "state_dict"; `torch.load(weights_only=True)` reads
    it. `backbone.recipe` gives Python code that uses the weights without this package. If the
    network is sharded, all processes call this function; rank 0 writes. Raises UserError for
    another suffix.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *_PICKLED):
        raise UserError(f"Weights are written as .safetensors or .pth, not as {path.name}.")
    metadata = {
        "format": "pt",
        "name": backbone.name,
        "stem": backbone.stem,
        "mean": format_statistics(backbone.mean),
        "std": format_statistics(backbone.std),
        "image_size": str(backbone.image_size or ""),
    }
    if backbone.pixel_range is not None:
        metadata["pixel_range"] = json.dumps(backbone.pixel_range.to_json())
    for name, size in (("size", backbone.view_size), ("norm_size", backbone.norm_size)):
        if size is not None:
            metadata[name] = str(size)
    state = portable(plain_state(backbone.network))
    if rank() != 0:
        return

    if path.suffix == ".safetensors":
        content = serialise(state, metadata)
    else:
        buffer = io.BytesIO()  # torch's own writer raises no OSError for a full disk
        torch.save({"state_dict": state, "metadata": metadata}, buffer)
        content = buffer.getvalue()
    files.atomic(path, lambda draft: draft.write_bytes(content))


def serialise(state: State, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file, equal for equal weights and metadata.

    The library's own writer orders the metadata differently in every process.
    """
    content = safetensors.torch.save(state)
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = sorted(
        json.loads(content[8:start]).items(), key=lambda item: (item[1]["data_offsets"], item[0])
    )
    header = {"__metadata__": dict(sorted(metadata.items())), **dict(tensors)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[start:]])


def portable(state: State) -> State:
    """Copy a state dict to the CPU, with sharded tensors gathered."""
    return {key: full_tensor(value).detach().cpu().contiguous() for key, value in state.items()}


# Reading


def load_backbone(path: str | Path) -> Backbone:
    """Load the backbone in a file of `save_backbone`, or in a run's folder.

    The state of torch's random generator does not change. Raises UserError if the file does not
    state its network, and MissingObject if the network's class cannot be imported.
    """
    content = read(path)
    if not content.is_ours:
        raise UserError(
            f"{content} does not say which network it holds: give a file that selftaught wrote, or"
            f" convert this one first: selftaught pretrain --init {content} --backbone NAME --data"
            " IMAGES --steps 0 --out FOLDER"
        )
    mean, std = _own_statistics(content)
    name, stem, size = (content.metadata[key] for key in ("name", "stem", "image_size"))
    image_size = int(size) if size.isdigit() else None
    try:
        with torch.random.fork_rng(devices=[]):
            backbone = create(name, stem=stem, mean=mean, std=std, image_size=image_size)
    except MissingObject as error:
        raise MissingObject(f"{content}: {error}") from error
    except UserError as error:
        raise UserError(f"{content}: {error}") from error
    _fill(backbone.network, find_fit(content, backbone.network, name).state, str(content))
    if "pixel_range" in content.metadata:
        backbone.pixel_range = _pixel_range(content)
    backbone.view_size = _stated_size(content, "size")
    backbone.norm_size = _stated_size(content, "norm_size")
    return backbone


def load_network(source: str | Path) -> Backbone:
    """Load the backbone in any source of `load_weights`, as a network of its own.

    The state of torch's random generator does not change. Raises UserError as `find_network` and
    `load_weights` do.
    """
    if Path(source).exists() and read(source).is_ours:
        return load_backbone(source)
    name, stem = find_network(source)
    mean, std = usual_statistics(name)
    with torch.random.fork_rng(devices=[]):
        backbone = create(name, stem=stem, mean=mean, std=std)
    load_weights(backbone, source)
    return backbone


def find_network(source: str | Path) -> tuple[str, str]:
    """Return timm's name and the stem of the network in a source of `load_weights`.

    Raises UserError if the source is missing or broken, or if `guess` returns None.
    """
    if _is_name(source):
        _refuse_unknown(str(source))
    network = guess(source)
    if network is None:
        raise UserError(
            f"{source} does not say which network it holds: name it once, by selftaught pretrain"
            f" --init {source} --backbone NAME --data IMAGES --steps 0 --out FOLDER, and give that"
            " folder"
        )
    return network


def load_weights(backbone: Backbone, source: str | Path, own_statistics: bool = True) -> str:
    """Load `source` into `backbone`; return one line about what was loaded and what was ignored.

    The source is one of these:

    - a file of this package, a run's folder or its checkpoint;
    - a file of any layout in `formats.LAYOUTS`;
    - a folder of the Hugging Face hub;
    - the name of pretrained weights in timm, which are downloaded.

    Names of tensors can be timm's, those of `key_maps.KEY_MAPS`, or any that timm converts. A
    classifier's head is dropped. A ViT's position embedding is resampled to the backbone's image
    size. The source's mean and std are used if it states them and `own_statistics` is set. No
    pickled code runs. Raises UserError for tensors that are missing, left over or of another shape,
    and for values that `check_values` refuses.
    """
    if _is_name(source):
        return _load_pretrained(backbone, str(source), own_statistics)
    content = read(source)
    if content.is_ours:
        _check_same_kind(backbone, content)
    fit = find_fit(content, backbone.network, backbone.name)
    _fill(backbone.network, fit.state, str(content))
    notes = [
        f"{len(fit.state)} tensors",
        *_describe_reading(fit.reading, content, plain=content.is_ours),
        *fit.notes,
    ]
    if not own_statistics:
        notes.append("mean and std of the images")
    elif statistics := _statistics(content):
        backbone.set_statistics(*statistics)
        notes.append("with its mean and std")
    else:
        mean, std = (
            " ".join(f"{value:.3g}" for value in values.tolist())
            for values in (backbone.mean, backbone.std)
        )
        notes.append(f"mean {mean} and std {std}, as the file states none")
    return f"{backbone.name} starts from {content}: {', '.join(notes)}."


def guess(source: str | Path) -> tuple[str, str] | None:
    """Guess timm's name and the stem of the network in a file, from metadata, names and shapes.

    None if no network fits, or if several networks of equal shapes compute different things, as
    efficientnet_b0 and tf_efficientnet_b0 do. Raises UserError if the file is missing or broken.
    """
    return describe(source).network


def describe(source: str | Path) -> Stated:
    """Return what weights state of their network. Raises UserError as `guess` does."""
    if not Path(source).exists() and timm.is_model(str(source)):
        return Stated((base(str(source)), "imagenet"))
    content = read(source)
    network = _guess(content)
    if not content.is_ours:
        return Stated(network)
    return Stated(network, _stated_size(content, "size"), _stated_size(content, "norm_size"))


def _guess(content: Content) -> tuple[str, str] | None:
    if content.is_ours:
        check_values(content.data.get("state_dict", content.data), str(content))
        return content.metadata["name"], content.metadata["stem"]
    metadata_names = [content.architecture] if content.architecture else []
    for list_readings in (formats.list_readings, _search):
        unlike = False
        for reading in list_readings(content.data):
            stem = "cifar" if has_small_stem(reading.state) else "imagenet"
            for name in (*metadata_names, *list_candidates(reading)):
                if not timm.is_model(name):
                    continue
                fit = compare(reading, _skeleton(name, stem), name, content)
                if fit.exact:
                    check_values(fit.state, str(content))
                if not fit.trouble:
                    return name, stem
                unlike = unlike or fit.unlike
        if unlike:
            return None
    return None


def _search(data: Any) -> list[Reading]:
    return formats.prefer(list(formats.search(data)), formats.PAIRS)


@functools.lru_cache(maxsize=16)
def _skeleton(name: str, stem: str) -> nn.Module:
    """The network on the meta device, which takes little time and no memory for weights."""
    try:
        with torch.device("meta"):
            return create(name, stem=stem).network
    except RuntimeError:  # some networks compute with values when they are built
        with torch.random.fork_rng(devices=[]):
            return create(name, stem=stem).network


def _is_name(source: str | Path) -> bool:
    """Whether a source can only be a name in timm."""
    path = Path(source)
    return not path.exists() and path.suffix not in SUFFIXES and os.sep not in str(source)


def _refuse_unknown(name: str, likely: Sequence[str] = ()) -> None:
    """Raise UserError if timm has no weights of this name. `likely`: names to suggest."""
    if not timm.is_model(name) or not timm.is_model_pretrained(name):
        names = likely or timm.list_pretrained()
        raise UserError(f'"{name}" is neither a file nor weights of timm.{nearest(name, names)}')


def _load_pretrained(backbone: Backbone, name: str, own_statistics: bool) -> str:
    _refuse_unknown(name, timm.list_pretrained(f"{base(backbone.name)}.*"))
    if base(name) != base(backbone.name):
        raise UserError(
            f"{name} are weights of {base(name)}, but the backbone is {backbone.name}: choose one."
        )
    if backbone.stem != "imagenet":
        raise UserError(
            f"{name} has the imagenet stem, and the backbone the {backbone.stem} stem: use"
            " imagenet."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            network, _ = build(name, backbone.image_size, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many types when a download fails
        raise UserError(
            f"The weights {name} could not be fetched ({type(error).__name__}): this needs the"
            " network once. Or give a file with weights instead."
        ) from error
    _fill(backbone.network, network.state_dict(), f"timm's {name}")
    config: Any = network.pretrained_cfg
    if not own_statistics or not (config.get("mean") and config.get("std")):
        return f"{backbone.name} starts from timm's {name}, mean and std kept."
    backbone.set_statistics(config["mean"], config["std"])
    return f"{backbone.name} starts from timm's {name}, with its mean and std."


# Metadata of a file


def _statistics(content: Content) -> tuple[list[float], list[float]] | None:
    """Mean and std, if the file or the settings beside it state them."""
    if content.is_ours:
        return _own_statistics(content)
    # A run's checkpoint that was moved states these two alone.
    if all(isinstance(content.metadata.get(key), str) for key in ("mean", "std")):
        with contextlib.suppress(UserError):
            return _own_statistics(content)
    places = (
        (content.config.get("pretrained_cfg"), "mean", "std"),  # timm
        (content.settings.get("preprocessor_config.json"), "image_mean", "image_std"),
    )
    for settings, mean, std in places:
        if isinstance(settings, dict):
            statistics = _parse_statistics(settings.get(mean), settings.get(std))
            if statistics is not None:
                return statistics
    return None


def _own_statistics(content: Content) -> tuple[list[float], list[float]]:
    values = [content.metadata[key] for key in ("mean", "std")]
    try:
        statistics = _parse_statistics(*(json.loads(value) for value in values))
    except (ValueError, TypeError):
        statistics = None
    if statistics is None:
        raise UserError(f"{content} states no usable mean and std: {values[0]} and {values[1]}.")
    return statistics


def _parse_statistics(mean: Any, std: Any) -> tuple[list[float], list[float]] | None:
    try:
        mean, std = ([float(value) for value in values] for values in (mean, std))
    except (ValueError, TypeError):
        return None
    usable = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    return (mean, std) if usable else None


def _pixel_range(content: Content) -> PixelRange:
    try:
        return PixelRange.from_json(json.loads(content.metadata["pixel_range"]))
    except (ValueError, UserError):
        raise UserError(
            f"{content} states no usable pixel_range: {content.metadata['pixel_range']}."
        ) from None


def _stated_size(content: Content, name: str) -> int | None:
    size = content.metadata.get(name, "")
    return int(size) if size.isdecimal() else None


def _check_same_kind(backbone: Backbone, content: Content) -> None:
    name, stem = content.metadata["name"], content.metadata["stem"]
    if base(name) != base(backbone.name):
        raise UserError(
            f"{content} holds weights of {name}, but the backbone is {backbone.name}: choose one."
        )
    if stem != backbone.stem:
        raise UserError(
            f"{content} has the {stem} stem, and the backbone the {backbone.stem} stem: use {stem}."
        )


def _fill(network: nn.Module, state: State, source: str) -> None:
    check_values(state, source, network.state_dict())
    network.load_state_dict(state)  # strict, as a second check of what `find_fit` compared


def _describe_reading(reading: Reading, content: Content, plain: bool) -> list[str]:
    """Notes for the user on how the file was read; none for a file of this package."""
    if plain:
        return []
    layout, notes = reading.layout, []
    if layout.tool:
        which = f" (the {layout.which})" if layout.which else ""
        notes.append(f"read as a file of {layout.tool}{which}")
    if reading.key_map:
        notes.append(f"in the names of {reading.key_map.origin}")
    if reading.under not in formats.USUAL and not layout.tool:
        kind = ", an average of weights" if formats.AVERAGES & formats.words(reading) else ""
        notes.append(f'from "{".".join(reading.under)}"{kind}')
    if reading.prefix:
        notes.append(f'found under "{reading.prefix}"')
    if reading.count:
        notes.append(f"left aside outside of it: {reading.count} ({', '.join(reading.ignored)})")
    if others := _others(content.data, reading.under):
        notes.append(f"not looked at: {list_some(others)}")
    if content.opaque:
        notes.append(f"pickled objects not unpickled: {list_some(content.opaque)}")
    return notes


def _others(data: Any, under: Sequence[str]) -> list[str]:
    """Keys of other state dicts in the file, such as an average of the weights."""
    if not under or not isinstance(data, dict):
        return []
    return [
        str(key)
        for key, value in data.items()
        if key != under[0]
        and isinstance(value, dict)
        and any(isinstance(tensor, Tensor) for tensor in value.values())
    ]
