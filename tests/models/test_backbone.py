"""Backbones: construction, features and errors."""

import pytest
import timm
import torch
from torch import nn

from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from tests.networks import RESNET, VIT, assert_same_weights, features, normalised, pixels


class TestCreate:
    @pytest.mark.parametrize(
        "name", [RESNET, "test_convnext", "test_efficientnet", VIT, "mobilenetv3_small_050"]
    )
    def test_features_is_the_width_of_the_output(self, name):
        backbone = backbone_module.create(name, image_size=64)
        assert features(backbone, pixels()).shape == (2, backbone.features)

    def test_it_normalises_once(self):
        backbone = backbone_module.create(RESNET, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        expected = features(
            backbone.network, normalised(pixels(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        )
        assert torch.equal(features(backbone, pixels()), expected)

    def test_gradients_of_tiny_views_are_those_of_full_precision(self):
        """In bfloat16, oneDNN leaves the gradients of taps on padding uninitialised; here NaN."""
        torch.manual_seed(0)
        backbone = backbone_module.create("resnet18").eval()
        for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
            # the last of each block begins at 0, and lets no gradient through
            nn.init.ones_(norm.weight)
        tiny = torch.rand(8, 3, 16, 16)  # the last stage's stride then meets maps of one pixel
        gradients = {}
        for bf16 in (False, True):
            backbone.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = backbone(tiny)
            for size in (10**5, 10**6, 4 * 10**6):
                rubbish = [torch.full((size,), torch.nan) for _ in range(4)]
                del rubbish
            (out.float() * torch.linspace(-1, 1, out.shape[1])).sum().backward()
            gradients[bf16] = backbone.network.get_parameter("layer4.0.conv1.weight").grad.clone()
        taps = torch.zeros(3, 3, dtype=torch.bool)
        taps[1, 1] = True
        assert (gradients[True][:, :, ~taps] == 0).all()
        assert (
            nn.functional.cosine_similarity(
                *(gradients[bf16].flatten() for bf16 in (True, False)), dim=0
            )
            > 0.9
        )

    def test_same_seed_same_weights_whatever_options_were_tried(self):
        torch.manual_seed(3)
        ours = backbone_module.create("resnet18").network
        torch.manual_seed(3)
        assert_same_weights(ours, timm.create_model("resnet18", num_classes=0))

    def test_unknown_name_lists_the_nearest(self):
        with pytest.raises(UserError, match=r'no model "resnet81"\. Nearest: .*resnet'):
            backbone_module.create("resnet81")

    def test_unknown_tag_lists_the_nearest(self):
        with pytest.raises(UserError, match=r"resnet18\.a1_in1k"):
            backbone_module.create("resnet18.a9_in1k")

    def test_an_address_is_not_fetched(self):
        with pytest.raises(UserError, match="no model"):
            backbone_module.create("hf-hub:timm/resnet18.a1_in1k")

    @pytest.mark.parametrize("name", [RESNET, "resnet18", "resnet26t"])
    def test_cifar_stem_keeps_the_resolution(self, name):
        network = backbone_module.create(name, stem="cifar").network
        with torch.no_grad():
            assert network.eval().forward_features(pixels(32)).shape[-1] == 32 // 8
            assert timm.create_model(name).eval().forward_features(pixels(32)).shape[-1] == 1

    def test_cifar_stem_is_the_published_one(self):
        network = backbone_module.create("resnet18", stem="cifar").network
        assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.bias) == (
            (3, 3),
            (1, 1),
            None,
        )
        assert isinstance(network.maxpool, nn.Identity)

    @pytest.mark.parametrize("name", [VIT, "test_convnext"])
    def test_cifar_stem_is_for_resnets(self, name):
        with pytest.raises(UserError, match="ResNets only"):
            backbone_module.create(name, stem="cifar")

    def test_unknown_stem(self):
        with pytest.raises(UserError, match='"imagenet" or "cifar"'):
            backbone_module.create(RESNET, stem="mnist")

    def test_image_size_shapes_a_vit(self):
        assert backbone_module.create(VIT, image_size=64).network.pos_embed.shape[1] in (16, 17)

    def test_a_vit_sees_small_views_too(self):
        backbone = backbone_module.create(VIT, image_size=64)
        assert features(backbone, pixels(32)).shape == (2, backbone.features)

    def test_image_size_must_be_whole_patches(self):
        with pytest.raises(UserError, match=r"16 pixels.*48 or 64"):
            backbone_module.create(VIT, image_size=50)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100", "convnext_atto"]
)
def test_a_map_comes_with_the_features_that_are_pooled_from_it(name: str) -> None:
    backbone = backbone_module.create(name, image_size=64).eval()
    pixels = torch.rand(2, 3, 64, 64)
    features, maps = backbone.with_map(pixels)
    torch.testing.assert_close(features, backbone(pixels))
    assert maps.shape[:2] == (2, backbone.channels)
    assert maps.shape[2] == maps.shape[3] > 1
