"""MAE and SimMIM: each against its paper's formula in plain loops; masks, what they hide from the
network and from the loss, and two controls of what can be known of hidden pixels.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selftaught.errors import UserError
from selftaught.hard import CutMix, MixUp
from selftaught.hard.mixed import blend, partner
from selftaught.method import Batch, Setting, Setup, image_seeds, leaves, map_tensors
from selftaught.methods import METHODS
from selftaught.methods.masked.mae import MAE
from selftaught.methods.masked.simmim import SimMIM, measure_stride
from selftaught.methods.parts.masked_pixels import draw_cells, spread_mask
from selftaught.methods.parts.patch_decoder import PatchDecoder
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.optim import Cosine
from selftaught.training.step import Step
from selftaught.visualize import snapshots
from tests.formulas import answer, close, data64, double, loss_of
from tests.laws.toys import IMAGES, Tokens, Toy, batch, config, rng
from tests.methods.controls import held_out_grade, run_accuracy, write_noise

NAMES = ["mae", "simmim"]
names = pytest.mark.parametrize("name", NAMES)


class Strided(Tokens):
    """A network with a map of a place for each square of four pixels, and without patches."""

    patch_size = None


def make(name: str, network: type[Toy] = Tokens, **fields: Any) -> Any:
    torch.manual_seed(0)
    settings = dataclasses.replace(config(name), **fields)
    return METHODS[name](settings, Setup(network(norm=False), IMAGES)).double()


def test_mae_is_its_formula() -> None:
    """He et al., 2021, section 3: one image at a time; of the visible patches alone."""
    method, data, total = double("mae"), data64(5), 0.0
    for view, mask in zip(data.views[0], method.draw_mask(data), strict=True):
        hidden = mask.flatten().nonzero()[:, 0].tolist()
        keep = (~mask.flatten().bool()).nonzero().T
        assert len(hidden) == 12
        features, tokens = method.backbone.tokens(view[None], keep=keep)
        patches = method.decoder(features, tokens, keep, (4, 4))[0].tolist()
        for place in hidden:
            y, x = place // 4 * 4, place % 4 * 4
            true = view[:, y : y + 4, x : x + 4].flatten().tolist()
            mean = sum(true) / 48
            deviation = math.sqrt(sum((v - mean) ** 2 for v in true) / 48 + 1e-6)
            pairs = zip(patches[place], true, strict=True)
            total += sum((p - (v - mean) / deviation) ** 2 for p, v in pairs) / 48 / 12
    close(loss_of(method, data), total / 5)


@pytest.mark.parametrize("network", [Tokens, Strided])
def test_simmim_is_its_formula(network: type[Toy]) -> None:
    """Xie et al., 2022, equation 1: a masked patch is a token, or its pixels are a colour."""
    method, data, total = make("simmim", network, cells=4), data64(5), 0.0
    net, token = method.network, method.network.mask_token.weight[0]
    weight, bias = net.head.weight[:, :, 0, 0], net.head.bias
    for view, mask in zip(data.views[0], method.draw_mask(data), strict=True):
        assert mask.sum() == 10  # of 16
        if network is Tokens:
            places = net.backbone.tokens(view[None], mask.flatten()[None], token)[1][0]
        else:
            pixels = mask.repeat_interleave(4, 0).repeat_interleave(4, 1).bool()
            masked = torch.where(pixels, token[:, None, None], view)
            places = net.backbone.with_map(masked[None])[1][0].flatten(1).T
        for place in mask.flatten().nonzero()[:, 0].tolist():
            y, x = place // 4 * 4, place % 4 * 4
            true = view[:, y : y + 4, x : x + 4].flatten().tolist()
            pairs = zip((weight @ places[place] + bias).tolist(), true, strict=True)
            total += sum(abs(p - v) for p, v in pairs) / 48 / 10
    close(loss_of(method, data), total / 5)


def test_a_constant_of_mae_has_a_loss_of_one() -> None:
    """Healthy training begins there, so that this is no sign of collapse."""
    method = double("mae")
    predictions, targets = answer(method, data64(5))
    close(method.loss(0 * predictions, targets), 1, rtol=1e-4)


# Masks


@names
def test_masks_differ_and_all_hide_the_same_share(name: str) -> None:
    masks = make(name).draw_mask(batch(12))
    assert masks.flatten(1).sum(1).unique().numel() == 1
    assert not torch.equal(masks[0], masks[1])


def test_every_patch_is_masked_as_often() -> None:
    often = draw_cells(batch(4000), (4, 4), 0.75).double().mean(0)
    assert (often - 0.75).abs().max() < 0.04


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 1), (0.75, 3), (1.0, 3)])
def test_one_cell_at_least_is_masked_and_one_is_not(ratio: float, count: int) -> None:
    assert (draw_cells(batch(8), (2, 2), ratio).flatten(1).sum(1) == count).all()
    with pytest.raises(UserError, match="--size") as error:
        draw_cells(batch(8), (1, 1), ratio)
    assert "\n" not in str(error.value)


def test_squares_of_simmim_are_those_of_the_paper_and_whole_patches() -> None:
    """Of 224 pixels: 7 x 7 squares of 32, which are 2 x 2 patches of a ViT of 16."""
    data = batch(3, size=224)
    plain = spread_mask(make("simmim", Strided).draw_mask(data), data.views[0])
    squares = plain.unfold(2, 32, 32).unfold(3, 32, 32).flatten(4).flatten(1, 3)
    assert torch.equal(squares.amin(2), squares.amax(2))
    assert (squares[:, :, 0].sum(1) == round(0.6 * 49)).all()

    class Large(Tokens):
        patch_size = (16, 16)

    patches = make("simmim", Large).draw_mask(data)
    assert patches.shape == (3, 14, 14)
    assert torch.equal(spread_mask(patches, data.views[0]), plain)
    odd = make("simmim", Tokens).draw_mask(batch(3, size=36))  # 9 patches for 7 squares
    assert odd.shape == (3, 9, 9)


# What a mask hides


def create(name: str) -> Backbone:
    """One of timm's networks, at 64 pixels."""
    torch.manual_seed(0)
    return backbone_module.create(name, image_size=64)


