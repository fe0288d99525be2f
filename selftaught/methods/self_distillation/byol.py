"""BYOL (Grill et al., 2020, https://arxiv.org/abs/2006.07733)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.losses import cosine_distance
from selftaught.method import Setup
from selftaught.methods.parts.teacher_student import TeacherStudent
from selftaught.models.layers import mlp, on_views
from selftaught.models.teacher import Teacher


class BYOL(TeacherStudent):
    """Predict a momentum teacher's embedding of the other view. There are no negatives."""

    paper = "Grill et al., 2020, https://arxiv.org/abs/2006.07733"

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherStudent.Config):
        """The common hyperparameters. `hidden` is also the width of the predictor."""

        @property
        def min_batch(self) -> int:
            return 2  # the predictor's batch norms get one view at a time

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.network = nn.Sequential(
            setup.backbone, mlp(setup.backbone.features, config.hidden, config.dim)
        )
        self.predictor = mlp(config.dim, config.hidden, config.dim)
        self.teacher = Teacher(self.network)

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.predictor(z) for z in on_views(self.network, inputs))

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([cosine_distance(p, t) for p, t in pairs]).sum()

    def collapsed_loss(self, batch_size: int) -> float:
        return 0.0  # both networks output the same constant
