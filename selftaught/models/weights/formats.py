"""Where the tools of self-supervision put a backbone in their files: a table, one rule a layout.

Over 200 lines with that table, which is tried from the top. A layout applies where its prefix and
all that it `needs` are there. What stands beside the backbone is dropped if the layout lists it in
`aside`, and refused otherwise: nothing is lost in silence. Of several networks the one is taken
that the tool's authors publish and evaluate; `which` says so to the user. Where no layout fits,
every place in the file is looked at (`search`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from selftaught.models.weights.key_maps import Dialect, State, translated

# Where a state dict lies in a file.
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
WRAPPERS = ("module.", "model.")  # before all names: DistributedDataParallel, a holder
# Of torch.compile, FSDP, activation checkpointing and Lightning's Fabric: at any place, and of
# nothing else.
_WRAPPED = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_DATA_PARALLEL = re.compile(r"(?<=\.)module\.")  # inside of a model that holds a wrapped one


@dataclass(frozen=True, kw_only=True)
class Layout:
    tool: str
    under: tuple[tuple[str, ...], ...] = USUAL
    prefix: str = ""  # of the backbone's names
    needs: tuple[
        str, ...
    ] = ()  # beginnings of names that must occur, by which the tool is told from others
    aside: tuple[
        str, ...
    ] = ()  # beginnings of names beside the backbone: heads, second networks, queues
    without: str = ""  # beginning of names in the file that must not occur
    which: str = ""  # the network that is taken, where there are several
    # timm's networks that compute something else, and why
    unlike: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reading:
    """What a file holds if it is of this layout: a backbone in timm's names, perhaps with a
    classifier's head.
    """

    layout: Layout
    state: State
    dialect: Dialect | None
    under: tuple[str, ...]
    prefix: str  # with wrappers
    aside: tuple[str, ...]  # what was dropped, by the beginning of its names
    over: tuple[str, ...]  # what stands beside and is not listed: a reason to refuse
    count: int  # of tensors outside of the prefix
    # what is listed and stands among the network's own names
    dropped: State = field(default_factory=dict)


STUDENT = "student, as there is no teacher"
_DINO_HEADS = ("head.", "dino_head.", "ibot_head.")  # with those of DINOv2
_VISSL = ("classy_state_dict", "base_model", "model", "trunk")

LAYOUTS = (
    Layout(
        tool="MoCo v3",
        prefix="base_encoder.",
        aside=("momentum_encoder.", "predictor."),
        which="query encoder",
        unlike={"vit_small": "MoCo v3's ViT-S has 12 attention heads, timm's has 6"},
    ),
    Layout(
        tool="MoCo v1 or v2",
        prefix="encoder_q.",
        which="query encoder",
        needs=("encoder_k.",),
        aside=("encoder_k.", "queue"),
    ),
    Layout(
        tool="SwAV or DeepCluster-v2",
        needs=("prototypes.",),
        aside=("prototypes.", "projection_head."),
    ),
    Layout(
        tool="DINO", under=(("teacher",),), prefix="backbone.", aside=_DINO_HEADS, which="teacher"
    ),
    Layout(
        tool="DINO",
        under=(("student",),),
        prefix="backbone.",
        aside=_DINO_HEADS,
        without="teacher",
        which=STUDENT,
    ),
    Layout(
        tool="Barlow Twins",
        prefix="backbone.",
        needs=("projector.", "bn."),
        aside=("projector.", "bn."),
    ),
    Layout(tool="VICReg", prefix="backbone.", needs=("projector.",), aside=("projector.",)),
    Layout(tool="SimSiam", prefix="encoder.", needs=("predictor.",), aside=("predictor.",)),
    Layout(tool="BYOL for PyTorch (yaox12)", under=(("online_backbone",),), which="online network"),
    Layout(
        tool="BYOL for PyTorch (sthalles)",
        under=(("online_network_state_dict",),),
        prefix="encoder.",
        aside=("projetion.", "projection."),
        which="online network",  # spelt so there
    ),
    Layout(
        tool="BYOL (lucidrains)",
        prefix="online_encoder.net.",
        which="online network",
        aside=("net.", "online_encoder.projector.", "online_predictor.", "target_encoder."),
    ),
    Layout(tool="VISSL", under=(_VISSL,), prefix="_feature_blocks."),
    Layout(tool="VISSL", under=(_VISSL,), prefix="base_model._feature_blocks."),
    Layout(
        tool="OpenSelfSup or mmselfsup",
        prefix="backbone.",
        which="online network",
        needs=("online_net.",),
        aside=("online_net.", "target_net.", "neck.", "head."),
    ),
    Layout(
        tool="OpenSelfSup or mmselfsup",
        prefix="backbone.",
        which="query encoder",
        needs=("encoder_k.",),
        aside=("encoder_q.", "encoder_k.", "queue", "neck.", "head."),
    ),
    Layout(
        tool="OpenSelfSup, mmselfsup or mmpretrain",
        prefix="backbone.",
        needs=("neck.",),
        aside=(
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
        aside=(
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
        aside=(
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
            aside=(
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
            aside=(
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
            aside=(
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
    Layout(tool="MAE, DINOv2 or DINOv3", needs=("mask_token",), aside=("mask_token", "decoder_")),
    Layout(tool="DINO", under=(("teacher",),), which="teacher"),
    Layout(tool="DINO", under=(("student",),), without="teacher", which=STUDENT),
    # Their papers evaluate the target's encoder.
    Layout(tool="I-JEPA or MSN", under=(("target_encoder",),), which="target encoder"),
    Layout(
        tool="torch's AveragedModel",
        prefix="module.",
        needs=("n_averaged",),
        aside=("n_averaged",),
        which="average",
    ),
    Layout(tool="fastai", prefix="0.", needs=("0.4.0.", "1."), aside=("1.",), which="body"),
    Layout(
        tool="CLIP",
        needs=("visual.conv1.", "visual.class_embedding"),
        which="image tower, with the activation of the backbone asked for",
        aside=(
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

# What a network is trained with and not a part of, by a word of its names.
_BESIDE = re.compile(
    r"head|project|predict|classif|prototype|queue|decoder|criterion|loss|metric|probe|memory|logit|text|token_embed"
    r"|tokenizer|pooler|normaliz|preprocess|augment|(^|_)(mean|std|neck|fc\d*|linear|proj|pred|temperature|center|aux|n_averaged|initted|step|steps|epoch|num_updates"
    r"|decay|mask_token|bias_mask)$",
    re.IGNORECASE,
)
# Of two networks the one to take and the other, by words of where they lie.
PAIRS = (
    ("teacher", "student"),
    ("online", "target"),
    ("query", "key"),
    ("q", "k"),
    ("image", "text"),
)
# Where both fit, the one without this word is taken.
FOLLOWERS = (("", "momentum"), ("", "ema"), ("", "averaged"), ("", "swa"))
AVERAGES = {"ema", "swa", "averaged", "shadow", "average"}


def is_beside(name: str) -> bool:
    """Whether a tensor is known by its name as no part of a backbone: a head, a loss's memory, a
    tower for text.
    """
    return any(_BESIDE.search(part) for part in name.split("."))


def readings(content: Any) -> Iterator[Reading]:
    """All that a file's content can be, in the order of the table."""
    for layout in LAYOUTS:
        for under in layout.under:
            state = _state_dict(content, under)
            names = (*state, *map(str, content)) if state else ()
            if layout.without and any(name.startswith(layout.without) for name in names):
                continue
            if state and (reading := _read(layout, under, state)):
                yield reading


