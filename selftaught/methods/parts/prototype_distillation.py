"""The base of DINO, iBOT and DINOv2: predict a slow teacher's distribution over prototypes."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from selftaught.losses import soft_cross_entropy
from selftaught.method import Defaults, Encoder, GroupOptions, Method, Setting, Setup
from selftaught.methods.parts.prototypes import Centering, PrototypeHead
from selftaught.models.teacher import Teacher, schedule_momentum, teacher_momentum
from selftaught.ranges import Count, Positive, Share


class PrototypeDistillation(Method):
    """A subclass builds `network` and `teacher`, and defines `predict`, `targets` and `loss`.

    Targets are log-probabilities. Their logarithm keeps what the running mean of outputs needs.
    """

    multi_crop = True

    network: nn.Module  # pixels to similarities to prototypes; the teacher is its moving average
    teacher: Teacher

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        hidden: Count = 2048
        dim: Count = 256  # of the bottleneck before the prototypes
        prototypes: Count = 65536
        temperature: Positive = 0.1  # of the student
        teacher_temperature: Positive = 0.07
        start_temperature: Positive = 0.04  # of the teacher at the start
        temperature_warmup: Share = 0.3  # share of training in which the teacher's rises
        centering: Literal["ema", "sinkhorn"] = "ema"  # against one prototype for all images
        center_momentum: Share = 0.9  # ema
        iterations: Count = 3  # sinkhorn
        momentum: Share = 0.996  # of the teacher at the start; it rises to 1 along a cosine
        freeze_last: Share = 0.01  # share of training in which prototypes stay fixed
        # share of training in which only heads learn, because random heads would harm the backbone
        head_warmup: Share = 0.0
        head_lr: Positive = 1.0  # rate of the heads, as a multiple of the backbone's

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use about twenty images a prototype, as on ImageNet, and heads by the features.

            Weights that exist are moved slowly, after new heads have learnt alone.
            """
            config = replace(
                self,
                hidden=min(self.hidden, 4 * setting.features),
                dim=min(self.dim, setting.features),
                prototypes=min(self.prototypes, max(setting.images // 20, 16)),
                momentum=teacher_momentum(self.momentum, setting.steps),
            )
            if not setting.pretrained:
                return Defaults(config=config, optimizer="adamw", lr=5e-4, clip=3.0)
            config = replace(config, head_warmup=max(self.head_warmup, 0.1), head_lr=10.0)
            return Defaults(config=config, optimizer="adamw", lr=1e-4, clip=3.0)

    config: Config

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.centering = self.build_centering()

    def build_head(self, width: int) -> PrototypeHead:
        """A head for features or patch tokens [N, width]."""
        c = self.config
        return PrototypeHead(width, c.hidden, c.dim, c.prototypes)

    def build_centering(self) -> Centering:
        c = self.config
        return Centering(c.centering, c.prototypes, c.center_momentum, c.iterations)

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature at this point of training."""
        c = self.config
        share = min(self.progress / c.temperature_warmup, 1) if c.temperature_warmup else 1
        return c.start_temperature + (c.teacher_temperature - c.start_temperature) * share

    def class_targets(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The teacher's outputs [2 * B, K] -> log-probabilities [B, K] of each large view."""
        log_p: Tensor = self.centering(outputs, self.teacher_temperature)
        return log_p.chunk(self.views)

    def class_loss(self, logits: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        """Every view predicts the distribution of each large view but its own (equation 3)."""
        pairs = [
            soft_cross_entropy(logit / self.config.temperature, target.exp())
            for t, target in enumerate(targets)
            for v, logit in enumerate(logits)
            if v != t
        ]
        return torch.stack(pairs).mean()

    def collapsed_loss(self, batch_size: int) -> float:
        return math.log(self.config.prototypes)

    def parameter_groups(self) -> dict[str, GroupOptions]:
        heads = [n for n, m in self.network.named_children() if not isinstance(m, Encoder)]
        return {f"network.{name}": {"lr_factor": self.config.head_lr} for name in heads}

    def judged(self) -> Encoder:
        """The teacher's backbone, which the papers evaluate: it is better throughout training."""
        return next(m for m in self.teacher.modules() if isinstance(m, Encoder))

    def after_backward(self) -> None:
        """Remove gradients of what does not move yet; optimizers then skip it, decay included."""
        if self.progress < self.config.freeze_last:
            for module in self.network.modules():
                if isinstance(module, PrototypeHead):
                    module.prototypes.weight.grad = None
        if self.progress < self.config.head_warmup:
            for p in self.backbone.parameters():
                p.grad = None

    def follow(self, targets: tuple[Tensor, ...]) -> None:
        """Move the teacher and the running mean of its outputs. `targets`: of each large view."""
        self.centering.follow(torch.cat(targets), self.teacher_temperature)
        self.teacher.follow(self.network, schedule_momentum(self.config.momentum, self.progress))
