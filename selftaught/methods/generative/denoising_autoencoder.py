"""Denoising autoencoder (Vincent et al., 2008, https://doi.org/10.1145/1390156.1390294)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selftaught.method import Batch, Setup
from selftaught.methods.parts.noise import draw_normal
from selftaught.methods.parts.reconstruction import Damage, Reconstruction, Targets
from selftaught.ranges import Positive, Share


class DenoisingAutoencoder(Reconstruction):
    """Rebuild an image from a noisy copy of it."""

    paper = "Vincent et al., 2008, https://doi.org/10.1145/1390156.1390294"

    @dataclass(frozen=True, kw_only=True)
    class Config(Reconstruction.Config):
        # pixels that become black; normal noise; pixels whose values become 0 or 1
        noise: Literal["masking", "gaussian", "salt-and-pepper"] = "masking"
        share: Share = 0.25  # of the pixels that are lost; not for gaussian
        sigma: Positive = 0.25  # of gaussian, where an image has values in [0, 1]

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config

    def draw_damage(self, batch: Batch) -> Damage:
        view, c = batch.views[0], self.config
        if c.noise == "gaussian":
            normal = draw_normal(batch, view.shape[1:], "noise")
            return torch.ones_like(view[:, :1]), c.sigma * normal
        places = batch.random(view.shape[2:], "places")[:, None]
        keep = (places >= c.share).to(view.dtype)
        if c.noise == "masking":
            return keep, torch.zeros_like(keep)
        values = (batch.random(view.shape[1:], "values") < 0.5).to(view.dtype)
        return keep, values * (1 - keep)

    def weigh(self, keep: Tensor) -> Tensor:
        return torch.ones_like(keep)

    def loss(self, predictions: Tensor, targets: Targets) -> Tensor:
        return self.error(predictions, targets)
