"""The same views by torchvision's operations, an image at a time: what the others are compared
with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from selftaught.views.spec import Views

# The same by torchvision
# ---------------------------------------------------------------------------


def render_reference(
    views: Views,
    pixels: Tensor | Sequence[Tensor],
    aspect: Tensor,
    sizes: list[int],
    scales: list[tuple[float, float]],
    seed: int,
) -> tuple[Tensor, ...]:
    """Such views by torchvision's operations, an image at a time on the CPU, at the images' true
    aspect.
    """
    jitter = v2.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
    makers = []
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
        makers.append(v2.Compose(steps))
    made: list[list[Tensor]] = [[] for _ in makers]
    with torch.random.fork_rng(
        devices=[]
    ):  # torchvision draws from the global generator: lend it, restore it
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        for image, wide in zip(pixels, aspect.tolist(), strict=True):
            image = image.cpu().float() / 255
            if isinstance(pixels, Tensor):  # a square: its true long side grows
                shape = [round(image.shape[-1] * max(1.0, side)) for side in (1 / wide, wide)]
                image = v2.functional.resize(image, shape, antialias=True)
            for of_kind, maker in zip(made, makers, strict=True):
                of_kind.append(maker(image).clamp(0, 1))
    device = pixels[0].device
    return tuple(torch.stack(kind).to(device, memory_format=torch.channels_last) for kind in made)
