"""Key maps: tables that rename the tensors of other libraries to timm's names.

A key map applies if all its `marks` occur in a state dict. A name without a rule stays as it is, so
the strict comparison afterwards refuses it. Networks of equal shapes can differ in epsilon or
padding. A key map then lists the networks of timm that compute the same.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
# Pairs of a pattern, for a name or its beginning up to a dot, and its replacement.
Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class KeyMap:
    """The renaming of one library's tensors to timm's names."""

    origin: str  # the library and its network
    marks: tuple[str, ...]  # names that must all occur
    translate: Callable[[State], State]
    networks: tuple[str, ...] = ()  # patterns of timm's names, if not all networks compute the same
    unlike: str = ""  # why no network of timm computes the same

    def matches(self, state: State) -> bool:
        """Whether the key map applies to a state dict."""
        return all(mark in state for mark in self.marks)


def compile_rules(rules: Rules) -> Callable[[State], State]:
    """Compile rules to a function that renames by the first rule that fits a name's beginning."""
    compiled = [(re.compile(f"{pattern}(?=\\.|$)"), to) for pattern, to in rules]

    def one(key: str) -> str:
        for pattern, to in compiled:
            if match := pattern.match(key):
                return match.expand(to) + key[match.end() :]
        return key

    return lambda state: {one(key): value for key, value in state.items()}