def search(content: Any) -> Iterator[Reading]:
    """The same of every place in the file: each dict of tensors, and in it each beginning of names
    that many have.
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
                dropped = [key for key in reading.over if is_beside(key)]
                over = tuple(key for key in reading.over if not is_beside(key))
                aside = tuple(dict.fromkeys(key.partition(".")[0] for key in dropped))
                yield replace(reading, over=over, aside=aside)


def _places(content: Any, under: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where dicts of tensors lie; the optimizer's are none of a network."""
    if not isinstance(content, dict) or len(under) > 4:
        return
    if sum(isinstance(value, Tensor) for value in content.values()) >= 8:
        yield under
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict) and "optim" not in key.lower():
            yield from _places(value, (*under, key))


def words(reading: Reading) -> set[str]:
    """Of which the place is made where a reading was found."""
    return set(re.split(r"[._/]", ".".join((*reading.under, reading.prefix)).lower()))


def prefer(found: list[Reading], pairs: Sequence[tuple[str, str]]) -> list[Reading]:
    """Those that a user may have meant: without the other ones of pairs."""
    for better, worse in pairs:
        others = [reading for reading in found if worse not in words(reading)]
        if any(better in words(reading) or not better for reading in others):
            found = others
    return found


def _state_dict(content: Any, under: tuple[str, ...]) -> State:
    for key in under:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _unwrap(state: State) -> tuple[State, str]:
    """The same without what wrappers add to names, and what they added before all of them."""
    state = {_WRAPPED.sub("", key): value for key, value in state.items()}
    wrapped = ""
    while wrapper := next(
        (w for w in WRAPPERS if state and all(key.startswith(w) for key in state)), ""
    ):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
        wrapped += wrapper
    holders = {key[: found.start()] for key in state for found in _DATA_PARALLEL.finditer(key)}
    for holder in sorted(holders, key=len, reverse=True):  # the innermost first
        inside = f"{holder}module."
        if all(
            key.startswith(inside) for key in state if key.startswith(holder)
        ):  # a wrapper holds nothing else
            state = {
                holder + key.removeprefix(inside) if key.startswith(inside) else key: value
                for key, value in state.items()
            }
    return state, wrapped


def _read(layout: Layout, under: tuple[str, ...], state: State) -> Reading | None:
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
        outside = [key for key in state if key.startswith(layout.aside)] if layout.aside else []
        inside = {key: value for key, value in state.items() if key not in outside}
    dropped = [key for key in outside if key.startswith(layout.aside)] if layout.aside else []
    names, dialect = translated(inside)
    return Reading(
        layout=layout,
        state=names,
        dialect=dialect,
        under=under,
        prefix=wrapped + layout.prefix,
        aside=tuple(
            a.rstrip("._") for a in layout.aside if any(key.startswith(a) for key in dropped)
        ),
        over=tuple(key for key in outside if key not in dropped),
        count=len(outside),
        dropped={key: state[key] for key in dropped} if not layout.prefix else {},
    )
