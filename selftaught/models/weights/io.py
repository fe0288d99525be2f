"""Weights out to files, and in from files: our own, timm's, and those of other tools of
self-supervision.

Over 200 lines, because what leaves and what comes in are best read in one place. What files there
are, `weight_files` says; which layouts and names, `layouts` and `dialects`; what fits a network,
`matching`.
"""

import contextlib
import functools
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from selftaught import files
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import full_tensor, rank
from selftaught.errors import UserError
from selftaught.models.backbone import Backbone, base, build, create, nearest
from selftaught.models.trainable import plain_state
from selftaught.models.weights import formats
from selftaught.models.weights.architecture import candidates, small_stem
from selftaught.models.weights.formats import Reading
from selftaught.models.weights.key_maps import State
from selftaught.models.weights.matching import check_values, compare, find_fit
from selftaught.models.weights.weight_files import SUFFIXES, Content, read, some, stated

_PICKLED = (".pth", ".pt")


# Out


def save_backbone(
    backbone: Backbone, path: str | Path, extra: Mapping[str, str] | None = None
) -> None:
    """Write the network's weights under timm's own names, by suffix as `.safetensors` or `.pth`;
    atomic.

    Beside them stand name, stem, mean, std, image_size, pixel_range and `extra` as strings: a
    safetensors file's metadata, or the entry "metadata" beside "state_dict" in a `.pth`, which
    `torch.load(weights_only=True)` reads. `backbones.recipe` says in Python how to use the weights
    without this package. Where the network is shared out over several processes, all of them call
    it; rank 0 writes.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *_PICKLED):
        raise UserError(f"Weights are written as .safetensors or .pth, not as {path.name}.")
    metadata = {
        "format": "pt",
        "name": backbone.name,
        "stem": backbone.stem,
        "mean": stated(backbone.mean),
        "std": stated(backbone.std),
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

    if path.suffix == ".safetensors":
        content = serialise(state, metadata)
    else:
        buffer = io.BytesIO()  # what torch's own writer makes of a full disk is no OSError
        torch.save({"state_dict": state, "metadata": metadata}, buffer)
        content = buffer.getvalue()
    files.atomic(path, lambda draft: draft.write_bytes(content))


def serialise(state: State, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: the same bytes for the same weights and metadata, which the library's own
    writer orders anew in every process.
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
    """As others can read it: brought together where several processes share it, and on the CPU."""
    return {key: full_tensor(value).detach().cpu().contiguous() for key, value in state.items()}


# In


def load_backbone(path: str | Path) -> Backbone:
    """The backbone in a file written by `save_backbone`; random numbers elsewhere are not
    disturbed.
    """
    content = read(path)
    if not content.ours:
        raise UserError(
            f"{content} does not say which network it holds: give a file that selftaught wrote, or"
            f" take this one in first: selftaught pretrain --init {content} --backbone NAME --data"
            " IMAGES --steps 0 --out FOLDER"
        )
    mean, std = _own_statistics(content)
    name, stem, size = (content.metadata[key] for key in ("name", "stem", "image_size"))
    with torch.random.fork_rng(devices=[]):
        backbone = create(
            name, stem=stem, mean=mean, std=std, image_size=int(size) if size.isdigit() else None
        )
    _take(backbone.network, find_fit(content, backbone.network, name).state, str(content))
    if "pixel_range" in content.metadata:
        backbone.pixel_range = _pixel_range(content)
    return backbone


def load_weights(backbone: Backbone, source: str | Path, own_statistics: bool = True) -> str:
    """Fill `backbone` from `source`; return one line that says what was loaded, and what was left
    aside.

    source: a file of ours, a run's folder or its checkpoint; a file of any layout in
    `layouts.LAYOUTS`, its names timm's, of a dialect in `dialects.DIALECTS` or of what timm itself
    converts; a folder of the Hugging Face hub; or the name of pretrained weights in timm, which
    needs the network. A classifier's head is dropped, and a ViT's position embedding is resampled
    to the backbone's image size. The source's own mean and std are taken over where it states them,
    unless the backbone is to keep those that it has. No pickled code is ever run. Raises UserError
    when any tensor of the network is missing, left over, of another shape, or holds values that no
    training leaves.
    """
    path = Path(source)
    if not path.exists() and path.suffix not in SUFFIXES and os.sep not in str(source):
        return _load_pretrained(backbone, str(source), own_statistics)
    content = read(source)
    if content.ours:
        _check_same_kind(backbone, content)
    fit = find_fit(content, backbone.network, backbone.name)
    _take(backbone.network, fit.state, str(content))
    notes = [
        f"{len(fit.state)} tensors",
        *_said(fit.reading, content, plain=content.ours),
        *fit.notes,
    ]
    if not own_statistics:
        notes.append("mean and std of the images")
    elif statistics := _statistics(content):
        backbone.set_statistics(*statistics)
        notes.append("with its mean and std")
    else:
        notes.append("mean and std kept, as the file states none")
    return f"{backbone.name} starts from {content}: {', '.join(notes)}."


def guess(source: str | Path) -> tuple[str, str] | None:
    """Name and stem of the network that a file holds, as it says itself or as its tensors' shapes
    say.

    None where nothing fits, or where several networks of the same shapes compute different things
    (timm's own names do not tell efficientnet_b0 from tf_efficientnet_b0). Raises UserError when
    there is no such file, or it is unreadable.
    """
    path = Path(source)
    if not path.exists() and timm.is_model(str(source)):
        return base(str(source)), "imagenet"
    content = read(source)
    if content.ours:
        check_values(content.data.get("state_dict", content.data), str(content))
        return content.metadata["name"], content.metadata["stem"]
    named = [content.architecture] if content.architecture else []
    for find in (formats.readings, _elsewhere):
        unlike = False
        for reading in find(content.data):
            stem = "cifar" if small_stem(reading.state) else "imagenet"
            for name in (*named, *candidates(reading)):
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


def _elsewhere(data: Any) -> list[Reading]:
    return formats.prefer(list(formats.search(data)), formats.PAIRS)


@functools.lru_cache(maxsize=16)
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
        raise UserError(
            f'"{name}" is neither a file nor weights that timm knows.{nearest(name, known)}'
        )
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
    except (
        Exception
    ) as error:  # the hub's client raises many kinds, each for the same reason to the user
        raise UserError(
            f"The weights {name} could not be fetched ({type(error).__name__}): this needs the"
            " network once. Or give a file with weights instead."
        ) from error
    _take(backbone.network, network.state_dict(), f"timm's {name}")
    config: Any = network.pretrained_cfg
    if not own_statistics or not (config.get("mean") and config.get("std")):
        return f"{backbone.name} starts from timm's {name}, mean and std kept."
    backbone.set_statistics(config["mean"], config["std"])
    return f"{backbone.name} starts from timm's {name}, with its mean and std."


# What a file says of itself


def _statistics(content: Content) -> tuple[list[float], list[float]] | None:
    """Mean and std, where the file or the settings beside it state some."""
    if content.ours:
        return _own_statistics(content)
    if all(
        isinstance(content.metadata.get(key), str) for key in ("mean", "std")
    ):  # as a run's checkpoint that was moved
        with contextlib.suppress(UserError):
            return _own_statistics(content)
    timms, transformers = (
        content.config.get("pretrained_cfg"),
        content.settings.get("preprocessor_config.json"),
    )
    for settings, mean, std in ((timms, "mean", "std"), (transformers, "image_mean", "image_std")):
        if isinstance(settings, dict) and (
            found := _as_statistics(settings.get(mean), settings.get(std))
        ):
            return found
    return None


def _own_statistics(content: Content) -> tuple[list[float], list[float]]:
    values = [content.metadata[key] for key in ("mean", "std")]
    try:
        found = _as_statistics(*(json.loads(value) for value in values))
    except (ValueError, TypeError):
        found = None
    if found is None:
        raise UserError(f"{content} states no usable mean and std: {values[0]} and {values[1]}.")
    return found


def _as_statistics(mean: Any, std: Any) -> tuple[list[float], list[float]] | None:
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


def _take(network: nn.Module, state: State, source: str) -> None:
    check_values(state, source, network.state_dict())
    network.load_state_dict(state)  # strict: what `_fit` compared is compared once more


def _said(reading: Reading, content: Content, plain: bool) -> list[str]:
    """What the user should know of how the file was read."""
    if plain:
        return []
    layout, notes = reading.layout, []
    if layout.tool:
        notes.append(
            f"read as a file of {layout.tool}" + (f" (the {layout.which})" if layout.which else "")
        )
    if reading.dialect:
        notes.append(f"in the names of {reading.dialect.whose}")
    if reading.under not in formats.USUAL and not layout.tool:
        kind = ", an average of weights" if formats.AVERAGES & formats.words(reading) else ""
        notes.append(f'from "{".".join(reading.under)}"{kind}')
    if reading.prefix:
        notes.append(f'found under "{reading.prefix}"')
    if reading.count:
        notes.append(f"left aside outside of it: {reading.count} ({', '.join(reading.aside)})")
    if others := _others(content.data, reading.under):
        notes.append(f"not looked at: {some(others)}")
    if content.closed:
        notes.append(f"pickled objects left closed: {some(content.closed)}")
    return notes


def _others(data: Any, under: Sequence[str]) -> list[str]:
    """State dicts beside the one that was taken, such as another network or an average of the
    weights.
    """
    if not under or not isinstance(data, dict):
        return []
    return [
        str(key)
        for key, value in data.items()
        if key != under[0]
        and isinstance(value, dict)
        and any(isinstance(tensor, Tensor) for tensor in value.values())
    ]
