"""A small decoder: from the map and the features of a backbone to values at every place."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Encoder
from selftaught.models.layers import resize


class Decoder(nn.Module):
    """Features [B, D] and their map [B, C, h, w] -> values [B, `outputs`, H, W] of any size.

    Each block enlarges the map by the same factor, so it fits every backbone and size of view. The
    features are added at every place: a place knows the whole image, and the layers behind the map
    learn, too. There is no connection from earlier stages, which would make the last ones needless.
    hidden: channels of the first block; later ones have a half and a quarter. Raises UserError for
    a backbone without a map.
    """

    def __init__(self, backbone: Encoder, hidden: int, outputs: int) -> None:
        super().__init__()
        if not backbone.has_map:
            raise UserError(
                "this method needs a backbone that gives maps, and this one gives none: take a"
                " network of timm, or add forward_features and forward_head to your own"
            )
        widths = [hidden, hidden, max(hidden // 2, 1), max(hidden // 4, 1)]
        self.enter = nn.Conv2d(backbone.channels, hidden, 1)
        self.whole = nn.Linear(backbone.features, hidden, bias=False)
        self.blocks = build_blocks(widths)
        self.leave = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, features: Tensor, feature_map: Tensor, size: Sequence[int]) -> Tensor:
        """Return values of `size`, (H, W). Raises UserError for a map of one place."""
        start = tuple(feature_map.shape[2:])
        if start == (1, 1):
            raise UserError(
                "the feature map of a view has only one place: take larger views (--size), or"
                " --stem cifar"
            )
        x = F.relu(self.enter(feature_map) + self.whole(features)[:, :, None, None])
        values: Tensor = self.leave(enlarge(x, self.blocks, size))
        return values


def build_blocks(widths: Sequence[int]) -> nn.ModuleList:
    """Build blocks of a convolution each, for `enlarge`: from `widths` channels to the next."""
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in pairwise(widths)
    )


def enlarge(x: Tensor, blocks: nn.ModuleList, size: Sequence[int]) -> Tensor:
    """Enlarge a map [B, C, h, w] to `size` by equal factors, one before each block."""
    start = x.shape[2:]
    for number, block in enumerate(blocks, 1):
        share = number / len(blocks)
        x = block(
            resize(x, [round(s * (t / s) ** share) for s, t in zip(start, size, strict=True)])
        )
    return x
