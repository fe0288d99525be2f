"""Rendering of views by torchvision's operations, as the reference for the fast pipelines."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from selftaught.views.spec import Views


def render_reference(
    views: Views,
    pixels: Tensor | Sequence[Tensor],
    aspect: Tensor,
    sizes: list[int],
    scales: list[tuple[float, float]],
    seed: int,
) -> tuple[Tensor, ...]:
    """Render views by torchvision, an image at a time on the CPU, at the true aspect."""
    jitter = v2.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
    transforms = []
    for size, scale in zip(sizes, scales, strict=True):
        kernel = 2 * min(math.ceil(3 * views.blur_sigma[1]), size - 1) + 1
        steps = [
            v2.RandomResizedCrop(size, scale=scale, ratio=views.ratio),
            v2.RandomApply([jitter], p=views.jitter),
            v2.RandomGrayscale(p=views.gray),
            v2.RandomApply([v2.GaussianBlur(kernel, list(views.blur_sigma))], p=views.blur),
            v2.RandomSolarize(threshold=0.5, p=views.solarize),
            v2.RandomHorizontalFlip(p=views.flip),
        ]
        transforms.append(v2.Compose(steps))
    batches: list[list[Tensor]] = [[] for _ in transforms]
    # torchvision draws from the global generator, which is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for image, wide in zip(pixels, aspect.tolist(), strict=True):
            image = image.cpu().float() / 255
            if isinstance(pixels, Tensor):  # a square canvas: enlarge the true long side
                shape = [round(image.shape[-1] * max(1.0, side)) for side in (1 / wide, wide)]
                image = v2.functional.resize(image, shape, antialias=True)
            for batch, transform in zip(batches, transforms, strict=True):
                batch.append(transform(image).clamp(0, 1))
    device = pixels[0].device
    return tuple(
        torch.stack(batch).to(device, memory_format=torch.channels_last) for batch in batches
    )
