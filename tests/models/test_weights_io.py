"""Weights are equal after writing and reading; broken files are errors and run no code."""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import safe_unpickle
from tests.networks import (
    RESNET,
    VIT,
    assert_same_weights,
    at,
    features,
    lived_in,
    normalised,
    pixels,
    write,
)


def equal_weights(tmp_path: Path, suffix: str, backbone: Backbone) -> Backbone:
    """The backbone after writing and reading, which changes nothing."""
    path = tmp_path / f"b{suffix}"
    weights_io.save_backbone(backbone, path)
    before = torch.get_rng_state()
    again = weights_io.load_backbone(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_weights(again, backbone)
    return again


def statistics(name: str = RESNET, **options: Any) -> Backbone:
    """A backbone of unusual values."""
    changed = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), **options}
    backbone = backbone_module.create(name, **changed)
    lived_in(backbone.network)
    return backbone


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
class TestRoundTrip:
    @pytest.mark.parametrize(
        ("name", "stem", "size"),
        [
            (RESNET, "imagenet", None),
            (RESNET, "imagenet", 48),
            ("resnet26t", "cifar", 32),
            (VIT, "imagenet", 64),
        ],
    )
    def test_loaded_equals_saved(self, tmp_path, suffix, name, stem, size):
        """And the recipe that is printed with it runs."""
        backbone = statistics(name, stem=stem, image_size=size)
        again = equal_weights(tmp_path, suffix, backbone)
        for what in ("name", "stem", "image_size", "features"):
            assert getattr(again, what) == getattr(backbone, what)
        images = pixels(size or 64)
        expected = features(backbone, images)
        assert torch.equal(features(again, images), expected)
        scope: dict = {}
        exec(backbone_module.recipe(backbone, tmp_path / f"b{suffix}"), scope)
        mean, std = backbone.mean.tolist(), backbone.std.tolist()
        assert torch.equal(features(scope["network"], normalised(images, mean, std)), expected)

    def test_channels_last_weights_survive(self, tmp_path, suffix):
        backbone = backbone_module.create(RESNET).to(memory_format=torch.channels_last)
        equal_weights(tmp_path, suffix, backbone)

    def test_timm_alone_reads_the_export(self, tmp_path, suffix):
        backbone, path = statistics(), tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone, path)
        network = timm.create_model(RESNET, num_classes=0)
        if suffix == ".safetensors":
            network.load_state_dict(safetensors.torch.load_file(path))
        else:
            network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        assert torch.equal(features(network, pixels()), features(backbone.network, pixels()))

    def test_metadata_is_strings(self, tmp_path, suffix):
        path, backbone = tmp_path / f"b{suffix}", backbone_module.create(RESNET, image_size=48)
        backbone.view_size, backbone.norm_size = 96, 64
        weights_io.save_backbone(backbone, path)
        if suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata()
        else:
            metadata = torch.load(path, weights_only=True)["metadata"]
        assert metadata == {
            "format": "pt",
            "name": RESNET,
            "stem": "imagenet",
            "mean": "[0.485, 0.456, 0.406]",
            "std": "[0.229, 0.224, 0.225]",
            "image_size": "48",
            "size": "96",
            "norm_size": "64",
        }
        assert weights_io.load_backbone(path).usual_size == 96
        assert weights_io.describe(path) == ((RESNET, "imagenet"), 96, 64)

    def test_init_takes_over_weights_and_statistics(self, tmp_path, suffix):
        path, source = tmp_path / f"b{suffix}", statistics()
        weights_io.save_backbone(source, path)
        backbone = backbone_module.create(RESNET)
        assert "with its mean and std" in weights_io.load_weights(backbone, path)
        assert_same_weights(backbone, source)

    def test_init_from_another_stem_or_network_is_refused(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone_module.create(RESNET, stem="cifar"), path)
        with pytest.raises(UserError, match="cifar stem"):
            weights_io.load_weights(backbone_module.create(RESNET), path)
        with pytest.raises(UserError, match=f"weights of {RESNET}, but the backbone is {VIT}"):
            weights_io.load_weights(backbone_module.create(VIT), path)


