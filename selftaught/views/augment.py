"""Views: random crops, colours and blurs of whole batches, and the centre crop of evaluation.

Crop, flip, antialiased resize and Gaussian blur are linear and separable. Together they are two
banded matrices an image: a view is rows @ image @ columns.T. Brightness, contrast, saturation, hue
and grey are affine in the colour. In any order they are one 3x4 matrix an image. On a CPU, large
images are cropped and resized one by one instead. The results differ from torchvision's operations
(`pipeline="reference"`) in these points:

- Values are clamped to [0, 1] once, at the end, and not after every operation.
- Hue rotates the chroma plane of YIQ, which is linear, and not the hue of HSV.
- Contrast uses the mean grey of the blurred crop. It differs from that of the crop by the reflected
  border.
- Crop boxes are real-valued and not rounded to pixels. This is visible only in images of a few
  dozen pixels.
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

# Side of the canvas from which, on a CPU, resizing images one by one is faster.
SINGLY_FROM = 120
NEVER = 1 << 30  # for evaluation, whose pipeline is the same on every device


class Augment:
    """Makes the views of whole batches.

    A call takes three arguments:

    - pixels: uint8 [B, 3, C, C], whole images resized to squares. On the CPU, also B tensors [3, h,
      w] of different sizes.
    - aspect [B]: true width / height, preferably on the CPU.
    - a generator of the CPU. All random numbers come from it, in an order that depends on neither
      the device nor the values.

    It returns `large` views [B, 3, size, size], then `small` views [B, 3, small_size, small_size].
    Views are float32 in [0, 1], channels_last, on the device of the pixels.
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
    """Crop the centre square of `share` of the short side and resize it, antialiased.

    pixels and aspect are as for `Augment`. Returns [B, 3, size, size] float32 in [0, 1],
    channels_last. Raises UserError unless `share` is above 0 and at most 1.
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


def _render(
    pixels: Tensor | Sequence[Tensor],
    draws: list[ViewParameters],
    sizes: list[int],
    radius: int,
    singly_from: int,
) -> tuple[Tensor, ...]:
    """Render a view [B, 3, size, size] for each of `draws`; blurs reach `radius` pixels.

    On a CPU, canvases with a side of `singly_from` or more are rendered image by image.
    """
    device = pixels.device.type if isinstance(pixels, Tensor) else "cpu"
    with torch.autocast(device, enabled=False):  # bfloat16 would merge grey levels
        if isinstance(pixels, Tensor) and (device != "cpu" or pixels.shape[-1] < singly_from):
            return render_batch(pixels, draws, sizes, radius)
        return render_images(list(pixels), draws, sizes, radius)
