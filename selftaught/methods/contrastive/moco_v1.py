"""MoCo (He et al., 2019, https://arxiv.org/abs/1911.05722)."""

from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from selftaught.method import Defaults, Setting
from selftaught.methods.contrastive.moco import MoCo


class MoCoV1(MoCo):
    """MoCo with a linear head, and a lower temperature than MoCo v2's."""

    paper = "He et al., 2019, https://arxiv.org/abs/1911.05722"

    @dataclass(frozen=True, kw_only=True)
    class Config(MoCo.Config):
        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use those of MoCo, and views without blur."""
            return replace(super().defaults(setting), views={"blur": 0.0})

    def build_head(self) -> nn.Module:
        return nn.Linear(self.backbone.features, self.config.dim)
