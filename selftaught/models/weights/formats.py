"""Layouts of checkpoint files: where each tool of self-supervision puts the backbone.

The table is tried from the top. A layout applies if its prefix and all that it `needs` occur in the
file. Other tensors are dropped if the layout lists them in `ignored`, and are an error otherwise.
Of several networks in a file, the layout takes the one that the tool's authors evaluate, named by
`which`. If no layout fits, `search` tries every place in the file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from selftaught.models.weights.key_maps import KeyMap, State, map_keys

# Places of a state dict in a file.
USUAL = (
    ("state_dict",),
    ("model", "state_dict"),
    ("model",),
    ("model_state_dict",),
    ("module",),
    ("net",),
    ("network",),
    ("weights",),
    ("params",),
    (),
)
WRAPPERS = ("module.", "model.")  # before all names: DistributedDataParallel, a parent module
# Prefixes of torch.compile, FSDP, activation checkpointing and Lightning's Fabric, at any place.
_WRAPPED = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_DATA_PARALLEL = re.compile(r"(?<=\.)module\.")  # inside a model that contains a wrapped module


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The place of a backbone in the files of one tool."""

    tool: str
    under: tuple[tuple[str, ...], ...] = USUAL
    prefix: str = ""  # of the backbone's names
    needs: tuple[str, ...] = ()  # prefixes of names that must occur; they identify the tool
    # Prefixes of names outside the backbone: heads, second networks, queues.
    ignored: tuple[str, ...] = ()
    without: str = ""  # prefix of names that must not occur in the file
    which: str = ""  # the network that is taken, if the file has several
    # Prefixes of timm's networks of equal shapes that compute something else, with the reason.
    unlike: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reading:
    """A file read by one layout: a backbone in timm's names, and maybe a classifier's head."""

    layout: Layout
    state: State
    key_map: KeyMap | None
    under: tuple[str, ...]
    prefix: str  # of the backbone's names, wrappers included
    ignored: tuple[str, ...]  # prefixes of the names that were dropped
    unexpected: tuple[str, ...]  # other names outside the backbone: a reason to refuse
    count: int  # of tensors outside of the prefix
    # The ignored tensors, if the layout has no prefix.
    dropped: State = field(default_factory=dict)


STUDENT = "student, as there is no teacher"
_DINO_HEADS = ("head.", "dino_head.", "ibot_head.")  # with those of DINOv2
_VISSL = ("classy_state_dict", "base_model", "model", "trunk")