def test_what_cannot_be_written(tmp_path):
    backbone = backbone_module.create(RESNET)
    with pytest.raises(UserError, match=r"\.safetensors or \.pth"):
        weights_io.save_backbone(backbone, tmp_path / "b.onnx")


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """The weights of torchvision's ResNet-18, with its classifier."""
    return dict(lived_in(torchvision.models.resnet18()).state_dict())


@pytest.fixture
def state(whole) -> dict[str, torch.Tensor]:
    return {key: value for key, value in whole.items() if not key.startswith("fc.")}


@pytest.fixture(scope="module")
def network(whole) -> nn.Module:
    original = torchvision.models.resnet18()
    original.load_state_dict(whole)
    original.fc = nn.Identity()
    return original


class TestForeignFiles:
    """Features after loading equal those of the original network."""

    def assert_taken_over(self, path: Path, original: nn.Module, says: str = "") -> None:
        backbone = backbone_module.create("resnet18")
        line = weights_io.load_weights(backbone, path)
        assert says in line
        assert "\n" not in line
        images = pixels()
        assert torch.equal(features(backbone, images), features(original, normalised(images)))

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    def test_torchvision_with_its_classifier(self, tmp_path, whole, network, suffix):
        path = write(tmp_path / f"weights{suffix}", whole)
        self.assert_taken_over(path, network, "head dropped (fc.bias, fc.weight)")

    @pytest.mark.parametrize(
        "prefix", ["module.", "backbone.", "model.", "module.backbone.", "encoder_q.", "network."]
    )
    def test_prefixed(self, tmp_path, whole, network, prefix):
        path = write(tmp_path / "weights.pth", at(prefix, whole))
        self.assert_taken_over(path, network, f'under "{prefix}"')

    @pytest.mark.parametrize(
        ("name", "head"),
        [
            ("test_convnext", "head.fc"),
            ("test_efficientnet", "classifier"),
            ("test_resnet", "fc"),
            (VIT, "head"),
        ],
    )
    def test_timm_with_its_classifier(self, tmp_path, name, head):
        original = lived_in(timm.create_model(name, num_classes=5))
        path = write(tmp_path / "weights.pth", original.state_dict())
        original.reset_classifier(0)
        backbone, images = backbone_module.create(name, image_size=160), pixels(160)
        line = weights_io.load_weights(backbone, path)
        assert f"head dropped ({head}.bias, {head}.weight)" in line
        assert torch.equal(features(backbone, images), features(original, normalised(images)))

    def test_counters_may_be_absent(self, tmp_path, whole, network):
        old = {k: value for k, value in whole.items() if not k.endswith("num_batches_tracked")}
        self.assert_taken_over(write(tmp_path / "weights.pth", old), network)

    def test_legacy_pickle_format_of_torch(self, tmp_path, whole, network):
        path = tmp_path / "old.pth"
        torch.save(whole, path, _use_new_zipfile_serialization=False)
        self.assert_taken_over(path, network)

    def test_statistics_are_kept_when_the_file_states_none(self, tmp_path, whole):
        backbone = statistics("resnet18")
        line = weights_io.load_weights(backbone, write(tmp_path / "weights.pth", whole))
        assert "mean 0.1 0.2 0.3 and std" in line
        assert torch.equal(backbone.mean, torch.tensor([0.1, 0.2, 0.3]))


# changes of the weights of torchvision's ResNet-18 (None removes), and the words of the refusal
CHANGES = [
    ({"layer1.0.conv1.weight": None}, r"1 missing \(layer1\.0\.conv1\.weight\)"),
    ({"rotation.weight": torch.ones(1)}, r"1 left over \(rotation\.weight\)"),
    ({"bn1.weight": torch.ones(3)}, r"1 of another shape \(bn1\.weight \[3\] for \[64\]\)"),
]
# other contents, and the words of the refusal
OTHERS = {
    "resnet34": (lambda: timm.create_model("resnet34"), r"looks like resnet34\."),
    "resnet50": (lambda: timm.create_model("resnet50"), r"looks like resnet50\."),
    "stem": (
        lambda: backbone_module.create("resnet18", stem="cifar").network,
        "looks like resnet18 with the cifar stem",
    ),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224"),
        "looks like a ViT of width 192, depth 12, patch 16",
    ),
    "torchvision": (torchvision.models.squeezenet1_1, "network of torchvision"),
}


