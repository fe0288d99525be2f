"""Distributions over prototypes: the head of DINO and iBOT, and the centring of its outputs."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.distributed import all_reduce_sum, gather, local_chunk
from selftaught.losses import sinkhorn
from selftaught.models.layers import unit


class PrototypeHead(nn.Module):
    """Features [..., D] -> cosine similarities to prototypes [..., K] (Caron et al., 2021, 3.1).

    An MLP of three layers, a bottleneck of `dim` numbers, and prototypes of unit norm.
    """

    def __init__(self, features: int, hidden: int, dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, dim),
        )
        self.prototypes = nn.Linear(dim, prototypes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        bottleneck = unit(self.mlp(features), dim=-1)
        # temperatures divide the similarities by less than a tenth, so bf16 is too coarse
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(bottleneck, F.normalize(self.prototypes.weight, dim=1))


class Centering(nn.Module):
    """Turns a teacher's outputs into log-probabilities of which no prototype takes all.

    ema: a running mean of the outputs is subtracted, then softmax (Caron et al., 2021, section 3).
    sinkhorn: prototypes are balanced over the global batch (Oquab et al., 2023, section 4).
    """

    center: Tensor

    def __init__(
        self, kind: Literal["ema", "sinkhorn"], prototypes: int, momentum: float, iterations: int
    ) -> None:
        super().__init__()
        self.kind = kind
        self.momentum = momentum
        self.iterations = iterations
        self.register_buffer("center", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, outputs: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
        """outputs [N, K] -> log-probabilities [N, K]. Only the rows `valid` [N] are balanced."""
        if self.kind == "ema":
            return ((outputs - self.center) / temperature).log_softmax(1)
        rows = gather(outputs)
        share = sinkhorn(
            rows, temperature, self.iterations, None if valid is None else gather(valid.to(rows))
        )
        return local_chunk(share).log()

    @torch.no_grad()
    def follow(
        self, log_probabilities: Tensor, temperature: float, valid: Tensor | None = None
    ) -> None:
        """Move the running mean towards the outputs of log-probabilities [N, K]."""
        if self.kind != "ema":
            return
        rows = log_probabilities.to(self.center)
        weight = torch.ones_like(rows[:, 0]) if valid is None else valid.to(rows)
        count = all_reduce_sum(weight.sum())
        # The outputs minus the center, but for one number a row. That number changes no softmax.
        offset = temperature * all_reduce_sum(weight @ rows) / count.clamp_min(1)
        self.center += (1 - self.momentum) * (offset - offset.mean())
