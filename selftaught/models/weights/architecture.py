"""Which network a state dict may belong to, judged by its names and shapes."""

import re
from collections.abc import Mapping

from torch import Tensor

from selftaught.models.weights.formats import Reading

State = Mapping[str, Tensor]

# (blocks a layer, have they three convolutions?, shape of the second one in the first block) ->
# name
_RESNETS: dict[tuple[tuple[int, ...], bool, tuple[int, ...]], str] = {
    ((1, 1, 1, 1), False, (64, 64)): "resnet10",
    ((1, 1, 1, 1), True, (64, 64)): "resnet14",
    ((2, 2, 2, 2), True, (64, 64)): "resnet26",
    ((2, 2, 2, 2), False, (64, 64)): "resnet18",
    ((3, 4, 6, 3), False, (64, 64)): "resnet34",
    ((3, 4, 6, 3), True, (64, 64)): "resnet50",
    ((3, 4, 23, 3), True, (64, 64)): "resnet101",
    ((3, 8, 36, 3), True, (64, 64)): "resnet152",
    ((3, 4, 6, 3), True, (128, 4)): "resnext50_32x4d",
    ((3, 4, 23, 3), True, (256, 8)): "resnext101_32x8d",
    ((3, 4, 23, 3), True, (256, 4)): "resnext101_64x4d",
    ((3, 4, 6, 3), True, (128, 128)): "wide_resnet50_2",
    ((3, 4, 23, 3), True, (128, 128)): "wide_resnet101_2",
}
_VITS = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
    (1536, 40): "giant",
}
# With LayerScale, registers, a distillation token, rotary positions: which it is, the tensors say.
_VIT_NAMES = (
    "vit_{}_patch{}_224",
    "vit_{}_patch{}_dinov2",
    "vit_{}_patch{}_reg4_dinov2",
    "deit_{}_distilled_patch{}_224",
    "deit3_{}_patch{}_224",
    "vit_{}_patch{}_dinov3",
    "vit_{}_patch{}_dinov3_qkvb",
    "vit_{}_plus_patch{}_dinov3",
    "vit_{}_plus_patch{}_dinov3_qkvb",
)
# Their tensors alone do not say which padding and epsilon they were trained with: the dialect does.
_EFFICIENT = {
    "torchvision's EfficientNet": tuple(f"efficientnet_b{i}" for i in range(5)),
    "torchvision's MobileNetV2": ("mobilenetv2_100",),
    "EfficientNet-PyTorch": tuple(f"tf_efficientnet_b{i}" for i in range(8)),
    "EfficientNet-Lite for PyTorch": tuple(f"tf_efficientnet_lite{i}" for i in range(5)),
}
_CONVNEXTS = tuple(f"convnext_{size}" for size in ("tiny", "small", "base", "large"))


def candidates(reading: Reading) -> tuple[str, ...]:
    """Names of timm's networks that the state dict may belong to, the likeliest first; each is
    still to be compared.
    """
    state, dialect = reading.state, reading.dialect
    if dialect and dialect.whose in _EFFICIENT:
        return _EFFICIENT[dialect.whose]
    if "stages.0.blocks.0.conv_dw.weight" in state:
        return _CONVNEXTS
    if (shape := _vit(state)) is not None:
        width, depth, patch = shape
        size = _VITS.get((width, depth), "")
        return tuple(name.format(size, patch) for name in _VIT_NAMES) if size else ()
    resnet = _resnet_name(state)
    return (resnet,) if resnet else ()


def small_stem(state: State) -> bool:
    """Has this ResNet the first convolution that CIFAR's small images want?"""
    found = next(
        (
            value
            for key, value in state.items()
            if re.fullmatch(r"(?!.*layer)(.*\.)?conv1\.weight", key)
        ),
        None,
    )
    return found is not None and found.shape[-1] == 3


def looks_like(state: State) -> str:
    """A guess at what a state dict is, for the error line."""
    if any(key.endswith("flat_param") for key in state):
        return "Its parameters are flat, as FSDP shares them out: save a full state dict."
    if any(".lora_A." in key for key in state):
        return "It holds low-rank additions alone: merge them into their network, and save that."
    if any(re.search(r"(^|\.)(embeddings\.|encoder\.layers?\.0\.)", key) for key in state):
        return (
            "It looks like a network of Hugging Face's transformers, whose names are not known"
            " here: take timm's weights."
        )
    resnet = _resnet(state)
    if any(resnet[0]):
        name = _resnet_name(state) or f"a ResNet of {resnet[0]} blocks"
        return f"It looks like {name}{' with the cifar stem' if small_stem(state) else ''}."
    if (shape := _vit(state)) is not None:
        return "It looks like a ViT of width {}, depth {}, patch {}.".format(*shape)
    if any(key.startswith("features.") for key in state):
        return (
            "It looks like a network of torchvision, whose names differ from timm's and are not"
            " known here."
        )
    names = tuple(state)
    return f"Its first names are {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."


def _resnet(state: State) -> tuple[tuple[int, ...], bool, tuple[int, ...]]:
    blocks = [
        m
        for key in state
        if (m := re.search(r"(?:^|\.)layer([1-4])\.(\d+)\.conv([1-3])\.weight$", key))
    ]
    depths = tuple(
        max((int(m[2]) + 1 for m in blocks if m[1] == layer), default=0) for layer in "1234"
    )
    second = next(
        (value.shape[:2] for key, value in state.items() if key.endswith("layer1.0.conv2.weight")),
        (),
    )
    return depths, any(m[3] == "3" for m in blocks), tuple(second)


def _resnet_name(state: State) -> str | None:
    """With the letter of its first layers: none for one convolution, t or d for three."""
    name = _RESNETS.get(_resnet(state))
    deep = next(
        (value for key, value in state.items() if re.search(r"(^|\.)conv1\.0\.weight$", key)), None
    )
    return name if name is None or deep is None else name + ("t" if deep.shape[0] == 24 else "d")


def _vit(state: State) -> tuple[int, int, int] | None:
    patch = next(
        (value for key, value in state.items() if key.endswith("patch_embed.proj.weight")), None
    )
    if patch is None or patch.ndim != 4:
        return None
    depth = len({m[1] for key in state if (m := re.search(r"(?:^|\.)blocks\.(\d+)\.", key))})
    return patch.shape[0], depth, patch.shape[-1]
