"""Views: random crops, colours and blurs of whole batches, on the device; and the centre crop of evaluation.

Over 200 lines because it holds two pipelines, the fast one and torchvision's, so that they can be compared.

A crop, a flip, an antialiased resize and a Gaussian blur are each linear and separable, so together they are
two banded matrices an image, `rows` and `columns`: a view is rows @ image @ columns.T. Brightness, contrast,
saturation, hue and grey are affine in the colour, so in any order they are one 3x4 matrix an image. (On a CPU large images
are cropped and resized one by one.) Where
that differs from torchvision's operations one by one (`pipeline="reference"`):

- values are clamped to [0, 1] once, at the end, not after every operation (so blur and colour commute);
- hue turns the chroma plane of YIQ, which is linear, not the hue of HSV, which is not;
- contrast takes the mean grey of the blurred crop, which is the crop's but for its reflected border;
- crop boxes are real-valued, not rounded to pixels (it shows only in images of a few dozen pixels).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from selftaught.devices import sent
from selftaught.errors import UserError

TRIES = 10  # candidate boxes an image before the fallback, as torchvision's RandomResizedCrop
SINGLY_FROM = 120  # canvas side from which, on a CPU, resizing images one by one is quicker than matrix products
NEVER = 1 << 30  # what is evaluated is the same on every device
BLOCK = 16  # about how many rows (columns) a blur makes at once: more multiply more zeros, fewer make more calls
CACHE = 1 << 20  # bytes of float pixels worked on at a time on a CPU: about what a core's own cache holds
MEMORY = 1 << 28  # the same on an accelerator, where it only bounds the memory

GREY = torch.tensor([0.2989, 0.587, 0.114]).expand(3, 3)  # makes a pixel grey, with torchvision's weights
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TURN = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # from red to yellow, as HSV counts
CHROMA_TURN = torch.linalg.inv(_YIQ) @ _TURN @ _YIQ


@dataclass(frozen=True, kw_only=True)
class Views:
    """What a view is. The defaults are MoCo-v2's (Chen et al., 2020, arXiv:2003.04297)."""

    pipeline: Literal["fast", "reference"] = "fast"  # reference: torchvision's operations, an image at a time
    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area in a large view
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a crop, in the true geometry
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of the four colour jitters, which come in random order
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # share of the colour circle, at most 0.5
    gray: float = 0.2  # probability
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # in pixels of the view
    solarize: float = 0.0  # probability
    large: int = 2  # how many views of the full size
    small: int = 0  # how many smaller ones (multi-crop: Caron et al., 2020, arXiv:2006.09882)
    small_size: int = 0  # pixels; 0 = half the full size, even
    small_scale: tuple[float, float] = (0.05, 0.2)

    def __post_init__(self) -> None:
        def check(fine: bool, name: str, rule: str) -> None:
            if not fine:
                raise UserError(f"views: {name} is {getattr(self, name)}; it must be {rule}")

        check(self.pipeline in ("fast", "reference"), "pipeline", "fast or reference")
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            check(0 <= getattr(self, name) <= 1, name, "a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            check(0 <= getattr(self, name) < math.inf, name, "0 or more")
        check(0 <= self.hue <= 0.5, "hue", "0 to 0.5")
        for name in ("scale", "small_scale"):
            low, high = getattr(self, name)
            check(0 < low <= high <= 1, name, "two rising shares of the image's area, above 0 and at most 1")
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            check(0 < low <= high < math.inf, name, "two rising numbers above 0")
        check(self.large >= 1, "large", "1 or more")
        check(self.small >= 0, "small", "0 or more")
        check(self.small_size >= 0, "small_size", "0 (half the full size) or a number of pixels")


class Augment:
    """Makes the views of whole batches.

    A call takes pixels uint8 [B, 3, C, C] (whole images, squashed to squares; on the CPU also B tensors [3, h, w] of
    their own sizes), their aspect [B] (true width / height, best left on the CPU) and a CPU generator. It returns `large`
    views [B, 3, size, size], then `small` ones [B, 3, small_size, small_size]: float32 in [0, 1], channels_last, on the
    pixels' device. All chance comes from the generator, in one order that depends on neither the device nor the values
    drawn.
    """

    def __init__(self, views: Views, size: int) -> None:
        if size < 1:
            raise UserError(f"views of {size} pixels: the size must be 1 or more")
        self.views = views
        self.size = size
        self.small_size = views.small_size or max(2, size // 4 * 2)

    @torch.no_grad()
    def __call__(self, pixels: Tensor | Sequence[Tensor], aspect: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        views = self.views
        sizes = [self.size] * views.large + [self.small_size] * views.small
        scales = [views.scale] * views.large + [views.small_scale] * views.small
        aspect = aspect.detach().cpu().float()
        if views.pipeline == "reference":
            seed = int(torch.randint(2**62, (), generator=generator))
            return _reference(views, pixels, aspect, sizes, scales, seed)
        with torch.autocast("cpu", enabled=False):
            draws = _draw(views, aspect, scales, generator)
        return _render(pixels, draws, sizes, math.ceil(3 * views.blur_sigma[1]), SINGLY_FROM)


@torch.no_grad()
def centre(pixels: Tensor | Sequence[Tensor], aspect: Tensor, size: int, share: float = 1.0) -> Tensor:
    """The centre square of `share` (above 0, at most 1) of the short side, antialiased: what evaluation sees.

    pixels and aspect as `Augment` takes them -> [B, 3, size, size] float32 in [0, 1], channels_last.
    """
    if not 0 < share <= 1:
        raise UserError(f"a centre crop of {share} of the short side: the share must be above 0 and at most 1")
    aspect = aspect.detach().cpu().float()
    shape = share * torch.stack([aspect.clamp(max=1), (1 / aspect).clamp(max=1)], 1)  # height, width
    never = torch.zeros(len(aspect), dtype=torch.bool)
    plain = torch.stack([torch.eye(3), torch.zeros(3, 3)])[:, None].expand(2, len(aspect), 3, 3)
    draw = _Draw(torch.cat([(1 - shape) / 2, shape], 1), never, plain, never.float(), never)
    return _render(pixels, [draw], [size], 0, NEVER)[0]


# What chance decides: for the whole batch, on the CPU ----------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """What chance decided for one view of each of B images."""

    box: Tensor  # [B, 4] top, left, height, width as shares of the image
    flip: Tensor  # [B] bool
    colour: Tensor  # [2, B, 3, 3]: a pixel x of a crop with mean m becomes colour[0] @ x + colour[1] @ m
    sigma: Tensor  # [B] of the blur, 0 = none
    solarize: Tensor  # [B] bool


def _draw(views: Views, aspect: Tensor, scales: Sequence[tuple[float, float]], generator: torch.Generator) -> list[_Draw]:
    """A table of uniform numbers a view, with a row an image, and what they mean. aspect [B]."""
    tables = [torch.rand(len(aspect), 2 * TRIES + 16, generator=generator) for _ in scales]
    area = torch.cat([_between(table[:, :TRIES], scale) for table, scale in zip(tables, scales, strict=True)])
    ratio, corner, order, strength, chance = torch.split(torch.cat(tables)[:, TRIES:], [TRIES, 2, 4, 5, 5], 1)
    flip, jitter, gray, blur, solarize = chance.unbind(1)
    sigma = _between(strength[:, 4], views.blur_sigma)
    box = _boxes(area, ratio, corner, aspect.repeat(len(scales)), views.ratio)
    colour = _colour(views, order, strength[:, :4], jitter < views.jitter, gray < views.gray)
    sigma = torch.where(blur < views.blur, sigma, 0.0)
    each = [x.split(len(aspect)) for x in (box, flip < views.flip, colour.transpose(0, 1), sigma, solarize < views.solarize)]
    return [_Draw(box=b, flip=f, colour=c.transpose(0, 1), sigma=s, solarize=z) for b, f, c, s, z in zip(*each, strict=True)]


def _between(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _boxes(
    area: Tensor,
    ratio: Tensor,
    corner: Tensor,
    aspect: Tensor,
    ratios: tuple[float, float],
) -> Tensor:
    """area [B, tries], uniform ratio [B, tries], corner [B, 2] -> boxes [B, 4] as torchvision's RandomResizedCrop.

    The area is uniform, the ratio log-uniform; the first candidate that fits into the image is taken; where
    none does, the largest centred box of an allowed ratio.
    """
    ratio = _between(ratio, (math.log(ratios[0]), math.log(ratios[1]))).exp() / aspect[:, None]
    height, width = (area / ratio).sqrt(), (area * ratio).sqrt()  # as shares of the image's height and width
    fits = (height <= 1) & (width <= 1)
    first = fits.int().argmax(1, keepdim=True)  # of equals, argmax takes the first
    drawn = torch.cat([height.gather(1, first), width.gather(1, first)], 1)
    largest = torch.stack([(aspect / ratios[0]).clamp(max=1), (ratios[1] / aspect).clamp(max=1)], 1)
    found = fits.any(1, keepdim=True)
    shape = torch.where(found, drawn, largest)
    return torch.cat([(1 - shape) * torch.where(found, corner, 0.5), shape], 1)


def _colour(views: Views, order: Tensor, strength: Tensor, jitter: Tensor, gray: Tensor) -> Tensor:
    """Uniform order, strength [B, 4]; jitter, gray [B] bool -> [2, B, 3, 3] as `_Draw.colour`.

    Contrast mixes in the mean grey of what it is given, which is linear in the mean of the crop: so a second
    matrix, which acts on that mean, is carried along, and no image is needed here.
    """
    spread = torch.tensor([views.brightness, views.contrast, views.saturation])
    low, high = (1 - spread).clamp(min=0), 1 + spread
    factor = torch.where(jitter[:, None], low + (high - low) * strength[:, :3], 1.0)
    brightness, contrast, saturation = factor[:, :, None, None].unbind(1)
    angle = torch.where(jitter, 2 * math.pi * views.hue * (2 * strength[:, 3] - 1), 0.0)[:, None, None]
    unit = torch.eye(3)
    steps = [
        brightness * unit,
        contrast * unit,
        saturation * unit + (1 - saturation) * GREY,
        GREY + angle.cos() * (unit - GREY) + angle.sin() * CHROMA_TURN,
    ]
    step = torch.stack(steps, 1)  # [B, 4, 3, 3]
    mixed = torch.zeros(len(order), 4, 1, 1)  # how much of the mean grey a step mixes in: only contrast does
    mixed[:, 1] = 1 - contrast
    of_pixel, of_mean = unit.expand(len(order), 3, 3), torch.zeros(len(order), 3, 3)
    image = torch.arange(len(order))
    for now in order.argsort(1).unbind(1):
        of_mean = step[image, now] @ of_mean + mixed[image, now] * (GREY @ (of_pixel + of_mean))
        of_pixel = step[image, now] @ of_pixel
    colour = torch.stack([of_pixel, of_mean])
    return torch.where(gray[:, None, None], GREY @ colour, colour)


# What is done with it: whole batches on a device, or image by image on a CPU -------------------------


def _render(
    pixels: Tensor | Sequence[Tensor], draws: list[_Draw], sizes: list[int], radius: int, singly_from: int
) -> tuple[Tensor, ...]:
    """For each draw a view [B, 3, size, size] of each image; blurs reach `radius` pixels of the view. On a CPU canvases of
    a side of `singly_from` or more are worked on one by one.
    """
    device = pixels.device.type if isinstance(pixels, Tensor) else "cpu"
    with torch.autocast(device, enabled=False):  # 8 bits of mantissa would merge grey levels
        if isinstance(pixels, Tensor) and (device != "cpu" or pixels.shape[-1] < singly_from):
            return _together(pixels, draws, sizes, radius)
        return _singly(list(pixels), draws, sizes, radius)


def _together(pixels: Tensor, draws: list[_Draw], sizes: list[int], radius: int) -> tuple[Tensor, ...]:
    canvas, device = pixels.shape[-1], pixels.device
    room = (CACHE if device.type == "cpu" else MEMORY) // (12 * canvas * canvas)
    together = max(1, min(len(pixels), room))
    floats = torch.empty(together, canvas, 3, canvas, device=device)  # each product is then one of two plain matrices
    bands = _all_bands(draws, sizes, radius, canvas, device)
    makers = [_Maker(draw, *both) for draw, both in zip(draws, bands, strict=True)]
    for low in range(0, len(pixels), together):
        some = pixels[low : low + together]
        images = floats[: len(some)].copy_(some.transpose(1, 2))  # once for all views
        for maker in makers:
            maker.make(images, slice(low, low + len(some)))
    return tuple(maker.out.permute(0, 3, 1, 2) for maker in makers)


class _Maker:
    """Makes one view of each image of a batch, some images at a time."""

    def __init__(self, draw: _Draw, rows: Tensor, columns: Tensor) -> None:
        size, device = rows.shape[1], rows.device
        self.rows, self.columns = rows, columns.mT
        self.of_pixel, self.of_mean = sent(draw.colour / 255, device)
        self.solarize = sent(draw.solarize[:, None, None], device) if draw.solarize.any() else None
        self.out = torch.empty(len(draw.box), size, size, 3, device=device)

    def make(self, images: Tensor, part: slice) -> None:
        """images float [b, C, 3, C] in 0..255, which are `part` of the batch."""
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
    draws: list[_Draw], sizes: list[int], radius: int, canvas: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """For each draw the matrices of its rows and its columns; those of one size are made at once."""
    found: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(draws)
    for size in set(sizes):
        places = [i for i, s in enumerate(sizes) if s == size]
        some = [draws[i] for i in places]
        top, left, height, width = (torch.cat([draw.box for draw in some]) * canvas).unbind(1)
        flip, sigma = torch.cat([draw.flip for draw in some]), torch.cat([draw.sigma for draw in some])
        rows = _bands(top, height, torch.zeros_like(flip), sigma, radius, size, canvas, device)
        columns = _bands(left, width, flip, sigma, radius, size, canvas, device)
        for i, *bands in zip(places, rows.chunk(len(places)), columns.chunk(len(places)), strict=True):
            found[i] = (bands[0], bands[1])
    return found


def _bands(
    start: Tensor, length: Tensor, flip: Tensor, sigma: Tensor, radius: int, size: int, canvas: int, device: torch.device
) -> Tensor:
    """Crop, flip, triangle-filter resize and blur of one axis as a matrix [B, size, canvas]. start, length [B] in canvas
    pixels.
    """
    reach = math.ceil(2 * max(1.0, float((length / size).max())))
    blurred = (sigma > 0).nonzero().flatten()
    start, length, sigma, flipped = sent(torch.stack([start, length, sigma, flip.to(sigma)]), device)[..., None]
    row = torch.arange(size, device=device)
    row = torch.where(flipped > 0, size - 1 - row, row)
    scale = length / size
    support = scale.clamp(min=1)  # half the triangle's width: it averages when shrinking, else interpolates
    middle = start + (row + 0.5) * scale
    taps = torch.arange(reach, device=device)
    source = (middle - support + 0.5).floor()[..., None] + taps  # [B, size, taps] canvas pixels
    weight = (1 - (source + 0.5 - middle[..., None]).abs() / support[..., None]).clamp(min=0)
    slack = 1e-3  # of a pixel: a box that ends between two pixels must not see the next by a rounding error
    low, high = (start + slack).floor()[..., None], (start + length - slack).ceil()[..., None]
    weight = weight * ((source >= low) & (source < high))
    weight = weight / weight.sum(2, keepdim=True)
    source = source.long().clamp(0, canvas - 1)
    matrix = torch.zeros(len(start), size, canvas, device=device).scatter_add_(2, source, weight)
    if len(blurred):
        blurred = sent(blurred, device)
        matrix[blurred] = _blurs(sigma[blurred, 0], radius, size) @ matrix[blurred]
    return matrix


@lru_cache(maxsize=8)
def _reflected(size: int, reach: int, device: torch.device) -> Tensor:
    """[size, 2 reach + 1]: the pixels around each pixel of a line, reflected at its ends as torchvision does."""
    near = torch.arange(size, device=device)[:, None] + torch.arange(-reach, reach + 1, device=device)
    return size - 1 - (size - 1 - near.abs()).abs()


def _kernels(sigma: Tensor, reach: int) -> Tensor:
    """sigma [n] -> [n, 2 reach + 1]: Gaussians."""
    offset = torch.arange(-reach, reach + 1, device=sigma.device) / sigma[:, None].clamp(min=0.01)  # all weight on one
    return (-0.5 * offset.square()).clamp(min=-80).softmax(1)  # the clamp: subnormal numbers are slow


def _blurs(sigma: Tensor, radius: int, size: int) -> Tensor:
    """sigma [n] -> [n, size, size]: Gaussians along one axis."""
    reach = min(radius, size - 1)
    kernel = _kernels(sigma, reach)
    places = _reflected(size, reach, sigma.device).expand(len(sigma), -1, -1)
    return sigma.new_zeros(len(sigma), size, size).scatter_add_(2, places, kernel[:, None].expand_as(places))


def _singly(images: Sequence[Tensor], draws: list[_Draw], sizes: list[int], radius: int) -> tuple[Tensor, ...]:
    """Image by image, each in its own size: torch resizes 8-bit pixels on a CPU ten times as fast as a matrix product.

    So values are rounded to grey levels between the resize and what follows, and boxes to pixels, as torchvision's are.
    """
    made = [torch.empty(len(images), size, size, 3) for size in sizes]
    makers = [_Single(draw, out, radius) for draw, out in zip(draws, made, strict=True)]
    for i in range(len(images)):  # both views of an image while the cache holds it
        for maker in makers:
            maker.make(images[i], i)
    return tuple(out.permute(0, 3, 1, 2) for out in made)


class _Single:
    """Makes one view of each image of a batch, an image at a time; its buffers stay in the cache."""

    def __init__(self, draw: _Draw, out: Tensor, radius: int) -> None:
        self.size = size = out.shape[1]
        self.out, self.reach = out, min(radius, size - 1)
        self.box, self.flip, self.blurred = draw.box.tolist(), draw.flip.tolist(), (draw.sigma > 0).tolist()
        self.of_pixel, self.of_mean = draw.colour / 255
        self.solarize = draw.solarize.tolist()
        self.view, self.other = torch.empty(3, size, size), torch.empty(3, size, size)
        self.block = min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(math.log(n / BLOCK)))
        window = self.block + 2 * self.reach
        kernels = _kernels(draw.sigma, self.reach)
        self.bands = torch.zeros(len(kernels), self.block, window)  # a block of a line as products of its window
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
        crop = image[None, :, top : top + high, left : left + wide].contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.interpolate(crop, self.view.shape[1:], mode="bilinear", antialias=True)[0]

    def blur(self, band: Tensor) -> None:
        """`view` along both axes, reflected at its ends as torchvision does: the blocks of a line, each from a window of its
        own, are one batch of small products with one matrix.
        """
        wide = torch.nn.functional.pad(self.view, (self.reach,) * 4, mode="reflect")
        band = band.expand(self.size // self.block, -1, -1)
        for channel, low in zip(wide, self.low, strict=True):
            windows = channel.unfold(0, band.shape[2], self.block).mT
            torch.bmm(band, windows, out=low.view(-1, self.block, low.shape[1]))
        windows = self.low.view(-1, self.low.shape[2]).unfold(1, band.shape[2], self.block).transpose(0, 1)
        blocks = self.view.view(-1, len(band), self.block).transpose(0, 1)
        torch.bmm(windows, band.mT, out=blocks)


# The same by torchvision ---------------------------------------------------------------------------


def _reference(
    views: Views,
    pixels: Tensor | Sequence[Tensor],
    aspect: Tensor,
    sizes: list[int],
    scales: list[tuple[float, float]],
    seed: int,
) -> tuple[Tensor, ...]:
    """Such views by torchvision's operations, an image at a time on the CPU, at the images' true aspect."""
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
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator: lend it, restore it
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
