"""A guess at the network of a state dict, from names and shapes of its tensors."""

import re
from collections.abc import Mapping

from torch import Tensor

from selftaught.models.weights.formats import Reading

State = Mapping[str, Tensor]

# (blocks in each layer, whether a block has three convolutions, shape of the first block's second
# convolution) -> name
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
# Variants with LayerScale, registers, a distillation token or rotary positions differ in tensors.
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
# The key map tells the padding and epsilon of these networks, which the tensors do not.
_EFFICIENT = {
    "torchvision's EfficientNet": tuple(f"efficientnet_b{i}" for i in range(5)),
    "torchvision's MobileNetV2": ("mobilenetv2_100",),
    "EfficientNet-PyTorch": tuple(f"tf_efficientnet_b{i}" for i in range(8)),
    "EfficientNet-Lite for PyTorch": tuple(f"tf_efficientnet_lite{i}" for i in range(5)),
}
_CONVNEXTS = tuple(f"convnext_{size}" for size in ("tiny", "small", "base", "large"))


def list_candidates(reading: Reading) -> tuple[str, ...]:
    """List names of timm's networks that may fit the state dict, the likeliest first."""
    state, key_map = reading.state, reading.key_map
    if key_map and key_map.origin in _EFFICIENT:
        return _EFFICIENT[key_map.origin]
    if "stages.0.blocks.0.conv_dw.weight" in state:
        return _CONVNEXTS
    if (shape := _vit(state)) is not None:
        width, depth, patch = shape
        size = _VITS.get((width, depth), "")
        return tuple(name.format(size, patch) for name in _VIT_NAMES) if size else ()
    resnet = _resnet_name(state)
    return (resnet,) if resnet else ()


def has_small_stem(state: State) -> bool:
    """Whether this ResNet has the 3x3 first convolution of the cifar stem."""
    pattern = r"(?!.*layer)(.*\.)?conv1\.weight"
    weight = next((value for key, value in state.items() if re.fullmatch(pattern, key)), None)
    return weight is not None and weight.shape[-1] == 3


def describe_network(state: State) -> str:
    """Describe what a state dict seems to be, as one sentence of an error message."""
    if any(key.endswith("flat_param") for key in state):
        return "Its parameters are flat, as FSDP shards them: save a full state dict."
    if any(".lora_A." in key for key in state):
        return "It holds low-rank additions alone: merge them into their network, and save that."
    if any(re.search(r"(^|\.)(embeddings\.|encoder\.layers?\.0\.)", key) for key in state):
        return (
            "It looks like a network of Hugging Face's transformers, whose names are not"
            " supported: use timm's weights."
        )
    resnet = _resnet(state)
    if any(resnet[0]):
        name = _resnet_name(state) or f"a ResNet of {resnet[0]} blocks"
        return f"It looks like {name}{' with the cifar stem' if has_small_stem(state) else ''}."
    if (shape := _vit(state)) is not None:
        return "It looks like a ViT of width {}, depth {}, patch {}.".format(*shape)
    if any(key.startswith("features.") for key in state):
        return (
            "It looks like a network of torchvision, whose names differ from timm's and are not"
            " supported."
        )
    names = tuple(state)
    return f"Its first names are {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."


def _resnet(state: State) -> tuple[tuple[int, ...], bool, tuple[int, ...]]:
    """The key of a ResNet in `_RESNETS`; all depths are 0 for any other network."""
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
    """The name with the letter of its stem: none for one convolution, t or d for three."""
    name = _RESNETS.get(_resnet(state))
    deep = next(
        (value for key, value in state.items() if re.search(r"(^|\.)conv1\.0\.weight$", key)), None
    )
    return name if name is None or deep is None else name + ("t" if deep.shape[0] == 24 else "d")


def _vit(state: State) -> tuple[int, int, int] | None:
    """Width, depth and patch size of a ViT; None for any other network."""
    patch = next(
        (value for key, value in state.items() if key.endswith("patch_embed.proj.weight")), None
    )
    if patch is None or patch.ndim != 4:
        return None
    depth = len({m[1] for key in state if (m := re.search(r"(?:^|\.)blocks\.(\d+)\.", key))})
    return patch.shape[0], depth, patch.shape[-1]