LAYOUTS = (
    Layout(
        tool="MoCo v3",
        prefix="base_encoder.",
        ignored=("momentum_encoder.", "predictor."),
        which="query encoder",
        unlike={"vit_small": "MoCo v3's ViT-S has 12 attention heads, timm's has 6"},
    ),
    Layout(
        tool="MoCo v1 or v2",
        prefix="encoder_q.",
        which="query encoder",
        needs=("encoder_k.",),
        ignored=("encoder_k.", "queue"),
    ),
    Layout(
        tool="SwAV or DeepCluster-v2",
        needs=("prototypes.",),
        ignored=("prototypes.", "projection_head."),
    ),
    Layout(
        tool="DINO", under=(("teacher",),), prefix="backbone.", ignored=_DINO_HEADS, which="teacher"
    ),
    Layout(
        tool="DINO",
        under=(("student",),),
        prefix="backbone.",
        ignored=_DINO_HEADS,
        without="teacher",
        which=STUDENT,
    ),
    Layout(
        tool="Barlow Twins",
        prefix="backbone.",
        needs=("projector.", "bn."),
        ignored=("projector.", "bn."),
    ),
    Layout(tool="VICReg", prefix="backbone.", needs=("projector.",), ignored=("projector.",)),
    Layout(tool="SimSiam", prefix="encoder.", needs=("predictor.",), ignored=("predictor.",)),
    Layout(tool="BYOL for PyTorch (yaox12)", under=(("online_backbone",),), which="online network"),
    Layout(
        tool="BYOL for PyTorch (sthalles)",
        under=(("online_network_state_dict",),),
        prefix="encoder.",
        ignored=("projetion.", "projection."),
        which="online network",  # spelt so there
    ),
    Layout(
        tool="BYOL (lucidrains)",
        prefix="online_encoder.net.",
        which="online network",
        ignored=("net.", "online_encoder.projector.", "online_predictor.", "target_encoder."),
    ),
    Layout(tool="VISSL", under=(_VISSL,), prefix="_feature_blocks."),
    Layout(tool="VISSL", under=(_VISSL,), prefix="base_model._feature_blocks."),
    Layout(
        tool="OpenSelfSup or mmselfsup",
        prefix="backbone.",
        which="online network",
        needs=("online_net.",),
        ignored=("online_net.", "target_net.", "neck.", "head."),
    ),
    Layout(
        tool="OpenSelfSup or mmselfsup",
        prefix="backbone.",
        which="query encoder",
        needs=("encoder_k.",),
        ignored=("encoder_q.", "encoder_k.", "queue", "neck.", "head."),
    ),
    Layout(
        tool="OpenSelfSup, mmselfsup or mmpretrain",
        prefix="backbone.",
        needs=("neck.",),
        ignored=(
            "neck.",
            "head.",
            "data_preprocessor.",
            "memory_bank.",
            "queue",
            "target_generator.",
        ),
    ),
    Layout(
        tool="solo-learn",
        prefix="backbone.",
        needs=("momentum_backbone.",),
        which="online network",
        ignored=(
            "momentum_backbone.",
            "classifier.",
            "momentum_classifier.",
            "projector.",
            "momentum_projector.",
            "predictor.",
            "prototypes.",
            "head.",
            "momentum_head.",
            "queue",
            "dino_loss_func.",
            "knn.",
        ),
    ),
    Layout(
        tool="solo-learn",
        prefix="backbone.",
        needs=("classifier.",),
        ignored=(
            "classifier.",
            "projector.",
            "predictor.",
            "prototypes.",
            "queue",
            "whitening.",
            "knn.",
            "decoder.",
            "mask_token",
        ),
    ),
    *(
        Layout(
            tool="lightly",
            prefix=prefix,
            needs=needs,
            which=which,
            ignored=(
                "backbone_momentum.",
                "projection_head",
                "prediction_head.",
                "prototypes.",
                "criterion.",
                "queue",
                "memory_bank",
                "online_classifier.",
                "student_",
                "teacher_",
                "key_",
            ),
        )
        for prefix, needs, which in (
            ("teacher_backbone.", ("student_backbone.",), "teacher"),
            ("backbone.", ("student_backbone.",), "teacher"),  # its benchmarks' DINO
            ("backbone.", ("backbone_momentum.",), "online network"),
            ("backbone.", ("teacher_backbone.",), "online network"),
            ("backbone.", ("key_backbone.",), "query encoder"),
            ("backbone.", ("projection_head.",), ""),
        )
    ),
    *(
        Layout(
            tool="lightly-train",
            prefix=f"{whose}embedding_model.wrapped_model.{part}.",
            which=which,
            without=without,
            ignored=(
                "student_",
                "teacher_",
                "projection_head.",
                "prediction_head.",
                "query_",
                "key_",
                "criterion.",
                "momentum_",
            ),
        )
        for whose, which, without in (
            ("teacher_", "teacher", ""),
            ("student_", STUDENT, "teacher_"),
            ("", "", ""),
        )
        for part in ("_model", "_features")  # networks of timm, and of torchvision
    ),
    *(
        Layout(
            tool="stable-pretraining",
            prefix=prefix,
            which=which,
            needs=needs,
            ignored=(
                "backbone.student.",
                "projector.",
                "predictor.",
                "head.",
                "prototypes.",
                "callbacks_",
                "_callbacks_",
            ),
        )
        for prefix, which, needs in (
            ("backbone.teacher.", "teacher", ("backbone.student.",)),
            ("backbone.", "", ("projector.",)),
            ("backbone.", "", ("callbacks_",)),
        )
    ),
    Layout(tool="MAE, DINOv2 or DINOv3", needs=("mask_token",), ignored=("mask_token", "decoder_")),
    Layout(tool="DINO", under=(("teacher",),), which="teacher"),
    Layout(tool="DINO", under=(("student",),), without="teacher", which=STUDENT),
    # Their papers evaluate the target's encoder.
    Layout(tool="I-JEPA or MSN", under=(("target_encoder",),), which="target encoder"),
    Layout(
        tool="torch's AveragedModel",
        prefix="module.",
        needs=("n_averaged",),
        ignored=("n_averaged",),
        which="average",
    ),
    Layout(tool="fastai", prefix="0.", needs=("0.4.0.", "1."), ignored=("1.",), which="body"),
    Layout(
        tool="CLIP",
        needs=("visual.conv1.", "visual.class_embedding"),
        which="image tower, with the activation of the backbone asked for",
        ignored=(
            "transformer.",
            "token_embedding.",
            "positional_embedding",
            "ln_final.",
            "text_projection",
            "logit_scale",
            "logit_bias",
            "text.",
            "input_resolution",
            "context_length",
            "vocab_size",
        ),
    ),
    Layout(tool=""),  # the bare network: timm, torchvision, and what most tools publish
)

# Words in the names of tensors that are no part of a backbone.
_BESIDE = re.compile(
    r"head|project|predict|classif|prototype|queue|decoder|criterion|loss|metric|probe|memory|logit|text|token_embed"
    r"|tokenizer|pooler|normaliz|preprocess|augment|(^|_)(mean|std|neck|fc\d*|linear|proj|pred|temperature|center|aux|n_averaged|initted|step|steps|epoch|num_updates"
    r"|decay|mask_token|bias_mask)$",
    re.IGNORECASE,
)
# Words in the places of two networks: the one to take, and the other.
PAIRS = (
    ("teacher", "student"),
    ("online", "target"),
    ("query", "key"),
    ("q", "k"),
    ("image", "text"),
)
# If both fit, the network without this word is taken.
FOLLOWERS = (("", "momentum"), ("", "ema"), ("", "averaged"), ("", "swa"))
AVERAGES = {"ema", "swa", "averaged", "shadow", "average"}


