"""BYOL (Grill et al., 2020, https://arxiv.org/abs/2006.07733)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.losses import cosine_distance
from selftaught.method import Batch, Encoder, Method, Setting, Tensors
from selftaught.networks import Teacher, mlp, on_views, rising, teacher_momentum


class BYOL(Method):
    """Predict a slow teacher's embedding of the other view; no negatives."""

    paper = "Grill et al., 2020, https://arxiv.org/abs/2006.07733"
    lr = 0.2

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: int = 4096
        dim: int = 256
        momentum: float = 0.996  # of the teacher at the start; it rises to 1 along a cosine

        def suited(self, setting: Setting) -> Self:
            """A short training needs a teacher that follows sooner."""
            momentum = teacher_momentum(self.momentum, setting.steps)
            return replace(self, hidden=min(self.hidden, 2 * setting.features), momentum=momentum)

    def __init__(self, config: Config, backbone: Encoder, images: int) -> None:
        super().__init__(config, backbone, images)
        self.momentum = config.momentum
        self.backbone = backbone
        self.network = nn.Sequential(backbone, mlp(backbone.features, config.hidden, config.dim))
        self.predictor = mlp(config.dim, config.hidden, config.dim)
        self.teacher = Teacher(self.network)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.views[:2]

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.predictor(z) for z in on_views(self.network, inputs))

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, second = on_views(self.teacher, batch.views[:2])
        return second, first

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([cosine_distance(p, t) for p, t in pairs]).sum()

    def chance(self) -> float:
        return 0.0  # a constant that both networks agree on

    def after_step(self, batch: Batch, predictions: Tensors, targets: Tensors) -> None:
        self.teacher.follow(self.network, rising(self.momentum, self.progress))
