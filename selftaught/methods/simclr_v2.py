"""SimCLR v2, its pretraining (Chen et al., 2020, https://arxiv.org/abs/2006.10029)."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from selftaught.method import Encoder
from selftaught.methods.simclr import SimCLR


class SimCLRV2(SimCLR):
    """SimCLR with a deeper head, whose first layer can be kept with the backbone."""

    paper = "Chen et al., 2020, https://arxiv.org/abs/2006.10029"

    @dataclass(frozen=True, kw_only=True)
    class Config(SimCLR.Config):
        layers: int = 3

    def trunk(self) -> Encoder:
        """The backbone with the head's first layer: what the paper fine-tunes. It shares this method's weights."""
        head = cast(nn.Sequential, self.network[1])
        return Extended(self.backbone, head[:3] if len(head) > 1 else nn.Sequential())  # linear, batch norm, ReLU


class Extended(Encoder):
    """An encoder, and a layer behind it: pixels -> features [B, width of the layer]."""

    def __init__(self, encoder: Encoder, layer: nn.Sequential) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = layer
        self.features = next((p.shape[0] for p in layer.parameters()), encoder.features)
        self.channels = encoder.channels

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layer(self.encoder(pixels))

    def with_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The map is the encoder's, from before the pooling and so from before the layer."""
        features, found = self.encoder.with_map(pixels)
        return self.layer(features), found
