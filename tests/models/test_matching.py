"""Matching of files and networks: wrappers, other names, other places, and errors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from selftaught.cli.main import main
from selftaught.errors import UserError
from selftaught.models import backbone as backbone_module
from selftaught.models import heads
from selftaught.models.backbone import Backbone
from selftaught.models.layers import mlp
from selftaught.models.weights import io as weights_io
from selftaught.runs import folder as run_folder
from tests.networks import (
    RESNET,
    State,
    assert_same_weights,
    at,
    features,
    lived_in,
    normalised,
    pixels,
    replace_all,
    words,
    write,
)

Load, Refuse = Callable[[Any], str], Callable[..., str]


def other(state: State) -> State:
    """Another network of the same kind, which must not be loaded."""
    return {key: value + 1 for key, value in state.items()}


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for value in lived_in(network).state_dict().values():
        if value.is_floating_point() and value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return randomised(timm.create_model(RESNET, num_classes=0))


@pytest.fixture
def state(resnet: nn.Module) -> State:
    return dict(resnet.state_dict())


def saved(tmp_path: Path, content: Any) -> Path:
    return write(tmp_path / "weights.pth", content)


@pytest.fixture
def load(tmp_path: Path, resnet: nn.Module) -> Load:
    """Load content into a fresh network, which then equals `resnet`."""

    def check(content: Any) -> str:
        backbone = backbone_module.create(RESNET)
        line = weights_io.load_weights(backbone, saved(tmp_path, content))
        assert_same_weights(backbone.network, resnet)
        return line

    return check


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Content that is refused with the words of a regular expression."""

    def check(content: Any, match: str, backbone: Backbone | None = None) -> str:
        path = saved(tmp_path, content)
        with pytest.raises(UserError, match=match) as error:
            weights_io.load_weights(backbone or backbone_module.create(RESNET), path)
        return str(error.value)

    return check


WRAPPED = words("""
module. _orig_mod. model. net. encoder.module. module.encoder. module.encoder.module.
encoder._orig_mod. _orig_mod.module. encoder.module._orig_mod. model.module.backbone.module.
model.backbone. _fsdp_wrapped_module. model._fsdp_wrapped_module. _forward_module.model.
feature_extractor. timm_model. base_model.model. student.backbone. 0.
""")
HEADS: tuple[State, ...] = (
    {"head.0.weight": torch.zeros(8, 96), "head.0.bias": torch.zeros(8)},
    {"fc.weight": torch.ones(3, 96)},
    dict.fromkeys(("projector.0.weight", "predictor.weight", "queue"), torch.ones(2)),
    {"criterion.center": torch.ones(1, 3), "classifier.module.weight": torch.ones(2)},
    {"normalize.mean": torch.ones(3), "val_accuracy_metric.total": torch.tensor(1)},
)


class TestWrappers:
    @pytest.mark.parametrize("prefix", WRAPPED)
    def test_at_any_level(self, state: State, load: Load, prefix: str) -> None:
        load({"model": at(prefix, state)})
        beside = {name: value for head in HEADS for name, value in head.items()}
        line = load({"model": {**at(prefix, state), **beside}})
        assert "criterion" in line or "head dropped" in line
        assert "head dropped" in load(at(prefix, {**state, **HEADS[0]}))

    @pytest.mark.parametrize("head", HEADS, ids=lambda head: next(iter(head)))
    def test_ignored_tensors_are_named(self, state: State, load: Load, head: State) -> None:
        line = load({"model": {**at("encoder.module.", state), **head}})
        assert all(name.split(".")[0] in line for name in head)

    def test_a_part_that_is_called_module_stays(self, state: State, refuse: Refuse) -> None:
        """A wrapper contains only the module that it wraps."""
        content = {**at("encoder.module.", state), "encoder.other.weight": torch.ones(2)}
        refuse(content, r"encoder\.other")

    @pytest.mark.parametrize("prefix", ["module.", "module.module.", "module.encoder.module."])
    @pytest.mark.parametrize("place", [None, "swa_state_dict", "averaged_model"])
    def test_averaged_model(self, state: State, load: Load, prefix: str, place: str | None) -> None:
        content: Any = {"n_averaged": torch.tensor(5), **at(prefix, state)}
        assert "averag" in load({place: content, "epoch": 1} if place else content)

    @pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel])
    def test_torchs_own_average(self, resnet: nn.Module, load: Load, wrap: Any) -> None:
        load(torch.optim.swa_utils.AveragedModel(wrap(resnet)).state_dict())