# A ResNet as nn.Sequential(*resnet.children()). Children 2 and 3 are ReLU and max-pool.
SEQUENTIAL = [
    ("0", "conv1"),
    ("1", "bn1"),
    ("4", "layer1"),
    ("5", "layer2"),
    ("6", "layer3"),
    ("7", "layer4"),
]
# The ResNet for CIFAR of kuangliu's pytorch-cifar, which lightly uses, named and as a Sequential.
SHORTCUT = [(r"(layer\d\.\d+)\.shortcut", r"\1.downsample"), ("linear", "fc")]
SMALL_SEQUENTIAL = [
    ("0", "conv1"),
    ("1", "bn1"),
    *((rf"{i + 1}\.(\d+)\.shortcut", rf"layer{i}.\1.downsample") for i in range(1, 5)),
    *((f"{i + 1}", f"layer{i}") for i in range(1, 5)),
]

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION_VIT = [
    ("class_token", "cls_token"),
    ("conv_proj", "patch_embed.proj"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln", "norm"),
    (_LAYER + "ln_([12])", r"blocks.\1.norm\2"),
    (_LAYER + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    (_LAYER + r"self_attention\.out_proj", r"blocks.\1.attn.proj"),
    (_LAYER + r"mlp\.(?:0|linear_1)", r"blocks.\1.mlp.fc1"),
    (_LAYER + r"mlp\.(?:3|linear_2)", r"blocks.\1.mlp.fc2"),
    (r"heads\.head", "head"),
]
# OpenMMLab (mmpretrain, mmselfsup).
MM_VIT = [
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"layers\.(\d+)\.(?:ln|norm)([12])", r"blocks.\1.norm\2"),
    (r"layers\.(\d+)\.attn\.(qkv|proj)", r"blocks.\1.attn.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0", r"blocks.\1.mlp.fc1"),
    (r"layers\.(\d+)\.ffn\.layers\.1", r"blocks.\1.mlp.fc2"),
    (r"(?:ln1|norm1)", "norm"),
]

_CONVNEXT_BLOCK = {
    "layer_scale": "gamma",
    "block.0": "conv_dw",
    "block.2": "norm",
    "block.3": "mlp.fc1",
    "block.5": "mlp.fc2",
}
TORCHVISION_CONVNEXT = [
    (r"features\.0\.([01])", r"stem.\1"),
    *((rf"features\.{2 * s}\.([01])", rf"stages.{s}.downsample.\1") for s in range(1, 4)),
    *(
        (rf"features\.{2 * s + 1}\.(\d+)\.{re.escape(theirs)}", rf"stages.{s}.blocks.\1.{ours}")
        for s in range(4)
        for theirs, ours in _CONVNEXT_BLOCK.items()
    ),
    (r"classifier\.0", "head.norm"),
    (r"classifier\.2", "head.fc"),
]


def _torchvision_convnext(state: State) -> State:
    named = compile_rules(TORCHVISION_CONVNEXT)(state)
    # torchvision's scale has the shape [C, 1, 1], timm's has [C].
    return {
        key: value.flatten() if key.endswith(".gamma") else value for key, value in named.items()
    }


# Inverted bottlenecks: timm names the layers by function, other libraries by position. A block
# without expansion, as in the first stage, has no expanding convolution and other names in timm.
_NARROW = ("conv_dw", "bn1", "conv_pw", "bn2")
_WIDE = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")


def _torchvision_efficientnet(state: State) -> State:
    """Rename features.STAGE.BLOCK.block.PART.

    A part is a convolution with its norm, or squeeze-and-excitation.
    """
    rules = [(r"features\.0\.0", "conv_stem"), (r"features\.0\.1", "bn1")]
    rules += [
        (r"features\.8\.0", "conv_head"),
        (r"features\.8\.1", "bn2"),
        (r"classifier\.1", "classifier"),
    ]
    for stage in range(1, 8):
        wide = f"features.{stage}.0.block.3.0.weight" in state
        parts, squeeze = (_WIDE, 2) if wide else (_NARROW, 1)
        at, to = rf"features\.{stage}\.(\d+)\.block\.", rf"blocks.{stage - 1}.\1."
        places = [place for place in range(4 if wide else 3) if place != squeeze]
        rules += [
            (rf"{at}{p}\.{k}", to + parts[2 * i + k]) for i, p in enumerate(places) for k in (0, 1)
        ]
        rules += [
            (rf"{at}{squeeze}\.fc1", f"{to}se.conv_reduce"),
            (rf"{at}{squeeze}\.fc2", f"{to}se.conv_expand"),
        ]
    return compile_rules(rules)(state)


def _number_stages(ends: Sequence[Tensor]) -> list[str]:
    """Number consecutive blocks as `blocks.STAGE.BLOCK`.

    ends: the last convolution of each block. A stage ends where the width changes.
    """
    names: list[str] = []
    stage, block, width = -1, 0, -1
    for weight in ends:
        stage, block = (stage, block + 1) if weight.shape[0] == width else (stage + 1, 0)
        width = weight.shape[0]
        names.append(f"blocks.{stage}.{block}")
    return names


def _torchvision_mobilenet_v2(state: State) -> State:
    """Rename features.BLOCK.conv.PART, whose blocks are numbered through all stages."""
    rules = [(r"features\.0\.0", "conv_stem"), (r"features\.0\.1", "bn1")]
    rules += [
        (r"features\.18\.0", "conv_head"),
        (r"features\.18\.1", "bn2"),
        (r"classifier\.1", "classifier"),
    ]
    narrow, wide = ("0.0", "0.1", "1", "2"), ("0.0", "0.1", "1.0", "1.1", "2", "3")
    kinds = [
        (wide, _WIDE) if f"features.{i}.conv.3.weight" in state else (narrow, _NARROW)
        for i in range(1, 18)
    ]
    ends = [
        state.get(f"features.{i}.conv.{theirs[-2]}.weight")
        for i, (theirs, _) in enumerate(kinds, 1)
    ]
    if any(end is None for end in ends):
        return state
    for i, (name, (theirs, ours)) in enumerate(
        zip(_number_stages([e for e in ends if e is not None]), kinds, strict=True), 1
    ):
        rules += [
            (rf"features\.{i}\.conv\.{re.escape(t)}", f"{name}.{o}")
            for t, o in zip(theirs, ours, strict=True)
        ]
    return compile_rules(rules)(state)


def _efficientnet_pytorch(state: State) -> State:
    """Rename _blocks.BLOCK._expand_conv and others, numbered through all stages.

    The Lite networks have no squeeze-and-excitation.
    """
    rules = [
        ("_conv_stem", "conv_stem"),
        ("_bn0", "bn1"),
        ("_conv_head", "conv_head"),
        ("_bn1", "bn2"),
    ]
    rules += [("_fc", "classifier")]
    count = sum(1 for key in state if re.fullmatch(r"_blocks\.\d+\._project_conv\.weight", key))
    ends = [state.get(f"_blocks.{i}._project_conv.weight") for i in range(count)]
    if any(end is None for end in ends):
        return state
    for i, name in enumerate(_number_stages([end for end in ends if end is not None])):
        narrow, wide = (
            ("depthwise_conv", "bn1", "project_conv", "bn2"),
            ("expand_conv", "bn0", "depthwise_conv", "bn1"),
        )
        kind = f"_blocks.{i}._expand_conv.weight" in state
        pairs = (
            zip((*wide, *narrow[2:]), _WIDE, strict=True)
            if kind
            else zip(narrow, _NARROW, strict=True)
        )
        rules += [(rf"_blocks\.{i}\._{theirs}", f"{name}.{ours}") for theirs, ours in pairs]
        rules += [
            (rf"_blocks\.{i}\._se_{what}", f"{name}.se.conv_{what}")
            for what in ("reduce", "expand")
        ]
    return compile_rules(rules)(state)


# Hugging Face's transformers. Query, key and value are three layers there, and one in timm.
_HF_LAYER = r"encoder\.layer\.(\d+)\."
_HF_ATTENTION = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (_HF_LAYER + r"attention\.attention\.(query|key|value)", r"blocks.\1.attn.\2"),
    (_HF_LAYER + r"attention\.output\.dense", r"blocks.\1.attn.proj"),
    ("layernorm", "norm"),
]
HF_VIT = [
    *_HF_ATTENTION,
    (r"embeddings\.distillation_token", "dist_token"),
    (_HF_LAYER + "layernorm_before", r"blocks.\1.norm1"),
    (_HF_LAYER + "layernorm_after", r"blocks.\1.norm2"),
    (_HF_LAYER + r"intermediate\.dense", r"blocks.\1.mlp.fc1"),
    (_HF_LAYER + r"output\.dense", r"blocks.\1.mlp.fc2"),
]
# To the names of DINOv2's authors, which timm converts.
HF_DINOV2 = [
    *_HF_ATTENTION,
    (r"embeddings\.(mask_token|register_tokens)", r"\1"),
    (_HF_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (_HF_LAYER + r"mlp\.weights_in", r"blocks.\1.mlp.w12"),
    (_HF_LAYER + r"mlp\.weights_out", r"blocks.\1.mlp.w3"),
    (_HF_LAYER + r"(norm[12]|mlp\.fc[12])", r"blocks.\1.\2"),
]
_HF_DINOV3_LAYER = r"(?:model\.)?layer\.(\d+)\."
# To the names of DINOv3's authors.
HF_DINOV3 = [
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.register_tokens", "storage_tokens"),
    (r"embeddings\.patch_embeddings", "patch_embed.proj"),
    (_HF_DINOV3_LAYER + r"attention\.([qkv])_proj", r"blocks.\1.attn.\2"),
    (_HF_DINOV3_LAYER + r"attention\.o_proj", r"blocks.\1.attn.proj"),
    (_HF_DINOV3_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (_HF_DINOV3_LAYER + r"(norm[12])", r"blocks.\1.\2"),
]
_HF_PLAIN_MLP = [
    (_HF_DINOV3_LAYER + r"mlp\.up_proj", r"blocks.\1.mlp.fc1"),
    (_HF_DINOV3_LAYER + r"mlp\.down_proj", r"blocks.\1.mlp.fc2"),
]
_HF_GATED_MLP = [
    (_HF_DINOV3_LAYER + r"mlp\.gate_proj", r"blocks.\1.mlp.w1"),
    (_HF_DINOV3_LAYER + r"mlp\.up_proj", r"blocks.\1.mlp.w2"),
    (_HF_DINOV3_LAYER + r"mlp\.down_proj", r"blocks.\1.mlp.w3"),
]
HF_RESNET = [
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    *(
        (rf"encoder\.stages\.{s}\.layers\.(\d+)\.{theirs}", rf"layer{s + 1}.\1.{ours}")
        for s in range(4)
        for theirs, ours in (
            *((rf"layer\.{k}\.convolution", f"conv{k + 1}") for k in range(3)),
            *((rf"layer\.{k}\.normalization", f"bn{k + 1}") for k in range(3)),
            (r"shortcut\.convolution", "downsample.0"),
            (r"shortcut\.normalization", "downsample.1"),
        )
    ),
]
_HF_CONVNEXT_BLOCK = {
    "dwconv": "conv_dw",
    "layernorm": "norm",
    r"pwconv([12])": r"mlp.fc\3",
    "layer_scale_parameter": "gamma",
    "grn": "mlp.grn",
}
HF_CONVNEXT = [
    (r"embeddings\.patch_embeddings", "stem.0"),
    (r"embeddings\.layernorm", "stem.1"),
    (r"encoder\.stages\.(\d)\.downsampling_layer\.([01])", r"stages.\1.downsample.\2"),
    *(
        (rf"encoder\.stages\.(\d)\.layers\.(\d+)\.{theirs}", rf"stages.\1.blocks.\2.{ours}")
        for theirs, ours in _HF_CONVNEXT_BLOCK.items()
    ),
    ("layernorm", "head.norm"),
]


def _merge_attention(
    rules: Rules, parts: Sequence[str] = ("query", "key", "value"), unbiased: str = ""
) -> Callable[[State], State]:
    """Rename by `rules`, then merge query, key and value to one layer.

    The part `unbiased` has no bias in the file; its bias becomes 0.
    """
    renamed = compile_rules(rules)

    def translate(state: State) -> State:
        state = renamed(state)
        for stem in [
            key.removesuffix(f"{parts[0]}.weight")
            for key in state
            if key.endswith(f".attn.{parts[0]}.weight")
        ]:
            for end in ("weight", "bias"):
                names = [f"{stem}{part}.{end}" for part in parts]
                present = [state[name] for name in names if name in state]
                lacking = [
                    part for part, name in zip(parts, names, strict=True) if name not in state
                ]
                if len({value.shape for value in present}) != 1 or (
                    lacking and (end, lacking) != ("bias", [unbiased])
                ):
                    continue  # the strict comparison reports the error
                state[f"{stem}qkv.{end}"] = torch.cat(
                    [state.pop(n, torch.zeros_like(present[0])) for n in names]
                )
        return state

    return translate


def _hf_dinov3(state: State) -> State:
    gated = any(".mlp.gate_proj." in key for key in state)
    return _merge_attention(
        [*HF_DINOV3, *(_HF_GATED_MLP if gated else _HF_PLAIN_MLP)], ("q", "k", "v"), "k"
    )(state)


def _hf_convnext(state: State) -> State:
    """Rename a ConvNeXt, and flatten version 2's response norm from [1, 1, 1, C] to [C]."""
    return {
        key: value.flatten() if ".grn." in key else value
        for key, value in compile_rules(HF_CONVNEXT)(state).items()
    }


def _timm_vit_blocks(state: State) -> State:
    """Rename blocks.CHUNK.BLOCK, whose blocks are numbered through all chunks."""
    return compile_rules([(r"blocks\.\d+\.(\d+)", r"blocks.\1")])(state)


KEY_MAPS = (
    KeyMap(
        "lightly's small ResNet in a row",
        ("0.weight", "1.running_mean", "2.0.conv1.weight"),
        compile_rules(SMALL_SEQUENTIAL),
        unlike=(
            "lightly's ResNet for CIFAR as a row of parts leaves out the first ReLU, so none of"
            " timm's computes the same"
        ),
    ),
    KeyMap(
        "a ResNet's parts in a row",
        ("0.weight", "1.running_mean", "4.0.conv1.weight"),
        compile_rules(SEQUENTIAL),
    ),
    KeyMap(
        "kuangliu's ResNet for CIFAR",
        ("conv1.weight", "layer2.0.shortcut.0.weight"),
        compile_rules(SHORTCUT),
    ),
    KeyMap(
        "transformers' ViT",
        ("embeddings.cls_token", "encoder.layer.0.layernorm_before.weight"),
        _merge_attention(HF_VIT),
    ),
    KeyMap(
        "transformers' DINOv2",
        ("embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"),
        _merge_attention(HF_DINOV2),
    ),
    KeyMap(
        "transformers' DINOv3",
        ("embeddings.register_tokens", "layer.0.layer_scale1.lambda1"),
        _hf_dinov3,
    ),
    KeyMap(
        "transformers' DINOv3",
        ("embeddings.register_tokens", "model.layer.0.layer_scale1.lambda1"),
        _hf_dinov3,
    ),
    KeyMap(
        "transformers' ResNet", ("embedder.embedder.convolution.weight",), compile_rules(HF_RESNET)
    ),
    KeyMap("transformers' ConvNeXt", ("encoder.stages.0.layers.0.dwconv.weight",), _hf_convnext),
    KeyMap("DINOv2's training", ("cls_token", "blocks.0.0.attn.qkv.weight"), _timm_vit_blocks),
    KeyMap(
        "torchvision's ViT",
        ("class_token", "conv_proj.weight"),
        compile_rules(TORCHVISION_VIT),
        ("vit_base_*", "vit_large_*", "vit_huge_*"),
    ),
    # Its smaller ViTs exist with several numbers of heads, which the tensors do not show.
    KeyMap(
        "OpenMMLab's ViT",
        ("cls_token", "patch_embed.projection.weight"),
        compile_rules(MM_VIT),
        ("vit_base_*", "vit_large_*"),
    ),
    KeyMap(
        "torchvision's ConvNeXt",
        ("features.1.0.layer_scale",),
        _torchvision_convnext,
        ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    ),
    # torchvision's larger ones and its MobileNetV3s differ from timm's in batch norm's epsilon.
    KeyMap(
        "torchvision's EfficientNet",
        ("features.1.0.block.1.fc1.weight", "features.8.0.weight"),
        _torchvision_efficientnet,
        ("efficientnet_b[0-4]",),
    ),
    KeyMap(
        "torchvision's MobileNetV2",
        ("features.1.conv.0.0.weight", "features.18.0.weight"),
        _torchvision_mobilenet_v2,
        ("mobilenetv2_100",),
    ),
    # These use TensorFlow's padding and epsilon, as timm's networks whose names begin with tf_.
    KeyMap(
        "EfficientNet-PyTorch",
        ("_conv_stem.weight", "_blocks.0._se_reduce.weight"),
        _efficientnet_pytorch,
        ("tf_efficientnet_b?",),
    ),
    KeyMap(
        "EfficientNet-Lite for PyTorch",
        ("_conv_stem.weight", "_blocks.0._bn1.weight"),
        _efficientnet_pytorch,
        ("tf_efficientnet_lite?",),
    ),
)


def map_keys(state: State) -> tuple[State, KeyMap | None]:
    """Rename a state dict to timm's names; returns the key map too, or None if none applies."""
    key_map = next((k for k in KEY_MAPS if k.matches(state)), None)
    return (key_map.translate(state), key_map) if key_map else (state, None)