class TestRefusals:
    def refused(self, tmp_path, content, match: str, name: str = "resnet18") -> None:
        backbone = backbone_module.create(name)
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        with pytest.raises(UserError, match=match) as error:
            weights_io.load_weights(backbone, write(tmp_path / "weights.pth", content))
        assert "\n" not in str(error.value)
        torch.testing.assert_close(before, dict(backbone.state_dict()), rtol=0, atol=0)

    @pytest.mark.parametrize(("change", "match"), CHANGES, ids=["missing", "left over", "shape"])
    def test_other_tensors(self, tmp_path, state, change, match):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        self.refused(tmp_path, changed, match)

    def test_another_depth(self, tmp_path, state):
        self.refused(tmp_path, state, r"looks like resnet18\.", name="resnet34")

    @pytest.mark.parametrize("other", OTHERS)
    def test_says_what_it_looks_like(self, tmp_path, other):
        network, match = OTHERS[other]
        self.refused(tmp_path, network().state_dict(), match)

    def test_no_state_dict(self, tmp_path):
        self.refused(tmp_path, {"epoch": 3, "model": {"name": "resnet18"}}, "holds no state dict")

    def test_half_a_network_behind_a_prefix_does_not_pass(self, tmp_path, state):
        part = {key: value for key, value in state.items() if "layer4" not in key}
        self.refused(tmp_path, at("module.", part), "missing .*layer4")

    def test_a_student_is_not_taken_where_the_teacher_does_not_fit(self, tmp_path, state):
        small = timm.create_model(RESNET).state_dict()
        content = {"teacher": at("backbone.", small), "student": at("backbone.", state)}
        self.refused(tmp_path, content, "missing")

    def test_load_wants_a_file_of_ours(self, tmp_path, state):
        with pytest.raises(UserError, match="does not say which network"):
            weights_io.load_backbone(write(tmp_path / "weights.pth", state))


