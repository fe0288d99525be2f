"""MoCo v2 (Chen et al., 2020, https://arxiv.org/abs/2003.04297)."""

from dataclasses import dataclass
from typing import Self

from torch import nn

from selftaught.method import Defaults, Setting
from selftaught.methods.contrastive.moco import MoCo
from selftaught.models.layers import mlp
from selftaught.ranges import Count, Positive


class MoCoV2(MoCo):
    """MoCo with a head of two layers, which finds an image's key among a queue of past keys."""

    paper = "Chen et al., 2020, https://arxiv.org/abs/2003.04297"

    @dataclass(frozen=True, kw_only=True)
    class Config(MoCo.Config):
        hidden: Count = 2048
        temperature: Positive = 0.2

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use those of MoCo, and a head as wide as the features."""
            return super().defaults(setting).replace_config(hidden=setting.features)

    def build_head(self) -> nn.Module:
        return mlp(self.backbone.features, self.config.hidden, self.config.dim, batch_norm=False)
