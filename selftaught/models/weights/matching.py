"""What was read from a file, compared with a network: taken exactly, after a conversion, or refused
with a reason.

Over 200 lines, because the comparison and the conversions that it may want are best read in one
place. Which parts of a file are compared, `layouts` says.
"""

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
from selftaught.models.weights.architecture import looks_like
from selftaught.models.weights.formats import Reading
from selftaught.models.weights.key_maps import State
from selftaught.models.weights.weight_files import Content, some


@dataclass(frozen=True, eq=False)
class Fit:
    """A reading compared with a network: without `trouble`, `state` has all that the network wants
    and nothing else.
    """

    reading: Reading
    state: State
    notes: tuple[str, ...]
    trouble: str
    hits: int
    exact: bool  # as far as the network goes: what troubles, if anything, is what stands beside it
    unlike: bool  # it would fit, and compute something else


def find_fit(content: Content, network: nn.Module, name: str) -> Fit:
    """The first reading that fits exactly, or the one that does of all places in the file; raises
    UserError about the one that comes nearest, or about several to choose from.
    """
    fits: list[Fit] = []
    for reading in formats.readings(content.data):
        if content.ours and reading.layout is not formats.LAYOUTS[-1]:
            continue
        fits.append(compare(reading, network, name, content))
        if not fits[-1].trouble:
            return fits[-1]
    places = (
        []
        if content.ours or any(fit.unlike for fit in fits)
        else list(formats.search(content.data))
    )
    kept = formats.prefer(places, formats.PAIRS)
    elsewhere = [compare(reading, network, name, content) for reading in kept]
    if fit := _only(
        content, name, elsewhere, [reading for reading in places if reading not in kept]
    ):
        return fit
    fits += elsewhere
    if not fits:
        held = (
            ""
            if not content.closed
            else f" Pickled objects in it stay closed ({some(content.closed)})."
        )
        raise UserError(
            f'{content} holds no state dict, neither at its top nor under "state_dict", "model" or'
            " where other tools "
            f"keep it.{held} Save the network's state_dict() alone and give that."
        )
    # the first of several
    nearest_fit = max(fits, key=lambda fit: (fit.hits, -len(fit.reading.over)))
    kind = content.config.get("model_type")
    what = (
        f"It is a {kind} of Hugging Face's transformers."
        if kind
        else looks_like(nearest_fit.reading.state)
    )
    remedy = f"Give weights of {name}, or choose their network by --backbone."
    remedy = "Save the network without what is left over." if nearest_fit.exact else remedy
    raise UserError(f"{content} does not fit {nearest_fit.trouble} {what} {remedy}")


def _only(
    content: Content, name: str, fits: Sequence[Fit], passed: Sequence[Reading]
) -> Fit | None:
    """The fit that is meant, if there is one. What stands beside it may be another network: one
    that would fit, too, or one that is `passed` over because it is the other one of a pair.
    """
    exact = [fit for fit in fits if fit.exact]
    usable = []
    for fit in exact:
        under, prefix = fit.reading.under, fit.reading.layout.prefix
        around = (*(other.reading for other in exact), *passed)
        others = {other.layout.prefix for other in around if other.under == under} - {prefix, ""}
        if all(key.startswith(tuple(others)) for key in fit.reading.over):
            usable.append(fit)
    meant = formats.prefer([fit.reading for fit in usable], formats.FOLLOWERS)
    found = [fit for fit in usable if fit.reading in meant]
    if len(found) > 1 and any(not _equal(fit.state, found[0].state) for fit in found[1:]):
        listed = some([_place(fit.reading) for fit in found], show=6)
        key = found[0].reading.under[0] if found[0].reading.under else ""
        raise UserError(
            f"{content} holds {len(found)} networks that are each a {name} ({listed}): choose one,"
            " and save it alone"
            + (f", as by torch.save(torch.load(FILE)[{key!r}], 'weights.pth')." if key else ".")
        )
    if not found:
        return None
    aside = tuple(
        dict.fromkeys(
            (*found[0].reading.aside, *(key.partition(".")[0] for key in found[0].reading.over))
        )
    )
    reading = replace(found[0].reading, aside=aside, over=())
    rest = list(
        dict.fromkeys(
            _place(r) for r in (*passed, *(fit.reading for fit in usable if fit not in found))
        )
    )
    outer = [place for place in rest if not any(place.startswith(f"{other}.") for other in rest)]
    notes = (f"not taken: {some(outer)}",) if outer else ()
    return replace(found[0], reading=reading, notes=(*found[0].notes, *notes), trouble="")