class TestPickledObjects:
    """Lightning and others pickle objects beside the tensors. These are not unpickled."""

    @pytest.fixture
    def trap(self, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return exec, (f"open({str(ran)!r}, 'w').close()",)

        # it is a real one
        torch.save({"state_dict": {"a": torch.ones(1)}, "args": Trap()}, tmp_path / "real.pth")
        torch.load(tmp_path / "real.pth", weights_only=False)
        ran.unlink()
        yield Trap()
        assert not ran.exists()

    @pytest.mark.parametrize("modern", [True, False])
    def test_weights_beside_a_trap_load_and_it_stays_shut(
        self, tmp_path, trap, whole, network, modern
    ):
        path = tmp_path / "last.ckpt"
        content = {
            "hyper_parameters": {"callback": trap, "args": argparse.Namespace(lr=np.float64(0.1))}
        }
        content |= {
            "state_dict": whole,
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            "epoch": 3,
        }
        torch.save(content, path, _use_new_zipfile_serialization=modern)
        backbone = backbone_module.create("resnet18")
        line = weights_io.load_weights(backbone, path)
        assert "pickled objects" in line
        assert "exec" in line
        assert torch.equal(features(backbone, pixels()), features(network, normalised(pixels())))
        assert weights_io.guess(path)[0] == "resnet18"

    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_a_plain_pickle_is_refused(self, tmp_path, trap, protocol):
        path = tmp_path / "plain.pt"
        path.write_bytes(pickle.dumps(trap, protocol=protocol))
        with pytest.raises(UserError, match=r"plain\.pt"):
            weights_io.load_weights(backbone_module.create(RESNET), path)

    @pytest.mark.parametrize("key", ["state_dict", "model", "teacher"])
    def test_a_trap_in_the_place_of_the_weights(self, tmp_path, trap, key):
        torch.save({key: trap}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"no state dict.*[Pp]ickled"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path / "a.pth")

    def test_a_trap_as_a_tensor(self, tmp_path, trap, whole):
        torch.save({"state_dict": {**whole, "bn1.weight": trap}}, tmp_path / "a.pth")
        with pytest.raises(UserError, match=r"1 missing \(bn1\.weight\)"):
            weights_io.load_weights(backbone_module.create("resnet18"), tmp_path / "a.pth")

    def test_a_pickle_cannot_change_what_it_names(self, tmp_path):
        """A pickle can set attributes of an object that it names, here the rebuild function."""
        before = torch._utils._rebuild_tensor_v2.__defaults__
        vandal = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}U\x0c__defaults__Nstb."
        torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
        with (
            zipfile.ZipFile(tmp_path / "a.pth") as old,
            zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
        ):
            for name in old.namelist():
                new.writestr(name, vandal if name.endswith("data.pkl") else old.read(name))
        content, _ = safe_unpickle.load(tmp_path / "b.pth")
        # it was done, to a function that lives as long as this content
        assert content.__defaults__ is None
        assert torch._utils._rebuild_tensor_v2.__defaults__ == before
        with pytest.raises(UserError, match="no state dict"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path / "b.pth")

    def test_a_view_beyond_its_storage_is_refused(self, tmp_path):
        class Wide:
            def __reduce__(self):
                values = (torch.ones(2).storage(), 0, (9,), (1,), False, OrderedDict())
                return torch._utils._rebuild_tensor_v2, values

        torch.save({"a": Wide(), "b": argparse.Namespace()}, tmp_path / "a.pth")
        with pytest.raises(UserError, match="broken"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path / "a.pth")

    def test_a_whole_pickled_module_gives_its_tensors(self, tmp_path, network):
        torch.save({"model": network, "epoch": 1}, tmp_path / "whole.pt")
        backbone = backbone_module.create("resnet18")
        assert "pickled objects" in weights_io.load_weights(backbone, tmp_path / "whole.pt")
        assert torch.equal(features(backbone, pixels()), features(network, normalised(pixels())))

    def test_torchscript_is_code_and_refused(self, tmp_path):
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
        with pytest.raises(UserError, match="TorchScript"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path / "a.pt")


class TestPretrainedNames:
    """timm's own download is replaced, because tests have no network."""

    @pytest.fixture
    def hub(self, monkeypatch):
        create_model = timm.create_model
        fetched = []

        def fake(name, *, pretrained=False, **options):
            network = create_model(name, **options)
            if pretrained:
                lived_in(network)
                fetched.append(network)
            return network

        monkeypatch.setattr(timm, "create_model", fake)
        return fetched

    def test_weights_and_statistics_are_taken_over(self, hub):
        backbone = backbone_module.create(VIT, image_size=160)
        line = weights_io.load_weights(backbone, f"{VIT}.r160_in1k")
        assert "with its mean and std" in line
        assert_same_weights(backbone.network, hub[0])
        assert backbone.mean.tolist() == [0.5, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("stem", "source", "match"),
        [
            ("imagenet", "resnet50.a1_in1k", "weights of resnet50"),
            ("cifar", "resnet18.a1_in1k", "imagenet stem"),
            ("imagenet", "resnet18.a9_in1k", r"neither a file nor weights.*resnet18\.a1_in1k"),
            ("imagenet", "resnet18_a1", r"neither a file nor weights.*resnet18\.a1_in1k"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, hub, stem, source, match):
        with pytest.raises(UserError, match=match):
            weights_io.load_weights(backbone_module.create("resnet18", stem=stem), source)
        assert not hub

    def test_a_failed_download_is_an_error(self, monkeypatch):
        backbone = backbone_module.create("resnet18")

        def offline(*_, **__):
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(UserError, match="needs the network"):
            weights_io.load_weights(backbone, "resnet18.a1_in1k")
