"""BigBiGAN (Donahue & Simonyan, 2019, https://arxiv.org/abs/1907.02544)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from selftaught.method import Batch
from selftaught.methods.parts.bidirectional import BidirectionalGAN
from selftaught.methods.parts.noise import draw_normal
from selftaught.ranges import Count


class BigBiGAN(BidirectionalGAN):
    """BiGAN with a random code of each image, and with scores of images and of codes alone, too."""

    paper = "Donahue & Simonyan, 2019, https://arxiv.org/abs/1907.02544"
    outputs_per_code = 2  # a mean and a deviation
    scores_alone = True

    @dataclass(frozen=True, kw_only=True)
    class Config(BidirectionalGAN.Config):
        dim: Count = 120  # numbers of a code
        # updates of the discriminator for each one of encoder and generator
        discriminator_steps: Count = 2

    def draw_codes(self, batch: Batch) -> Tensor:
        """Normal numbers."""
        return draw_normal(batch, (self.config.dim,), "codes")

    def find_codes(self, outputs: Tensor, noise: Tensor) -> Tensor:
        mean, deviation = outputs.chunk(2, dim=1)
        return mean + F.softplus(deviation) * noise

    def loss(self, predictions: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """A hinge of each score for the discriminator, plain scores for encoder and generator."""
        image, picture, passed_image, passed_picture = predictions[:4]
        hinges = F.relu(1 - image) + F.relu(1 + picture)
        return (hinges + passed_image - passed_picture).sum(1).mean()
