"""Optimizers and the learning rate's course, as values."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from selftaught.distributed import is_sharded
from selftaught.errors import require

Named = Iterable[tuple[str, nn.Parameter]]
Parts = Mapping[str, Mapping[str, Any]]
NO_PARTS: Parts = {}


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    lr: float  # at its peak, for the whole batch
    weight_decay: float

    def __post_init__(self) -> None:
        require(self.lr > 0, "--optimizer.lr", "above 0", self.lr)
        require(self.weight_decay >= 0, "--optimizer.weight-decay", "0 or more", self.weight_decay)

    @abstractmethod
    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        """`parts`: options of their own for parameters, by how their names begin (see
        `method.GroupOptions`).
        """


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    lr: float = 0.06
    weight_decay: float = 5e-4
    momentum: float = 0.9

    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        found = groups(parameters, self, parts)
        # torch's fused kernel knows no shards
        fused = not any(is_sharded(group["params"]) for group in found)
        optimizer = torch.optim.SGD(
            found, lr=0.0, momentum=self.momentum, fused=fused, foreach=not fused
        )
        if (
            fused and self.momentum
        ):  # it wants them of all in a group or of none, and some norms come in later
            for p in (p for group in found for p in group["params"]):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups(parameters, self, parts), lr=0.0, betas=self.betas, fused=True
        )


@dataclass(frozen=True, kw_only=True)
class LARS(Optimizer):
    """Layer-wise rates for large batches (You et al., 2017); norms and biases take the plain
    rate.
    """

    lr: float = 0.3
    weight_decay: float = 1e-6
    momentum: float = 0.9
    trust: float = 0.001

    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = Lars(
            groups(parameters, self, parts), lr=0.0, momentum=self.momentum, trust_coeff=self.trust
        )
        return optimizer


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW, "lars": LARS}


def groups(
    parameters: Named, optimizer: Optimizer, parts: Parts = NO_PARTS
) -> list[dict[str, Any]]:
    """Weights, which decay, and norms and biases, which do not: of all that is in no part, then of
    each part. Raises ValueError for a part that has no parameters.
    """
    found: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, w): [] for part in ("", *parts) for w in (True, False)
    }
    empty = set(parts)
    for name, p in parameters:
        part = next((part for part in parts if name == part or name.startswith(f"{part}.")), "")
        empty.discard(part)
        if p.requires_grad:
            found[part, p.ndim > 1].append(p)
    if empty:
        raise ValueError(f"no parameter's name begins with {' or '.join(sorted(empty))}")
    return [
        group(ps, weights, optimizer, parts.get(part, {}))
        for (part, weights), ps in found.items()
        if ps
    ]


def group(
    parameters: list[nn.Parameter], weights: bool, optimizer: Optimizer, options: Mapping[str, Any]
) -> dict[str, Any]:
    """A group as torch's optimizers take it; `loop` reads `peak` and `steady`, and checkpoints hold
    both.
    """
    own = {"betas": options["betas"]} if "betas" in options else {}
    return {
        "params": parameters,
        "peak": optimizer.lr * options.get("lr_factor", 1.0),
        "steady": options.get("constant_lr", False),
        "weight_decay": options.get("weight_decay", optimizer.weight_decay) if weights else 0.0,
        "always_adapt": weights,  # the last: for LARS
        **own,
    }


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine; shares of the peak as a function of progress in [0,
    1].
    """

    warmup: float = 0.05  # share of training
    final: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.warmup <= 1, "--schedule.warmup", "a share of training", self.warmup)
        require(0 <= self.final <= 1, "--schedule.final", "a share of the peak", self.final)

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        rest = (progress - self.warmup) / max(1 - self.warmup, 1e-9)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(rest, 1.0))) / 2