def _place(reading: Reading) -> str:
    return ".".join((*reading.under, reading.prefix)).rstrip(".") or "its top"


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def compare(reading: Reading, network: nn.Module, name: str, content: Content) -> Fit:
    """As it is, or after timm's own conversion for this network."""
    fit = _compare(reading, reading.state, (), network, name, content)
    if fit.trouble and (converted := _converted(reading, network, name)):
        other = _compare(reading, *converted, network, name, content)
        if not other.trouble or other.hits > fit.hits:
            return other
    return fit


def _compare(
    reading: Reading,
    given: State,
    notes: Sequence[str],
    network: nn.Module,
    name: str,
    content: Content,
) -> Fit:
    own, state, notes = network.state_dict(), dict(given), list(notes)
    if head := sorted(
        key for key in state if key not in own and formats.is_beside(key.partition(".")[0])
    ):
        notes.append(f"its head dropped ({some(head)})")
        state = {key: value for key, value in state.items() if key not in head}
    notes += _fit_channels(network, state)
    # A counter, not a weight: files from before PyTorch 0.4.1 and some converters leave it out.
    counters = {
        key: value
        for key, value in own.items()
        if key.endswith("num_batches_tracked") and key not in state
    }
    missing = [key for key in own if key not in state and key not in counters]
    more = [key for key in state if key not in own]
    common = [key for key in own if key in state]
    for key in common:  # a linear layer, and the convolution of 1x1 that computes the same
        if own[key].ndim + state[key].ndim == 6 and own[key].shape[:2] == state[key].shape[:2]:
            state[key] = (
                state[key].reshape(own[key].shape)
                if own[key].numel() == state[key].numel()
                else state[key]
            )
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
    over = [*more, *reading.over]
    troubles = (
        ("missing", missing),
        ("left over", over),
        ("of another shape", shapes),
        ("no floating numbers", kinds),
    )
    trouble = "; ".join(f"{len(keys)} {what} ({some(keys)})" for what, keys in troubles if keys)
    why = _otherwise(reading, network, name, content)
    if trouble:
        trouble = f"the backbone's {len(own)} tensors: {trouble}."
    elif why:
        trouble = f"{name}: {why}."
    exact = not (missing or more or shapes or kinds or why)
    unlike = bool(why) and not (missing or over or shapes or kinds)
    return Fit(reading, {**state, **counters}, tuple(notes), trouble, len(common), exact, unlike)


def _converted(reading: Reading, network: nn.Module, name: str) -> tuple[State, list[str]] | None:
    """What timm's own conversion of others' files makes of it for this network, and notes of that;
    None if it has none.

    It converts names, and resamples what depends on the image's size. A conversion can also leave
    tensors out. The ones that it did not use stay in, unless they are known to be no part of a
    network, and are refused later.
    """
    module = (
        sys.modules[model_entrypoint(base(name)).__module__] if timm.is_model(base(name)) else None
    )
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return None
    given = {**reading.state, **reading.dropped}
    if (
        "register_tokens" in given or "blocks.0.mlp.w12.weight" in given
    ):  # timm knows DINOv2's files by their mask token
        given.setdefault("mask_token", torch.zeros(1))
    # By their gradients' paths it is seen which of them were used.
    leaves = {
        key: value.detach().requires_grad_(value.is_floating_point())
        for key, value in given.items()
    }
    options = (
        {"adapt_layer_scale": True}
        if "adapt_layer_scale" in inspect.signature(convert).parameters
        else {}
    )
    try:
        with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            made: dict[str, Tensor] = convert(dict(leaves), network, **options)
        used = _origins(list(made.values()))
        state = {key: value.detach() for key, value in made.items() if key not in reading.dropped}
    except Exception:  # it meets names and shapes that it was not written for
        return None
    left = [
        key for key, value in leaves.items() if id(value) not in used and key not in reading.dropped
    ]
    state |= {key: given[key] for key in left if not _AUXILIARY.search(key) and given[key].any()}
    notes = [] if not left else [f"left aside by timm: {some(left)}"]
    common = {key: (given[key].shape, state[key].shape) for key in given if key in state}
    changed = {key: shapes for key, shapes in common.items() if shapes[0] != shapes[1]}
    for key, (before, after) in changed.items():
        if key == "pos_embed":
            grids = [_grid(network, shape[1]) for shape in (before, after)]
            notes += (
                [f"position embedding resampled from {grids[0]} to {grids[1]}"]
                if grids[0] != grids[1]
                else []
            )
        elif key == "patch_embed.proj.weight":
            notes.append(
                f"patch embedding resampled from {_sides(before[2:])} to {_sides(after[2:])}"
            )
    if more := [key for key in changed if key not in ("pos_embed", "patch_embed.proj.weight")]:
        notes.append(f"reshaped by timm: {some(more)}")
    return state, notes


