"""The pretraining of SimCLR v2 (Chen et al., 2020, https://arxiv.org/abs/2006.10029)."""

from dataclasses import dataclass

from selftaught.methods.contrastive.simclr import SimCLR
from selftaught.ranges import Count


class SimCLRV2(SimCLR):
    """SimCLR with a deeper head. `supervised` can fine-tune from the head's first layer."""

    paper = "Chen et al., 2020, https://arxiv.org/abs/2006.10029"

    @dataclass(frozen=True, kw_only=True)
    class Config(SimCLR.Config):
        layers: Count = 3
