"""The base of BiGAN and BigBiGAN: an encoder and a generator against one discriminator of pairs."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from selftaught.method import (
    Batch,
    Defaults,
    Fixed,
    GroupOptions,
    Illustration,
    Method,
    Setting,
    Setup,
)
from selftaught.methods.parts.gan_networks import Generator, PairDiscriminator
from selftaught.methods.parts.noise import draw_normal
from selftaught.methods.parts.two_player import (
    ADAM,
    call_detached,
    call_pure,
    update_spectral_norms,
)
from selftaught.models.layers import Counter
from selftaught.ranges import Count

# The discriminator's rate, of the others' (two time scales: Heusel et al., 2017). Encoder and
# generator move towards each other, and can pass each other before a slow discriminator notices.
DISCRIMINATOR_RATE = 4.0
# of AdamW, as in BigBiGAN
NO_MOMENTUM: GroupOptions = {"betas": (0.0, 0.999)}

Inputs = tuple[Tensor, Fixed, Fixed]  # views [B, 3, H, W]; codes and noise, [B, dim] each


class BidirectionalGAN(Method):
    """An image with its code, and a code with its picture: a discriminator tells the two apart.

    The encoder, of which the backbone is kept, finds an image's code. The generator makes a code's
    picture. Both learn to be taken for each other, and then invert each other.
    """

    views = 1
    outputs_per_code: ClassVar[int] = 1  # outputs of the encoder for each number of a code
    scores_alone: ClassVar[bool] = False  # the discriminator also scores pictures and codes alone

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        dim: Count = 64  # numbers of a code
        hidden: Count = 64  # channels of the generator's first map, width of the discriminator
        # updates of the discriminator for each one of encoder and generator
        discriminator_steps: Count = 1

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use crops and flips alone."""
            views = {"scale": (0.5, 1.0), "jitter": 0.0, "gray": 0.0, "blur": 0.0}
            return Defaults(config=self, views=views, optimizer="adamw", lr=1.6e-3)

        @property
        def two_player(self) -> bool:
            return True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.encoder = nn.Linear(setup.backbone.features, self.outputs_per_code * config.dim)
        self.generator = Generator(config.dim, config.hidden)
        self.discriminator = PairDiscriminator(config.dim, config.hidden, self.scores_alone)
        self.updates = Counter()

    @abstractmethod
    def draw_codes(self, batch: Batch) -> Tensor:
        """Draw codes [B, dim] from `batch.random`."""

    @abstractmethod
    def find_codes(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return the codes [B, dim] of images: from outputs of the encoder, and normal noise.

        Noise of 0 gives the mean codes.
        """

    def inputs(self, batch: Batch) -> Inputs:
        noise = draw_normal(batch, (self.config.dim,), "encoder")
        return batch.views[0], Fixed(self.draw_codes(batch)), Fixed(noise)

    def predict(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Scores [B, K] of images and of pictures, then both again with detached weights.

        In evaluation mode pictures [B, 3, H, W] of the images' mean codes follow.
        """
        view, codes, noise = inputs
        size = view.shape[2], view.shape[3]
        outputs = self.encoder(self.backbone(view))
        pictures = torch.cat([view, self.generator(codes.value, size)])
        pairs = torch.cat([self.find_codes(outputs, noise.value), codes.value])
        learnt = call_pure(self.discriminator, pictures.detach(), pairs.detach())
        passed = call_detached(self.discriminator, pictures, pairs)
        scores = *learnt.chunk(2), *passed.chunk(2)
        if self.training:
            return scores
        mean_codes = self.find_codes(outputs, torch.zeros_like(noise.value))
        return *scores, self.generator(mean_codes, size)

    def targets(self, batch: Batch, predictions: tuple[Tensor, ...]) -> Tensor:
        return batch.views[0]

    def parameter_groups(self) -> dict[str, GroupOptions]:
        generator: GroupOptions = {**ADAM, **NO_MOMENTUM}
        return {
            "backbone": NO_MOMENTUM,
            "encoder": NO_MOMENTUM,
            "generator": generator,
            "discriminator": {**generator, "lr_factor": DISCRIMINATOR_RATE},
        }

    def grade(self, predictions: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The share of the batch's other images that are farther from G(E(x)) than x is."""
        return rank_own(predictions[4], targets)

    def chance(self) -> float | None:
        return 0.5

    def illustrate(
        self, batch: Batch, predictions: tuple[Tensor, ...], targets: Tensor
    ) -> Sequence[Illustration]:
        return [
            Illustration(
                pictures={"input": view, "prediction": picture},
                text=f"nearer to its image than to {100 * grade:.0f} % of the others",
            )
            for view, picture, grade in zip(
                targets, predictions[4], self.grade(predictions, targets).tolist(), strict=True
            )
        ]

    def after_backward(self) -> None:
        """Let encoder and generator rest in steps that are the discriminator's alone."""
        if self.updates.value % self.config.discriminator_steps:
            for name, parameter in self.named_parameters():
                if not name.startswith("discriminator."):
                    parameter.grad = None

    def after_step(self, batch: Batch, predictions: tuple[Tensor, ...], targets: Tensor) -> None:
        update_spectral_norms(self.discriminator)
        self.updates.value += 1


def rank_own(pictures: Tensor, images: Tensor) -> Tensor:
    """The share of the other images that are farther from a picture than its own image is, [B].

    Both are [B, 3, H, W]. Ties count as one half. Of one image, without others, it is .5.
    """
    distances = torch.cdist(
        pictures.flatten(1), images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    own = distances.diagonal()[:, None]
    ties = (distances == own).to(distances.dtype) / 2
    farther = ((distances > own) + ties).sum(1) - 0.5  # without itself
    others = len(images) - 1
    return farther / others if others else farther + 0.5
