"""DirectPred (Tian et al., 2021, https://arxiv.org/abs/2102.06810); DirectSet, DirectCopy (Wang et
al., 2021).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from selftaught.distributed import gather
from selftaught.losses import cosine_distance
from selftaught.method import Batch, Setup
from selftaught.methods.parts.teacher_student import TeacherStudent
from selftaught.models.layers import Counter, mlp, on_views
from selftaught.models.teacher import Teacher
from selftaught.ranges import Count, NonNegative, Positive, Range


class DirectPred(TeacherStudent):
    """BYOL with a linear predictor that is not learnt: the embeddings' correlations say what it
    is.
    """

    paper = (
        "Tian et al., 2021, https://arxiv.org/abs/2102.06810; Wang et al., 2021,"
        " https://arxiv.org/abs/2110.04947"
    )
    correlation: Tensor
    predictor: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherStudent.Config):
        predictor: Literal["directpred", "directset", "directcopy"] = "directpred"
        # added to every eigenvalue of the predictor, whose largest is 1: where it is 0, directions
        # that vanish never return
        eps: Positive = 0.1
        # of the moving average: how much of the past a step keeps
        rho: Annotated[float, Range(0, 1, open_high=True)] = 0.3
        frequency: Count = 1  # steps from one setting of the predictor to the next
        alpha: NonNegative = (
            0.5  # exponent of DirectSet; that of DirectPred is 1/2, of DirectCopy 1
        )

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
        # embeddings: the predictor, which is known, waits in the loss
        return on_views(self.network, inputs)

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([cosine_distance(z @ self.predictor, t) for z, t in pairs]).sum()

    def collapsed_loss(self, batch_size: int) -> float:
        return 0.0  # a constant that both networks agree on

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
    """F [D, D], symmetric -> the predictor: F's eigenvectors, and its eigenvalues to a power, plus
    eps (equation 18).
    """
    if config.predictor == "directcopy":  # the one that needs no eigenvectors
        length = correlation.norm().clamp_min(torch.finfo(correlation.dtype).tiny)
        return correlation / length + config.eps * torch.eye(
            len(correlation), device=correlation.device, dtype=correlation.dtype
        )
    values, vectors = torch.linalg.eigh(correlation)
    values = values.clamp_min(0) / values.max().clamp_min(torch.finfo(values.dtype).tiny)
    alpha = config.alpha if config.predictor == "directset" else 0.5
    return (vectors * (values**alpha + config.eps)) @ vectors.T
