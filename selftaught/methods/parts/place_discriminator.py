"""A discriminator that tells real pictures from others, and where they are so.

Jenni & Favaro, 2018, https://arxiv.org/abs/1806.05024, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Encoder
from selftaught.models.layers import resize
from selftaught.models.stages import stage_of_stride


class PlaceDiscriminator(nn.Module):
    """Pixels [B, 3, H, W] -> logits of "real" [B], and of "real" at each place [B, h, w].

    Places are those of the last stage that has one every `stride` pixels at least. They are those
    of the final map for a backbone without stages. Raises UserError for one without a map.
    """

    def __init__(self, backbone: Encoder, stride: int) -> None:
        super().__init__()
        if not backbone.has_map:
            raise UserError(
                "spotting-artifacts needs a backbone that gives maps, and this one gives none: take"
                " a network of timm, or add forward_features and forward_head to your own"
            )
        self.backbone = backbone
        self.real = nn.Linear(backbone.features, 1)
        stage = stage_of_stride(backbone, stride)
        self.stage = stage[0] if stage else None
        self.places = nn.Conv2d(stage[1] if stage else backbone.channels, 1, 1)

    def forward(self, pixels: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        if self.stage is None:
            features, feature_map = self.backbone.with_map(pixels)
        else:
            features, _, stages = self.backbone.with_stages(pixels)
            feature_map = stages[self.stage]
        return self.real(features)[:, 0], resize(self.places(feature_map), size)[:, 0]


def rank_places(scores: Tensor, positive: Tensor) -> Tensor:
    """The share of pairs of a positive and a negative place with the right order, [B].

    scores [B, h, w]; positive [B, h, w], bool. Equal scores count half. An image whose places are
    all alike has .5, the share of random scores.
    """
    scores, positive = scores.flatten(1), positive.flatten(1)
    order = (scores[:, :, None] - scores[:, None]).sign() / 2 + 0.5
    pairs = positive[:, :, None] & ~positive[:, None]
    count = pairs.sum((1, 2))
    right = (order * pairs).sum((1, 2)) / count.clamp_min(1)
    return torch.where(count > 0, right, 0.5)
