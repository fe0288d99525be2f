"""Trainable parts of a backbone, and merged low-rank additions in written weights."""

import copy
import sys

import pytest
import timm
import torch
from torch import nn

from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from selftaught.models import trainable
from selftaught.models.weights import io as weights_io
from tests.networks import RESNET, VIT, features, pixels


def moving(backbone: nn.Module) -> set[str]:
    return {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}


def trained(backbone: nn.Module) -> set[str]:
    """Names of the tensors that two steps changed, running statistics included."""
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    backbone.train()
    for _ in range(2):
        for parameter in learning:
            parameter.grad = None
        loss = (backbone(pixels()) - 1).square().sum()
        if learning:
            loss.backward()
            torch.optim.SGD(learning, 1e-2).step()
    return {k for k, value in backbone.state_dict().items() if not torch.equal(value, before[k])}


def create(name: str, *words: str) -> backbone_module.Backbone:
    backbone = backbone_module.create(name, image_size=64)
    for word in words:
        trainable.set_trainable(backbone, word)
    return backbone


class TestTrainable:
    @pytest.mark.parametrize(
        "name", [RESNET, VIT, "test_convnext", "test_efficientnet_gn", "test_vit3"]
    )
    def test_norm_is_every_affine_norm_parameter_and_nothing_else(self, name):
        backbone = create(name, "norm")
        # By the names of the layers' classes: another way to find them than the code's own.
        modules = dict(backbone.named_modules())
        expected = {
            key
            for key, _ in backbone.named_parameters()
            if "Norm" in type(modules[key.rpartition(".")[0]]).__name__
        }
        assert moving(backbone) == expected
        assert expected

    @pytest.mark.parametrize("what", ["norm", "last-1"])
    def test_all_undoes_it(self, what):
        backbone = create(RESNET, what, "all")
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        assert backbone.network.bn1.training

    @pytest.mark.parametrize("what", ["all", "norm", "last-1"])
    def test_statistics_that_are_kept(self, what):
        backbone = create(RESNET)
        trainable.set_trainable(backbone, what, keep_statistics=True)
        expected = moving(create(RESNET, what))
        assert moving(backbone) == expected
        changed = trained(backbone)
        assert not any("running" in key or "num_batches" in key for key in changed)
        assert any("bn" in key for key in changed)

    def test_a_step_moves_norms_alone(self):
        backbone = create(RESNET, "norm")
        changed = trained(backbone) & dict(backbone.named_parameters()).keys()
        assert changed
        # a ResNet without its classifier has no other biases
        assert all(backbone.get_parameter(key).ndim == 1 for key in changed)

    def test_prelu_inside_a_norm_layer_is_no_norm_parameter(self):
        layer = timm.layers.BatchNormAct2d(4, act_layer=nn.PReLU)
        result = {id(p) for p in trainable.norm_parameters(layer)}
        assert result == {id(layer.weight), id(layer.bias)}

    @pytest.mark.parametrize(("what", "match"), [("norm", "no norm layer"), ("head", '"head"')])
    def test_what_is_refused(self, what, match):
        with pytest.raises(UserError, match=match):
            trainable.set_trainable(nn.Linear(2, 2), what)

    @pytest.mark.parametrize(
        "what", ["last", "last-0", "last-x", "lora-0", "lora-", "Norm", "", "last--1"]
    )
    def test_words(self, what):
        with pytest.raises(UserError, match="last-K"):
            trainable.parse(what)

    def test_words_with_numbers(self):
        words = ("all", "last-2", "lora", "lora-16")
        expected = [("all", 0), ("last", 2), ("lora", trainable.RANK), ("lora", 16)]
        assert [trainable.parse(word) for word in words] == expected

    @pytest.mark.parametrize("name", [RESNET, VIT])
    def test_none_leaves_everything_as_it_was(self, name):
        assert not trained(create(name, "none"))


