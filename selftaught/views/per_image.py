"""Views image by image: the pipeline of CPUs for large images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selftaught.views.batched import blur_kernels
from selftaught.views.sampling import ViewParameters

# about how many rows (columns) a blur makes at once: more multiply more zeros, fewer make more
# calls
BLOCK = 16


def render_images(
    images: Sequence[Tensor], draws: list[ViewParameters], sizes: list[int], radius: int
) -> tuple[Tensor, ...]:
    """Image by image, each in its own size: torch resizes 8-bit pixels on a CPU ten times as fast
    as a matrix product.

    So values are rounded to grey levels between the resize and what follows, and boxes to pixels,
    as torchvision's are.
    """
    made = [torch.empty(len(images), size, size, 3) for size in sizes]
    makers = [ImageRenderer(draw, out, radius) for draw, out in zip(draws, made, strict=True)]
    for i in range(len(images)):  # both views of an image while the cache holds it
        for maker in makers:
            maker.make(images[i], i)
    return tuple(out.permute(0, 3, 1, 2) for out in made)


class ImageRenderer:
    """Makes one view of each image of a batch, an image at a time; its buffers stay in the
    cache.
    """

    def __init__(self, draw: ViewParameters, out: Tensor, radius: int) -> None:
        self.size = size = out.shape[1]
        self.out, self.reach = out, min(radius, size - 1)
        self.box, self.flip, self.blurred = (
            draw.box.tolist(),
            draw.flip.tolist(),
            (draw.sigma > 0).tolist(),
        )
        self.of_pixel, self.of_mean = draw.colour / 255
        self.solarize = draw.solarize.tolist()
        self.view, self.other = torch.empty(3, size, size), torch.empty(3, size, size)
        self.block = min(
            (n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(math.log(n / BLOCK))
        )
        window = self.block + 2 * self.reach
        kernels = blur_kernels(draw.sigma, self.reach)
        # a block of a line as products of its window
        self.bands = torch.zeros(len(kernels), self.block, window)
        shape = (len(kernels), self.block, kernels.shape[1])
        diagonals = self.bands.as_strided(shape, (self.block * window, window + 1, 1))
        diagonals.copy_(kernels[:, None].expand_as(diagonals))
        self.low = torch.empty(3, size, size + 2 * self.reach)

    def make(self, image: Tensor, i: int) -> None:
        """image uint8 [3, h, w]."""
        small = self.resize(image, self.box[i])
        self.view.copy_(small.flip(2) if self.flip[i] else small)
        if self.blurred[i]:
            self.blur(self.bands[i])
        flat, done = self.view.view(3, -1), self.other.view(3, -1)
        shift = self.of_mean[i] @ flat.mean(1, keepdim=True)
        torch.addmm(shift, self.of_pixel[i], flat, out=done).clamp_(0, 1)
        if self.solarize[i]:
            torch.where(done >= 0.5, 1 - done, done, out=done)
        self.out[i] = self.other.permute(1, 2, 0)

    def resize(self, image: Tensor, box: list[float]) -> Tensor:
        """The box (shares of the image: top, left, height, width) as uint8 [3, size, size]."""
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
        """`view` along both axes, reflected at its ends as torchvision does: the blocks of a line,
        each from a window of its own, are one batch of small products with one matrix.
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
