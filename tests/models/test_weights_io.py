"""Weights are equal after writing and reading; broken files are errors and run no code."""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

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
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import safe_unpickle
from tests.networks import RESNET, VIT, assert_same_weights, features, lived_in, normalised, pixels


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
class TestRoundTrip:
    @pytest.mark.parametrize(
        ("name", "stem", "size"),
        [(RESNET, "imagenet", None), (RESNET, "cifar", 32), (VIT, "imagenet", 64)],
    )
    def test_loaded_equals_saved(self, tmp_path, suffix, name, stem, size):
        mean, std = np.random.default_rng(0).uniform(0.1, 0.9, (2, 3)).tolist()
        backbone = backbone_module.create(name, stem=stem, mean=mean, std=std, image_size=size)
        lived_in(backbone.network)
        weights_io.save_backbone(backbone, tmp_path / f"b{suffix}")
        again = weights_io.load_backbone(tmp_path / f"b{suffix}")
        assert (again.name, again.stem, again.image_size, again.features) == (
            name,
            stem,
            size,
            backbone.features,
        )
        assert_same_weights(again, backbone)
        assert torch.equal(features(again, pixels()), features(backbone, pixels()))

    def test_channels_last_weights_survive(self, tmp_path, suffix):
        backbone = backbone_module.create(RESNET).to(memory_format=torch.channels_last)
        weights_io.save_backbone(backbone, tmp_path / f"b{suffix}")
        assert_same_weights(weights_io.load_backbone(tmp_path / f"b{suffix}"), backbone)

    def test_timm_alone_reads_the_export(self, tmp_path, suffix):
        backbone = backbone_module.create("resnet18")
        lived_in(backbone.network)
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone, path)
        network = timm.create_model("resnet18", num_classes=0)
        if suffix == ".safetensors":
            network.load_state_dict(safetensors.torch.load_file(path))
        else:
            network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        images = normalised(pixels())
        assert torch.equal(features(network, images), features(backbone.network, images))

    @pytest.mark.parametrize(
        ("name", "stem", "size"),
        [(RESNET, "imagenet", 48), ("resnet26t", "cifar", 32), (VIT, "imagenet", 64)],
    )
    def test_the_recipe_runs(self, tmp_path, suffix, name, stem, size):
        backbone = backbone_module.create(name, stem=stem, image_size=size)
        lived_in(backbone.network)
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone, path)
        scope: dict = {}
        exec(backbone_module.recipe(backbone, path), scope)
        side = size or 64
        assert torch.equal(
            features(scope["network"], pixels(side)), features(backbone.network, pixels(side))
        )

    def test_metadata_is_strings_with_the_extra_beside(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(
            backbone_module.create(RESNET, image_size=48), path, {"method": "moco-v2"}
        )
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
            "method": "moco-v2",
        }

    def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_else(
        self, tmp_path, suffix, monkeypatch
    ):
        path = tmp_path / f"b{suffix}"
        backbone = backbone_module.create(RESNET)
        weights_io.save_backbone(backbone, path)
        before = path.read_bytes()

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr(weights_io.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            weights_io.save_backbone(backbone_module.create(RESNET), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_loading_leaves_random_numbers_alone(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone_module.create(RESNET), path)
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        weights_io.load_backbone(path)
        assert torch.equal(torch.rand(3), expected)

    def test_init_takes_over_weights_and_statistics(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        source = backbone_module.create(RESNET, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        lived_in(source.network)
        weights_io.save_backbone(source, path)
        backbone = backbone_module.create(RESNET)
        assert "with its mean and std" in weights_io.load_weights(backbone, path)
        assert_same_weights(backbone, source)

    def test_init_from_another_stem_or_network_is_refused(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone_module.create(RESNET, stem="cifar"), path)
        with pytest.raises(UserError, match="cifar stem"):
            weights_io.load_weights(backbone_module.create(RESNET), path)
        with pytest.raises(UserError, match=f"weights of {RESNET}, but the backbone is resnet18"):
            weights_io.load_weights(backbone_module.create("resnet18"), path)


def test_extra_does_not_replace_metadata(tmp_path):
    with pytest.raises(ValueError, match="name"):
        weights_io.save_backbone(
            backbone_module.create(RESNET), tmp_path / "b.pth", {"name": "other"}
        )


def test_unknown_suffix(tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors or \.pth"):
        weights_io.save_backbone(backbone_module.create(RESNET), tmp_path / "b.onnx")


def torchvision_resnet18() -> nn.Module:
    return lived_in(torchvision.models.resnet18())


def headless() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """torchvision's ResNet-18: its whole state dict, and the network without its classifier."""
    original = torchvision_resnet18()
    state = dict(original.state_dict())
    original.fc = nn.Identity()
    return original, state


def written(tmp_path: Path, content: object, suffix: str = ".pth") -> Path:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


class TestForeignFiles:
    """Features after loading equal those of the original network, for every layout."""

    def assert_taken_over(
        self, path: Path, original: nn.Module, says: str = "", name: str = "resnet18"
    ) -> None:
        backbone = backbone_module.create(name)
        line = weights_io.load_weights(backbone, path)
        assert says in line
        assert "\n" not in line
        images = pixels()
        assert torch.equal(features(backbone, images), features(original, normalised(images)))

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    def test_torchvision_with_its_classifier(self, tmp_path, suffix):
        original, state = headless()
        self.assert_taken_over(
            written(tmp_path, state, suffix), original, "head dropped (fc.bias, fc.weight)"
        )

    @pytest.mark.parametrize("nest", [("state_dict",), ("model",), ("model", "state_dict")])
    def test_nested(self, tmp_path, nest):
        original, state = headless()
        content: dict = state
        for key in reversed(nest):
            content = {
                key: content,
                "epoch": 3,
                "arch": "resnet18",
                "optimizer": {"state": {}, "lr": 0.1},
            }
        self.assert_taken_over(written(tmp_path, content), original)

    @pytest.mark.parametrize(
        "prefix", ["module.", "backbone.", "model.", "module.backbone.", "encoder_q.", "network."]
    )
    def test_prefixed(self, tmp_path, prefix):
        original, state = headless()
        self.assert_taken_over(
            written(tmp_path, prefixed(state, prefix)), original, f'under "{prefix}"'
        )

    def test_moco_checkpoint(self, tmp_path):
        """A file of MoCo: query encoder, key encoder, queue, and an MLP as classifier."""
        original, state = headless()
        mlp = {
            "fc.0.weight": torch.ones(4, 512),
            "fc.0.bias": torch.ones(4),
            "fc.2.weight": torch.ones(4, 4),
        }
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        everything = {
            **prefixed({**body, **mlp}, "module.encoder_q."),
            **prefixed(
                {key: torch.zeros_like(value) for key, value in {**body, **mlp}.items()},
                "module.encoder_k.",
            ),
            "module.queue": torch.zeros(4, 8),
            "module.queue_ptr": torch.zeros(1),
        }
        path = written(tmp_path, {"epoch": 200, "arch": "resnet18", "state_dict": everything})
        self.assert_taken_over(path, original, f"left aside outside of it: {len(body) + 3 + 2}")

    def test_backbone_beside_a_projector(self, tmp_path):
        original, state = headless()
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        projector = {"projection_head.0.weight": torch.ones(3, 512)}
        path = written(tmp_path, {**prefixed(body, "backbone."), **projector})
        self.assert_taken_over(path, original, "left aside outside of it: 1")

    @pytest.mark.parametrize(
        ("name", "head"),
        [
            ("test_convnext", "head.fc"),
            ("test_efficientnet", "classifier"),
            ("test_resnet", "fc"),
            (VIT, "head"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_timm_with_its_classifier(self, tmp_path, name, head, suffix):
        original = lived_in(timm.create_model(name, num_classes=5))
        path = written(tmp_path, original.state_dict(), suffix)
        original.reset_classifier(0)
        size = 160
        backbone = backbone_module.create(name, image_size=size)
        assert f"head dropped ({head}.bias, {head}.weight)" in weights_io.load_weights(
            backbone, path
        )
        images = pixels(size)
        assert torch.equal(features(backbone, images), features(original, normalised(images)))

    def test_counters_may_be_absent(self, tmp_path):
        original, state = headless()
        old = {
            key: value for key, value in state.items() if not key.endswith("num_batches_tracked")
        }
        self.assert_taken_over(written(tmp_path, old), original)

    def test_legacy_pickle_format_of_torch(self, tmp_path):
        original, state = headless()
        path = tmp_path / "old.pth"
        torch.save(state, path, _use_new_zipfile_serialization=False)
        self.assert_taken_over(path, original)

    def test_statistics_are_kept_when_the_file_states_none(self, tmp_path):
        backbone = backbone_module.create("resnet18", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        line = weights_io.load_weights(
            backbone, written(tmp_path, torchvision_resnet18().state_dict())
        )
        assert "mean and std kept" in line
        assert torch.equal(backbone.mean, torch.tensor([0.1, 0.2, 0.3]))

    def test_vit_of_another_image_size(self, tmp_path):
        source = timm.create_model(VIT, num_classes=0, img_size=64)
        backbone = backbone_module.create(VIT, image_size=96)
        line = weights_io.load_weights(backbone, written(tmp_path, source.state_dict()))
        assert "resampled from 4x4 to 6x6" in line
        # As timm itself would do it when it loads pretrained weights.
        expected = timm.models.vision_transformer.checkpoint_filter_fn(
            source.state_dict(), backbone.network
        )
        torch.testing.assert_close(backbone.network.pos_embed, expected["pos_embed"])

    def test_a_run_folder(self, tmp_path):
        source = backbone_module.create(RESNET)
        weights_io.save_backbone(source, tmp_path / "run" / "backbone.safetensors")
        backbone = backbone_module.create(RESNET)
        weights_io.load_weights(backbone, tmp_path / "run")
        assert_same_weights(backbone, source)


class TestRefusals:
    @pytest.fixture
    def state(self):
        return {
            key: value
            for key, value in torchvision_resnet18().state_dict().items()
            if not key.startswith("fc.")
        }

    def refused(self, tmp_path, content, match: str, name: str = "resnet18", **options) -> None:
        backbone = backbone_module.create(name, **options)
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        with pytest.raises(UserError, match=match) as error:
            weights_io.load_weights(backbone, written(tmp_path, content))
        assert "\n" not in str(error.value)
        torch.testing.assert_close(before, dict(backbone.state_dict()), rtol=0, atol=0)

    def test_missing(self, tmp_path, state):
        del state["layer1.0.conv1.weight"]
        self.refused(tmp_path, state, r"1 missing \(layer1\.0\.conv1\.weight\)")

    def test_left_over(self, tmp_path, state):
        state["rotation.weight"] = torch.ones(1)
        self.refused(tmp_path, state, r"1 left over \(rotation\.weight\)")

    def test_shape(self, tmp_path, state):
        state["bn1.weight"] = torch.ones(3)
        self.refused(tmp_path, state, r"1 of another shape \(bn1\.weight \[3\] for \[64\]\)")

    def test_another_depth(self, tmp_path, state):
        self.refused(tmp_path, state, r"looks like resnet18\.", name="resnet34")

    @pytest.mark.parametrize("name", ["resnet34", "resnet50"])
    def test_says_which_resnet_it_looks_like(self, tmp_path, name):
        self.refused(tmp_path, timm.create_model(name).state_dict(), rf"looks like {name}\.")

    def test_says_that_the_stem_differs(self, tmp_path):
        content = backbone_module.create("resnet18", stem="cifar").network.state_dict()
        self.refused(tmp_path, content, "looks like resnet18 with the cifar stem")

    def test_says_which_vit_it_looks_like(self, tmp_path):
        content = timm.create_model("vit_tiny_patch16_224").state_dict()
        self.refused(tmp_path, content, "looks like a ViT of width 192, depth 12, patch 16")

    def test_says_that_torchvisions_names_differ(self, tmp_path):
        self.refused(
            tmp_path, torchvision.models.squeezenet1_1().state_dict(), "network of torchvision"
        )

    def test_half_a_network_behind_a_prefix_does_not_pass(self, tmp_path, state):
        part = {key: value for key, value in state.items() if "layer4" not in key}
        self.refused(tmp_path, prefixed(part, "module."), "missing .*layer4")

    def test_no_state_dict(self, tmp_path):
        self.refused(tmp_path, {"epoch": 3, "model": {"name": "resnet18"}}, "holds no state dict")

    def test_a_student_is_not_taken_where_the_teacher_does_not_fit(self, tmp_path, state):
        small = {
            f"backbone.{key}": value
            for key, value in timm.create_model(RESNET).state_dict().items()
        }
        content = {
            "teacher": small,
            "student": {f"backbone.{key}": value for key, value in state.items()},
        }
        self.refused(tmp_path, content, "missing")

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + b"\0" * 200])
    def test_broken_file(self, tmp_path, suffix, content):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match="broken"):
            weights_io.load_weights(backbone_module.create(RESNET), path)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_truncated_file(self, tmp_path, suffix):
        path = written(tmp_path, dict(timm.create_model(RESNET).state_dict()), suffix)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match="weights"):
            weights_io.load_weights(backbone_module.create(RESNET), path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="no file"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path / "absent.pth")
        with pytest.raises(UserError, match="no file"):
            weights_io.load_backbone(tmp_path)

    def test_load_wants_a_file_of_ours(self, tmp_path, state):
        with pytest.raises(UserError, match="does not say which network"):
            weights_io.load_backbone(written(tmp_path, state))

    def test_unusable_statistics(self, tmp_path):
        path = tmp_path / "b.pth"
        weights_io.save_backbone(backbone_module.create(RESNET), path)
        content = torch.load(path, weights_only=True)
        content["metadata"]["std"] = "[0.2, 0.0, 0.2]"
        torch.save(content, path)
        with pytest.raises(UserError, match="mean and std"):
            weights_io.load_backbone(path)


class TestPickledObjects:
    """Lightning and others pickle objects beside the tensors. These are not unpickled."""

    @pytest.fixture
    def trap(self, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return exec, (f"open({str(ran)!r}, 'w').close()",)

        yield Trap()
        assert not ran.exists()

    @pytest.mark.parametrize("modern", [True, False])
    def test_weights_beside_a_trap_load_and_it_stays_shut(self, tmp_path, trap, modern):
        network, state = headless()
        path = tmp_path / "last.ckpt"
        content = {
            "hyper_parameters": {"callback": trap, "args": argparse.Namespace(lr=np.float64(0.1))}
        }
        content |= {
            "state_dict": state,
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

    def test_the_trap_is_a_real_one(self, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return exec, (f"open({str(ran)!r}, 'w').close()",)

        torch.save({"state_dict": {"a": torch.ones(1)}, "args": Trap()}, tmp_path / "a.pth")
        torch.load(tmp_path / "a.pth", weights_only=False)
        assert ran.exists()

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

    def test_a_trap_as_a_tensor(self, tmp_path, trap):
        _, state = headless()
        torch.save({"state_dict": {**state, "bn1.weight": trap}}, tmp_path / "a.pth")
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
                return torch._utils._rebuild_tensor_v2, (
                    torch.ones(2).storage(),
                    0,
                    (9,),
                    (1,),
                    False,
                    OrderedDict(),
                )

        torch.save({"a": Wide(), "b": argparse.Namespace()}, tmp_path / "a.pth")
        with pytest.raises(UserError, match="broken"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path / "a.pth")

    def test_a_whole_pickled_module_gives_its_tensors(self, tmp_path):
        network, _ = headless()
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

    def test_another_network_is_refused(self, hub):
        with pytest.raises(UserError, match="weights of resnet50"):
            weights_io.load_weights(backbone_module.create("resnet18"), "resnet50.a1_in1k")

    def test_cifar_stem_is_refused(self, hub):
        with pytest.raises(UserError, match="imagenet stem"):
            weights_io.load_weights(
                backbone_module.create("resnet18", stem="cifar"), "resnet18.a1_in1k"
            )

    @pytest.mark.parametrize("name", ["resnet18.a9_in1k", "resnet18_a1"])
    def test_unknown_name(self, hub, name):
        with pytest.raises(UserError, match=r"neither a file nor weights.*resnet18\.a1_in1k"):
            weights_io.load_weights(backbone_module.create("resnet18"), name)
        assert not hub

    def test_a_failed_download_is_an_error(self, monkeypatch):
        backbone = backbone_module.create("resnet18")

        def offline(*_, **__):
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(UserError, match="needs the network"):
            weights_io.load_weights(backbone, "resnet18.a1_in1k")
