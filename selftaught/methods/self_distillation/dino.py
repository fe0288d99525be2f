"""DINO (Caron et al., 2021, https://arxiv.org/abs/2104.14294)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.method import Batch, Setup
from selftaught.methods.parts.prototype_distillation import PrototypeDistillation
from selftaught.models.layers import on_views
from selftaught.models.teacher import Teacher


class DINO(PrototypeDistillation):
    """Predict a momentum teacher's distribution over prototypes from every other view."""

    paper = "Caron et al., 2021, https://arxiv.org/abs/2104.14294"

    @dataclass(frozen=True, kw_only=True)
    class Config(PrototypeDistillation.Config):
        """The common hyperparameters, with this paper's values."""

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.network = nn.Sequential(setup.backbone, self.build_head(setup.backbone.features))
        self.teacher = Teacher(self.network)

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return on_views(self.network, inputs)  # similarities [B, K] of each view

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.class_targets(self.teacher(torch.cat(batch.views[:2])))

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        return self.class_loss(predictions, targets)

    def after_step(
        self, batch: Batch, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> None:
        self.follow(targets)
