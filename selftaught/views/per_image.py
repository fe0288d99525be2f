"""Rendering of views image by image, for large images on a CPU."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selftaught.views.batched import blur_kernels
from selftaught.views.sampling import ViewParameters

# Rows or columns that a blur computes at once, approximately. Larger blocks multiply more zeros,
# smaller ones need more calls.
BLOCK = 16


def render_images(
    images: Sequence[Tensor], draws: list[ViewParameters], sizes: list[int], radius: int
) -> tuple[Tensor, ...]:
    """Render views [B, 3, size, size] of images uint8 [3, h, w], which may differ in size.

    On a CPU, torch resizes 8-bit pixels ten times faster than a matrix product. Values are rounded
    to grey levels after the resize, and boxes to pixels, as in torchvision.
    """
    views = [torch.empty(len(images), size, size, 3) for size in sizes]
    renderers = [ImageRenderer(draw, out, radius) for draw, out in zip(draws, views, strict=True)]
    for i in range(len(images)):  # all views of an image while it is in the cache
        for renderer in renderers:
            renderer.render(images[i], i)
    return tuple(out.permute(0, 3, 1, 2) for out in views)


class ImageRenderer:
    """Renders one view of each image of a batch, an image at a time, with reused buffers."""

    def __init__(self, draw: ViewParameters, out: Tensor, radius: int) -> None:
        self.size = size = out.shape[1]
        self.out, self.reach = out, min(radius, size - 1)
        self.box, self.flip = draw.box.tolist(), draw.flip.tolist()
        self.has_blur = (draw.sigma > 0).tolist()
        self.of_pixel, self.of_mean = draw.colour / 255
        self.solarize = draw.solarize.tolist()
        self.view, self.other = torch.empty(3, size, size), torch.empty(3, size, size)
        self.block = min(
            (n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(math.log(n / BLOCK))
        )
        window = self.block + 2 * self.reach
        kernels = blur_kernels(draw.sigma, self.reach)
        # Each matrix maps a window of a line to a block of the blurred line.
        self.bands = torch.zeros(len(kernels), self.block, window)
        shape = (len(kernels), self.block, kernels.shape[1])
        diagonals = self.bands.as_strided(shape, (self.block * window, window + 1, 1))
        diagonals.copy_(kernels[:, None].expand_as(diagonals))
        self.low = torch.empty(3, size, size + 2 * self.reach)

    def render(self, image: Tensor, i: int) -> None:
        """Render image uint8 [3, h, w], which is number `i` of the batch."""
        small = self.resize(image, self.box[i])
        self.view.copy_(small.flip(2) if self.flip[i] else small)
        if self.has_blur[i]:
            self.blur(self.bands[i])
        flat, result = self.view.view(3, -1), self.other.view(3, -1)
        shift = self.of_mean[i] @ flat.mean(1, keepdim=True)
        torch.addmm(shift, self.of_pixel[i], flat, out=result).clamp_(0, 1)
        if self.solarize[i]:
            torch.where(result >= 0.5, 1 - result, result, out=result)
        self.out[i] = self.other.permute(1, 2, 0)

    def resize(self, image: Tensor, box: list[float]) -> Tensor:
        """Crop and resize to uint8 [3, size, size]; box: top, left, height, width as shares."""
        h, w = image.shape[1:]
        high, wide = max(1, round(box[2] * h)), max(1, round(box[3] * w))
        top, left = min(round(box[0] * h), h - high), min(round(box[1] * w), w - wide)
        crop = image[None, :, top : top + high, left : left + wide].contiguous(
            memory_format=torch.channels_last
        )
        return torch.nn.functional.interpolate(
            crop, self.view.shape[1:], mode="bilinear", antialias=True
        )[0]

    def blur(self, band: Tensor) -> None:
        """Blur `view` in place along both axes, reflected at its ends as in torchvision.

        A line is computed in blocks, as one batch of small products of windows with `band`.
        """
        wide = torch.nn.functional.pad(self.view, (self.reach,) * 4, mode="reflect")
        band = band.expand(self.size // self.block, -1, -1)
        for channel, low in zip(wide, self.low, strict=True):
            windows = channel.unfold(0, band.shape[2], self.block).mT
            torch.bmm(band, windows, out=low.view(-1, self.block, low.shape[1]))
        windows = (
            self.low.view(-1, self.low.shape[2])
            .unfold(1, band.shape[2], self.block)
            .transpose(0, 1)
        )
        blocks = self.view.view(-1, len(band), self.block).transpose(0, 1)
        torch.bmm(windows, band.mT, out=blocks)
