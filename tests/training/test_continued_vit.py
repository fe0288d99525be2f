"""ViTs that were brought are trained on by DINO, iBOT, DINOv2, MAE and SimMIM."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import register_model, vision_transformer

from selftaught.cli.main import main
from selftaught.config.defaults import fit_size, fit_small_size, optimizer_of, patch_of
from selftaught.method import Batch, Setup, image_seeds
from selftaught.methods import METHODS
from selftaught.models.weights import io as weights_io
from selftaught.optim import AdamW
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from selftaught.views.spec import Views
from tests.laws.toys import HARD, config
from tests.models.test_tokens import build
from tests.networks import assert_same_weights
from tests.pictures import folder

METHOD_NAMES = ["dino", "ibot", "dinov2", "mae", "simmim"]


# The network below is one of timm then, and this module has timm's conversion for it.
checkpoint_filter_fn = vision_transformer.checkpoint_filter_fn


@register_model
def tiny_patch14_reg4_dinov2(pretrained: bool = False, **options: Any) -> Any:
    """A tiny DINOv2 with registers."""
    options = {"img_size": 518, **options}
    kept = {
        k: v for k, v in options.items() if k in ("num_classes", "img_size", "dynamic_img_size")
    }
    kept |= {"patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    return vision_transformer.VisionTransformer(reg_tokens=4, no_embed_class=True, **kept)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("tiny_patch14_reg4_dinov2", True),
        pytest.param("vit_small_patch14_reg4_dinov2", False, marks=pytest.mark.slow),
    ],
)
def test_a_published_layout_is_loaded_fitted_and_trained(
    name: str, chosen: bool, tmp_path: Path
) -> None:
    """DINOv2 with registers, under its authors' names, at a size that is not the file's.

    A network of timm's own is recognised by its shapes.
    """
    file = tmp_path / "hub.pth"
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, img_size=70)
    state: dict[str, Any] = dict(network.state_dict())
    width = network.num_features
    position = torch.full((1, 1, width), 0.1)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    torch.save({**state, "mask_token": torch.zeros(1, width)}, file)
    out = tmp_path / "run"
    words = ["--data", str(folder(tmp_path / "images")), "--init", str(file), "--out", str(out)]
    words += ["--method", "dinov2", "--batch", "4", "--steps", "2", "--views.small", "2"]
    words += ["--method.head-warmup", "0.5", "--precision", "fp32", "--workers", "0"]
    words += ["--optimizer.lr", "0.01", *(["--backbone", name] if chosen else [])]
    assert main(["pretrain", *words]) == 0
    stage = json.loads((out / "run.json").read_text())["config"]
    assert stage["backbone"] == name
    assert (stage["size"], stage["views"]["small_size"]) == (56, 0)  # half of it are two patches
    assert stage["optimizer"]["name"] == "adamw"
    trained = weights_io.load_backbone(out / "backbone.safetensors")
    assert trained.network.state_dict().keys() == network.state_dict().keys()
    assert not torch.equal(trained.network.blocks[0].norm1.weight, network.blocks[0].norm1.weight)
    # nothing moves before the heads have learnt
    words[words.index("0.5")], words[words.index(str(out))] = "1", str(tmp_path / "still")
    assert main(["pretrain", *words]) == 0
    still = weights_io.load_backbone(tmp_path / "still" / "backbone.safetensors")
    assert_same_weights(still.network.blocks, network.blocks)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("network", ["ViT", "DINOv2, registers", "DINOv3", "mean"])
def test_networks_of_timm_are_trained_with_small_views_and_hard_examples(
    method: str, network: str
) -> None:
    backbone, size = build(network)
    torch.manual_seed(0)
    step = Step(
        METHODS[method](config(method), Setup(backbone, 64)), (HARD["adversarial"], HARD["cutmix"])
    )
    views = tuple(torch.rand(4, 3, s, s) for s in (size, size, size // 2, size // 2))
    index = torch.arange(4)
    batch = Batch(views, index, index, image_seeds(0, 0, 4))
    optimizer = AdamW(lr=1e-3).build(step.named_parameters(), step.parameter_groups())
    loop = Loop(steps=2, steps_per_epoch=2, schedule=lambda p: 1.0, clip=3.0)
    reports = list(fit(step, step.method, lambda e, f: [batch] * 2, optimizer, loop))
    assert not any(report.skipped for report in reports)
    silent = [k for k, p in step.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


@pytest.mark.parametrize(
    ("name", "size", "fitted"),
    [
        ("vit_small_patch14_dinov2", 224, 224),
        ("vit_small_patch14_dinov2", 128, 126),
        ("vit_small_patch14_dinov2", 32, 28),
        ("test_vit", 8, 16),
        ("test_resnet", 35, 35),
    ],
)
def test_default_sizes_are_multiples_of_the_patches(name: str, size: int, fitted: int) -> None:
    assert fit_size(name, size) == fitted


@pytest.mark.parametrize(
    ("name", "size", "small"),
    [
        ("vit_small_patch14_dinov2", 224, 0),  # half of it fits
        ("vit_small_patch14_dinov2", 126, 56),
        ("vit_small_patch14_dinov2", 28, 0),
        ("test_vit", 16, 16),
        ("test_resnet", 35, 0),
    ],
)
def test_default_small_views_are_multiples_of_the_patches(name: str, size: int, small: int) -> None:
    assert fit_small_size(name, size, Views(small=2)).small_size == small
    assert fit_small_size(name, size, Views(small=2, small_size=9)).small_size == 9
    assert fit_small_size(name, size, Views()) == Views()
    assert (small or 2 * patch_of(name)) % patch_of(name) == 0


def test_methods_of_vits_are_trained_by_adamw() -> None:
    assert all(optimizer_of(METHODS[name]) == "adamw" for name in METHOD_NAMES)
