"""DirectPred (Tian et al., 2021), DirectSet and DirectCopy (Wang et al., 2021)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.distributed import gather
from selftaught.losses import cosine_distance
from selftaught.method import Batch, Setup
from selftaught.methods.parts.teacher_student import TeacherStudent
from selftaught.models.layers import Counter, mlp, on_views
from selftaught.models.teacher import Teacher
from selftaught.ranges import BelowOne, Count, NonNegative, Positive


class DirectPred(TeacherStudent):
    """BYOL with a linear predictor that is computed from the embeddings' correlations."""

    paper = (
        "Tian et al., 2021, https://arxiv.org/abs/2102.06810; Wang et al., 2021,"
        " https://arxiv.org/abs/2110.04947"
    )
    correlation: Tensor
    predictor: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherStudent.Config):
        predictor: Literal["directpred", "directset", "directcopy"] = "directpred"
        # added to every eigenvalue of the predictor, whose largest is 1; with 0, an eigenvalue that
        # reaches 0 would stay there
        eps: Positive = 0.1
        # weight of the past in the moving average of correlations
        rho: BelowOne = 0.3
        frequency: Count = 1  # steps from one update of the predictor to the next
        # exponent of DirectSet; that of DirectPred is 1/2, of DirectCopy 1
        alpha: NonNegative = 0.5

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.network = nn.Sequential(
            setup.backbone, mlp(setup.backbone.features, config.hidden, config.dim)
        )
        self.teacher = Teacher(self.network)
        self.register_buffer("correlation", torch.zeros(config.dim, config.dim))
        self.register_buffer("predictor", torch.eye(config.dim))
        self.steps = Counter()

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # embeddings; `loss` applies the predictor
        return on_views(self.network, inputs)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([cosine_distance(z @ self.predictor, t) for z, t in pairs]).sum()

    def collapsed_loss(self, batch_size: int) -> float:
        return 0.0  # both networks output the same constant

    @torch.no_grad()
    def after_step(
        self, batch: Batch, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> None:
        super().after_step(batch, predictions, targets)
        z = torch.cat([gather(p).to(self.correlation) for p in predictions])
        self.correlation.lerp_(z.T @ z / len(z), 1 - self.config.rho)
        self.steps.value += 1
        if self.steps.value % self.config.frequency == 0:
            self.predictor.copy_(direct_predictor(self.correlation, self.config))


def direct_predictor(correlation: Tensor, config: DirectPred.Config) -> Tensor:
    """Symmetric correlation F [D, D] -> predictor [D, D] (equation 18).

    It has F's eigenvectors. Its eigenvalues are those of F, by their largest, to a power, plus eps.
    """
    if config.predictor == "directcopy":  # needs no eigenvectors; the norm replaces the largest
        length = correlation.norm().clamp_min(torch.finfo(correlation.dtype).tiny)
        return correlation / length + config.eps * torch.eye(
            len(correlation), device=correlation.device, dtype=correlation.dtype
        )
    values, vectors = torch.linalg.eigh(correlation)
    values = values.clamp_min(0) / values.max().clamp_min(torch.finfo(values.dtype).tiny)
    alpha = config.alpha if config.predictor == "directset" else 0.5
    return (vectors * (values**alpha + config.eps)) @ vectors.T
