"""The check of pixels: conversion to floats in [0, 1], or an error of one line."""

import copy
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import selftaught
from selftaught.data.pixel_range import PixelRange
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.models.weights import io as weights_io

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).byte()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = backbone_module.create("resnet10t")
    backbone.pixel_range = PixelRange(integers=(-1024, 3071))
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    weights_io.save_backbone(backbone, path)
    return path


@pytest.fixture
def backbone(file: Path) -> Backbone:
    return selftaught.load(file)


@torch.no_grad()
@pytest.mark.parametrize(
    "value",
    [
        PIXELS / 255,
        PIXELS,
        PIXELS.double() / 255,
        (PIXELS / 255).to(memory_format=torch.channels_last),
        (PIXELS / 255).mul(1.1).sub(0.05).clamp(-0.05, 1.05),  # resampling overshoots
        torch.zeros(2, 3, 32, 32),
    ],
    ids=["floats", "uint8", "doubles", "channels last", "overshoot", "black"],
)
def test_valid_pixels_are_converted(file: Path, backbone: Backbone, value: Tensor) -> None:
    floats = (value / 255 if value.dtype == torch.uint8 else value).float()
    expected = weights_io.load_backbone(file).eval()(floats)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for result in (
            backbone(value),
            backbone(value),
            backbone(pixels=value),
            backbone.with_map(value)[0],
            copy.deepcopy(backbone)(value),
            pickle.loads(pickle.dumps(backbone))(value),
        ):
            assert torch.allclose(result, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (PIXELS.float(), ["float32", "255"]),
        (PIXELS.double(), ["float64", "255"]),
        (PIXELS.float() - 3, ["float32", "25"]),
        (PIXELS.long(), ["int64", "3,071"]),
        (PIXELS.to(torch.int16), ["int16", "-1,024"]),
        (PIXELS.bool(), ["bool"]),
        (PIXELS[0], ["[3, 32, 32]", "uint8"]),
        (PIXELS[0] / 255, ["[3, 32, 32]", "float32"]),
        (PIXELS.permute(0, 2, 3, 1), ["[2, 32, 32, 3]", "permute"]),
        (PIXELS[0].permute(1, 2, 0), ["[32, 32, 3]", "permute"]),
        (PIXELS[:, :1], ["[2, 1, 32, 32]"]),
        (torch.zeros(2, 4, 32, 32), ["[2, 4, 32, 32]"]),
        (PIXELS.numpy(), ["ndarray"]),
        (np.zeros(3), ["ndarray"]),
        ([PIXELS], ["list"]),
    ],
)
def test_invalid_pixels_are_refused_in_one_line(
    backbone: Backbone, value: object, words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"give|batch") as refused:
        backbone(value)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in words)


@torch.no_grad()
@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.45, 0.22), (0.1, 0.3)])
def test_normalised_pixels_are_noticed(backbone: Backbone, mean: float, std: float) -> None:
    with pytest.warns(UserWarning, match="normalise"):
        backbone((PIXELS / 255 - mean) / std)


def test_half_precision_and_gradients(backbone: Backbone) -> None:
    assert backbone.bfloat16()(PIXELS).dtype == torch.bfloat16
    pixels = (PIXELS / 255).requires_grad_()
    backbone.float()(pixels).sum().backward()
    assert pixels.grad is not None
