"""Mixed views: two images in one, whose losses are weighted in the same proportion."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.devices import to_device
from selftaught.hard.base import HardExample, objective
from selftaught.method import Method, Tensors, leaves, map_tensors
from selftaught.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class Mixed(HardExample):
    """share * loss(mixed, own targets) + (1 - share) * loss(mixed, the partner's targets).

    A method with `mix_targets` has one loss instead, with its own mixture of both targets.
    """

    min_batch: ClassVar[int] = 2  # a single image would be mixed with itself
    alpha: Positive = 1.0  # of the Beta distribution of shares

    def loss(
        self,
        method: Method,
        inputs: Tensors,
        targets: Tensors,
        rng: torch.Generator,
        input_grad: Tensors | None,
    ) -> Tensor:
        mask = self.draw_mask(inputs, rng)
        predictions = method.predict(blend(inputs, mask))
        partners = map_tensors(partner, targets)
        mixed_targets = method.mix_targets(targets, partners, mask)
        if mixed_targets is not None:
            return objective(method, predictions, mixed_targets)
        share = mask.mean().item()
        own = objective(method, predictions, targets)
        return share * own + (1 - share) * objective(method, predictions, partners)

    def mix(self, inputs: Tensors, rng: torch.Generator) -> tuple[Tensors, float]:
        """Mix every image with its partner: return the images, and the exact share of their own."""
        mask = self.draw_mask(inputs, rng)
        return blend(inputs, mask), mask.mean().item()

    def draw_mask(self, inputs: Tensors, rng: torch.Generator) -> Tensor:
        """Draw a mask of the size of the first view."""
        return self.mask(rng, tuple(leaves(inputs)[0].shape[-2:]))

    def share(self, rng: torch.Generator) -> float:
        """Draw a share from Beta(alpha, alpha)."""
        concentration = torch.full((2,), self.alpha, dtype=torch.float64)
        return torch._sample_dirichlet(concentration, generator=rng)[0].item()

    @abstractmethod
    def mask(self, rng: torch.Generator, size: tuple[int, ...]) -> Tensor:
        """Draw one mask for the whole batch: [H, W] or [1, 1], the share in [0, 1] of the image."""


class MixUp(Mixed):
    """A weighted average of two images (Zhang et al., 2018)."""

    def mask(self, rng: torch.Generator, size: tuple[int, ...]) -> Tensor:
        return torch.full((1, 1), self.share(rng), dtype=torch.float64)


class CutMix(Mixed):
    """A rectangle of one image pasted into another (Yun et al., 2019)."""

    def mask(self, rng: torch.Generator, size: tuple[int, ...]) -> Tensor:
        side = (1 - self.share(rng)) ** 0.5
        inside = []
        # The border may cut the box. `mix` takes the share from the mask, so it stays exact.
        for length in size:
            centre = torch.rand((), generator=rng, dtype=torch.float64)
            place = (torch.arange(length, dtype=torch.float64) + 0.5) / length
            inside.append((place - centre).abs() < side / 2)
        return 1 - torch.outer(*inside).double()


def blend(inputs: Tensors, mask: Tensor) -> Tensors:
    """Blend every image with its partner. `mask`: the share of its own at each pixel."""
    return map_tensors(lambda x: torch.lerp(partner(x), x, spread(mask, x)), inputs)


def partner(x: Tensor) -> Tensor:
    """[B, ...] -> [B, ...]: each image's neighbour in the batch, which is shuffled already.

    Pairs of neighbours stay together when the batch is split into even parts. So k processes mix
    the same images as one process.
    """
    order = torch.arange(len(x), device=x.device) ^ 1
    if len(x) % 2:
        order[-1] = max(len(x) - 2, 0)  # the last image of an odd batch uses the one before it
    return x[order]


def spread(mask: Tensor, image: Tensor) -> Tensor:
    """Resize the mask [H, W] to the image's size by nearest pixels, and move it to its device."""
    if mask.numel() != 1 and mask.shape != image.shape[-2:]:
        mask = F.interpolate(mask[None, None], size=image.shape[-2:], mode="nearest-exact")[0, 0]
    return to_device(mask.to(image.dtype), image.device)
