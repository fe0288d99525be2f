"""Comparison of the readings of a file with a network, with timm's conversions where they apply."""

import contextlib
import inspect
import io
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.models.backbone import base
from selftaught.models.weights import formats
from selftaught.models.weights.architecture import describe_network
from selftaught.models.weights.formats import Reading
from selftaught.models.weights.key_maps import State
from selftaught.models.weights.weight_files import Content, list_some


@dataclass(frozen=True, eq=False)
class Fit:
    """The result of comparing a reading with a network.

    Without `trouble`, `state` has exactly the network's tensors.
    """

    reading: Reading
    state: State
    notes: tuple[str, ...]
    trouble: str  # why the reading does not fit, for the error message; empty if it fits
    hits: int  # number of names in common
    exact: bool  # the network's own tensors fit; `trouble` can only be tensors outside of it
    unlike: bool  # shapes fit, but the network would compute something else


def find_fit(content: Content, network: nn.Module, name: str) -> Fit:
    """Find the reading of a file that fits the network: by a layout, else at any place.

    Raises UserError about the nearest reading if none fits, or about all if several fit.
    """
    fits: list[Fit] = []
    for reading in formats.list_readings(content.data):
        if content.is_ours and reading.layout is not formats.LAYOUTS[-1]:
            continue
        fits.append(compare(reading, network, name, content))
        if not fits[-1].trouble:
            return fits[-1]
    places = (
        []
        if content.is_ours or any(fit.unlike for fit in fits)
        else list(formats.search(content.data))
    )
    preferred = formats.prefer(places, formats.PAIRS)
    rest = [reading for reading in places if reading not in preferred]
    place_fits = [compare(reading, network, name, content) for reading in preferred]
    if fit := _select_fit(content, name, place_fits, rest):
        return fit
    fits += place_fits
    if not fits:
        note = ""
        if content.opaque:
            note = f" Pickled objects in it are not unpickled ({list_some(content.opaque)})."
        raise UserError(
            f'{content} holds no state dict, neither at its top nor under "state_dict", "model" or'
            f" where other tools keep it.{note} Save the network's state_dict() alone and give"
            " that."
        )
    # Of equal fits, max takes the first.
    nearest_fit = max(fits, key=lambda fit: (fit.hits, -len(fit.reading.unexpected)))
    kind = content.config.get("model_type")
    description = describe_network(nearest_fit.reading.state)
    if kind:
        description = f"It is a {kind} of Hugging Face's transformers."
    remedy = f"Give weights of {name}, or choose their network by --backbone."
    if nearest_fit.exact:
        remedy = "Save the network without what is left over."
    raise UserError(f"{content} does not fit {nearest_fit.trouble} {description} {remedy}")


def _select_fit(
    content: Content, name: str, fits: Sequence[Fit], rest: Sequence[Reading]
) -> Fit | None:
    """Select the only fit of several places, or None; raise UserError if several differ.

    Tensors outside of a fit are allowed if they belong to another network. That is another fit, or
    one of `rest`, the readings that `prefer` removed.
    """
    exact = [fit for fit in fits if fit.exact]
    usable = []
    for fit in exact:
        under, prefix = fit.reading.under, fit.reading.layout.prefix
        around = (*(other.reading for other in exact), *rest)
        others = {other.layout.prefix for other in around if other.under == under} - {prefix, ""}
        if all(key.startswith(tuple(others)) for key in fit.reading.unexpected):
            usable.append(fit)
    preferred = formats.prefer([fit.reading for fit in usable], formats.FOLLOWERS)
    selected = [fit for fit in usable if fit.reading in preferred]
    if not selected:
        return None
    first = selected[0]
    if any(not _equal(fit.state, first.state) for fit in selected[1:]):
        places = list_some([_place(fit.reading) for fit in selected], most=6)
        key = first.reading.under[0] if first.reading.under else ""
        example = f", as by torch.save(torch.load(FILE)[{key!r}], 'weights.pth')" if key else ""
        raise UserError(
            f"{content} holds {len(selected)} networks that are each a {name} ({places}): choose"
            f" one, and save it alone{example}."
        )
    prefixes = (key.partition(".")[0] for key in first.reading.unexpected)
    ignored = tuple(dict.fromkeys((*first.reading.ignored, *prefixes)))
    reading = replace(first.reading, ignored=ignored, unexpected=())
    readings = (*rest, *(fit.reading for fit in usable if fit not in selected))
    unused = list(dict.fromkeys(map(_place, readings)))
    outer = [p for p in unused if not any(p.startswith(f"{other}.") for other in unused)]
    notes = (f"not taken: {list_some(outer)}",) if outer else ()
    return replace(first, reading=reading, notes=(*first.notes, *notes), trouble="")