CASES = [("mae", "test_vit"), ("simmim", "test_vit"), ("simmim", "test_resnet")]
cases = pytest.mark.parametrize(("name", "network"), CASES)


@cases
def test_masked_pixels_have_no_influence_and_visible_ones_no_loss(name: str, network: str) -> None:
    method: Any = METHODS[name](config(name), Setup(create(network), IMAGES)).eval()
    data = batch(3, size=64)
    view, mask = method.inputs(data)
    view = view.clone().requires_grad_()
    predictions = method.predict((view, mask))
    targets = method.targets(data, predictions)
    hidden = targets[1].expand_as(view) > 0
    (slope,) = torch.autograd.grad(predictions.square().sum(), view)
    assert (slope[hidden] == 0).all()
    assert slope[~hidden].abs().mean() > 0
    with torch.no_grad():
        other = torch.where(hidden, torch.rand_like(view), view)
        assert torch.equal(method.predict((other, mask)), predictions)
        loss, wrong = method.loss(predictions, targets), torch.full_like(predictions, 9.0)
        assert torch.equal(method.loss(torch.where(hidden, predictions, wrong), targets), loss)
        assert method.loss(torch.where(hidden, wrong, predictions), targets) > loss + 1


@pytest.mark.parametrize(
    ("name", "network"), [*CASES, ("simmim", "test_convnext"), ("simmim", "mobilenetv3_small_050")]
)
def test_every_parameter_of_a_network_gets_a_gradient(name: str, network: str) -> None:
    """Also those of the pooling, which no pixel needs: several processes wait for them."""
    step = Step(METHODS[name](config(name), Setup(create(network), IMAGES)))
    step(batch(2, size=64), rng()).loss.backward()
    assert not [key for key, p in step.named_parameters() if p.requires_grad and p.grad is None]


def test_the_decoder_puts_patches_back_in_their_places() -> None:
    torch.manual_seed(0)
    decoder = PatchDecoder(4, 6, 32, 1, 5)
    features, tokens = torch.randn(2, 4), torch.randn(2, 3, 6)
    keep = torch.tensor([[1, 4, 5], [0, 2, 3]])
    outputs = decoder(features, tokens, keep, (2, 3))
    assert outputs.shape == (2, 6, 5)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(features, tokens[:, order], keep[:, order], (2, 3)), outputs)
    assert not torch.allclose(decoder(features, tokens, keep[:, order], (2, 3)), outputs)
    assert not torch.allclose(decoder(2 * features, tokens, keep, (2, 3)), outputs)


@pytest.mark.parametrize(
    ("name", "stem", "stride"),
    [("test_resnet", "imagenet", 32), ("resnet10t", "cifar", 8), ("test_convnext", "imagenet", 32)],
)
def test_the_stride_is_that_of_the_network(name: str, stem: str, stride: int) -> None:
    backbone = backbone_module.create(name, stem=stem, image_size=64).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert measure_stride(backbone) == (stride, stride)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


# Hard examples, grades, pictures


@names
@pytest.mark.parametrize("kind", [CutMix, MixUp])
def test_the_target_of_a_mixed_view_is_that_very_view(name: str, kind: type) -> None:
    method, data = make(name), data64(6)
    inputs = method.inputs(data)
    targets = method.targets(data, ())
    mask = kind().draw_mask(inputs, rng(3))
    mixed = blend(inputs, mask)
    view, hidden = method.mix_targets(targets, map_tensors(partner, targets), mask)
    torch.testing.assert_close(view, leaves(mixed)[0])
    assert torch.equal(hidden, targets[1])
    expected = method.loss(method.predict(mixed), (leaves(mixed)[0], hidden))
    close(kind().loss(method, inputs, targets, rng(3), None), expected)


