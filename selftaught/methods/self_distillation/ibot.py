"""iBOT (Zhou et al., 2022, https://arxiv.org/abs/2111.07832)."""

from dataclasses import dataclass

from torch import Tensor

from selftaught.methods.parts.masked_distillation import MaskedDistillation, Predictions, Targets
from selftaught.ranges import Count


class IBOT(MaskedDistillation):
    """DINO, and the teacher's distributions of masked patches, predicted from the others."""

    paper = "Zhou et al., 2022, https://arxiv.org/abs/2111.07832"

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedDistillation.Config):
        prototypes: Count = 8192

    def loss(self, predictions: Predictions, targets: Targets) -> Tensor:
        logits, patches, _ = predictions
        return self.class_loss(logits, targets[0]) + self.patch_loss(patches, targets)

    def collapsed_loss(self, batch_size: int) -> float:
        return 2 * super().collapsed_loss(batch_size)
