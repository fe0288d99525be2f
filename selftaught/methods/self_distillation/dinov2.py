"""DINOv2 (Oquab et al., 2023, https://arxiv.org/abs/2304.07193)."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from selftaught.losses import KOLEO_EPS, koleo
from selftaught.methods.parts.masked_distillation import MaskedDistillation, Predictions, Targets
from selftaught.ranges import NonNegative, Share


class DINOv2(MaskedDistillation):
    """DINO and iBOT with a head each, balanced targets, and features spread by KoLeo."""

    paper = "Oquab et al., 2023, https://arxiv.org/abs/2304.07193"
    couples_samples = True  # targets are balanced over the batch, and KoLeo compares its features

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedDistillation.Config):
        centering: Literal["ema", "sinkhorn"] = "sinkhorn"
        separate_heads: bool = True
        momentum: Share = 0.992
        koleo: NonNegative = 0.1  # weight of KoLeo on the first view's features

        @property
        def min_batch(self) -> int:
            return 2  # a sample needs another one

    config: Config

    def loss(self, predictions: Predictions, targets: Targets) -> Tensor:
        logits, patches, features = predictions
        loss = self.class_loss(logits, targets[0]) + self.patch_loss(patches, targets)
        return loss + self.config.koleo * koleo(features)

    def collapsed_loss(self, batch_size: int) -> float:
        return 2 * super().collapsed_loss(batch_size) - self.config.koleo * math.log(KOLEO_EPS)