AVERAGES = words("""
state_dict_ema model_ema ema_state_dict ema model_state_dict_ema ema_model params_ema
ema_model_state_dict shadow
""")
PLACES = words("teacher student backbone encoder net weights module target_encoder")
PAIRS = words("""
model:model_ema state_dict:state_dict_ema teacher:student online:target query_net:key_net
net_a:net_a_ema image_tower:text_tower branch:momentum_branch
""")


class TestPlaces:
    @pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
    @pytest.mark.parametrize("key", AVERAGES)
    def test_an_average_alone(
        self, tmp_path: Path, state: State, load: Load, key: str, prefix: str
    ) -> None:
        optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}}
        line = load({"epoch": 3, key: at(prefix, state), "optimizer": optimizer})
        assert key in line
        assert "average" in line
        # that such a file is read does not say what it is
        assert weights_io.guess(tmp_path / "weights.pth") is None

    @pytest.mark.parametrize("key", PLACES)
    def test_under_one_name(self, state: State, load: Load, key: str) -> None:
        load({"epoch": 3, key: state})

    def test_deep_inside(self, state: State, load: Load) -> None:
        content = {"ema": {"decay": 0.9, "shadow": at("module.", state)}}
        assert "ema.shadow" in load(content)

    @pytest.mark.parametrize("pair", PAIRS)
    @pytest.mark.parametrize("flat", [True, False])
    def test_of_a_pair_the_documented_one(
        self, state: State, load: Load, pair: str, flat: bool
    ) -> None:
        one, another = pair.split(":")
        nested = {another: other(state), one: state}
        joined = {**at(f"{another}.", other(state)), **at(f"{one}.", state)}
        assert another in load(joined if flat else nested)

    @pytest.mark.parametrize("flat", [True, False])
    def test_several_to_choose_from_are_listed(
        self, state: State, refuse: Refuse, flat: bool
    ) -> None:
        nested = {"left": state, "right": other(state)}
        joined = {**at("left.", state), **at("right.", other(state))}
        refuse(joined if flat else nested, r"2 networks.*left.*right")

    def test_one_network_under_two_names(self, state: State, load: Load) -> None:
        load({**at("backbone.", state), **at("model.0.", state)})

    def test_a_tower_for_text_beside_it(self, state: State, load: Load) -> None:
        text = {f"text_encoder.layers.{i}.weight": torch.ones(2) for i in range(30)}
        content = {**at("vision.", state), **text, "logit_scale": torch.tensor(1.0)}
        assert "text_encoder" in load(content)

    def test_a_fastai_body(self, tmp_path: Path) -> None:
        network = randomised(timm.create_model("resnet18", num_classes=0))
        places = {"^conv1": "0", "^bn1": "1", **{f"^layer{i}": str(i + 3) for i in range(1, 5)}}
        body = {replace_all(key, places): v for key, v in network.state_dict().items()}
        head = {"1.2.weight": torch.ones(3), "1.8.weight": torch.ones(3, 3)}
        content = {"model": {**at("0.", body), **head}, "opt": {"state": []}}
        backbone = backbone_module.create("resnet18")
        weights_io.load_weights(backbone, saved(tmp_path, content))
        assert_same_weights(backbone.network, network)


def damaged(state: State, key: str, value: float) -> State:
    state = {name: tensor.clone() for name, tensor in state.items()}
    state[key].view(-1)[-1] = value
    return state