def _place(reading: Reading) -> str:
    """The place of a reading in its file, as dotted text."""
    return ".".join((*reading.under, reading.prefix)).rstrip(".") or "its top"


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def compare(reading: Reading, network: nn.Module, name: str, content: Content) -> Fit:
    """Compare a reading with a network, as it is or after timm's own conversion for it."""
    fit = _compare(reading, reading.state, (), network, name, content)
    if fit.trouble and (conversion := _convert(reading, network, name)):
        other = _compare(reading, *conversion, network, name, content)
        if not other.trouble or other.hits > fit.hits:
            return other
    return fit


def _compare(
    reading: Reading,
    source: State,
    notes: Sequence[str],
    network: nn.Module,
    name: str,
    content: Content,
) -> Fit:
    own, state, notes = network.state_dict(), dict(source), list(notes)
    if head := sorted(
        key for key in state if key not in own and formats.is_auxiliary(key.partition(".")[0])
    ):
        notes.append(f"its head dropped ({list_some(head)})")
        state = {key: value for key, value in state.items() if key not in head}
    notes += _fit_channels(network, state)
    # Files from before PyTorch 0.4.1 and from some converters lack this counter of batches.
    counters = {
        key: value
        for key, value in own.items()
        if key.endswith("num_batches_tracked") and key not in state
    }
    missing = [key for key in own if key not in state and key not in counters]
    more = [key for key in state if key not in own]
    common = [key for key in own if key in state]
    for key in common:  # a linear layer and a 1x1 convolution compute the same
        linear_and_conv = own[key].ndim + state[key].ndim == 6
        if (
            linear_and_conv
            and own[key].shape[:2] == state[key].shape[:2]
            and own[key].numel() == state[key].numel()
        ):
            state[key] = state[key].reshape(own[key].shape)
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in common
        if state[key].shape != own[key].shape
    ]
    kinds = [
        f"{key} {state[key].dtype}"
        for key in common
        if own[key].is_floating_point() > state[key].is_floating_point()
    ]
    unexpected = [*more, *reading.unexpected]
    troubles = (
        ("missing", missing),
        ("left over", unexpected),
        ("of another shape", shapes),
        ("no floating numbers", kinds),
    )
    trouble = "; ".join(
        f"{len(keys)} {what} ({list_some(keys)})" for what, keys in troubles if keys
    )
    why = _find_difference(reading, network, name, content)
    if trouble:
        trouble = f"the backbone's {len(own)} tensors: {trouble}."
    elif why:
        trouble = f"{name}: {why}."
    exact = not (missing or more or shapes or kinds or why)
    unlike = bool(why) and not (missing or unexpected or shapes or kinds)
    return Fit(reading, {**state, **counters}, tuple(notes), trouble, len(common), exact, unlike)


def _convert(reading: Reading, network: nn.Module, name: str) -> tuple[State, list[str]] | None:
    """Convert a reading by timm's own function for this network; returns the state and notes.

    timm converts names, and resamples tensors that depend on the image size. It can also drop
    tensors. Those that it did not use are added again, so that the comparison refuses them.
    Tensors of `_AUXILIARY`, and zeros, are not added. None if timm has no conversion, or it fails.
    """
    module = (
        sys.modules[model_entrypoint(base(name)).__module__] if timm.is_model(base(name)) else None
    )
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return None
    source = {**reading.state, **reading.dropped}
    # timm recognises DINOv2's files by their mask token.
    if "register_tokens" in source or "blocks.0.mlp.w12.weight" in source:
        source.setdefault("mask_token", torch.zeros(1))
    # The autograd graph of the results shows which tensors were used.
    leaves = {
        key: value.detach().requires_grad_(value.is_floating_point())
        for key, value in source.items()
    }
    options = {}
    if "adapt_layer_scale" in inspect.signature(convert).parameters:
        options["adapt_layer_scale"] = True
    try:
        with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            results: dict[str, Tensor] = convert(dict(leaves), network, **options)
        used = _find_origins(list(results.values()))
        state = {k: value.detach() for k, value in results.items() if k not in reading.dropped}
    except Exception:  # the names and shapes can be others than timm's function expects
        return None
    left = [
        key for key, value in leaves.items() if id(value) not in used and key not in reading.dropped
    ]
    state |= {key: source[key] for key in left if not _AUXILIARY.search(key) and source[key].any()}
    notes = [] if not left else [f"left aside by timm: {list_some(left)}"]
    common = {key: (source[key].shape, state[key].shape) for key in source if key in state}
    changed = {key: shapes for key, shapes in common.items() if shapes[0] != shapes[1]}
    for key, (before, after) in changed.items():
        if key == "pos_embed":
            grids = [_grid(network, shape[1]) for shape in (before, after)]
            if grids[0] != grids[1]:
                notes.append(f"position embedding resampled from {grids[0]} to {grids[1]}")
        elif key == "patch_embed.proj.weight":
            notes.append(
                f"patch embedding resampled from {_sides(before[2:])} to {_sides(after[2:])}"
            )
    if more := [key for key in changed if key not in ("pos_embed", "patch_embed.proj.weight")]:
        notes.append(f"reshaped by timm: {list_some(more)}")
    return state, notes