# What timm's conversions leave out and no forward pass needs.
_AUXILIARY = re.compile(
    r"mask_token|rope|periods|bias_mask|attn_mask|relative_position_index|relative_coords_table|pre_logits|local_cls_norm"
    r"|projectors\.|(^|\.)norms\.|k_bias"
)


def _origins(tensors: Sequence[Tensor]) -> set[int]:
    """Identities of the leaves that tensors were made from, and of themselves."""
    found = {id(tensor) for tensor in tensors}
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def _grid(network: Any, positions: int) -> str:
    """So many positions as a grid, whichever prefix tokens have one."""
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
    """Fit a first convolution for grey images or RGBA to the three channels of images here."""
    own = ((key, value) for key, value in network.state_dict().items() if value.ndim == 4)
    key, ours = next(own, ("", None))
    theirs = state.get(key)
    if ours is None or theirs is None or ours.shape[1] != 3 or theirs.ndim != 4:
        return []
    if theirs.shape != (ours.shape[0], theirs.shape[1], *ours.shape[2:]) or theirs.shape[1] not in (
        1,
        4,
    ):
        return []  # the strict check says what is wrong
    if theirs.shape[1] == 1:
        state[key] = theirs.repeat(1, 3, 1, 1) / 3
        return [
            f"{key} is for grey images: a third of it for each of three channels, which computes"
            " the same of them"
        ]
    state[key] = theirs[:, :3] * (4 / 3)
    return [
        f"{key} is for four channels: the fourth left aside and the others scaled by 4/3, as timm"
        " does"
    ]


def _otherwise(reading: Reading, network: Any, name: str, content: Content) -> str:
    """Why a network of the same shapes would compute something else with these weights, if it
    would.
    """
    for other, why in reading.layout.unlike.items():
        if name.startswith(other):
            return why
    dialect = reading.dialect
    if dialect and dialect.unlike:
        return dialect.unlike
    if (
        dialect
        and dialect.networks
        and not any(fnmatch(base(name), known) for known in dialect.networks)
    ):
        return (
            f"weights in the names of {dialect.whose} would compute something else in it; "
            f"they are for {', '.join(dialect.networks)}"
        )
    if content.config.get("downsample_in_bottleneck"):
        return (
            "these weights are of a ResNet that strides in its first convolutions, which timm"
            " has not"
        )
    heads, blocks = content.config.get("num_attention_heads"), getattr(network, "blocks", None)
    ours = (
        getattr(getattr(blocks[0], "attn", None), "num_heads", None)
        if isinstance(blocks, nn.Sequential)
        else None
    )
    if isinstance(heads, int) and ours is not None and heads != ours:
        return f"these weights are of {heads} attention heads, and it has {ours}"
    return ""


def check_values(state: State, source: str, fresh: State | None = None) -> None:
    """Raises UserError where weights have values that no training leaves: NaN or infinity, a
    variance below 0, or layers that are 0 throughout, unless those of a `fresh` network are.
    """
    kinds: dict[str, list[str]] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
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
            kinds.setdefault("nothing but zeros", []).append(key)
    if kinds:
        what = "; ".join(
            f"{what} in {len(keys)} of {len(state)} tensors ({some(keys)})"
            for what, keys in kinds.items()
        )
        raise UserError(
            f"{source} holds {what}: its training diverged, or it is damaged. Give other weights."
        )
