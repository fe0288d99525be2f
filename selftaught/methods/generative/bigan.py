"""BiGAN (Donahue et al., 2017, https://arxiv.org/abs/1605.09782)."""

from dataclasses import dataclass

from torch import Tensor

from selftaught.losses import discriminator_loss
from selftaught.method import Batch
from selftaught.methods.parts.bidirectional import BidirectionalGAN
from selftaught.ranges import Count


class BiGAN(BidirectionalGAN):
    """Codes of images and pictures of codes, until a discriminator cannot tell the pairs apart."""

    paper = "Donahue et al., 2017, https://arxiv.org/abs/1605.09782"
    # of the five convolutions of AlexNet, trained as the encoder, the third is the best one
    recommended_stage = 0.5

    @dataclass(frozen=True, kw_only=True)
    class Config(BidirectionalGAN.Config):
        dim: Count = 200  # numbers of a code

    def draw_codes(self, batch: Batch) -> Tensor:
        """Uniform numbers in [-1, 1)."""
        return 2 * batch.random((self.config.dim,), "codes").to(batch.views[0].dtype) - 1

    def find_codes(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return outputs

    def loss(self, predictions: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Equation 2, with the swapped labels of section 3.4 for encoder and generator."""
        image, picture, passed_image, passed_picture = predictions[:4]
        return discriminator_loss(image, picture) + discriminator_loss(passed_picture, passed_image)
