"""The maps of a backbone's stages."""

import pytest
import torch

from selftaught.models import backbone as backbone_module
from selftaught.models.stages import stage_of_stride
from tests.laws.toys import Toy


@pytest.mark.parametrize(
    ("name", "size", "stages", "last"),
    [
        ("test_resnet", 32, 5, (96, 1)),
        ("test_efficientnet", 64, 5, (64, 2)),
        ("test_convnext", 64, 4, (64, 2)),
        ("test_vit", 160, 6, (64, 10)),
    ],
)
def test_every_stage_has_a_map(name: str, size: int, stages: int, last: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = backbone_module.create(name, image_size=size).eval()
    with torch.no_grad():
        maps = backbone.maps(torch.rand(2, 3, size, size))
    assert len(maps) == stages
    assert all(result.shape[0] == 2 and result.ndim == 4 for result in maps.values())
    sides = [result.shape[-1] for result in maps.values()]
    assert sides == sorted(sides, reverse=True)
    assert tuple(list(maps.values())[-1].shape) == (2, last[0], last[1], last[1])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_features_and_their_map_come_with_the_stages(name: str) -> None:
    backbone = backbone_module.create(name, image_size=160).eval()
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        features, feature_map, stages = backbone.with_stages(pixels)
        own, own_map = backbone.with_map(pixels)
    torch.testing.assert_close(features, own)
    torch.testing.assert_close(feature_map, own_map)
    if name == "test_resnet":
        assert torch.equal([*stages.values()][-1], feature_map)


@pytest.mark.parametrize(
    ("name", "stem", "stride", "side"),
    [
        ("test_resnet", "imagenet", 16, 4),
        ("test_resnet", "imagenet", 8, 8),
        ("test_resnet", "imagenet", 31, 4),
        ("test_resnet", "cifar", 8, 8),
        ("test_resnet", "cifar", 4, 16),
        ("test_efficientnet", "imagenet", 16, 4),
    ],
)
def test_a_stage_is_found_by_its_stride(name: str, stem: str, stride: int, side: int) -> None:
    backbone = backbone_module.create(name, stem=stem).eval()
    stage = stage_of_stride(backbone, stride)
    assert stage is not None
    with torch.no_grad():
        result = backbone.maps(torch.rand(1, 3, 64, 64))[stage[0]]
    assert tuple(result.shape[1:]) == (stage[1], side, side)


def test_no_stage_is_that_fine() -> None:
    assert stage_of_stride(backbone_module.create("test_convnext"), 2) is None
    assert stage_of_stride(Toy(norm=True), 2) is None
