"""Rendering of views as products of banded matrices, for accelerators and for small images."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from selftaught.devices import to_device
from selftaught.views.sampling import ViewParameters

CACHE = 1 << 20  # bytes of float pixels processed at a time on a CPU: the cache of one core
MEMORY = 1 << 28  # the same on an accelerator, to bound the memory


def render_batch(
    pixels: Tensor, draws: list[ViewParameters], sizes: list[int], radius: int
) -> tuple[Tensor, ...]:
    """Render a view [B, 3, size, size] for each of `draws`, from pixels uint8 [B, 3, C, C]."""
    canvas, device = pixels.shape[-1], pixels.device
    limit = (CACHE if device.type == "cpu" else MEMORY) // (12 * canvas * canvas)
    chunk = max(1, min(len(pixels), limit))
    # In this layout each product is one of two plain matrices.
    floats = torch.empty(chunk, canvas, 3, canvas, device=device)
    bands = _all_bands(draws, sizes, radius, canvas, device)
    renderers = [BatchRenderer(draw, *pair) for draw, pair in zip(draws, bands, strict=True)]
    for low in range(0, len(pixels), chunk):
        part = pixels[low : low + chunk]
        images = floats[: len(part)].copy_(part.transpose(1, 2))  # one copy for all views
        for renderer in renderers:
            renderer.render(images, slice(low, low + len(part)))
    return tuple(renderer.out.permute(0, 3, 1, 2) for renderer in renderers)


class BatchRenderer:
    """Renders one view of each image of a batch, a part of the batch at a time."""

    def __init__(self, draw: ViewParameters, rows: Tensor, columns: Tensor) -> None:
        size, device = rows.shape[1], rows.device
        self.rows, self.columns = rows, columns.mT
        self.of_pixel, self.of_mean = to_device(draw.colour / 255, device)
        self.solarize = (
            to_device(draw.solarize[:, None, None], device) if draw.solarize.any() else None
        )
        self.out = torch.empty(len(draw.box), size, size, 3, device=device)

    def render(self, images: Tensor, part: slice) -> None:
        """Render images float [b, C, 3, C] in 0..255, which are `part` of the batch."""
        b, size = len(images), self.out.shape[1]
        low = self.rows[part] @ images.flatten(2)
        small = low.view(b, -1, images.shape[3]) @ self.columns[part]
        flat = small.view(b, size, 3, size).transpose(1, 2).reshape(b, 3, -1)
        mean = flat.mean(2, keepdim=True)
        view = torch.baddbmm(self.of_mean[part] @ mean, self.of_pixel[part], flat).clamp_(0, 1)
        if self.solarize is not None:
            view = torch.where(self.solarize[part] & (view >= 0.5), 1 - view, view)
        self.out[part] = view.view(b, 3, size, size).permute(0, 2, 3, 1)


def _all_bands(
    draws: list[ViewParameters], sizes: list[int], radius: int, canvas: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The matrices of rows and columns of each draw; draws of one size are computed together."""
    pairs: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(draws)
    for size in set(sizes):
        places = [i for i, s in enumerate(sizes) if s == size]
        group = [draws[i] for i in places]
        top, left, height, width = (torch.cat([draw.box for draw in group]) * canvas).unbind(1)
        flip = torch.cat([draw.flip for draw in group])
        sigma = torch.cat([draw.sigma for draw in group])
        rows = _bands(top, height, torch.zeros_like(flip), sigma, radius, size, canvas, device)
        columns = _bands(left, width, flip, sigma, radius, size, canvas, device)
        for i, *bands in zip(
            places, rows.chunk(len(places)), columns.chunk(len(places)), strict=True
        ):
            pairs[i] = (bands[0], bands[1])
    return pairs


def _bands(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    sigma: Tensor,
    radius: int,
    size: int,
    canvas: int,
    device: torch.device,
) -> Tensor:
    """Crop, flip, triangle-filter resize and blur of one axis, as a matrix [B, size, canvas].

    start and length [B] are in pixels of the canvas.
    """
    reach = math.ceil(2 * max(1.0, float((length / size).max())))
    blurred = (sigma > 0).nonzero().flatten()
    start, length, sigma, mirror = to_device(
        torch.stack([start, length, sigma, flip.to(sigma)]), device
    )[..., None]
    row = torch.arange(size, device=device)
    row = torch.where(mirror > 0, size - 1 - row, row)
    scale = length / size
    # Half the triangle's width. The filter averages when it shrinks, and interpolates otherwise.
    support = scale.clamp(min=1)
    middle = start + (row + 0.5) * scale
    taps = torch.arange(reach, device=device)
    source = (middle - support + 0.5).floor()[..., None] + taps  # [B, size, taps] canvas pixels
    weight = (1 - (source + 0.5 - middle[..., None]).abs() / support[..., None]).clamp(min=0)
    # In pixels. A box that ends between two pixels must not reach the next by a rounding error.
    slack = 1e-3
    low, high = (start + slack).floor()[..., None], (start + length - slack).ceil()[..., None]
    weight = weight * ((source >= low) & (source < high))
    weight = weight / weight.sum(2, keepdim=True)
    source = source.long().clamp(0, canvas - 1)
    matrix = torch.zeros(len(start), size, canvas, device=device).scatter_add_(2, source, weight)
    if len(blurred):
        blurred = to_device(blurred, device)
        matrix[blurred] = _blurs(sigma[blurred, 0], radius, size) @ matrix[blurred]
    return matrix


@lru_cache(maxsize=8)
def _reflect_positions(size: int, reach: int, device: torch.device) -> Tensor:
    """Positions [size, 2 reach + 1] around each pixel of a line, reflected at its ends."""
    near = torch.arange(size, device=device)[:, None] + torch.arange(
        -reach, reach + 1, device=device
    )
    return size - 1 - (size - 1 - near.abs()).abs()


def blur_kernels(sigma: Tensor, reach: int) -> Tensor:
    """Gaussian kernels [n, 2 reach + 1] of sigma [n], in pixels."""
    # The clamp puts all weight on the middle for a sigma of 0.
    offset = torch.arange(-reach, reach + 1, device=sigma.device) / sigma[:, None].clamp(min=0.01)
    # The clamp avoids subnormal numbers, which are slow.
    return (-0.5 * offset.square()).clamp(min=-80).softmax(1)


def _blurs(sigma: Tensor, radius: int, size: int) -> Tensor:
    """Matrices [n, size, size] of Gaussian blurs along one axis, of sigma [n]."""
    reach = min(radius, size - 1)
    kernel = blur_kernels(sigma, reach)
    places = _reflect_positions(size, reach, sigma.device).expand(len(sigma), -1, -1)
    return sigma.new_zeros(len(sigma), size, size).scatter_add_(
        2, places, kernel[:, None].expand_as(places)
    )
