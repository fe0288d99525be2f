"""Backbones: what is created, what may move, and that weights survive every way in and out exactly."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from selftaught import backbones
from selftaught.errors import UserError

# timm's own tiny networks: milliseconds instead of seconds.
RESNET, VIT = "test_resnet", "test_vit"


def pixels(size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """In evaluation mode, without the gradient; the mode is left as it was found."""
    training = network.training
    with torch.no_grad():
        result = network.eval()(images)
    network.train(training)
    return result


def lived_in(network: nn.Module) -> nn.Module:
    """Give every vector (norm statistics, affine parameters) other values than a fresh network has."""
    generator = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network


def normalised(images: torch.Tensor, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) -> torch.Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


class TestCreate:
    @pytest.mark.parametrize("name", [RESNET, "test_convnext", "test_efficientnet", VIT, "mobilenetv3_small_050"])
    def test_features_is_the_width_of_what_comes_out(self, name):
        backbone = backbones.create(name, image_size=64)
        assert features(backbone, pixels()).shape == (2, backbone.features)

    def test_it_normalises_once(self):
        backbone = backbones.create(RESNET, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        expected = features(backbone.network, normalised(pixels(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
        assert torch.equal(features(backbone, pixels()), expected)

    def test_same_seed_same_weights_whatever_options_were_tried(self):
        torch.manual_seed(3)
        ours = backbones.create("resnet18").network
        torch.manual_seed(3)
        assert_same_weights(ours, timm.create_model("resnet18", num_classes=0))

    def test_unknown_name_lists_the_nearest(self):
        with pytest.raises(UserError, match=r'no model "resnet81"\. Nearest: .*resnet'):
            backbones.create("resnet81")

    def test_unknown_tag_lists_the_nearest(self):
        with pytest.raises(UserError, match=r"resnet18\.a1_in1k"):
            backbones.create("resnet18.a9_in1k")

    def test_an_address_is_not_fetched(self):
        with pytest.raises(UserError, match="no model"):
            backbones.create("hf-hub:timm/resnet18.a1_in1k")

    @pytest.mark.parametrize("name", [RESNET, "resnet18", "resnet26t"])
    def test_cifar_stem_keeps_the_resolution(self, name):
        network = backbones.create(name, stem="cifar").network
        with torch.no_grad():
            assert network.eval().forward_features(pixels(32)).shape[-1] == 32 // 8
            assert timm.create_model(name).eval().forward_features(pixels(32)).shape[-1] == 1

    def test_cifar_stem_is_the_published_one(self):
        network = backbones.create("resnet18", stem="cifar").network
        assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.bias) == ((3, 3), (1, 1), None)
        assert isinstance(network.maxpool, nn.Identity)

    @pytest.mark.parametrize("name", [VIT, "test_convnext"])
    def test_cifar_stem_is_for_resnets(self, name):
        with pytest.raises(UserError, match="ResNets only"):
            backbones.create(name, stem="cifar")

    def test_unknown_stem(self):
        with pytest.raises(UserError, match='"imagenet" or "cifar"'):
            backbones.create(RESNET, stem="mnist")

    def test_image_size_shapes_a_vit(self):
        assert backbones.create(VIT, image_size=64).network.pos_embed.shape[1] in (16, 17)

    def test_a_vit_sees_small_views_too(self):
        backbone = backbones.create(VIT, image_size=64)
        assert features(backbone, pixels(32)).shape == (2, backbone.features)

    def test_image_size_must_be_whole_patches(self):
        with pytest.raises(UserError, match=r"16 pixels.*48 or 64"):
            backbones.create(VIT, image_size=50)


class TestTrainable:
    @pytest.mark.parametrize("name", [RESNET, VIT, "test_convnext", "test_efficientnet_gn", "test_vit3"])
    def test_norm_is_every_affine_norm_parameter_and_nothing_else(self, name):
        backbone = backbones.create(name, image_size=64)
        backbones.set_trainable(backbone, "norm")
        moving = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
        # By the names of the layers' classes: another way to find them than the code's own.
        modules = dict(backbone.named_modules())
        expected = {
            key for key, _ in backbone.named_parameters() if "Norm" in type(modules[key.rpartition(".")[0]]).__name__
        }
        assert moving == expected
        assert moving

    def test_all_undoes_norm(self):
        backbone = backbones.create(RESNET)
        backbones.set_trainable(backbone, "norm")
        backbones.set_trainable(backbone, "all")
        assert all(parameter.requires_grad for parameter in backbone.parameters())

    def test_a_step_moves_norms_alone(self):
        backbone = backbones.create(RESNET)
        backbones.set_trainable(backbone, "norm")
        before = {key: value.clone() for key, value in backbone.named_parameters()}
        moving = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        (backbone(pixels()) ** 2).sum().backward()
        torch.optim.SGD(moving, 0.1).step()
        changed = [value for key, value in backbone.named_parameters() if not torch.equal(value, before[key])]
        assert changed
        assert all(value.ndim == 1 for value in changed)  # a ResNet without its classifier has no other biases

    def test_prelu_inside_a_norm_layer_is_no_norm_parameter(self):
        layer = timm.layers.BatchNormAct2d(4, act_layer=nn.PReLU)
        assert {id(p) for p in backbones.norm_parameters(layer)} == {id(layer.weight), id(layer.bias)}

    def test_a_network_without_norms_is_refused(self):
        with pytest.raises(UserError, match="no norm layer"):
            backbones.set_trainable(nn.Linear(2, 2), "norm")

    def test_anything_else_is_refused(self):
        with pytest.raises(UserError, match='"head"'):
            backbones.set_trainable(nn.Linear(2, 2), "head")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
class TestRoundTrip:
    @pytest.mark.parametrize(
        ("name", "stem", "size"), [(RESNET, "imagenet", None), (RESNET, "cifar", 32), (VIT, "imagenet", 64)]
    )
    def test_load_gives_back_what_was_saved(self, tmp_path, suffix, name, stem, size):
        mean, std = np.random.default_rng(0).uniform(0.1, 0.9, (2, 3)).tolist()
        backbone = backbones.create(name, stem=stem, mean=mean, std=std, image_size=size)
        lived_in(backbone.network)
        backbones.save(backbone, tmp_path / f"b{suffix}")
        again = backbones.load(tmp_path / f"b{suffix}")
        assert (again.name, again.stem, again.image_size, again.features) == (
            name,
            stem,
            size,
            backbone.features,
        )
        assert_same_weights(again, backbone)
        assert torch.equal(features(again, pixels()), features(backbone, pixels()))

    def test_channels_last_weights_survive(self, tmp_path, suffix):
        backbone = backbones.create(RESNET).to(memory_format=torch.channels_last)
        backbones.save(backbone, tmp_path / f"b{suffix}")
        assert_same_weights(backbones.load(tmp_path / f"b{suffix}"), backbone)

    def test_timm_alone_reads_the_export(self, tmp_path, suffix):
        backbone = backbones.create("resnet18")
        lived_in(backbone.network)
        path = tmp_path / f"b{suffix}"
        backbones.save(backbone, path)
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
        backbone = backbones.create(name, stem=stem, image_size=size)
        lived_in(backbone.network)
        path = tmp_path / f"b{suffix}"
        backbones.save(backbone, path)
        scope: dict = {}
        exec(backbones.recipe(backbone, path), scope)
        side = size or 64
        assert torch.equal(features(scope["network"], pixels(side)), features(backbone.network, pixels(side)))

    def test_metadata_is_strings_with_the_extra_beside(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        backbones.save(backbones.create(RESNET, image_size=48), path, {"method": "moco-v2"})
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

    def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_else(self, tmp_path, suffix, monkeypatch):
        path = tmp_path / f"b{suffix}"
        backbone = backbones.create(RESNET)
        backbones.save(backbone, path)
        before = path.read_bytes()

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr(backbones.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            backbones.save(backbones.create(RESNET), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_loading_leaves_random_numbers_alone(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        backbones.save(backbones.create(RESNET), path)
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        backbones.load(path)
        assert torch.equal(torch.rand(3), expected)

    def test_init_takes_over_weights_and_statistics(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        source = backbones.create(RESNET, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        lived_in(source.network)
        backbones.save(source, path)
        backbone = backbones.create(RESNET)
        assert "with its mean and std" in backbones.load_weights(backbone, path)
        assert_same_weights(backbone, source)

    def test_init_from_another_stem_or_network_is_refused(self, tmp_path, suffix):
        path = tmp_path / f"b{suffix}"
        backbones.save(backbones.create(RESNET, stem="cifar"), path)
        with pytest.raises(UserError, match="cifar stem"):
            backbones.load_weights(backbones.create(RESNET), path)
        with pytest.raises(UserError, match=f"weights of {RESNET}, but the backbone is resnet18"):
            backbones.load_weights(backbones.create("resnet18"), path)


def test_extra_does_not_replace_metadata(tmp_path):
    with pytest.raises(ValueError, match="name"):
        backbones.save(backbones.create(RESNET), tmp_path / "b.pth", {"name": "other"})


def test_unknown_suffix(tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors or \.pth"):
        backbones.save(backbones.create(RESNET), tmp_path / "b.onnx")


def torchvision_resnet18() -> nn.Module:
    return lived_in(torchvision.models.resnet18())


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
    """Features after loading equal the original network's exactly, for every layout that is accepted."""

    def assert_taken_over(self, path: Path, original: nn.Module, says: str = "", name: str = "resnet18") -> None:
        backbone = backbones.create(name)
        line = backbones.load_weights(backbone, path)
        assert says in line
        assert "\n" not in line
        images = pixels()
        assert torch.equal(features(backbone, images), features(original, normalised(images)))

    def headless(self) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """torchvision's ResNet-18: its whole state dict, and the network with its classifier cut off."""
        original = torchvision_resnet18()
        state = dict(original.state_dict())
        original.fc = nn.Identity()
        return original, state

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
    def test_torchvision_with_its_classifier(self, tmp_path, suffix):
        original, state = self.headless()
        self.assert_taken_over(written(tmp_path, state, suffix), original, "head dropped (fc.bias, fc.weight)")

    @pytest.mark.parametrize("nest", [("state_dict",), ("model",), ("model", "state_dict")])
    def test_nested(self, tmp_path, nest):
        original, state = self.headless()
        content: dict = state
        for key in reversed(nest):
            content = {key: content, "epoch": 3, "arch": "resnet18", "optimizer": {"state": {}, "lr": 0.1}}
        self.assert_taken_over(written(tmp_path, content), original)

    @pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.", "module.backbone.", "encoder_q.", "network."])
    def test_prefixed(self, tmp_path, prefix):
        original, state = self.headless()
        self.assert_taken_over(written(tmp_path, prefixed(state, prefix)), original, f'under "{prefix}"')

    def test_moco_checkpoint(self, tmp_path):
        """As moco writes it: the query encoder beside the key encoder and the queue, an MLP as head."""
        original, state = self.headless()
        mlp = {"fc.0.weight": torch.ones(4, 512), "fc.0.bias": torch.ones(4), "fc.2.weight": torch.ones(4, 4)}
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        everything = {
            **prefixed({**body, **mlp}, "module.encoder_q."),
            **prefixed({key: torch.zeros_like(value) for key, value in {**body, **mlp}.items()}, "module.encoder_k."),
            "module.queue": torch.zeros(4, 8),
            "module.queue_ptr": torch.zeros(1),
        }
        path = written(tmp_path, {"epoch": 200, "arch": "resnet18", "state_dict": everything})
        self.assert_taken_over(path, original, f"left aside outside of it: {len(body) + 3 + 2}")

    def test_backbone_beside_a_projector(self, tmp_path):
        original, state = self.headless()
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
        backbone = backbones.create(name, image_size=size)
        assert f"head dropped ({head}.bias, {head}.weight)" in backbones.load_weights(backbone, path)
        images = pixels(size)
        assert torch.equal(features(backbone, images), features(original, normalised(images)))

    def test_counters_may_be_absent(self, tmp_path):
        original, state = self.headless()
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        self.assert_taken_over(written(tmp_path, old), original)

    def test_legacy_pickle_format_of_torch(self, tmp_path):
        original, state = self.headless()
        path = tmp_path / "old.pth"
        torch.save(state, path, _use_new_zipfile_serialization=False)
        self.assert_taken_over(path, original)

    def test_statistics_are_kept_when_the_file_states_none(self, tmp_path):
        backbone = backbones.create("resnet18", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        line = backbones.load_weights(backbone, written(tmp_path, torchvision_resnet18().state_dict()))
        assert "mean and std kept" in line
        assert torch.equal(backbone.mean, torch.tensor([0.1, 0.2, 0.3]))

    def test_vit_of_another_image_size(self, tmp_path):
        source = timm.create_model(VIT, num_classes=0, img_size=64)
        backbone = backbones.create(VIT, image_size=96)
        line = backbones.load_weights(backbone, written(tmp_path, source.state_dict()))
        assert "resampled from 4x4 to 6x6" in line
        # As timm itself would do it when it loads pretrained weights.
        expected = timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), backbone.network)
        torch.testing.assert_close(backbone.network.pos_embed, expected["pos_embed"])

    def test_a_run_folder(self, tmp_path):
        source = backbones.create(RESNET)
        backbones.save(source, tmp_path / "run" / "backbone.safetensors")
        backbone = backbones.create(RESNET)
        backbones.load_weights(backbone, tmp_path / "run")
        assert_same_weights(backbone, source)