@names
def test_a_grade_is_the_share_of_the_error_that_is_avoided(name: str) -> None:
    method, data = make(name), data64(4)
    view, hidden = targets = method.targets(data, ())
    truth, guess = method.encode(view), method.guess(view, hidden).expand_as(view)
    half = 0.75 if name == "mae" else 0.5  # squares, and absolute values
    worse = guess + 3 * (guess - truth)
    for output, share in ((truth, 1), (guess, 0), (worse, 0), ((guess + truth) / 2, half)):
        close(method.grade(output, targets), torch.full((4,), share))
    assert method.chance() == 0
    flat = (torch.full_like(view, 0.3), hidden)  # images of one colour
    assert torch.isfinite(method.grade(guess, flat)).all()
    assert torch.isfinite(method.loss(guess, flat))


def test_the_guess_of_simmim_is_the_mean_of_what_is_visible() -> None:
    method = make("simmim")
    view, hidden = method.targets(data64(2), ())
    for image, mask, guess in zip(view, hidden, method.guess(view, hidden), strict=True):
        for channel, value in zip(image, guess[:, 0, 0], strict=True):
            seen = channel[mask[0] == 0].tolist()
            close(value, sum(seen) / len(seen))


@names
def test_pictures_are_the_masked_view_the_filled_one_and_the_truth(name: str) -> None:
    method, data = make(name), data64(3)
    view, hidden = targets = method.targets(data, ())
    shown = method.illustrate(data, method.encode(view), targets)
    assert len(shown) == 3
    for one, own, mask in zip(shown, view, hidden, strict=True):
        assert list(one.pictures) == ["input", "prediction", "truth"]
        assert (one.pictures["input"][mask.expand(3, -1, -1) > 0] == 0.5).all()
        torch.testing.assert_close(one.pictures["prediction"], own)  # it was the truth
        assert "100 %" in one.text


# What is refused, and defaults


def test_mae_refuses_networks_without_patches_in_one_line() -> None:
    with pytest.raises(UserError, match="--backbone") as error:
        MAE(MAE.Config(), Setup(Toy(norm=True), IMAGES))
    assert "simmim" in str(error.value)
    assert "\n" not in str(error.value)
    SimMIM(SimMIM.Config(), Setup(Toy(norm=True), IMAGES))
    with pytest.raises(UserError, match="--method"):
        MAE.Config(width=100)  # no multiple of its heads


@pytest.mark.parametrize(
    ("features", "images", "width", "depth"),
    [(768, 1_281_167, 512, 8), (192, 5_000, 128, 2), (6, 64, 32, 2)],
)
def test_the_decoder_follows_the_data_and_the_backbone(
    features: int, images: int, width: int, depth: int
) -> None:
    setting = Setting(images=images, batch=64, steps=1000, features=features)
    settings = MAE.Config().defaults(setting)
    assert (settings.config.width, settings.config.depth) == (width, depth)
    assert settings.optimizer == "adamw"


# Controls: what a network may not know of hidden pixels, it does not know


def small_vit() -> nn.Module:
    """Sixteen patches of 32 pixels."""
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=0,
        dynamic_img_size=True,
    )


def ramps(count: int, seed: int) -> Batch:
    """Images of one pattern, a rise of brightness in one of four directions, in every patch."""
    direction = torch.randint(4, (count,), generator=rng(seed))
    rise = torch.linspace(0.1, 0.9, 8).repeat(4).expand(3, 32, 32)
    view = torch.stack([torch.rot90(rise, int(d), (1, 2)) for d in direction])
    return Batch((view,), direction, direction, image_seeds(seed, 0, count))


@names
@pytest.mark.parametrize(("roll", "low", "high"), [(0, 0.5, 1.0), (1, -9.0, 0.1)])
def test_a_pattern_is_found_and_that_of_other_images_is_not(
    name: str, roll: int, low: float, high: float
) -> None:
    """These few steps do find the pattern of an image; and none, if it belongs elsewhere."""
    torch.manual_seed(0)
    statistics: Any = {"mean": (0.5,) * 3, "std": (0.3,) * 3}
    backbone = Backbone(small_vit(), name="n", stem="imagenet", image_size=32, **statistics)
    method: Any = METHODS[name](config(name), Setup(backbone, IMAGES))

    def images(seed: int) -> Batch:
        return ramps(8, seed)

    move = lambda t: (t[0].roll(roll, 0), t[1])  # noqa: E731
    grade = held_out_grade(method, images, 30, move, range(100, 108), Cosine(warmup=0.1))
    assert low < grade < high


@names
def test_of_noise_nothing_can_be_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run explains of held-out noise would be a leak of the pipeline."""
    monkeypatch.setattr(snapshots, "draw", lambda session, folder: None)
    images = write_noise(tmp_path / "noise", (32, 32), 80)
    backbone = f"{__name__}:small_vit" if name == "mae" else "test_resnet"
    flags = ["--backbone", backbone, "--steps", "8"]
    reached, chance, _ = run_accuracy(name, images, tmp_path / "run", 32, *flags)
    assert chance == 0
    assert reached < 0.02
