"""Views: random crops, colours and blurs of whole batches, on the device; and the centre crop of evaluation.

Over 200 lines because it holds two pipelines, the fast one and torchvision's, so that they can be compared.

A crop, a flip, an antialiased resize and a Gaussian blur are each linear and separable, so together they are
two banded matrices an image, `rows` and `columns`: a view is rows @ image @ columns.T. Brightness, contrast,
saturation, hue and grey are affine in the colour, so in any order they are one 3x4 matrix an image. Where
that differs from torchvision's operations one by one (`pipeline="reference"`):

- values are clamped to [0, 1] once, at the end, not after every operation (so blur and colour commute);
- hue turns the chroma plane of YIQ, which is linear, not the hue of HSV, which is not;
- contrast takes the mean grey of the blurred crop, which is the crop's but for its reflected border;
- crop boxes are real-valued, not rounded to pixels (it shows only in images of a few dozen pixels).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from selftaught.errors import UserError

TRIES = 10  # candidate boxes an image before the fallback, as torchvision's RandomResizedCrop
STRIP = 32  # rows (columns) of a view made at a time where the canvas is large
STRIPS_FROM = 160  # canvas side from which, on a CPU, skipping the zeros of the bands pays for single images
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

    A call takes pixels uint8 [B, 3, C, C] (whole images, squashed to squares), their aspect [B] (true width /
    height, best left on the CPU) and a CPU generator. It returns `large` views [B, 3, size, size], then
    `small` ones [B, 3, small_size, small_size]: float32 in [0, 1], channels_last, on the pixels' device. All
    chance comes from the generator, in one order that depends on neither the device nor the values drawn.
    """

    def __init__(self, views: Views, size: int) -> None:
        if size < 1:
            raise UserError(f"views of {size} pixels: the size must be 1 or more")
        self.views = views
        self.size = size
        self.small_size = views.small_size or max(2, size // 4 * 2)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, aspect: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        views = self.views
        sizes = [self.size] * views.large + [self.small_size] * views.small
        scales = [views.scale] * views.large + [views.small_scale] * views.small
        aspect = aspect.detach().cpu().float()
        if views.pipeline == "reference":
            seed = int(torch.randint(2**62, (), generator=generator))
            return _reference(views, pixels, aspect, sizes, scales, seed)
        with torch.autocast("cpu", enabled=False):
            draws = [_draw(views, aspect, scale, generator) for scale in scales]
        return _render(pixels, draws, sizes, math.ceil(3 * views.blur_sigma[1]))


@torch.no_grad()
def centre(pixels: Tensor, aspect: Tensor, size: int, share: float = 1.0) -> Tensor:
    """The centre square of `share` (above 0, at most 1) of the short side, antialiased: what evaluation sees.

    pixels uint8 [B, 3, C, C] (whole images, squashed to squares), aspect [B] (true width / height)
    -> [B, 3, size, size] float32 in [0, 1], channels_last.
    """
    if not 0 < share <= 1:
        raise UserError(f"a centre crop of {share} of the short side: the share must be above 0 and at most 1")
    aspect = aspect.detach().cpu().float()
    shape = share * torch.stack([aspect.clamp(max=1), (1 / aspect).clamp(max=1)], 1)  # height, width
    never = torch.zeros(len(aspect), dtype=torch.bool)
    plain = torch.stack([torch.eye(3), torch.zeros(3, 3)])[:, None].expand(2, len(aspect), 3, 3)
    draw = _Draw(torch.cat([(1 - shape) / 2, shape], 1), never, plain, never.float(), never)
    return _render(pixels, [draw], [size], 0)[0]


# What chance decides: for the whole batch, on the CPU ----------------------------------------------


@dataclass(frozen=True)
class _Draw:
    """What chance decided for one view of each of B images."""

    box: Tensor  # [B, 4] top, left, height, width as shares of the image
    flip: Tensor  # [B] bool
    colour: Tensor  # [2, B, 3, 3]: a pixel x of a crop with mean m becomes colour[0] @ x + colour[1] @ m
    sigma: Tensor  # [B] of the blur, 0 = none
    solarize: Tensor  # [B] bool


def _draw(views: Views, aspect: Tensor, scale: tuple[float, float], generator: torch.Generator) -> _Draw:
    """One table of uniform numbers, a row an image, and what they mean. aspect [B]."""
    table = torch.rand(len(aspect), 2 * TRIES + 16, generator=generator)
    area, ratio, corner, order, strength, chance = torch.split(table, [TRIES, TRIES, 2, 4, 5, 5], 1)
    flip, jitter, gray, blur, solarize = chance.unbind(1)
    sigma = _between(strength[:, 4], views.blur_sigma)
    return _Draw(
        box=_boxes(area, ratio, corner, aspect, scale, views.ratio),
        flip=flip < views.flip,
        colour=_colour(views, order, strength[:, :4], jitter < views.jitter, gray < views.gray),
        sigma=torch.where(blur < views.blur, sigma, 0.0),
        solarize=solarize < views.solarize,
    )


def _between(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _boxes(
    area: Tensor,
    ratio: Tensor,
    corner: Tensor,
    aspect: Tensor,
    scale: tuple[float, float],
    ratios: tuple[float, float],
) -> Tensor:
    """Uniform area, ratio [B, tries], corner [B, 2] -> boxes [B, 4] as torchvision's RandomResizedCrop.

    The area is uniform, the ratio log-uniform; the first candidate that fits into the image is taken; where
    none does, the largest centred box of an allowed ratio.
    """
    area = _between(area, scale)
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


# What is done with it: on the device ---------------------------------------------------------------


def _render(pixels: Tensor, draws: list[_Draw], sizes: list[int], radius: int) -> tuple[Tensor, ...]:
    """For each draw a view [B, 3, size, size] of each image; blurs reach `radius` pixels of the view."""
    canvas, device = pixels.shape[-1], pixels.device
    singly = device.type == "cpu" and canvas >= STRIPS_FROM
    room = (CACHE if device.type == "cpu" else MEMORY) // (12 * canvas * canvas)
    together = 1 if singly else max(1, min(len(pixels), room))
    floats = torch.empty(together, 3, canvas, canvas, device=device)
    with torch.autocast(device.type, enabled=False):  # 8 bits of mantissa would merge grey levels
        each = zip(draws, sizes, strict=True)
        makers = [_Maker(draw, size, radius, canvas, singly, device) for draw, size in each]
        for low in range(0, len(pixels), together):
            some = pixels[low : low + together]
            images = floats[: len(some)].copy_(some)  # once for all views
            for maker in makers:
                maker.make(images, slice(low, low + len(some)))
    return tuple(maker.out.permute(0, 3, 1, 2) for maker in makers)


class _Maker:
    """Makes one view of each image of a batch, some images at a time."""

    def __init__(self, draw: _Draw, size: int, radius: int, canvas: int, singly: bool, device: torch.device) -> None:
        strips = max(1, round(size / STRIP)) if singly else 1
        top, left, height, width = (draw.box * canvas).unbind(1)
        reach = min(radius, size - 1) if (draw.sigma > 0).any() else 0
        never = torch.zeros_like(draw.flip)
        self.rows = _bands(top, height, never, draw.sigma, reach, size, canvas, strips, device)
        self.columns = _bands(left, width, draw.flip, draw.sigma, reach, size, canvas, strips, device)
        self.of_pixel, self.of_mean = (draw.colour / 255).to(device)
        self.solarize = draw.solarize[:, None, None].to(device) if draw.solarize.any() else None
        self.out = torch.empty(len(draw.box), size, size, 3, device=device)

    def make(self, images: Tensor, part: slice) -> None:
        """images float [b, 3, C, C] in 0..255, which are `part` of the batch."""
        size = self.out.shape[1]
        top, bottom = min(self.rows.first[part.start]), max(self.rows.last[part.start])
        narrow = images.new_empty(len(images), 3, bottom - top, size)
        for into, low, high, band in self.columns.strips(part, size):
            _multiply(images[:, :, top:bottom, low:high], band.mT, narrow[..., into])
        small = images.new_empty(len(images), 3, size, size)
        for into, low, high, band in self.rows.strips(part, size):
            _multiply(band, narrow[:, :, low - top : high - top], small[:, :, into])
        flat = small.flatten(2)
        mean = flat.mean(2, keepdim=True)
        view = torch.baddbmm(self.of_mean[part] @ mean, self.of_pixel[part], flat).clamp_(0, 1)
        if self.solarize is not None:
            view = torch.where(self.solarize[part] & (view >= 0.5), 1 - view, view)
        self.out[part] = view.view_as(small).permute(0, 2, 3, 1)


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """The product of an image [b, 3, ., .] with a matrix [b, ., .], on either side: the same each channel."""
    left, right = (side if side.dim() == 4 else side[:, None].expand(-1, 3, -1, -1) for side in (left, right))
    torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=out.flatten(0, 1))


@dataclass(frozen=True)
class _Bands:
    """The matrices [B, size, canvas] that resample one axis of B images, cut into strips around their bands.

    Strip s of image b reads the canvas from first[b][s] to last[b][s]. A single strip reads all of the
    canvas, so that several images can share a product.
    """

    matrix: Tensor  # [B, strips, rows of a strip, K]
    first: list[list[int]]
    last: list[list[int]]

    def strips(self, part: slice, size: int) -> Iterator[tuple[slice, int, int, Tensor]]:
        """For each strip: where it goes in the view, what of the canvas it reads, its matrices [b, ., .]."""
        deep = self.matrix.shape[2]
        ends = zip(self.first[part.start], self.last[part.start], strict=True)
        for strip, (low, high) in enumerate(ends):
            into = slice(strip * deep, min(size, (strip + 1) * deep))
            yield into, low, high, self.matrix[part, strip, : into.stop - into.start, : high - low]


def _bands(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    sigma: Tensor,
    reach: int,
    size: int,
    canvas: int,
    strips: int,
    device: torch.device,
) -> _Bands:
    """Crop, flip, triangle-filter resize and blur of one axis. start, length [B] in canvas pixels."""
    batch, deep = len(start), math.ceil(size / strips)
    # The rows of each strip and, for the blur, their neighbours, reflected at the border as torchvision does.
    near = torch.arange(-reach, deep + reach)
    row = deep * torch.arange(strips)[:, None] + near
    row = size - 1 - (size - 1 - row.abs()).abs()
    row = row.clamp(min=0)  # of a last strip that is not full, rows past the end
    row = torch.where(flip[:, None, None], size - 1 - row, row)  # [B, strips, deep + 2 reach]
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    support = scale.clamp(min=1)  # half the triangle's width: it averages when shrinking, else interpolates
    middle = start + (row + 0.5) * scale
    taps = torch.arange(math.ceil(2 * float(support.max())))
    source = (middle - support + 0.5).floor()[..., None] + taps  # [B, strips, deep + 2 reach, taps] canvas pixels
    weight = (1 - (source + 0.5 - middle[..., None]).abs() / support[..., None]).clamp(min=0)
    slack = 1e-3  # of a pixel: a box that ends between two pixels must not see the next by a rounding error
    low, high = (start + slack).floor()[..., None], (start + length - slack).ceil()[..., None]
    weight = weight * ((source >= low) & (source < high))
    weight = weight / weight.sum(3, keepdim=True)
    source = source.long().clamp(0, canvas - 1)
    if strips == 1:
        first, last = torch.zeros(batch, 1).long(), torch.full((batch, 1), canvas)
    else:  # an image without a blur needs no neighbours
        needless = (sigma == 0)[:, None, None, None] & ((near < 0) | (near >= deep))[:, None]
        first = source.masked_fill(needless, canvas).amin((2, 3))
        last = source.masked_fill(needless, -1).amax((2, 3)) + 1
    widest = int((last - first).max())
    source = (source - first[..., None, None]).clamp(0, widest - 1).to(device)
    matrix = torch.zeros(batch, strips, len(near), widest, device=device)
    matrix.scatter_add_(3, source, weight.to(device))
    if reach:
        offset = torch.arange(-reach, reach + 1) / sigma[:, None].clamp(min=0.01)  # 0.01: all weight on one
        kernel = (-0.5 * offset.square()).clamp(min=-80).softmax(1)  # the clamp: subnormal numbers are slow
        kernel = torch.nn.functional.pad(kernel, (deep - 1, deep - 1)).to(device)
        smooth = kernel.unfold(1, len(near), 1).flip(1)  # [B, deep, deep + 2 reach], one step further a row
        matrix = smooth[:, None] @ matrix
    return _Bands(matrix, first.tolist(), last.tolist())


# The same by torchvision ---------------------------------------------------------------------------


def _reference(
    views: Views,
    pixels: Tensor,
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
    canvas = pixels.shape[-1]
    made: list[list[Tensor]] = [[] for _ in makers]
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator: lend it, restore it
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        for image, wide in zip(pixels.cpu(), aspect.tolist(), strict=True):
            shape = [
                round(canvas * max(1.0, 1 / wide)),
                round(canvas * max(1.0, wide)),
            ]  # the long side grows
            image = v2.functional.resize(image.float() / 255, shape, antialias=True)
            for of_kind, maker in zip(made, makers, strict=True):
                of_kind.append(maker(image).clamp(0, 1))
    return tuple(torch.stack(kind).to(pixels.device, memory_format=torch.channels_last) for kind in made)