class TestRefusals:
    @pytest.fixture
    def state(self):
        return {key: value for key, value in torchvision_resnet18().state_dict().items() if not key.startswith("fc.")}

    def refused(self, tmp_path, content, match: str, name: str = "resnet18", **options) -> None:
        backbone = backbones.create(name, **options)
        before = {key: value.clone() for key, value in backbone.state_dict().items()}
        with pytest.raises(UserError, match=match) as error:
            backbones.load_weights(backbone, written(tmp_path, content))
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
        content = backbones.create("resnet18", stem="cifar").network.state_dict()
        self.refused(tmp_path, content, "looks like resnet18 with the cifar stem")

    def test_says_which_vit_it_looks_like(self, tmp_path):
        content = timm.create_model("vit_tiny_patch16_224").state_dict()
        self.refused(tmp_path, content, "looks like a ViT of width 192, depth 12, patch 16")

    def test_says_that_torchvisions_names_differ(self, tmp_path):
        self.refused(tmp_path, torchvision.models.squeezenet1_1().state_dict(), "network of torchvision")

    def test_half_a_network_behind_a_prefix_does_not_pass(self, tmp_path, state):
        part = {key: value for key, value in state.items() if "layer4" not in key}
        self.refused(tmp_path, prefixed(part, "module."), "missing .*layer4")

    def test_no_state_dict(self, tmp_path):
        self.refused(tmp_path, {"epoch": 3, "model": {"name": "resnet18"}}, "holds no state dict")

    def test_pickled_code_is_never_run(self, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return (exec, (f"open({str(ran)!r}, 'w').close()",))

        self.refused(tmp_path, {"state_dict": {"a": torch.ones(1)}, "args": Trap()}, "could run code")
        plain = tmp_path / "plain.pt"
        plain.write_bytes(pickle.dumps(Trap(), protocol=2))
        with pytest.raises(UserError, match=r"plain\.pt"):
            backbones.load_weights(backbones.create(RESNET), plain)
        assert not ran.exists()
        torch.load(tmp_path / "weights.pth", weights_only=False)  # the trap is a real one
        assert ran.exists()

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + b"\0" * 200])
    def test_broken_file(self, tmp_path, suffix, content):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match="broken"):
            backbones.load_weights(backbones.create(RESNET), path)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_truncated_file(self, tmp_path, suffix):
        path = written(tmp_path, dict(timm.create_model(RESNET).state_dict()), suffix)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match="weights"):
            backbones.load_weights(backbones.create(RESNET), path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="no file"):
            backbones.load_weights(backbones.create(RESNET), tmp_path / "absent.pth")
        with pytest.raises(UserError, match="no file"):
            backbones.load(tmp_path)

    def test_load_wants_a_file_of_ours(self, tmp_path, state):
        with pytest.raises(UserError, match="does not say which network"):
            backbones.load(written(tmp_path, state))

    def test_unusable_statistics(self, tmp_path):
        path = tmp_path / "b.pth"
        backbones.save(backbones.create(RESNET), path)
        content = torch.load(path, weights_only=True)
        content["metadata"]["std"] = "[0.2, 0.0, 0.2]"
        torch.save(content, path)
        with pytest.raises(UserError, match="mean and std"):
            backbones.load(path)