# Tensors that timm's conversions drop and no forward pass needs.
_AUXILIARY = re.compile(
    r"mask_token|rope|periods|bias_mask|attn_mask|relative_position_index|relative_coords_table|pre_logits|local_cls_norm"
    r"|projectors\.|(^|\.)norms\.|k_bias"
)


def _find_origins(tensors: Sequence[Tensor]) -> set[int]:
    """The ids of tensors and of the leaves of their autograd graphs."""
    ids = {id(tensor) for tensor in tensors}
    visited: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn for tensor in tensors]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            ids.add(id(node.variable))
        stack += [parent for parent, _ in node.next_functions]
    return ids


def _grid(network: Any, positions: int) -> str:
    """A number of positions as the text of a grid, without prefix tokens."""
    tokens = int(getattr(network, "num_prefix_tokens", 0))
    own = 0 if getattr(network, "no_embed_class", False) else tokens
    for prefix in (own, 0, 1, tokens):
        side = math.isqrt(max(positions - prefix, 0))
        if side * side == positions - prefix:
            return _sides((side, side))
    return f"{positions} positions"


def _sides(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _fit_channels(network: nn.Module, state: State) -> list[str]:
    """Convert a first convolution for grey images or RGBA to three channels, in `state`."""
    own = ((key, value) for key, value in network.state_dict().items() if value.ndim == 4)
    key, ours = next(own, ("", None))
    theirs = state.get(key)
    if ours is None or theirs is None or ours.shape[1] != 3 or theirs.ndim != 4:
        return []
    channels = theirs.shape[1]
    if channels not in (1, 4) or theirs.shape != (ours.shape[0], channels, *ours.shape[2:]):
        return []  # the strict comparison reports the error
    if channels == 1:
        state[key] = theirs.repeat(1, 3, 1, 1) / 3
        return [
            f"{key} is for grey images: each of three channels gets a third of it, which computes"
            " the same"
        ]
    state[key] = theirs[:, :3] * (4 / 3)
    return [
        f"{key} is for four channels: the fourth left aside and the others scaled by 4/3, as timm"
        " does"
    ]


def _find_difference(reading: Reading, network: Any, name: str, content: Content) -> str:
    """Why a network of the same shapes would compute something else; empty if it would not."""
    for other, why in reading.layout.unlike.items():
        if name.startswith(other):
            return why
    key_map = reading.key_map
    if key_map and key_map.unlike:
        return key_map.unlike
    if (
        key_map
        and key_map.networks
        and not any(fnmatch(base(name), pattern) for pattern in key_map.networks)
    ):
        return (
            f"weights in the names of {key_map.origin} would compute something else in it; "
            f"they are for {', '.join(key_map.networks)}"
        )
    if content.config.get("downsample_in_bottleneck"):
        return (
            "these weights are of a ResNet with strides in its first convolutions, which timm"
            " does not have"
        )
    heads, blocks = content.config.get("num_attention_heads"), getattr(network, "blocks", None)
    ours = None
    if isinstance(blocks, nn.Sequential):
        ours = getattr(getattr(blocks[0], "attn", None), "num_heads", None)
    if isinstance(heads, int) and ours is not None and heads != ours:
        return f"these weights are of {heads} attention heads, and it has {ours}"
    return ""


def check_values(state: State, source: str, fresh: State | None = None) -> None:
    """Raise UserError for weights that are NaN or infinite, variances below 0, or zero layers.

    fresh: the state of a new network; layers that are zero there may be zero.
    """
    kinds: dict[str, list[str]] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        if value.layout is not torch.strided:
            raise UserError(f"{source} holds the sparse tensor {key}: save it as value.to_dense()")
        numbers = value if value.is_complex() else value.float()
        if not torch.isfinite(numbers).all():
            kinds.setdefault("NaN or infinity", []).append(key)
        elif key.endswith("running_var") and (numbers < 0).any():
            kinds.setdefault("variances below 0", []).append(key)
        elif (
            fresh
            and key.endswith(".weight")
            and value.ndim > 1
            and not numbers.any()
            and fresh[key].any()
        ):
            kinds.setdefault("only zeros", []).append(key)
    if kinds:
        what = "; ".join(
            f"{what} in {len(keys)} of {len(state)} tensors ({list_some(keys)})"
            for what, keys in kinds.items()
        )
        raise UserError(
            f"{source} holds {what}: its training diverged, or it is damaged. Give other weights."
        )
