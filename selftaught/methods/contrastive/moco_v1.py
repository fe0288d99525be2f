"""MoCo (He et al., 2019, https://arxiv.org/abs/1911.05722)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from selftaught.methods.contrastive.moco import MoCo


class MoCoV1(MoCo):
    """Momentum contrast as it began: a linear head and a sharper softmax than MoCo v2's."""

    paper = "He et al., 2019, https://arxiv.org/abs/1911.05722"
    augment: ClassVar[dict[str, float]] = {"blur": 0.0}

    @dataclass(frozen=True, kw_only=True)
    class Config(MoCo.Config):
        pass  # a class of its own, by which a run knows its method

    def head(self) -> nn.Module:
        return nn.Linear(self.backbone.features, self.config.dim)
