"""Views: each operation against torchvision's, and the distribution of crops."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from selftaught.errors import UserError
from selftaught.views import augment as augment_module
from selftaught.views import batched, sampling
from selftaught.views.augment import Augment, centre
from selftaught.views.spec import Views

PLAIN: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "gray": 0.0, "blur": 0.0}


def pictures(count: int, canvas: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """uint8 [count, 3, canvas, canvas]: smooth colours with fine noise, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(
        coarse, (canvas, canvas), mode="bilinear", align_corners=True
    )
    fine = torch.rand(count, 3, canvas, canvas, generator=generator)
    return ((low + (high - low) * (0.7 * smooth + 0.3 * fine)) * 255).round().byte()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(count: int) -> Tensor:
    return torch.ones(count)


def same(one: Iterable[Tensor], other: Iterable[Tensor], atol: float = 0.0) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


WHOLE: dict[str, Any] = {**PLAIN, "large": 1, "scale": (1, 1), "ratio": (1, 1)}
pipelines = pytest.mark.parametrize("pipeline", ["fast", "reference"])


def draw(box: Tensor, **changes: Tensor) -> sampling.ViewParameters:
    """Boxes [B, 4] as shares of the image, with other parameters off by default."""
    never = torch.zeros(len(box), dtype=torch.bool)
    plain = torch.stack([torch.eye(3), torch.zeros(3, 3)])[:, None].expand(2, len(box), 3, 3)
    nothing = sampling.ViewParameters(
        box=box, flip=never, colour=plain, sigma=never.float(), solarize=never
    )
    return dataclasses.replace(nothing, **changes)


# (canvas, size): shrinking and growing, with and without blocks of a blur, sizes that those do not
# divide
SHAPES = [(32, 32), (48, 96), (128, 64), (200, 100), (256, 150), (448, 224)]


