"""MAE and SimMIM: each against its paper's formula in plain loops; masks, what they hide from the
network and from the loss, and two controls of what can be known of hidden pixels.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.hard import CutMix, MixUp
from selftaught.hard.mixed import blend, partner
from selftaught.method import Batch, Setting, Setup, detach, image_seeds, leaves, map_tensors
from selftaught.methods import METHODS
from selftaught.methods.masked.mae import MAE
from selftaught.methods.masked.simmim import SimMIM, measure_stride
from selftaught.methods.parts.masked_pixels import MaskedPixels, draw_cells, spread_mask
from selftaught.methods.parts.patch_decoder import PatchDecoder
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.optim import AdamW, Cosine
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from selftaught.visualize import snapshots
from tests.formulas import close, double
from tests.laws.toys import IMAGES, Tokens, Toy, batch, config, rng

NAMES = ["mae", "simmim"]
names = pytest.mark.parametrize("name", NAMES)


class Strided(Tokens):
    """A network with a map of a place for each square of four pixels, and without patches."""

    patch_size = None  # type: ignore[assignment]


def make(name: str, network: type[Toy] = Tokens, **fields: Any) -> Any:
    torch.manual_seed(0)
    made = METHODS[name].Config(**{**vars(config(name)), **fields})
    return METHODS[name](made, Setup(network(norm=False), IMAGES)).double()


def answered(method: Any, data: Batch) -> tuple[Tensor, Any]:
    predictions = method.predict(method.inputs(data))
    return predictions, method.targets(data, predictions)


# The papers' formulas, pixel by pixel


def test_mae_is_its_formula() -> None:
    """He et al., 2021, section 3: one image at a time; of the visible patches alone."""
    method, data = double("mae"), batch(5, dtype=torch.float64)
    assert isinstance(method, MAE)
    masks = method.draw_mask(data)
    total = 0.0
    for view, mask in zip(data.views[0], masks, strict=True):
        hidden = [i for i in range(16) if mask[i // 4][i % 4]]
        keep = torch.tensor([[i for i in range(16) if i not in hidden]])
        assert len(hidden) == 12
        features, tokens = method.backbone.tokens(view[None], keep=keep)
        patches = method.decoder(features, tokens, keep, (4, 4))[0].tolist()
        for place in hidden:
            y, x = place // 4 * 4, place % 4 * 4
            true = [
                view[c, y + j, x + i].item() for c in range(3) for j in range(4) for i in range(4)
            ]
            mean = sum(true) / 48
            deviation = math.sqrt(sum((v - mean) ** 2 for v in true) / 48 + 1e-6)
            pairs = zip(patches[place], true, strict=True)
            total += sum((p - (v - mean) / deviation) ** 2 for p, v in pairs) / 48 / 12
    close(method.loss(*answered(method, data)), total / 5)


@pytest.mark.parametrize("network", [Tokens, Strided])
def test_simmim_is_its_formula(network: type[Toy]) -> None:
    """Xie et al., 2022, equation 1: a masked patch is a token, or its pixels are a colour."""
    method, data = make("simmim", network, cells=4), batch(5, dtype=torch.float64)
    net, token = method.network, method.network.mask_token.weight[0]
    total = 0.0
    for view, mask in zip(data.views[0], method.draw_mask(data), strict=True):
        assert mask.sum() == 10  # of 16
        if network is Tokens:
            _, tokens = net.backbone.tokens(view[None], mask.flatten()[None], token)
            places = tokens[0]
        else:
            masked = view.clone()
            for y in range(16):
                for x in range(16):
                    if mask[y // 4][x // 4]:
                        masked[:, y, x] = token
            places = net.backbone.with_map(masked[None])[1][0].flatten(1).T
        weight, bias = net.head.weight[:, :, 0, 0], net.head.bias
        for place in range(16):
            if mask[place // 4][place % 4]:
                patch = (weight @ places[place] + bias).tolist()
                for n, value in enumerate(patch):
                    c, y, x = n // 16, place // 4 * 4 + n % 16 // 4, place % 4 * 4 + n % 4
                    total += abs(value - view[c, y, x].item()) / 48 / 10
    close(method.loss(*answered(method, data)), total / 5)


def test_a_constant_of_mae_has_a_loss_of_one() -> None:
    method, data = double("mae"), batch(5, dtype=torch.float64)
    predictions, targets = answered(method, data)
    close(method.loss(0 * predictions, targets), 1, rtol=1e-4)
    # healthy training begins there, while the rank of a fresh ViT falls
    assert method.collapsed_loss(5) is None


# Masks


@names
def test_masks_depend_on_the_image_alone_and_all_hide_the_same_share(name: str) -> None:
    method, data = make(name), batch(12)
    whole = method.draw_mask(data)
    parts = [method.draw_mask(data.map(lambda x, s=s: x[s])) for s in (slice(0, 5), slice(5, 12))]  # type: ignore[misc]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.flatten(1).sum(1).unique().numel() == 1
    assert not torch.equal(whole[0], whole[1])
    often = draw_cells(batch(4000), (4, 4), 0.75).double().mean(0)  # each patch as often
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
    assert ((squares.amin(2) == squares.amax(2)).all(1)).all()
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
        loss = method.loss(predictions, targets)
        wrong = torch.where(hidden, predictions, torch.full_like(predictions, 9.0))
        assert torch.equal(method.loss(wrong, targets), loss)
        wrong = torch.where(hidden, torch.full_like(predictions, 9.0), predictions)
        assert method.loss(wrong, targets) > loss + 1


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
    method, data = make(name), batch(6, dtype=torch.float64)
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
    method, data = make(name), batch(4, dtype=torch.float64)
    targets = method.targets(data, ())
    view, hidden = targets
    truth, guess = method.encode(view), method.guess(view, hidden).expand_as(view)
    ones = torch.ones(4, dtype=torch.float64)
    close(method.grade(truth, targets), ones)
    close(method.grade(guess, targets), 0 * ones)
    close(method.grade(guess + 3 * (guess - truth), targets), 0 * ones)  # worse
    share = 0.75 if name == "mae" else 0.5  # squares, and absolute values
    close(method.grade((guess + truth) / 2, targets), share * ones)
    assert method.chance() == 0
    flat = (torch.full_like(view, 0.3), hidden)  # images of one colour
    assert torch.isfinite(method.grade(guess, flat)).all()
    assert torch.isfinite(method.loss(guess, flat))


def test_the_guess_of_simmim_is_the_mean_of_what_is_visible() -> None:
    method, data = make("simmim"), batch(2, dtype=torch.float64)
    view, hidden = method.targets(data, ())
    for image, mask, guess in zip(view, hidden, method.guess(view, hidden), strict=True):
        for c in range(3):
            seen = image[c][mask[0] == 0]
            close(guess[c, 0, 0], sum(seen.tolist()) / len(seen))


@names
def test_pictures_are_the_masked_view_the_filled_one_and_the_truth(name: str) -> None:
    method, data = make(name), batch(3, dtype=torch.float64)
    targets = method.targets(data, ())
    view, hidden = targets
    shown = method.illustrate(data, method.encode(view), targets)
    assert len(shown) == 3
    for i, one in enumerate(shown):
        assert list(one.pictures) == ["input", "prediction", "truth"]
        assert (one.pictures["input"][hidden[i].expand(3, -1, -1) > 0] == 0.5).all()
        torch.testing.assert_close(one.pictures["prediction"], view[i])  # it was the truth
        assert "100 %" in one.text


# What is refused, and defaults


def test_mae_refuses_networks_without_patches_in_one_line() -> None:
    with pytest.raises(UserError, match="--backbone") as error:
        MAE(MAE.Config(), Setup(Toy(norm=True), IMAGES))
    assert "simmim" in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(SimMIM(SimMIM.Config(), Setup(Toy(norm=True), IMAGES)), MaskedPixels)


def test_the_decoders_width_is_a_multiple_of_its_heads() -> None:
    with pytest.raises(UserError, match="--method"):
        MAE.Config(width=100)


@pytest.mark.parametrize(
    ("features", "images", "width", "depth"),
    [(768, 1_281_167, 512, 8), (192, 5_000, 128, 2), (6, 64, 32, 2)],
)
def test_the_decoder_follows_the_data_and_the_backbone(
    features: int, images: int, width: int, depth: int
) -> None:
    setting = Setting(images=images, batch=64, steps=1000, features=features)
    made = MAE.Config().defaults(setting)
    assert (made.config.width, made.config.depth) == (width, depth)
    assert made.optimizer == "adamw"


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


def learn(name: str, steps: int, targets: Callable[[Any], Any] = lambda x: x) -> float:
    """The mean grade of other images than those of the training."""
    torch.manual_seed(0)
    backbone = Backbone(
        small_vit(), name="n", stem="imagenet", mean=(0.5,) * 3, std=(0.3,) * 3, image_size=32
    )
    method: Any = METHODS[name](config(name), Setup(backbone, IMAGES))
    own = method.targets
    method.targets = lambda data, predictions: targets(own(data, predictions))
    step = Step(method)
    optimizer = AdamW(lr=0.01).build(step.named_parameters())
    loop = Loop(steps=steps, steps_per_epoch=steps, schedule=Cosine(warmup=0.1))
    for _ in fit(step, method, lambda *_: (ramps(8, s) for s in range(steps)), optimizer, loop):
        pass
    method.eval()
    with torch.no_grad():
        predictions, truth = answered(method, ramps(64, 1000))
    return float(method.grade(detach(predictions), truth).mean())


@names
def test_a_pattern_is_found_and_that_of_other_images_is_not(name: str) -> None:
    """These few steps do find the pattern of an image; and none, if it belongs elsewhere."""
    assert learn(name, 30) > 0.5
    assert learn(name, 30, lambda t: (t[0].roll(1, 0), t[1])) < 0.1


@names
def test_of_noise_nothing_can_be_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run explains of held-out noise would be a leak of the pipeline."""
    monkeypatch.setattr(snapshots, "draw", lambda session, folder: None)
    numbers = np.random.default_rng(0)
    images = tmp_path / "noise"
    images.mkdir()
    for i in range(80):
        pixels = numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i:03}.png")
    out, backbone = tmp_path / "run", "test_resnet"
    if name == "mae":
        backbone = f"{__name__}:small_vit"
    flags = ["--method", name, "--backbone", backbone, "--size", "32", "--batch", "16"]
    flags += ["--precision", "fp32", "--workers", "0", "--steps", "8", "--on-collapse", "warn"]
    assert main(["pretrain", "--data", str(images), "--out", str(out), *flags]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert facts["pretext_chance"] == 0
    assert facts["pretext"] < 0.02