class TestLast:
    @pytest.mark.parametrize(
        ("name", "what", "beginnings"),
        [
            ("resnet18", "last-1", ["layer4."]),
            ("resnet18", "last-2", ["layer3.", "layer4."]),
            (VIT, "last-1", ["blocks.5.", "norm."]),
            ("test_convnext", "last-1", ["stages.3.", "head.norm."]),
            ("mobilenetv3_small_050", "last-2", ["blocks.4.", "blocks.5.", "conv_head."]),
            ("tf_efficientnet_lite0", "last-1", ["blocks.6.", "conv_head.", "bn2."]),
            ("densenet121", "last-1", [f"features.{x}" for x in ("denseblock4.", "norm5.")]),
        ],
    )
    def test_the_last_parts_and_later_layers(self, name, what, beginnings):
        with torch.device("meta"):
            backbone = create(name, what)
        start = tuple(f"network.{beginning}" for beginning in beginnings)
        assert moving(backbone) == {
            k for k, _ in backbone.named_parameters() if k.startswith(start)
        }

    def test_the_frozen_part_does_not_change(self):
        changed = trained(create(RESNET, "last-1"))
        assert changed
        assert all(key.startswith("network.layer4.") for key in changed)
        assert any("running_mean" in key for key in changed)

    def test_copies_keep_the_frozen_statistics_too(self):
        copied = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(create(RESNET, "last-1")))
        network = copied.requires_grad_(False).train().network
        assert network.layer4[0].bn1.training
        assert not network.layer1[0].bn1.training

    @pytest.mark.parametrize(("name", "most"), [("resnet18", 4), (VIT, 6), ("test_convnext", 4)])
    def test_more_than_there_are(self, name, most):
        backbone = create(name, f"last-{most}")
        stems = ("network.conv1", "network.patch_embed", "network.stem")
        assert not any(key.startswith(stems) for key in moving(backbone))
        with pytest.raises(UserError, match=f"last-{most} is all but its stem"):
            trainable.set_trainable(backbone, f"last-{most + 1}")


class TestLora:
    @pytest.fixture
    def backbone(self) -> backbone_module.Backbone:
        pytest.importorskip("peft")
        return create(VIT)

    def test_it_begins_as_the_network_that_it_was_and_only_the_additions_move(self, backbone):
        before = features(backbone, pixels())
        trainable.set_trainable(backbone, "lora-4")
        torch.testing.assert_close(features(backbone, pixels()), before, rtol=0, atol=0)
        assert moving(backbone)
        assert all("lora_" in key for key in moving(backbone))
        assert all("lora_" in key for key in trained(backbone))
        assert {p.shape[0] for k, p in backbone.named_parameters() if "lora_A" in k} == {4}

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_written_weights_are_those_of_a_plain_network(self, backbone, tmp_path, suffix):
        trainable.set_trainable(backbone, "lora")
        trained(backbone)
        weights_io.save_backbone(backbone, tmp_path / f"b{suffix}")
        again = weights_io.load_backbone(tmp_path / f"b{suffix}")
        plain = timm.create_model(VIT, num_classes=0).state_dict()
        assert set(again.network.state_dict()) == set(plain)
        torch.testing.assert_close(features(again, pixels()), features(backbone, pixels()))
        assert all("lora_" in key for key in moving(backbone))  # writing changed nothing

    def test_it_is_copied_as_it_is(self, backbone):
        trainable.set_trainable(backbone, "lora")
        copied = copy.deepcopy(backbone)
        trained(backbone)
        copied.load_state_dict(backbone.state_dict())
        assert torch.equal(features(copied, pixels()), features(backbone, pixels()))

    @pytest.mark.parametrize(
        ("name", "words", "match"), [(RESNET, [], "for ViTs"), (VIT, ["lora"], "already")]
    )
    def test_it_is_for_vits_and_once(self, name, words, match):
        pytest.importorskip("peft")
        with pytest.raises(UserError, match=match):
            create(name, *words, "lora")

    def test_without_peft_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(UserError, match=r'pip install "selftaught\[lora\]"'):
            create(VIT, "lora")
