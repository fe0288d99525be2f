"""The maps of a backbone's stages."""

import pytest
import torch

from selftaught.models import backbone as backbone_module


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
    assert all(found.shape[0] == 2 and found.ndim == 4 for found in maps.values())
    sides = [found.shape[-1] for found in maps.values()]
    assert sides == sorted(sides, reverse=True)
    assert tuple(list(maps.values())[-1].shape) == (2, last[0], last[1], last[1])


def test_the_last_map_is_the_one_that_features_are_pooled_from() -> None:
    torch.manual_seed(0)
    backbone = backbone_module.create("test_resnet", stem="cifar", image_size=32).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(list(backbone.maps(pixels).values())[-1], backbone.with_map(pixels)[1])
