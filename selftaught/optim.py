"""Optimizers and learning-rate schedules, as values."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from selftaught.distributed import is_sharded
from selftaught.ranges import BelowOne, NonNegative, Positive, Share, check_ranges

Named = Iterable[tuple[str, nn.Parameter]]
Parts = Mapping[str, Mapping[str, Any]]
NO_PARTS: Parts = {}


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """The settings of an optimizer. Each kind builds torch's optimizer from them."""

    lr: Positive  # peak rate, for the whole batch
    weight_decay: NonNegative

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer")

    @abstractmethod
    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        """Build torch's optimizer.

        `parts`: options of some parameters, by prefix of their names: see `method.GroupOptions`.
        """


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    lr: Positive = 0.06
    weight_decay: NonNegative = 5e-4
    momentum: BelowOne = 0.9

    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        param_groups = groups(parameters, self, parts)
        # torch's fused kernel does not support sharded parameters
        fused = not any(is_sharded(group["params"]) for group in param_groups)
        optimizer = torch.optim.SGD(
            param_groups, lr=0.0, momentum=self.momentum, fused=fused, foreach=not fused
        )
        if self.momentum:
            # The fused kernel needs momentum buffers of all parameters in a group or of none, and a
            # sharded checkpoint can be read only if it has all. Some parts get their first gradient
            # late, so all buffers are made here.
            for p in (p for group in param_groups for p in group["params"]):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)

    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        param_groups = groups(parameters, self, parts)
        optimizer = torch.optim.AdamW(param_groups, lr=0.0, betas=self.betas, fused=True)
        # see SGD: a part that gets its first gradient late has its moments from the start
        for p in (p for group in param_groups for p in group["params"]):
            optimizer.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        return optimizer


@dataclass(frozen=True, kw_only=True)
class LARS(Optimizer):
    """Layer-wise rates for large batches (You et al., 2017). Norms and biases use `lr` itself."""

    lr: Positive = 0.3
    weight_decay: NonNegative = 1e-6
    momentum: BelowOne = 0.9
    trust: Positive = 0.001

    def build(self, parameters: Named, parts: Parts = NO_PARTS) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = Lars(
            groups(parameters, self, parts), lr=0.0, momentum=self.momentum, trust_coeff=self.trust
        )
        return optimizer


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW, "lars": LARS}


def groups(
    parameters: Named, optimizer: Optimizer, parts: Parts = NO_PARTS
) -> list[dict[str, Any]]:
    """Return torch's parameter groups: weights, which decay, apart from norms and biases.

    The groups of parameters in no part come first, then those of each part. Raises ValueError for a
    part that has no parameters.
    """
    members: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, w): [] for part in ("", *parts) for w in (True, False)
    }
    empty = set(parts)
    for name, p in parameters:
        part = next((part for part in parts if name == part or name.startswith(f"{part}.")), "")
        empty.discard(part)
        if p.requires_grad:
            members[part, p.ndim > 1].append(p)
    if empty:
        raise ValueError(f"no parameter's name begins with {' or '.join(sorted(empty))}")
    return [
        group(ps, weights, optimizer, parts.get(part, {}))
        for (part, weights), ps in members.items()
        if ps
    ]


def group(
    parameters: list[nn.Parameter], weights: bool, optimizer: Optimizer, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one parameter group of torch's optimizers.

    The training loop reads `peak` and `steady`. Checkpoints hold both keys.
    """
    own = {"betas": options["betas"]} if "betas" in options else {}
    return {
        "params": parameters,
        "peak": optimizer.lr * options.get("lr_factor", 1.0),
        "steady": options.get("constant_lr", False),
        "weight_decay": options.get("weight_decay", optimizer.weight_decay) if weights else 0.0,
        "always_adapt": weights,  # only LARS reads it
        **own,
    }


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine: progress in [0, 1] -> share of the peak rate."""

    warmup: Share = 0.05  # share of training
    final: Share = 0.0  # share of the peak rate at the end

    def __post_init__(self) -> None:
        check_ranges(self, "schedule")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        rest = (progress - self.warmup) / max(1 - self.warmup, 1e-9)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(rest, 1.0))) / 2
