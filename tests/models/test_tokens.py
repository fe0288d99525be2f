"""Patch tokens of timm's ViTs: masks, patches to keep, other sizes, registers."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from tests.networks import pixels

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# name, size, timm's options; with absolute positions, registers, rotary positions, mean pooling
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", 64, SMALL),
    "fixed size": ("vit_tiny_patch16_224", 64, {**SMALL, "dynamic_img_size": False}),
    "DINOv2": ("vit_small_patch14_dinov2", 56, SMALL),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", 56, SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", 64, SMALL),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", 64, SMALL),
    "CLIP": ("vit_base_patch16_clip_224", 64, SMALL),
    "mean": ("vit_base_patch16_gap_224", 64, SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", 56, SMALL),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def build(kind: str) -> tuple[Backbone, int]:
    name, size, options = NETWORKS[kind]
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    torch.manual_seed(0)
    options = {"dynamic_img_size": True, **options}
    network = timm.create_model(name, num_classes=0, img_size=size, **options)
    for p in network.parameters():  # fresh layer scales and tokens are near 0
        p.data += 0.2 * torch.randn_like(p)
    backbone = Backbone(
        network, name=name, stem="imagenet", mean=(0, 0, 0), std=(1, 1, 1), image_size=size
    )
    return backbone.eval(), size


def seen_patches(backbone: Backbone, x: Tensor) -> Tensor:
    """Of each patch of images with a gradient, how much it counted: [B, patches]."""
    side = backbone.patch_size[0]
    return x.grad.abs().unfold(2, side, side).unfold(3, side, side).sum((1, 4, 5)).flatten(1)


@networks
def test_tokens_are_those_of_the_networks_own_pass(name: str) -> None:
    backbone, size = build(name)
    with torch.no_grad():
        features, tokens = backbone.tokens(pixels(size))
        own, feature_map = backbone.with_map(pixels(size))
        torch.testing.assert_close(features, own)
        torch.testing.assert_close(features, backbone(pixels(size)))
    torch.testing.assert_close(tokens, feature_map.flatten(2).mT)
    side = size // backbone.patch_size[0]
    assert tokens.shape == (2, side * side, 32)  # registers and class tokens are no patches


@networks
def test_masked_patches_have_no_influence(name: str) -> None:
    backbone, size = build(name)
    side = backbone.patch_size[0]
    count = (size // side) ** 2
    mask = torch.zeros(2, count, dtype=torch.bool)
    mask[0, 1] = mask[0, 2] = mask[1, count - 1] = True
    token = torch.randn(32, requires_grad=True)
    x = pixels(size).requires_grad_()
    features, tokens = backbone.tokens(x, mask, token)
    (features.square().sum() + tokens.square().sum()).backward()
    blocks = seen_patches(backbone, x)
    assert (blocks[mask] == 0).all()
    assert (blocks[~mask] > 0).all()
    assert token.grad.abs().sum() > 0
    with torch.no_grad():
        plain = backbone.tokens(pixels(size), torch.zeros_like(mask), token)[0]
        torch.testing.assert_close(plain, backbone(pixels(size)))
        assert not torch.allclose(features, plain)


@networks
def test_patches_that_are_kept_are_all_that_is_seen(name: str) -> None:
    backbone, size = build(name)
    side = backbone.patch_size[0]
    count = (size // side) ** 2
    keep = torch.tensor([[3, 0, 5], [count - 1, 1, 2]])
    x = pixels(size).requires_grad_()
    features, tokens = backbone.tokens(x, keep=keep)
    assert tokens.shape == (2, 3, 32)
    features.square().sum().backward()
    blocks = seen_patches(backbone, x)
    seen = torch.zeros(2, count, dtype=torch.bool).scatter(1, keep, True)
    assert torch.equal(blocks > 0, seen)
    with torch.no_grad():  # all patches, in another order, are the whole image
        order = torch.randperm(count).expand(2, -1)
        whole, shuffled = backbone.tokens(pixels(size), keep=order)
        torch.testing.assert_close(whole, backbone(pixels(size)), rtol=1e-4, atol=1e-5)
        expected = backbone.tokens(pixels(size))[1][:, order[0]]
        torch.testing.assert_close(shuffled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "fixed size"])
def test_views_of_other_sizes_have_tokens(name: str) -> None:
    backbone, size = build(name)
    side = backbone.patch_size[0]
    with torch.no_grad():
        for other in (2 * side, size + side):
            count = (other // side) ** 2
            mask = torch.zeros(2, count, dtype=torch.bool)
            mask[:, 0] = True
            tokens = backbone.tokens(pixels(other), mask, torch.zeros(32))[1]
            assert tokens.shape == (2, count, 32)


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 32), ("test_convnext", 64), ("swin_tiny_patch4_window7_224", 224)],
)
def test_other_networks_have_no_patches(name: str, size: int) -> None:
    with torch.device("meta"):
        backbone = backbone_module.create(name, image_size=size)
    assert backbone.patch_size is None
    with pytest.raises(NotImplementedError):
        backbone.tokens(torch.zeros(1, 3, size, size))


def test_a_network_that_drops_patches_itself_has_no_tokens() -> None:
    network = timm.create_model("test_vit", num_classes=0, patch_drop_rate=0.5)
    backbone = Backbone(network, name="v", stem="imagenet", mean=(0, 0, 0), std=(1, 1, 1))
    assert backbone.patch_size is None
