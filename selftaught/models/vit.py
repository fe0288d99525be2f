"""Patch tokens of timm's ViTs: masked ones, and only some of them."""

from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def find_patch_size(network: nn.Module) -> tuple[int, int] | None:
    """Height and width of a patch in pixels; None for networks without patches."""
    side = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    return side if isinstance(side, tuple) else None


def patch_side(network: nn.Module) -> int:
    """Pixels of which the side of an image must be a multiple; 1 for networks without patches."""
    return (find_patch_size(network) or (1, 1))[0]


def has_tokens(network: nn.Module) -> bool:
    """Whether `compute_tokens` computes what the network's own forward pass computes."""
    if not isinstance(getattr(network, "patch_drop", None), nn.Identity | None):
        return False  # it drops patches by random numbers of its own
    for kind in (VisionTransformer, Eva):
        if isinstance(network, kind):
            own = type(network).forward_features is kind.forward_features
            return own and find_patch_size(network) is not None
    return False


def compute_tokens(
    network: Any,
    pixels: Tensor,
    mask: Tensor | None,
    mask_token: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The forward pass of timm's VisionTransformer and Eva, with masks: see `Encoder.tokens`."""
    x = network.patch_embed(pixels)  # [B, h, w, D], or [B, N, D] where the size is fixed
    if mask is not None and mask_token is not None:
        x = torch.where(mask.view(*x.shape[:-1], 1), mask_token, x)
    embedded = network._pos_embed(x)
    # Eva returns the rotary positions of the patches, too. A VisionTransformer has none.
    rotary = isinstance(embedded, tuple)
    rope: Any = None
    x, rope = embedded if rotary else (embedded, rope)
    layered = rope is not None and getattr(network, "rope_mixed", False)  # a position a block
    prefix = network.num_prefix_tokens
    if keep is not None:
        places = keep[:, :, None].expand(-1, -1, x.shape[2])
        x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, places)], dim=1)
        if rope is not None:  # [N, d] -> [B, 1, K, d]; [L, H, N, d] of L blocks -> [L, B, H, K, d]
            rope = rope[..., keep, :]
            rope = rope.transpose(1, 2) if layered else rope.unsqueeze(1)
    x = network.norm_pre(x)
    for i, block in enumerate(network.blocks):
        x = block(x, rope=rope[i] if layered else rope) if rotary else block(x)
    x = network.norm(x)
    return network.forward_head(x), x[:, prefix:]