class TestPretrainedNames:
    """Without the network: timm's own loading is replaced, everything around it is real."""

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
        backbone = backbones.create(VIT, image_size=160)
        line = backbones.load_weights(backbone, f"{VIT}.r160_in1k")
        assert "with its mean and std" in line
        assert_same_weights(backbone.network, hub[0])
        assert backbone.mean.tolist() == [0.5, 0.5, 0.5]

    def test_another_network_is_refused(self, hub):
        with pytest.raises(UserError, match="weights of resnet50"):
            backbones.load_weights(backbones.create("resnet18"), "resnet50.a1_in1k")

    def test_cifar_stem_is_refused(self, hub):
        with pytest.raises(UserError, match="imagenet stem"):
            backbones.load_weights(backbones.create("resnet18", stem="cifar"), "resnet18.a1_in1k")

    @pytest.mark.parametrize("name", ["resnet18.a9_in1k", "resnet18_a1"])
    def test_unknown_name(self, hub, name):
        with pytest.raises(UserError, match=r"neither a file nor weights.*resnet18\.a1_in1k"):
            backbones.load_weights(backbones.create("resnet18"), name)
        assert not hub

    def test_no_network_is_said(self, monkeypatch):
        backbone = backbones.create("resnet18")

        def offline(*_, **__):
            raise ConnectionError("Name or service not known")

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(UserError, match="needs the network"):
            backbones.load_weights(backbone, "resnet18.a1_in1k")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100", "convnext_atto"])
def test_a_map_comes_with_the_features_that_are_pooled_from_it(name: str) -> None:
    backbone = backbones.create(name, image_size=64).eval()
    pixels = torch.rand(2, 3, 64, 64)
    features, maps = backbone.with_map(pixels)
    torch.testing.assert_close(features, backbone(pixels))
    assert maps.shape[:2] == (2, backbone.channels)
    assert maps.shape[2] == maps.shape[3] > 1
