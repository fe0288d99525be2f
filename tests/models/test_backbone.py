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
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        backbone = backbone_module.create(RESNET, mean=mean, std=std)
        expected = features(backbone.network, normalised(pixels(), mean, std))
        assert torch.equal(features(backbone, pixels()), expected)

    def test_gradients_of_tiny_views_are_those_of_full_precision(self):
        """In bfloat16, oneDNN leaves the gradients of taps on padding uninitialised; here NaN."""
        torch.manual_seed(0)
        backbone = backbone_module.create("resnet18").eval()
        for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
            # the last of each block begins at 0, and lets no gradient through
            nn.init.ones_(norm.weight)
        tiny = torch.rand(8, 3, 16, 16)  # the last stage's stride then meets maps of one pixel
        weight, gradients = backbone.network.get_parameter("layer4.0.conv1.weight"), []
        for bf16 in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = backbone(tiny)
            for size in (10**5, 10**6, 4 * 10**6):
                rubbish = [torch.full((size,), torch.nan) for _ in range(4)]
                del rubbish
            loss = (out.float() * torch.linspace(-1, 1, out.shape[1])).sum()
            gradients.append(torch.autograd.grad(loss, weight)[0].flatten(2))
        assert not gradients[0][:, :, [0, 1, 2, 3, 5, 6, 7, 8]].any()
        alike = nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0)
        assert alike > 0.9

    def test_same_seed_same_weights_whatever_options_were_tried(self):
        torch.manual_seed(3)
        ours = backbone_module.create("resnet18").network
        torch.manual_seed(3)
        assert_same_weights(ours, timm.create_model("resnet18", num_classes=0))

    @pytest.mark.parametrize(
        ("name", "options", "match"),
        [
            ("resnet81", {}, r'no model "resnet81"\. Nearest: .*resnet'),
            ("resnet18.a9_in1k", {}, r"resnet18\.a1_in1k"),
            ("hf-hub:timm/resnet18.a1_in1k", {}, "no model"),  # an address is not fetched
            (VIT, {"stem": "cifar"}, "ResNets only"),
            ("test_convnext", {"stem": "cifar"}, "ResNets only"),
            (RESNET, {"stem": "mnist"}, '"imagenet" or "cifar"'),
            (VIT, {"image_size": 50}, r"16 pixels.*48 or 64"),
        ],
    )
    def test_what_is_refused(self, name, options, match):
        with pytest.raises(UserError, match=match):
            backbone_module.create(name, **options)

    @pytest.mark.parametrize("name", [RESNET, "resnet18", "resnet26t"])
    def test_cifar_stem_keeps_the_resolution(self, name):
        network = backbone_module.create(name, stem="cifar").network
        with torch.no_grad():
            assert network.eval().forward_features(pixels(32)).shape[-1] == 32 // 8
            assert timm.create_model(name).eval().forward_features(pixels(32)).shape[-1] == 1

    def test_cifar_stem_is_the_published_one(self):
        network = backbone_module.create("resnet18", stem="cifar").network
        conv = network.conv1
        assert (conv.kernel_size, conv.stride, conv.bias) == ((3, 3), (1, 1), None)
        assert isinstance(network.maxpool, nn.Identity)

    def test_image_size_shapes_a_vit_which_sees_small_views_too(self):
        backbone = backbone_module.create(VIT, image_size=64)
        assert backbone.network.pos_embed.shape[1] in (16, 17)
        assert features(backbone, pixels(32)).shape == (2, backbone.features)


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