DAMAGES = {
    "NaN in a weight": ("layer2.0.conv1.weight", float("nan")),
    "infinity in a weight": ("layer2.0.conv1.weight", float("-inf")),
    "NaN in a bias": ("bn1.bias", float("nan")),
    "NaN in a running mean": ("layer1.0.bn1.running_mean", float("nan")),
    "a variance below 0": ("layer1.0.bn1.running_var", -1e-3),
}


class TestValues:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_at_every_entrance(self, tmp_path: Path, damage: str, suffix: str) -> None:
        key, value = DAMAGES[damage]
        backbone, fresh = (backbone_module.create(RESNET) for _ in range(2))
        backbone.network.load_state_dict(damaged(backbone.network.state_dict(), key, value))
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone, path)
        (tmp_path / "run").mkdir()
        weights_io.save_backbone(backbone, tmp_path / "run" / "backbone.safetensors")
        before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
        for read in (
            weights_io.load_backbone,
            weights_io.guess,
            run_folder.open_backbone,
            lambda p: weights_io.load_weights(fresh, p),
        ):
            for source in (path, tmp_path / "run"):
                with pytest.raises(UserError, match=re.escape(key)) as error:
                    read(source)
                assert str(tmp_path) in str(error.value)
                assert "1 of" in str(error.value)
        torch.testing.assert_close(before, dict(fresh.state_dict()), rtol=0, atol=0)
        assert main(["export", str(path), "--to", str(tmp_path / "out.pth")]) == 2
        assert not (tmp_path / "out.pth").exists()
        with pytest.raises(UserError, match=re.escape(key)):
            weights_io.load_weights(fresh, saved(tmp_path, backbone.network.state_dict()))

    @pytest.mark.parametrize(
        "keys", [None, ["layer2.0.conv1.weight"], ["conv1.0.weight", "layer4.0.conv2.weight"]]
    )
    def test_layers_of_zeros(self, state: State, refuse: Refuse, keys: list[str] | None) -> None:
        for key in keys or state:
            state[key] = torch.zeros_like(state[key])
        error = refuse(state, re.escape(keys[0] if keys else "conv1.0.weight"))
        assert (f"{len(keys)} of" if keys else "zeros") in error

    def test_layers_that_start_at_zero_may_be_zero(self, tmp_path: Path, state: State) -> None:
        for key, value in state.items():
            if key.endswith("bias") or key == "bn1.weight":
                state[key] = torch.zeros_like(value)
        weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, state))

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda value: value.double() * 1e300, "infinity"),  # overflows in the network
            *(
                (lambda value, kind=kind: value.to(kind), re.escape(str(kind)))
                for kind in (torch.int8, torch.uint8, torch.int64, torch.bool)
            ),
        ],
    )
    def test_numbers_that_are_no_weights(
        self, state: State, refuse: Refuse, change: Any, match: str
    ) -> None:
        refuse({k: change(v) if v.ndim > 1 else v for k, v in state.items()}, match)

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_are_taken(
        self, tmp_path: Path, state: State, kind: torch.dtype
    ) -> None:
        content = {k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
        backbone = backbone_module.create(RESNET)
        weights_io.load_weights(backbone, saved(tmp_path, content))
        expected = {key: value.to(state[key].dtype) for key, value in content.items()}
        torch.testing.assert_close(dict(backbone.network.state_dict()), expected, rtol=0, atol=0)

    def test_statistics(self, tmp_path: Path) -> None:
        path = tmp_path / "b.pth"
        weights_io.save_backbone(backbone_module.create(RESNET), path)
        content = torch.load(path)
        numbers = ("[NaN, 0.1, 0.1]", "[Infinity, 0.1, 0.1]", "[0.1, 0.1]", '"x"')
        changes = [{which: value} for which in ("mean", "std") for value in numbers]
        for change in (*changes, {"std": "[0.2, 0.0, 0.2]"}):
            torch.save({**content, "metadata": {**content["metadata"], **change}}, path)
            with pytest.raises(UserError, match="mean and std"):
                weights_io.load_backbone(path)

    def test_a_head(self, tmp_path: Path) -> None:
        head = mlp(4, 3)
        with torch.no_grad():
            head[-1].weight[0, 0] = float("nan")
        weights_io.save_backbone(backbone_module.create(RESNET), tmp_path / "backbone.safetensors")
        heads.save_head(head, (), False, tmp_path / heads.FILE)
        with pytest.raises(UserError, match=r"NaN.*0\.weight"):
            heads.load_head(tmp_path)

    def test_downloads_of_timm_are_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        create_model = timm.create_model

        def fake(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
            network = create_model(name, **options)
            if pretrained:
                network.load_state_dict(damaged(network.state_dict(), "bn1.weight", float("nan")))
            return network

        monkeypatch.setattr(timm, "create_model", fake)
        with pytest.raises(UserError, match=r"a1_in1k.*bn1\.weight"):
            weights_io.load_weights(backbone_module.create("resnet18"), "resnet18.a1_in1k")


PLAIN: dict[str, Any] = {"stem": "imagenet", "mean": (0, 0, 0), "std": (1, 1, 1)}


def small(name: str, size: int = 0, **options: Any) -> Backbone:
    """A small ViT of timm, for images of four patches a side unless a size is stated."""
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    size = size or (56 if "patch14" in name else 64)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, **options}
    if "giant" in name:
        options["mlp_ratio"] = 2.75
    network = randomised(timm.create_model(name, num_classes=0, img_size=size, **options))
    return Backbone(network, name=name, image_size=size, **PLAIN)


def dinov2(state: State) -> State:
    """The names of the authors, whose class token has a position, too."""
    state = dict(state)
    if "reg_token" in state:
        position = torch.full((1, 1, 64), 0.1)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    return {**state, "mask_token": torch.zeros(1, 64)}


def dinov3(state: State) -> State:
    names = {"reg_token": "storage_tokens", "fc1_g": "w1", "fc1_x": "w2"}
    names |= {r"gamma_([12])": r"ls\1.gamma"}
    if "blocks.0.mlp.fc1_g.weight" in state:
        names["fc2"] = "w3"
    renamed = {replace_all(key, names): value for key, value in state.items()}
    for i in range(2):
        parts = [renamed.pop(f"blocks.{i}.attn.{which}_bias", torch.zeros(64)) for which in "qkv"]
        renamed[f"blocks.{i}.attn.qkv.bias"] = torch.cat([parts[0], torch.zeros(64), parts[2]])
        renamed[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full((192,), float("nan"))
    return {**renamed, "mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.ones(8)}


def clip(state: State) -> State:
    names = {
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        r"attn\.qkv\.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        r"\.norm([12])": r".ln_\1",
        r"^norm\.": "ln_post.",
        "^blocks": "transformer.resblocks",
        "^cls_token$": "class_embedding",
        "^pos_embed$": "positional_embedding",
    }
    renamed = {f"visual.{replace_all(key, names)}": value for key, value in state.items()}
    renamed["visual.class_embedding"] = state["cls_token"][0, 0]
    renamed["visual.positional_embedding"] = state["pos_embed"][0]
    beside = "transformer.resblocks.0.ln_1.weight token_embedding.weight positional_embedding"
    beside += " ln_final.weight logit_scale visual.proj"
    return {**renamed, **dict.fromkeys(words(beside), torch.ones(3, 3))}


def renamed(state: State, names: dict[str, str]) -> State:
    return {replace_all(key, names): value for key, value in state.items()}


DINOV2, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
PLAIN_VIT, CLIP = "vit_base_patch16_224", "vit_base_patch32_clip_224"
# timm's name, and the state dict as its authors write it
CONVERTED: dict[str, tuple[str, Any]] = {
    "DINOv2": (DINOV2, dinov2),
    "DINOv2, registers": (REGISTERS, dinov2),
    "DINOv2, registers, no mask token": (
        REGISTERS,
        lambda s: {k: v for k, v in dinov2(s).items() if k != "mask_token"},
    ),
    "DINOv2, training": (
        REGISTERS,
        lambda s: {
            "teacher": {**at("backbone.", dinov2(s)), "dino_head.mlp.0.weight": torch.ones(2)},
            "iteration": 1,
        },
    ),
    "DINOv2, in chunks": (DINOV2, lambda s: renamed(dinov2(s), {r"blocks\.(\d+)": r"blocks.0.\1"})),
    "DINOv2, SwiGLU": (
        "vit_giant_patch14_dinov2",
        lambda s: renamed(dinov2(s), {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}),
    ),
    "DINOv3": ("vit_small_patch16_dinov3", dinov3),
    "DINOv3, biases": ("vit_small_patch16_dinov3_qkvb", dinov3),
    "DINOv3, gated": ("vit_small_plus_patch16_dinov3", dinov3),
    "DeiT III": ("deit3_small_patch16_224", lambda s: renamed(s, {r"ls(\d)\.gamma": r"gamma_\1"})),
    "I-JEPA": (
        PLAIN_VIT,
        lambda s: {
            **{"encoder": at("module.", other(s)), "target_encoder": at("module.", s)},
            **{"opt": {}, "epoch": 1},
        },
    ),
    "CLIP": (CLIP, clip),
    "CLIP, wrapped": (CLIP, lambda s: {"state_dict": at("module.", clip(s))}),
    "OpenCLIP": (
        CLIP,
        lambda s: {
            **at("visual.trunk.", s),
            **dict.fromkeys(("visual.head.proj.weight", "text.transformer.x"), torch.ones(2)),
        },
    ),
}


class TestConversions:
    """Files with the names of their authors, which timm converts."""

    @pytest.mark.parametrize("kind", CONVERTED)
    def test_the_same_features(self, tmp_path: Path, kind: str) -> None:
        name, written = CONVERTED[kind]
        source, fresh = small(name), small(name)
        for value in fresh.network.state_dict().values():
            value.add_(1)
        weights_io.load_weights(fresh, saved(tmp_path, written(dict(source.network.state_dict()))))
        images = pixels(source.image_size)
        torch.testing.assert_close(
            features(fresh, images), features(source, images), atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("kind", ["DINOv2", "DINOv2, registers", "DINOv2, training"])
    def test_another_image_size(self, tmp_path: Path, kind: str) -> None:
        name, written = CONVERTED[kind]
        state, fresh = dict(small(name).network.state_dict()), small(name, 112)
        assert "from 4x4 to 8x8" in weights_io.load_weights(fresh, saved(tmp_path, written(state)))
        expected = timm_filter(state, fresh)["pos_embed"]
        torch.testing.assert_close(fresh.network.pos_embed.detach(), expected, atol=1e-6, rtol=1e-6)

    def test_another_patch_size(self, tmp_path: Path) -> None:
        state = dict(small(PLAIN_VIT, 64, patch_size=8).network.state_dict())
        fresh = small(PLAIN_VIT, 128)
        assert "from 8x8 to 16x16" in weights_io.load_weights(fresh, saved(tmp_path, state))
        torch.testing.assert_close(dict(fresh.network.state_dict()), timm_filter(state, fresh))

    def test_tensors_that_a_conversion_drops_are_refused(self, refuse: Refuse) -> None:
        """Biases without a place in the network are an error, unless they are 0."""
        backbone = small("vit_small_patch16_dinov3")
        state = dinov3(dict(backbone.network.state_dict()))
        state["blocks.1.attn.qkv.bias"] = torch.ones(192)
        refuse(state, r"blocks\.1\.attn\.qkv\.bias", backbone)

    @pytest.mark.parametrize(
        ("name", "options", "names"),
        [
            (
                "swin_tiny_patch4_window7_224",
                {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "img_size": 56},
                {r"layers\.1\.downsample": "layers.0.downsample"},
            ),
            (
                "convnextv2_atto",
                {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)},
                {
                    r"stem\.": "downsample_layers.0.",
                    r"stages\.(\d)\.blocks": r"stages.\1",
                    r"stages\.(\d)\.downsample\.": r"downsample_layers.\1.",
                    "conv_dw": "dwconv",
                    "mlp.grn.bias": "grn.beta",
                    "mlp.grn.weight": "grn.gamma",
                    "mlp.fc": "pwconv",
                    "head.norm": "norm",
                },
            ),
        ],
        ids=["swin", "convnextv2"],
    )
    def test_convolutions_and_windows(
        self, tmp_path: Path, name: str, options: dict[str, Any], names: dict[str, str]
    ) -> None:
        source, network = (timm.create_model(name, num_classes=0, **options) for _ in range(2))
        theirs = renamed(randomised(source).state_dict(), names)
        theirs = {k: v.view(1, 1, 1, -1) if "grn" in k else v for k, v in theirs.items()}
        if "swin" in name:
            index = torch.ones(49, 49, dtype=torch.long)
            theirs["layers.0.blocks.0.attn.relative_position_index"] = index
        theirs |= {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
        backbone = Backbone(network, name=name, **PLAIN)
        weights_io.load_weights(backbone, saved(tmp_path, {"model": theirs}))
        assert torch.equal(features(backbone, pixels(56)), features(source, pixels(56)))

    @pytest.mark.parametrize("name", [REGISTERS, "vit_small_patch16_dinov3_qkvb", "resnet10t"])
    def test_the_network_is_guessed(self, tmp_path: Path, name: str) -> None:
        if not timm.is_model(name):
            pytest.skip(f"this timm has no {name}")
        state = dict(timm.create_model(name, num_classes=0).state_dict())
        if name == REGISTERS:
            state["register_tokens"] = state.pop("reg_token")
            state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
        assert weights_io.guess(saved(tmp_path, {"model": state})) == (name, "imagenet")


def timm_filter(state: State, backbone: Backbone) -> State:
    """The weights as timm itself resamples them."""
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    return convert(dict(state), backbone.network)


class TestChannels:
    @pytest.mark.parametrize("name", [RESNET, "test_vit", "test_convnext"])
    def test_grey_images_give_the_same_features(self, tmp_path: Path, name: str) -> None:
        options = {"img_size": 64} if "vit" in name else {}
        source = randomised(timm.create_model(name, num_classes=0, in_chans=1, **options))
        backbone = backbone_module.create(name, image_size=64, mean=(0, 0, 0), std=(1, 1, 1))
        path, grey = saved(tmp_path, dict(source.state_dict())), pixels()[:, :1]
        assert "grey" in weights_io.load_weights(backbone, path)
        mine, theirs = features(backbone, grey.repeat(1, 3, 1, 1)), features(source, grey)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)

    def test_a_fourth_channel_is_left_aside_as_timm_does(
        self, tmp_path: Path, state: State
    ) -> None:
        state["conv1.0.weight"] = first = torch.rand(16, 4, 3, 3)
        backbone = backbone_module.create(RESNET)
        assert "four channels" in weights_io.load_weights(backbone, saved(tmp_path, state))
        torch.testing.assert_close(backbone.network.conv1[0].weight.detach(), first[:, :3] * 4 / 3)

    @pytest.mark.parametrize("channels", [2, 6, 13])
    def test_others_are_refused(self, state: State, refuse: Refuse, channels: int) -> None:
        content = {**state, "conv1.0.weight": torch.rand(16, channels, 3, 3)}
        refuse(content, rf"conv1\.0\.weight \[16, {channels}, 3, 3\]")


def token(network: Any, x: torch.Tensor) -> Any:
    return network(x).last_hidden_state[:, 0]


def mean(network: Any, x: torch.Tensor) -> Any:
    """Of the patches, which come after a class token and four registers."""
    return network(x).last_hidden_state[:, 5:].mean(1)


def pooled(network: Any, x: torch.Tensor) -> Any:
    return network(x).pooler_output.flatten(1)


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "patch_size": 14}
VIT_SIZES = {**SIZES, "image_size": 56, "intermediate_size": 256}
DINO_SIZES = {**SIZES, "image_size": 56}
DINOV3_SIZES = {**VIT_SIZES, "patch_size": 16, "image_size": 64, "num_register_tokens": 4}
STAGES = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
CONVNEXT_SIZES = {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 1, 1, 1]}
OWN: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 56}
OWN_CONVNEXT = {"dims": (16, 32, 64, 128), "depths": (2, 1, 1, 1)}
# network and sizes in transformers, the features of it or of a part, timm's name and options
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Any, str, str, dict[str, Any]]] = {
    "ViT": ("ViTModel", VIT_SIZES, token, "", PLAIN_VIT, {**OWN, "patch_size": 14}),
    "ViT, classifier": (
        "ViTForImageClassification",
        VIT_SIZES,
        token,
        "vit",
        PLAIN_VIT,
        {**OWN, "patch_size": 14},
    ),
    "DINOv2": ("Dinov2Model", DINO_SIZES, token, "", DINOV2, OWN),
    "DINOv2, registers": ("Dinov2WithRegistersModel", DINO_SIZES, token, "", REGISTERS, OWN),
    "DINOv2, SwiGLU": (
        "Dinov2Model",
        {**DINO_SIZES, "use_swiglu_ffn": True},
        token,
        "",
        "vit_giant_patch14_dinov2",
        {**OWN, "mlp_ratio": 5.5},
    ),
    "DINOv3": (
        "DINOv3ViTModel",
        DINOV3_SIZES,
        mean,
        "",
        "vit_small_patch16_dinov3_qkvb",
        {**OWN, "img_size": 64},
    ),
    "ResNet": (
        "ResNetForImageClassification",
        {**STAGES, "layer_type": "basic"},
        pooled,
        "resnet",
        "resnet18",
        {},
    ),
    "ConvNeXt": ("ConvNextModel", CONVNEXT_SIZES, pooled, "", "convnext_tiny", OWN_CONVNEXT),
    "ConvNeXt V2": ("ConvNextV2Model", CONVNEXT_SIZES, pooled, "", "convnextv2_atto", OWN_CONVNEXT),
}


