"""Views: random crops, colours and blurs of whole batches, on the device; and the centre crop of
evaluation.

Over 200 lines because it holds two pipelines, the fast one and torchvision's, so that they can be
compared.

A crop, a flip, an antialiased resize and a Gaussian blur are each linear and separable, so together
they are two banded matrices an image, `rows` and `columns`: a view is rows @ image @ columns.T.
Brightness, contrast, saturation, hue and grey are affine in the colour, so in any order they are
one 3x4 matrix an image. (On a CPU large images are cropped and resized one by one.) Where that
differs from torchvision's operations one by one (`pipeline="reference"`):

- values are clamped to [0, 1] once, at the end, not after every operation (so blur and colour
commute);
- hue turns the chroma plane of YIQ, which is linear, not the hue of HSV, which is not;
- contrast takes the mean grey of the blurred crop, which is the crop's but for its reflected
border;
- crop boxes are real-valued, not rounded to pixels (it shows only in images of a few dozen pixels).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selftaught.errors import UserError
from selftaught.views.batched import render_batch
from selftaught.views.per_image import render_images
from selftaught.views.reference import render_reference
from selftaught.views.sampling import ViewParameters, sample_parameters
from selftaught.views.spec import Views

# canvas side from which, on a CPU, resizing images one by one is quicker than matrix products
SINGLY_FROM = 120


NEVER = 1 << 30  # what is evaluated is the same on every device


class Augment:
    """Makes the views of whole batches.

    A call takes pixels uint8 [B, 3, C, C] (whole images, squashed to squares; on the CPU also B
    tensors [3, h, w] of their own sizes), their aspect [B] (true width / height, best left on the
    CPU) and a CPU generator. It returns `large` views [B, 3, size, size], then `small` ones [B, 3,
    small_size, small_size]: float32 in [0, 1], channels_last, on the pixels' device. All chance
    comes from the generator, in one order that depends on neither the device nor the values drawn.
    """

    def __init__(self, views: Views, size: int) -> None:
        if size < 1:
            raise UserError(f"views of {size} pixels: the size must be 1 or more")
        self.views = views
        self.size = size
        self.small_size = views.small_size or max(2, size // 4 * 2)

    @torch.no_grad()
    def __call__(
        self, pixels: Tensor | Sequence[Tensor], aspect: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        views = self.views
        sizes = [self.size] * views.large + [self.small_size] * views.small
        scales = [views.scale] * views.large + [views.small_scale] * views.small
        aspect = aspect.detach().cpu().float()
        if views.pipeline == "reference":
            seed = int(torch.randint(2**62, (), generator=generator))
            return render_reference(views, pixels, aspect, sizes, scales, seed)
        with torch.autocast("cpu", enabled=False):
            draws = sample_parameters(views, aspect, scales, generator)
        return _render(pixels, draws, sizes, math.ceil(3 * views.blur_sigma[1]), SINGLY_FROM)


@torch.no_grad()
def centre(
    pixels: Tensor | Sequence[Tensor], aspect: Tensor, size: int, share: float = 1.0
) -> Tensor:
    """The centre square of `share` (above 0, at most 1) of the short side, antialiased: what
    evaluation sees.

    pixels and aspect as `Augment` takes them -> [B, 3, size, size] float32 in [0, 1],
    channels_last.
    """
    if not 0 < share <= 1:
        raise UserError(
            f"a centre crop of {share} of the short side: the share must be above 0 and at most 1"
        )
    aspect = aspect.detach().cpu().float()
    # height, width
    shape = share * torch.stack([aspect.clamp(max=1), (1 / aspect).clamp(max=1)], 1)
    never = torch.zeros(len(aspect), dtype=torch.bool)
    plain = torch.stack([torch.eye(3), torch.zeros(3, 3)])[:, None].expand(2, len(aspect), 3, 3)
    draw = ViewParameters(
        torch.cat([(1 - shape) / 2, shape], 1), never, plain, never.float(), never
    )
    return _render(pixels, [draw], [size], 0, NEVER)[0]


# What is done with it: whole batches on a device, or image by image on a CPU
# -------------------------


def _render(
    pixels: Tensor | Sequence[Tensor],
    draws: list[ViewParameters],
    sizes: list[int],
    radius: int,
    singly_from: int,
) -> tuple[Tensor, ...]:
    """For each draw a view [B, 3, size, size] of each image; blurs reach `radius` pixels of the
    view. On a CPU canvases of a side of `singly_from` or more are worked on one by one.
    """
    device = pixels.device.type if isinstance(pixels, Tensor) else "cpu"
    with torch.autocast(device, enabled=False):  # 8 bits of mantissa would merge grey levels
        if isinstance(pixels, Tensor) and (device != "cpu" or pixels.shape[-1] < singly_from):
            return render_batch(pixels, draws, sizes, radius)
        return render_images(list(pixels), draws, sizes, radius)