@lru_cache(maxsize=1 << 16)  # a search asks for the same names under each prefix
def is_auxiliary(name: str) -> bool:
    """Whether a name is that of a head, a loss, a queue or another part outside of a backbone."""
    return any(_BESIDE.search(part) for part in name.split("."))


def list_readings(content: Any) -> Iterator[Reading]:
    """List the readings of a file by all layouts that apply, in the order of the table."""
    for layout in LAYOUTS:
        for under in layout.under:
            state = _state_dict(content, under)
            names = (*state, *map(str, content)) if state else ()
            if layout.without and any(name.startswith(layout.without) for name in names):
                continue
            if state and (reading := _read(layout, under, state)):
                yield reading


def search(content: Any) -> Iterator[Reading]:
    """List readings of every place in the file, without a layout.

    A place is a dict of tensors, or a prefix in it that at least eight names have.
    """
    for under in _places(content):
        state = _state_dict(content, under)
        counts: dict[str, int] = {"": len(state)}
        for key in _unwrap(state)[0]:
            parts = key.split(".")
            for depth in range(1, min(len(parts), 6)):
                prefix = ".".join(parts[:depth]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
        for prefix in sorted(
            (p for p, count in counts.items() if count >= 8), key=lambda p: p.count(".")
        ):
            if (prefix or under not in USUAL) and (
                reading := _read(Layout(tool="", prefix=prefix), under, state)
            ):
                dropped = [key for key in reading.unexpected if is_auxiliary(key)]
                over = tuple(key for key in reading.unexpected if not is_auxiliary(key))
                ignored = tuple(dict.fromkeys(key.partition(".")[0] for key in dropped))
                yield replace(reading, unexpected=over, ignored=ignored)


def _places(content: Any, under: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of dicts of tensors, except those of optimizers."""
    if not isinstance(content, dict) or len(under) > 4:
        return
    if sum(isinstance(value, Tensor) for value in content.values()) >= 8:
        yield under
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict) and "optim" not in key.lower():
            yield from _places(value, (*under, key))


def words(reading: Reading) -> set[str]:
    """The words in the place of a reading."""
    return set(re.split(r"[._/]", ".".join((*reading.under, reading.prefix)).lower()))


def prefer(options: list[Reading], pairs: Sequence[tuple[str, str]]) -> list[Reading]:
    """Remove the worse reading of each pair (better, worse), if a better one is there."""
    for better, worse in pairs:
        others = [reading for reading in options if worse not in words(reading)]
        if any(better in words(reading) or not better for reading in others):
            options = others
    return options


def _state_dict(content: Any, under: tuple[str, ...]) -> State:
    """The tensors of the dict at the place `under`; empty if there is none."""
    for key in under:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _unwrap(state: State) -> tuple[State, str]:
    """Remove the prefixes of wrappers from names; returns the state, and the common prefix."""
    state = {_WRAPPED.sub("", key): value for key, value in state.items()}
    wrapped = ""
    while wrapper := next(
        (w for w in WRAPPERS if state and all(key.startswith(w) for key in state)), ""
    ):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
        wrapped += wrapper
    parents = {key[: match.start()] for key in state for match in _DATA_PARALLEL.finditer(key)}
    for parent in sorted(parents, key=len, reverse=True):  # the innermost first
        inside = f"{parent}module."
        # A wrapper has no other child than its module.
        if all(key.startswith(inside) for key in state if key.startswith(parent)):
            state = {
                parent + key.removeprefix(inside) if key.startswith(inside) else key: value
                for key, value in state.items()
            }
    return state, wrapped


def _read(layout: Layout, under: tuple[str, ...], state: State) -> Reading | None:
    """Read a state dict by a layout; None if the layout does not apply."""
    state, wrapped = _unwrap(state)
    inside = {
        key.removeprefix(layout.prefix): state[key]
        for key in state
        if key.startswith(layout.prefix)
    }
    if not inside or not all(any(key.startswith(need) for key in state) for need in layout.needs):
        return None
    outside = [key for key in state if not key.startswith(layout.prefix)]
    if not layout.prefix:
        outside = [key for key in state if key.startswith(layout.ignored)] if layout.ignored else []
        inside = {key: value for key, value in state.items() if key not in outside}
    dropped = [key for key in outside if key.startswith(layout.ignored)] if layout.ignored else []
    names, key_map = map_keys(inside)
    return Reading(
        layout=layout,
        state=names,
        key_map=key_map,
        under=under,
        prefix=wrapped + layout.prefix,
        ignored=tuple(
            a.rstrip("._") for a in layout.ignored if any(key.startswith(a) for key in dropped)
        ),
        unexpected=tuple(key for key in outside if key not in dropped),
        count=len(outside),
        dropped={key: state[key] for key in dropped} if not layout.prefix else {},
    )