class TestTransformers:
    @pytest.mark.parametrize("kind", TRANSFORMERS)
    def test_the_same_features(self, tmp_path: Path, kind: str) -> None:
        hf: Any = pytest.importorskip("transformers")
        original, sizes, extract, part, name, options = TRANSFORMERS[kind]
        if not timm.is_model(name):
            pytest.skip(f"this timm has no {name}")
        model = getattr(hf, original)
        network = randomised(model(model.config_class(**sizes)))
        network.save_pretrained(tmp_path)
        size = options.get("img_size", 64)
        own = timm.create_model(name, num_classes=0, **options)
        backbone = Backbone(own, name=name, image_size=size, **PLAIN)
        weights_io.load_weights(backbone, tmp_path)
        with torch.no_grad():
            expected = extract(getattr(network, part) if part else network, pixels(size))
        torch.testing.assert_close(features(backbone, pixels(size)), expected, atol=1e-4, rtol=1e-4)

    def test_resnet_without_the_package(self, tmp_path: Path) -> None:
        network = randomised(timm.create_model("resnet18", num_classes=0))
        names = {
            "^conv1": "embedder.embedder.convolution",
            "^bn1": "embedder.embedder.normalization",
            "downsample.0": "shortcut.convolution",
            "downsample.1": "shortcut.normalization",
            r"\.conv1": ".layer.0.convolution",
            r"\.conv2": ".layer.1.convolution",
            r"\.bn1": ".layer.0.normalization",
            r"\.bn2": ".layer.1.normalization",
            **{rf"^layer{i}\.(\d)": rf"encoder.stages.{i - 1}.layers.\1" for i in range(1, 5)},
        }
        theirs = at("resnet.", renamed(network.state_dict(), names))
        head = {"classifier.1.weight": torch.ones(2, 512), "classifier.1.bias": torch.ones(2)}
        path = saved(tmp_path, {**theirs, **head})
        assert weights_io.guess(path) == ("resnet18", "imagenet")
        backbone = backbone_module.create("resnet18")
        weights_io.load_weights(backbone, path)
        assert torch.equal(features(backbone, pixels()), features(network, normalised(pixels())))

    @pytest.mark.parametrize("prefix", ["", "vit.", "dinov2."])
    @pytest.mark.parametrize("kind", ["ViT", "DINOv2"])
    def test_vits_without_the_package(self, tmp_path: Path, kind: str, prefix: str) -> None:
        name = PLAIN_VIT if kind == "ViT" else DINOV2
        source, fresh = small(name), small(name)
        for value in fresh.network.state_dict().values():
            value.add_(1)
        names = {
            r"^norm\.": "layernorm.",
            "^cls_token": "embeddings.cls_token",
            "^pos_embed": "embeddings.position_embeddings",
            "^patch_embed.proj": "embeddings.patch_embeddings.projection",
            "^blocks": "encoder.layer",
            "attn.proj": "attention.output.dense",
        }
        if kind == "ViT":
            names |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
            names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
        else:
            names |= {r"ls([12])\.gamma": r"layer_scale\1.lambda1"}
        theirs: State = {}
        for key, value in renamed(source.network.state_dict(), names).items():
            parts = {"query": value, "key": value, "value": value}
            if "attn.qkv" in key:
                parts = dict(zip(parts, value.chunk(3), strict=True))
            for which, part in parts.items():
                theirs[key.replace("attn.qkv", f"attention.attention.{which}")] = part
        if not prefix:
            theirs["pooler.dense.weight"] = torch.ones(64, 64)
        if kind == "DINOv2":
            theirs["embeddings.mask_token"] = torch.zeros(1, 64)
        content = at(prefix, theirs) | ({"classifier.weight": torch.ones(2, 64)} if prefix else {})
        weights_io.load_weights(fresh, saved(tmp_path, content))
        assert_same_weights(fresh.network, source.network)

    @pytest.mark.parametrize(
        ("name", "settings"),
        [(PLAIN_VIT, {"num_attention_heads": 4}), (RESNET, {"downsample_in_bottleneck": True})],
    )
    def test_settings_that_say_it_computes_something_else(
        self, tmp_path: Path, name: str, settings: dict[str, Any]
    ) -> None:
        backbone = small(name) if "vit" in name else backbone_module.create(name)
        torch.save(dict(backbone.network.state_dict()), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match=name):
            weights_io.load_weights(backbone, tmp_path)

    @pytest.mark.parametrize("has_config", [True, False])
    def test_one_that_is_not_known_is_named(self, tmp_path: Path, has_config: bool) -> None:
        keys = [f"encoder.layers.0.blocks.{i}.attention.self.key.weight" for i in range(9)]
        torch.save(dict.fromkeys(keys, torch.ones(2)), tmp_path / "pytorch_model.bin")
        if has_config:
            (tmp_path / "config.json").write_text('{"model_type": "swin"}')
        with pytest.raises(UserError, match="swin" if has_config else "transformers"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path)


@pytest.mark.parametrize(
    ("key", "word"),
    [("_flat_param", "FSDP"), ("base_model.model.blocks.0.attn.qkv.lora_A.weight", "low-rank")],
)
def test_content_without_a_network_is_named(refuse: Refuse, key: str, word: str) -> None:
    refuse({key: torch.ones(5)}, word)
