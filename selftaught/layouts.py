"""Where the tools of self-supervision put a backbone in their files: a table, one rule a layout.

The table is tried from the top. A layout applies where its prefix and all that it `needs` are there. What stands beside
the backbone is dropped if the layout lists it in `aside`, and refused otherwise: nothing is lost in silence. Of several
networks the one is taken that the tool's authors publish and evaluate; `which` says so to the user.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from selftaught.dialects import Dialect, State, translated

# Where a state dict lies in a file.
USUAL = (("state_dict",), ("model", "state_dict"), ("model",), ("model_state_dict",), ())
WRAPPERS = ("module.", "model.", "_orig_mod.")  # before all names: DistributedDataParallel, a holder, torch.compile


@dataclass(frozen=True, kw_only=True)
class Layout:
    tool: str
    under: tuple[tuple[str, ...], ...] = USUAL
    prefix: str = ""  # of the backbone's names
    needs: tuple[str, ...] = ()  # beginnings of names that must occur, by which the tool is told from others
    aside: tuple[str, ...] = ()  # beginnings of names beside the backbone: heads, second networks, queues
    without: str = ""  # beginning of names in the file that must not occur
    which: str = ""  # the network that is taken, where there are several
    unlike: Mapping[str, str] = field(default_factory=dict)  # timm's networks that compute something else, and why


@dataclass(frozen=True)
class Reading:
    """What a file holds if it is of this layout: a backbone in timm's names, perhaps with a classifier's head."""

    layout: Layout
    state: State
    dialect: Dialect | None
    under: tuple[str, ...]
    prefix: str  # with wrappers
    aside: tuple[str, ...]  # what was dropped, by the beginning of its names
    over: tuple[str, ...]  # what stands beside and is not listed: a reason to refuse
    count: int  # of tensors outside of the prefix


STUDENT = "student, as there is no teacher"
_VISSL = ("classy_state_dict", "base_model", "model", "trunk")

LAYOUTS = (
    Layout(
        tool="MoCo v3", prefix="base_encoder.", aside=("momentum_encoder.", "predictor."), which="query encoder",
        unlike={"vit_small": "MoCo v3's ViT-S has 12 attention heads, timm's has 6"},
    ),
    Layout(
        tool="MoCo v1 or v2", prefix="encoder_q.", which="query encoder",
        needs=("encoder_k.",), aside=("encoder_k.", "queue"),
    ),
    Layout(tool="SwAV or DeepCluster-v2", needs=("prototypes.",), aside=("prototypes.", "projection_head.")),
    Layout(tool="DINO", under=(("teacher",),), prefix="backbone.", aside=("head.",), which="teacher"),
    Layout(tool="DINO", under=(("student",),), prefix="backbone.", aside=("head.",), without="teacher", which=STUDENT),
    Layout(tool="Barlow Twins", prefix="backbone.", needs=("projector.", "bn."), aside=("projector.", "bn.")),
    Layout(tool="VICReg", prefix="backbone.", needs=("projector.",), aside=("projector.",)),
    Layout(tool="SimSiam", prefix="encoder.", needs=("predictor.",), aside=("predictor.",)),
    Layout(tool="BYOL for PyTorch (yaox12)", under=(("online_backbone",),), which="online network"),
    Layout(
        tool="BYOL for PyTorch (sthalles)", under=(("online_network_state_dict",),), prefix="encoder.",
        aside=("projetion.", "projection."), which="online network",  # spelt so there
    ),
    Layout(
        tool="BYOL (lucidrains)", prefix="online_encoder.net.", which="online network",
        aside=("net.", "online_encoder.projector.", "online_predictor.", "target_encoder."),
    ),
    Layout(tool="VISSL", under=(_VISSL,), prefix="_feature_blocks."),
    Layout(tool="VISSL", under=(_VISSL,), prefix="base_model._feature_blocks."),
    Layout(
        tool="OpenSelfSup or mmselfsup", prefix="backbone.", which="online network",
        needs=("online_net.",), aside=("online_net.", "target_net.", "neck.", "head."),
    ),
    Layout(
        tool="OpenSelfSup or mmselfsup", prefix="backbone.", which="query encoder",
        needs=("encoder_k.",), aside=("encoder_q.", "encoder_k.", "queue", "neck.", "head."),
    ),
    Layout(
        tool="OpenSelfSup, mmselfsup or mmpretrain", prefix="backbone.", needs=("neck.",),
        aside=("neck.", "head.", "data_preprocessor.", "memory_bank.", "queue", "target_generator."),
    ),
    Layout(
        tool="solo-learn", prefix="backbone.", needs=("momentum_backbone.",), which="online network",
        aside=(
            "momentum_backbone.", "classifier.", "momentum_classifier.", "projector.", "momentum_projector.", "predictor.",
            "prototypes.", "head.", "momentum_head.", "queue", "dino_loss_func.", "knn.",
        ),
    ),
    Layout(
        tool="solo-learn", prefix="backbone.", needs=("classifier.",),
        aside=(
            "classifier.", "projector.", "predictor.", "prototypes.", "queue", "whitening.", "knn.", "decoder.",
            "mask_token",
        ),
    ),
    *(
        Layout(
            tool="lightly", prefix=prefix, needs=needs, which=which,
            aside=(
                "backbone_momentum.", "projection_head", "prediction_head.", "prototypes.", "criterion.", "queue",
                "memory_bank", "online_classifier.", "student_", "teacher_", "key_",
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
            tool="lightly-train", prefix=f"{whose}embedding_model.wrapped_model.{part}.", which=which, without=without,
            aside=(
                "student_", "teacher_", "projection_head.", "prediction_head.", "query_", "key_", "criterion.", "momentum_",
            ),
        )
        for whose, which, without in (("teacher_", "teacher", ""), ("student_", STUDENT, "teacher_"), ("", "", ""))
        for part in ("_model", "_features")  # networks of timm, and of torchvision
    ),
    *(
        Layout(
            tool="stable-pretraining", prefix=prefix, which=which, needs=needs,
            aside=("backbone.student.", "projector.", "predictor.", "head.", "prototypes.", "callbacks_", "_callbacks_"),
        )
        for prefix, which, needs in (
            ("backbone.teacher.", "teacher", ("backbone.student.",)),
            ("backbone.", "", ("projector.",)),
            ("backbone.", "", ("callbacks_",)),
        )
    ),
    Layout(tool="MAE or DINOv2", needs=("mask_token",), aside=("mask_token", "decoder_")),
    Layout(tool="DINO", under=(("teacher",),), which="teacher"),
    Layout(tool="DINO", under=(("student",),), without="teacher", which=STUDENT),
    # A network under a name of its own, and nothing beside it.
    *(Layout(tool="", prefix=prefix) for prefix in ("backbone.", "encoder.", "encoder_q.", "network.", "net.", "trunk.")),
    Layout(tool=""),  # the bare network: timm, torchvision, and what most tools publish
)  # fmt: skip


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


def _state_dict(content: Any, under: tuple[str, ...]) -> State:
    for key in under:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _read(layout: Layout, under: tuple[str, ...], state: State) -> Reading | None:
    wrapped = ""
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(w) for key in state)), ""):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
        wrapped += wrapper
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    inside = {key.removeprefix(layout.prefix): state[key] for key in state if key.startswith(layout.prefix)}
    if not inside or not all(any(key.startswith(need) for key in state) for need in layout.needs):
        return None
    outside = [key for key in state if not key.startswith(layout.prefix)]
    if not layout.prefix:
        outside = [key for key in state if key.startswith(layout.aside)] if layout.aside else []
        inside = {key: value for key, value in state.items() if key not in outside}
    dropped = [key for key in outside if key.startswith(layout.aside)] if layout.aside else []
    names, dialect = translated(inside)
    return Reading(
        layout=layout, state=names, dialect=dialect, under=under, prefix=wrapped + layout.prefix,
        aside=tuple(a.rstrip("._") for a in layout.aside if any(key.startswith(a) for key in dropped)),
        over=tuple(key for key in outside if key not in dropped), count=len(outside),
    )  # fmt: skip