@pytest.mark.parametrize(("canvas", "size"), SHAPES)
def test_crop_flip_resize_and_blur_are_torchvisions(canvas: int, size: int) -> None:
    pixels, whole = pictures(4, canvas), [0, 0, canvas, canvas]
    corner, last = [3, 5, canvas // 2, canvas // 3], [canvas - 20, canvas - 19, 20, 19]
    boxes = torch.tensor([whole, corner, last, [0, 7, canvas, 9]])
    flip = torch.tensor([False, True, True, False])
    sigma = torch.tensor([0.0, 1.3, 0.0, 2.0])
    sample = [draw(boxes / canvas, flip=flip, sigma=sigma)]
    result, rounded = (
        augment_module._render(pixels, sample, [size], 6, singly_from)[0]
        for singly_from in (10**6, 1)
    )
    torch.testing.assert_close(rounded, result, atol=1.01 / 255, rtol=0)  # to a grey level
    assert (rounded - result).abs().mean() < 0.4 / 255
    for image, box, flipped, blur, view in zip(
        pixels, boxes.tolist(), flip, sigma.tolist(), result, strict=True
    ):
        expected = tv.resized_crop(image.float() / 255, *box, size=[size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if flipped else expected
        expected = tv.gaussian_blur(expected, [13, 13], [blur, blur]) if blur else expected
        torch.testing.assert_close(view, expected, atol=5e-5, rtol=0)


def test_boxes_between_pixels_never_see_outside() -> None:
    canvas = 64
    pixels = torch.zeros(1, 3, canvas, canvas, dtype=torch.uint8)
    pixels[:, :, 10:31, 20:41] = 255  # all the pixels that the box touches
    box = torch.tensor([[10.4, 20.7, 20.2, 19.6]]) / canvas
    for size in (8, 64):
        (view,) = augment_module._render(pixels, [draw(box)], [size], 0, 10**6)
        torch.testing.assert_close(view, torch.ones_like(view))


def colours(count: int, **settings: float) -> tuple[Tensor, Tensor]:
    """Uniform strengths [count, 4] and the colour matrices for them when only `settings` jitter."""
    jitter: Any = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | settings
    strength, order = (torch.rand(count, 4, generator=seeded(seed)) for seed in (1, 2))
    always, never = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    return strength, sampling.sample_colours(Views(**jitter), order, strength, always, never)


def coloured(images: Tensor, colour: Tensor) -> Tensor:
    """images float [B, 3, H, W] under matrices [2, B, 3, 3], not clamped."""
    flat = images.flatten(2)
    return (colour[0] @ flat + colour[1] @ flat.mean(2, keepdim=True)).view_as(images)


@pytest.mark.parametrize(("column", "name"), [*enumerate(["brightness", "contrast", "saturation"])])
def test_each_jitter_is_torchvisions(column: int, name: str) -> None:
    images = pictures(16, 24, 0.3, 0.6).float() / 255  # such that nothing clamps
    strength, colour = colours(16, **{name: 0.4})
    adjust, factors = getattr(tv, f"adjust_{name}"), (0.6 + 0.8 * strength[:, column]).tolist()
    expected = [adjust(image, factor) for image, factor in zip(images, factors, strict=True)]
    same(coloured(images, colour), expected, 1e-5)


def test_jitters_in_every_order_are_torchvisions() -> None:
    orders = torch.rand(64, 4, generator=seeded(3))
    images = pictures(64, 16, 0.35, 0.55).float() / 255
    strength = torch.rand(64, 4, generator=seeded(4))
    settings = Views(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.0)
    always = torch.ones(64, dtype=torch.bool)
    gray = torch.arange(64) % 4 == 0
    result = coloured(images, sampling.sample_colours(settings, orders, strength, always, gray))
    orders_used = set()
    for index, image in enumerate(images):
        order = orders[index].argsort().tolist()
        orders_used.add(tuple(order))
        for step in order:
            if step < 3:
                change = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[step]
                image = change(image, 0.7 + 0.6 * float(strength[index, step]))
        image = tv.rgb_to_grayscale(image, 3) if gray[index] else image
        torch.testing.assert_close(result[index], image, atol=1e-5, rtol=0)
    assert len(orders_used) > 18  # of 24


def test_hue_is_near_hsv() -> None:
    images = pictures(32, 24, 0.1, 0.9).float() / 255
    strength, colour = colours(32, hue=0.1)
    result = coloured(images, colour).clamp(0, 1)

    def error(sign: float) -> float:
        shifts = (sign * (0.2 * strength[:, 3] - 0.1)).tolist()
        moved = [tv.adjust_hue(i, h) for i, h in zip(images, shifts, strict=True)]
        return (result - torch.stack(moved)).abs().mean().item()

    assert error(1) < 0.025  # YIQ keeps the luma, HSV the value
    assert error(1) < 0.5 * error(-1)
    grey = images.mean(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(coloured(grey, colour), grey, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("gray", lambda x: tv.rgb_to_grayscale(x, 3)), ("solarize", lambda x: tv.solarize(x, 0.5))],
)
def test_gray_and_solarize_are_torchvisions(setting: str, expected: Any) -> None:
    pixels = pictures(3, 32)
    (view,) = Augment(Views(**{**WHOLE, setting: 1.0}), 32)(pixels, square(3), seeded())
    torch.testing.assert_close(view, expected(pixels.float() / 255), atol=1e-5, rtol=0)


@pytest.mark.parametrize("canvas", [64, 256])
def test_a_whole_view_is_torchvisions_one_by_one(canvas: int) -> None:
    """Crop, jitter, grey, blur, solarize and flip, with the same numbers, where nothing clamps."""
    size, aspect = 48, torch.linspace(0.6, 1.8, 24)
    pixels = pictures(24, canvas, 0.35, 0.6)
    settings = Views(brightness=0.2, contrast=0.4, saturation=0.4, hue=0.0, large=1)
    (view,) = Augment(settings, size)(pixels, aspect, seeded(5))
    (sample,) = sampling.sample_parameters(settings, aspect, [settings.scale], seeded(5))
    # The boxes are real-valued, which torchvision cannot do: crops are held to it above.
    boxes = [draw(sample.box, flip=sample.flip)]
    (crop,) = augment_module._render(pixels, boxes, [size], 6, augment_module.SINGLY_FROM)
    expected = coloured(crop, sample.colour)
    for index, sigma in enumerate(sample.sigma.tolist()):
        if sigma:
            expected[index] = tv.gaussian_blur(expected[index], [13, 13], [sigma, sigma])
    assert 0.2 < (sample.sigma > 0).float().mean() < 0.8
    # Contrast's mean is taken after the blur, whose reflected border weighs a little differently.
    torch.testing.assert_close(view, expected.clamp(0, 1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("aspect", [1.0, 4 / 3, 0.4, 5.0])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.2)])
def test_crops_follow_the_law_of_random_resized_crop(
    aspect: float, scale: tuple[float, float]
) -> None:
    height, width = 2000, round(2000 * aspect)
    crop, image = v2.RandomResizedCrop(8, scale=scale), torch.empty(1, 1, 1)
    image = image.expand(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sample = [crop.make_params([image]) for _ in range(1500)]
    theirs = torch.tensor(
        [[float(p[k]) for k in ("top", "left", "height", "width")] for p in sample]
    )
    aspects = torch.full((6000,), width / height)
    (parameters,) = sampling.sample_parameters(Views(), aspects, [scale], seeded())
    ours = parameters.box * torch.tensor([height, width, height, width])

    def measures(box: Tensor) -> tuple[Tensor, ...]:
        top, left, tall, wide = box.unbind(1)
        area, ratio = tall * wide / (height * width), (wide / tall).log()
        return area, ratio, (top + tall / 2) / height, (left + wide / 2) / width

    assert (ours >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width]) * (1 + 1e-6)).all()
    for mine, other in zip(measures(ours), measures(theirs), strict=True):
        # rounding to pixels makes ties of theirs
        at = torch.cat([mine, other]).sort().values + 1e-3
        below = [torch.searchsorted(x.sort().values, at) / len(x) for x in (mine, other)]
        # KS, p = .001
        assert (below[0] - below[1]).abs().max() < 1.95 * math.sqrt(1 / 6000 + 1 / 1500)


@pipelines
def test_shape_range_and_layout_of_views(pipeline: Any) -> None:
    """Chance comes from the generator alone."""
    pixels, aspect = pictures(6, 64), torch.tensor([1.0, 0.5, 2.0, 1.3, 0.75, 3.0])
    settings = Views(pipeline=pipeline, small=3, small_size=16, solarize=0.2)
    before = torch.get_rng_state()
    result = Augment(settings, 32)(pixels, aspect, seeded())
    assert torch.equal(before, torch.get_rng_state())
    assert [tuple(view.shape) for view in result] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3
    for view in result:
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert view.min() >= 0
        assert view.max() <= 1
        assert not view.requires_grad
    assert not torch.equal(result[0], result[1])
    torch.manual_seed(2)
    same(result, Augment(settings, 32)(pixels, aspect, seeded()))
    other = Augment(settings, 32)(pixels, aspect, seeded(1))
    assert not torch.equal(result[0], other[0])


def test_the_order_of_chance_is_fixed() -> None:
    """The number of random numbers depends on neither pixels nor probabilities."""
    sample = []
    for views in (Views(), Views(**PLAIN)):
        generator = seeded()
        parameters = sampling.sample_parameters(views, square(5), [views.scale] * 2, generator)
        sample.append((parameters[0].box, generator.get_state()))
    same(*sample)
    few = Augment(Views(), 16)(pictures(3, 32), square(3), seeded())
    more = Augment(Views(small=2), 16)(pictures(3, 32), square(3), seeded())
    same(few, more[:2])


def test_handling_few_images_or_many_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, aspect, result = pictures(7, 100), torch.linspace(0.5, 2, 7), []
    for cache in (1, 10**9):
        monkeypatch.setattr(batched, "CACHE", cache)
        result.append(Augment(Views(small=1), 72)(pixels, aspect, seeded()))
    same(*result, 5e-6)


@pipelines
def test_images_of_their_own_sizes_give_nearly_the_views_of_their_squares(pipeline: Any) -> None:
    shapes = [(240, 320), (300, 200), (256, 256)]
    originals = [
        tv.resize(pictures(1, 16, seed=i)[0], list(shape), antialias=True)
        for i, shape in enumerate(shapes)
    ]
    squares = torch.stack([tv.resize(image, [400, 400], antialias=True) for image in originals])
    aspect = torch.tensor([width / height for height, width in shapes])
    augment = Augment(Views(small=1, pipeline=pipeline), 64)
    for one, two in zip(
        augment(originals, aspect, seeded()), augment(squares, aspect, seeded()), strict=True
    ):
        assert one.shape == two.shape
        assert one.is_contiguous(memory_format=torch.channels_last)
        if pipeline == "fast":  # torchvision draws its boxes in pixels: others for other sizes
            assert (one - two).abs().mean() < 0.02
    for one, two in zip(centre(originals, aspect, 64), centre(squares, aspect, 64), strict=True):
        assert (one - two).abs().mean() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_are_those_of_any_device() -> None:
    # a CPU renders larger canvases image by image, with boxes rounded to pixels
    pixels, aspect = pictures(9, augment_module.SINGLY_FROM - 1), torch.linspace(0.5, 2, 9)
    augment = Augment(Views(small=1), 96)
    here, there = augment(pixels, aspect, seeded()), augment(pixels.cuda(), aspect, seeded())
    assert all(view.device.type == "cuda" for view in there)
    same(here, (view.cpu() for view in there), 2e-3)


def test_autocast_does_not_touch_views() -> None:
    pixels, augment = pictures(4, 64), Augment(Views(), 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = augment(pixels, square(4), seeded())
    same(augment(pixels, square(4), seeded()), under)


@pipelines
@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_nothing_asked_for_is_the_plain_resize(pipeline: Any, size: int, flip: float) -> None:
    pixels = pictures(3, 64)
    settings = Views(**{**WHOLE, "pipeline": pipeline, "flip": flip})
    (view,) = Augment(settings, size)(pixels, square(3), seeded())
    expected = tv.resize(pixels.float() / 255, [size, size], antialias=True)
    expected = expected.flip(3) if flip else expected
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_how_often_things_happen() -> None:
    settings = Views(solarize=0.3)
    (sample,) = sampling.sample_parameters(settings, square(20000), [settings.scale], seeded())
    plain = (sample.colour[0] == torch.eye(3)).all((1, 2))
    grey = (sample.colour[0] - sample.colour[0][:, :1]).abs().amax((1, 2)) < 1e-6
    for happened, share in (
        (sample.flip, 0.5),
        (sample.sigma > 0, 0.5),
        (sample.solarize, 0.3),
        (grey, 0.2),
        (plain, 0.2 * 0.8),
    ):
        assert abs(happened.float().mean() - share) < 0.015
    blurred = sample.sigma[sample.sigma > 0]
    assert blurred.min() >= 0.1
    assert blurred.max() <= 2
    assert abs(blurred.mean() - 1.05) < 0.03


def disc(height: int, width: int) -> Tensor:
    """uint8 [3, height, width]: a white disc in the middle, a third as wide as the short side."""
    down = torch.arange(height)[:, None] + 0.5 - height / 2
    across = torch.arange(width) + 0.5 - width / 2
    inside = (down.square() + across.square()).sqrt() < min(height, width) / 6
    return inside.byte().mul(255).expand(3, height, width)


@pytest.mark.parametrize(("height", "width"), [(100, 200), (240, 100), (128, 128)])
@pipelines
def test_a_circle_stays_a_circle(height: int, width: int, pipeline: Any) -> None:
    aspect = torch.tensor([width / height])
    squashed = tv.resize(disc(height, width), [128, 128], antialias=True)[None]

    def extent(view: Tensor) -> tuple[float, ...]:
        """The second moments of the disc, down and across."""
        image = view[0, 0] / view[0, 0].sum()
        place = torch.arange(len(image)) + 0.5
        shares = (image.sum(1), image.sum(0))
        return tuple(float(s @ place.square() - (s @ place).square()) for s in shares)

    down, across = extent(centre(squashed, aspect, 64))
    assert abs(down / across - 1) < 0.02
    assert abs(2 * math.sqrt(down) - 64 / 6) < 0.2  # a disc of radius r has moments r^2 / 4

    # Square crops: the disc keeps its shape wherever it is seen whole.
    augment = Augment(Views(**{**WHOLE, "pipeline": pipeline, "scale": (0.3, 0.4)}), 32)
    ratios = []
    for seed in range(150):
        (view,) = augment(squashed, aspect, seeded(seed))
        inside = torch.nn.functional.pad(view[..., 1:-1, 1:-1], (1, 1, 1, 1))
        if (view - inside).max() < 0.02 and view.max() > 0.5:
            down, across = extent(view)
            ratios.append(abs(down / across - 1))
    assert len(ratios) > 5
    assert sum(ratios) / len(ratios) < 0.03


@pytest.mark.parametrize(("height", "width"), [(128, 192), (192, 128), (128, 128)])
def test_centre_is_torchvisions_resize_and_centre_crop(height: int, width: int) -> None:
    canvas, size = 256, 64  # a canvas larger than the picture, so that squashing it lost nothing
    picture = tv.resize(pictures(1, 16), [height, width], antialias=True)
    squashed = tv.resize(picture, [canvas, canvas], antialias=True)
    original = picture.float() / 255
    for share in (1.0, 0.8):  # such that torchvision need not round the sides that it resizes to
        result = centre(squashed, torch.tensor([width / height]), size, share)
        short = round(size / share)
        scaled = [short * height // min(height, width), short * width // min(height, width)]
        expected = tv.center_crop(tv.resize(original, scaled, antialias=True), [size, size])
        assert result.shape == expected.shape
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert (result - expected).abs().mean() < 0.002
        assert (result - expected)[..., 2:-2, 2:-2].abs().max() < 0.01


@pytest.mark.parametrize("canvas", [16, 200])
def test_tiny_sizes_and_thin_crops(canvas: int) -> None:
    pixels = pictures(3, canvas)
    settings = Views(scale=(1e-4, 1e-3), small=1, small_size=1, ratio=(0.1, 10), solarize=1.0)
    for size in (1, 2, 5, 33):
        for view in Augment(settings, size)(pixels, torch.tensor([0.05, 1.0, 20.0]), seeded()):
            assert torch.isfinite(view).all()
    assert Augment(Views(small=1), 50).small_size == 24


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("pipeline", "slow"), ("scale", (0.0, 1.0)), ("scale", (0.5, 0.2))),
        *(("small_scale", (0.1, 1.5)), ("ratio", (2.0, 1.0)), ("flip", 1.5), ("jitter", -0.1)),
        *(("contrast", -1.0), ("hue", 0.7), ("blur_sigma", (0.0, 1.0)), ("large", 0)),
        *(("small", -1), ("small_size", -2), ("gray", math.nan)),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--views.{name.replace('_', '-')} (must be|takes) "):
        Views(**{name: value})


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="size must be"):
        Augment(Views(), 0)
    with pytest.raises(UserError, match="share must be"):
        centre(pictures(1, 8), square(1), 8, share=0.0)
