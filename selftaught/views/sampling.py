"""Sampling of the random parameters of views for a whole batch, on the CPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.views.spec import Views

TRIES = 10  # candidate boxes an image, as in torchvision's RandomResizedCrop

# Conversion of a colour to grey, with torchvision's weights.
GREY = torch.tensor([0.2989, 0.587, 0.114]).expand(3, 3)

# Rotation of the chroma plane, in RGB. The direction is that of HSV, from red to yellow.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TURN = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
CHROMA_TURN = torch.linalg.inv(_YIQ) @ _TURN @ _YIQ


@dataclass(frozen=True)
class ViewParameters:
    """The random parameters of one view of each of B images."""

    box: Tensor  # [B, 4] top, left, height, width as shares of the image
    flip: Tensor  # [B] bool
    # [2, B, 3, 3]: a pixel x of a crop with mean m becomes colour[0] @ x + colour[1] @ m
    colour: Tensor
    sigma: Tensor  # [B] of the blur in pixels, 0 = no blur
    solarize: Tensor  # [B] bool


def sample_parameters(
    views: Views, aspect: Tensor, scales: Sequence[tuple[float, float]], generator: torch.Generator
) -> list[ViewParameters]:
    """Sample the parameters of a view for each of `scales`; aspect [B].

    Each view uses a table of uniform numbers with a row for each image. The size of the table does
    not depend on the values.
    """
    tables = [torch.rand(len(aspect), 2 * TRIES + 16, generator=generator) for _ in scales]
    area = torch.cat(
        [
            scale_uniform(table[:, :TRIES], scale)
            for table, scale in zip(tables, scales, strict=True)
        ]
    )
    ratio, corner, order, strength, chance = torch.split(
        torch.cat(tables)[:, TRIES:], [TRIES, 2, 4, 5, 5], 1
    )
    flip, jitter, gray, blur, solarize = chance.unbind(1)
    sigma = scale_uniform(strength[:, 4], views.blur_sigma)
    box = sample_boxes(area, ratio, corner, aspect.repeat(len(scales)), views.ratio)
    colour = sample_colours(views, order, strength[:, :4], jitter < views.jitter, gray < views.gray)
    sigma = torch.where(blur < views.blur, sigma, 0.0)
    each = [
        x.split(len(aspect))
        for x in (box, flip < views.flip, colour.transpose(0, 1), sigma, solarize < views.solarize)
    ]
    return [
        ViewParameters(box=b, flip=f, colour=c.transpose(0, 1), sigma=s, solarize=z)
        for b, f, c, s, z in zip(*each, strict=True)
    ]


def scale_uniform(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Scale numbers from [0, 1] to `bounds`."""
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def sample_boxes(
    area: Tensor, ratio: Tensor, corner: Tensor, aspect: Tensor, ratios: tuple[float, float]
) -> Tensor:
    """Sample boxes [B, 4] (top, left, height, width as shares) as RandomResizedCrop does.

    area [B, tries] is in shares of the image. ratio [B, tries] and corner [B, 2] are uniform in [0,
    1]. aspect [B]. The area is uniform, the ratio log-uniform. The first candidate that fits into
    the image is taken. If none fits, the largest centred box of an allowed ratio is taken.
    """
    ratio = scale_uniform(ratio, (math.log(ratios[0]), math.log(ratios[1]))).exp() / aspect[:, None]
    # In shares of the image's height and width.
    height, width = ((area / ratio).sqrt(), (area * ratio).sqrt())
    fits = (height <= 1) & (width <= 1)
    first = fits.int().argmax(1, keepdim=True)  # of equal values, argmax takes the first
    candidate = torch.cat([height.gather(1, first), width.gather(1, first)], 1)
    largest = torch.stack([(aspect / ratios[0]).clamp(max=1), (ratios[1] / aspect).clamp(max=1)], 1)
    any_fits = fits.any(1, keepdim=True)
    shape = torch.where(any_fits, candidate, largest)
    return torch.cat([(1 - shape) * torch.where(any_fits, corner, 0.5), shape], 1)


def sample_colours(
    views: Views, order: Tensor, strength: Tensor, jitter: Tensor, gray: Tensor
) -> Tensor:
    """Sample colour matrices [2, B, 3, 3], as in `ViewParameters.colour`.

    order and strength [B, 4] are uniform in [0, 1]; jitter and gray [B] are bool. Contrast adds the
    mean grey of its input, which is linear in the mean of the crop. The second matrix acts on that
    mean, so no image is needed here.
    """
    spread = torch.tensor([views.brightness, views.contrast, views.saturation])
    low, high = (1 - spread).clamp(min=0), 1 + spread
    factor = torch.where(jitter[:, None], low + (high - low) * strength[:, :3], 1.0)
    brightness, contrast, saturation = factor[:, :, None, None].unbind(1)
    angle = torch.where(jitter, 2 * math.pi * views.hue * (2 * strength[:, 3] - 1), 0.0)[
        :, None, None
    ]
    unit = torch.eye(3)
    steps = [
        brightness * unit,
        contrast * unit,
        saturation * unit + (1 - saturation) * GREY,
        GREY + angle.cos() * (unit - GREY) + angle.sin() * CHROMA_TURN,
    ]
    step = torch.stack(steps, 1)  # [B, 4, 3, 3]
    # The share of the mean grey that each step adds; only contrast does.
    mixed = torch.zeros(len(order), 4, 1, 1)
    mixed[:, 1] = 1 - contrast
    of_pixel, of_mean = unit.expand(len(order), 3, 3), torch.zeros(len(order), 3, 3)
    image = torch.arange(len(order))
    for now in order.argsort(1).unbind(1):
        of_mean = step[image, now] @ of_mean + mixed[image, now] * (GREY @ (of_pixel + of_mean))
        of_pixel = step[image, now] @ of_pixel
    colour = torch.stack([of_pixel, of_mean])
    return torch.where(gray[:, None, None], GREY @ colour, colour)
