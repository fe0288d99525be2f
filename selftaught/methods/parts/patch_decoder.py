"""The decoder of masked autoencoders: a small transformer over all patches."""

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

HEAD_WIDTH = 32  # of attention, as in the paper


class PatchDecoder(nn.Module):
    """Encoded patches at their places, a learnt token at all others -> outputs of all patches.

    The pooled features are one more token, as the class token is in the paper. So the layers that
    pool them learn, too.

    features, channels: widths of the pooled features and of the patches. width: of the decoder, a
    multiple of 32. outputs: numbers a patch.
    """

    def __init__(self, features: int, channels: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.embed_pooled = nn.Linear(features, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        heads = width // HEAD_WIDTH
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self, features: Tensor, tokens: Tensor, keep: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """features [B, D], tokens [B, K, C] of the patches `keep` [B, K] -> [B, N, outputs]."""
        x = self.embed(tokens)
        places = self.mask_token.to(x).expand(len(x), grid[0] * grid[1], -1)
        places = places.scatter(1, keep[:, :, None].expand_as(x), x)
        position = build_sincos2d_pos_embed(list(grid), x.shape[2], device=x.device, dtype=x.dtype)
        x = torch.cat([self.embed_pooled(features)[:, None], places + position], dim=1)
        outputs: Tensor = self.head(self.norm(self.blocks(x)))[:, 1:]
        return outputs
