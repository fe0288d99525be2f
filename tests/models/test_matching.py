"""Matching of files and networks: wrappers, other names, other places, and errors."""

import re
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
from tests.networks import RESNET, assert_same_weights, features, lived_in, normalised, pixels

State = dict[str, torch.Tensor]


def at(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


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
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def assert_loaded(tmp_path: Path, content: Any, expected: nn.Module) -> str:
    backbone = backbone_module.create(RESNET)
    line = weights_io.load_weights(backbone, saved(tmp_path, content))
    assert_same_weights(backbone.network, expected)
    return line


WRAPPED = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "encoder.module.",
    "module.encoder.",
    "module.encoder.module.",
    "encoder._orig_mod.",
    "_orig_mod.module.",
    "encoder.module._orig_mod.",
    "model.module.backbone.module.",
    "model.backbone.",
    "_fsdp_wrapped_module.",
    "model._fsdp_wrapped_module.",
    "_forward_module.model.",
    "feature_extractor.",
    "timm_model.",
    "base_model.model.",
    "student.backbone.",
    "0.",
)
HEADS: tuple[State, ...] = (
    {"head.0.weight": torch.zeros(8, 96), "head.0.bias": torch.zeros(8)},
    {"fc.weight": torch.ones(3, 96)},
    {
        "projector.0.weight": torch.ones(2),
        "predictor.weight": torch.ones(2),
        "queue": torch.ones(2),
    },
    {"criterion.center": torch.ones(1, 3), "classifier.module.weight": torch.ones(2)},
    {"normalize.mean": torch.ones(3), "val_accuracy_metric.total": torch.tensor(1)},
)


class TestWrappers:
    @pytest.mark.parametrize("prefix", WRAPPED)
    def test_at_any_level(
        self, tmp_path: Path, resnet: nn.Module, state: State, prefix: str
    ) -> None:
        assert_loaded(tmp_path, {"model": at(prefix, state)}, resnet)
        beside = {name: value for head in HEADS for name, value in head.items()}
        line = assert_loaded(tmp_path, {"model": {**at(prefix, state), **beside}}, resnet)
        assert "criterion" in line or "head dropped" in line
        assert "head dropped" in assert_loaded(tmp_path, at(prefix, {**state, **HEADS[0]}), resnet)

    @pytest.mark.parametrize("head", HEADS, ids=lambda head: next(iter(head)))
    def test_ignored_tensors_are_named(
        self, tmp_path: Path, resnet: nn.Module, state: State, head: State
    ) -> None:
        line = assert_loaded(tmp_path, {"model": {**at("encoder.module.", state), **head}}, resnet)
        assert all(name.split(".")[0] in line for name in head)

    def test_a_part_that_is_called_module_stays(self, tmp_path: Path, state: State) -> None:
        """A wrapper contains only the module that it wraps."""
        content = {**at("encoder.module.", state), "encoder.other.weight": torch.ones(2)}
        with pytest.raises(UserError, match=r"encoder\.other"):
            weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, content))

    @pytest.mark.parametrize("prefix", ["module.", "module.module.", "module.encoder.module."])
    @pytest.mark.parametrize("place", [None, "swa_state_dict", "averaged_model"])
    def test_averaged_model(
        self, tmp_path: Path, resnet: nn.Module, state: State, prefix: str, place: str | None
    ) -> None:
        content: Any = {"n_averaged": torch.tensor(5), **at(prefix, state)}
        assert "averag" in assert_loaded(
            tmp_path, {place: content, "epoch": 1} if place else content, resnet
        )

    def test_torchs_own_average(self, tmp_path: Path, resnet: nn.Module) -> None:
        assert_loaded(tmp_path, torch.optim.swa_utils.AveragedModel(resnet).state_dict(), resnet)
        assert_loaded(
            tmp_path,
            torch.optim.swa_utils.AveragedModel(nn.DataParallel(resnet)).state_dict(),
            resnet,
        )


AVERAGES = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "model_state_dict_ema",
    "ema_model",
    "params_ema",
    "ema_model_state_dict",
    "shadow",
)


class TestPlaces:
    @pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
    @pytest.mark.parametrize("key", AVERAGES)
    def test_an_average_alone(
        self, tmp_path: Path, resnet: nn.Module, state: State, key: str, prefix: str
    ) -> None:
        content = {
            "epoch": 3,
            key: at(prefix, state),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        }
        line = assert_loaded(tmp_path, content, resnet)
        assert key in line
        assert "average" in line
        # that such a file is read does not say what it is
        assert weights_io.guess(saved(tmp_path, content)) is None

    @pytest.mark.parametrize(
        "key",
        ["teacher", "student", "backbone", "encoder", "net", "weights", "module", "target_encoder"],
    )
    def test_under_one_name(
        self, tmp_path: Path, resnet: nn.Module, state: State, key: str
    ) -> None:
        assert_loaded(tmp_path, {"epoch": 3, key: state}, resnet)

    def test_deep_inside(self, tmp_path: Path, resnet: nn.Module, state: State) -> None:
        assert "ema.shadow" in assert_loaded(
            tmp_path, {"ema": {"decay": 0.9, "shadow": at("module.", state)}}, resnet
        )

    @pytest.mark.parametrize(
        ("one", "another"),
        [
            ("model", "model_ema"),
            ("state_dict", "state_dict_ema"),
            ("teacher", "student"),
            ("online", "target"),
            ("query_net", "key_net"),
            ("net_a", "net_a_ema"),
            ("image_tower", "text_tower"),
            ("branch", "momentum_branch"),
        ],
    )
    @pytest.mark.parametrize("flat", [True, False])
    def test_of_a_pair_the_documented_one(
        self, tmp_path: Path, resnet: nn.Module, state: State, one: str, another: str, flat: bool
    ) -> None:
        if flat:
            content: Any = {**at(f"{another}.", other(state)), **at(f"{one}.", state)}
        else:
            content = {another: other(state), one: state}
        assert another in assert_loaded(tmp_path, content, resnet)

    @pytest.mark.parametrize("flat", [True, False])
    def test_several_to_choose_from_are_listed(
        self, tmp_path: Path, state: State, flat: bool
    ) -> None:
        content = (
            {**at("left.", state), **at("right.", other(state))}
            if flat
            else {"left": state, "right": other(state)}
        )
        with pytest.raises(UserError, match=r"2 networks.*left.*right"):
            weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, content))

    def test_one_network_under_two_names(
        self, tmp_path: Path, resnet: nn.Module, state: State
    ) -> None:
        assert_loaded(tmp_path, {**at("backbone.", state), **at("model.0.", state)}, resnet)

    def test_a_tower_for_text_beside_it(
        self, tmp_path: Path, resnet: nn.Module, state: State
    ) -> None:
        text = {f"text_encoder.layers.{i}.weight": torch.ones(2) for i in range(30)}
        content = {**at("vision.", state), **text, "logit_scale": torch.tensor(1.0)}
        assert "text_encoder" in assert_loaded(tmp_path, content, resnet)

    def test_a_fastai_body(self, tmp_path: Path) -> None:
        network = randomised(timm.create_model("resnet18", num_classes=0))
        places = {
            "conv1": "0",
            "bn1": "1",
            "layer1": "4",
            "layer2": "5",
            "layer3": "6",
            "layer4": "7",
        }
        body = {
            f"0.{places[key.partition('.')[0]]}.{key.partition('.')[2]}": v
            for key, v in network.state_dict().items()
        }
        content = {
            "model": {**body, "1.2.weight": torch.ones(3), "1.8.weight": torch.ones(3, 3)},
            "opt": {"state": []},
        }
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
        backbone = backbone_module.create(RESNET)
        backbone.network.load_state_dict(damaged(backbone.network.state_dict(), key, value))
        path = tmp_path / f"b{suffix}"
        weights_io.save_backbone(backbone, path)
        (tmp_path / "run").mkdir()
        weights_io.save_backbone(backbone, tmp_path / "run" / "backbone.safetensors")
        fresh = backbone_module.create(RESNET)
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
        torch.save(backbone.network.state_dict(), tmp_path / "foreign.pth")
        with pytest.raises(UserError, match=re.escape(key)):
            weights_io.load_weights(fresh, tmp_path / "foreign.pth")

    @pytest.mark.parametrize(
        "keys", [None, ["layer2.0.conv1.weight"], ["conv1.0.weight", "layer4.0.conv2.weight"]]
    )
    def test_layers_of_zeros(self, tmp_path: Path, state: State, keys: list[str] | None) -> None:
        content = {
            key: torch.zeros_like(value) if keys is None or key in keys else value
            for key, value in state.items()
        }
        with pytest.raises(
            UserError, match=re.escape(keys[0] if keys else "conv1.0.weight")
        ) as error:
            weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, content))
        assert f"{len(keys)} of" in str(error.value) if keys else "zeros" in str(error.value)

    def test_layers_that_start_at_zero_may_be_zero(
        self, tmp_path: Path, resnet: nn.Module, state: State
    ) -> None:
        state = {
            key: torch.zeros_like(v) if key.endswith("bias") or key == "bn1.weight" else v
            for key, v in state.items()
        }
        weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, state))

    def test_overflow_in_the_precision_of_the_network(self, tmp_path: Path, state: State) -> None:
        large = {
            key: value.double() * 1e300 if value.ndim > 1 else value for key, value in state.items()
        }
        with pytest.raises(UserError, match="infinity"):
            weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, large))

    @pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
    def test_whole_numbers_are_no_weights(
        self, tmp_path: Path, state: State, kind: torch.dtype
    ) -> None:
        content = {key: value.to(kind) if value.ndim > 1 else value for key, value in state.items()}
        with pytest.raises(UserError, match=re.escape(str(kind))):
            weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, content))

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_are_taken(
        self, tmp_path: Path, state: State, kind: torch.dtype
    ) -> None:
        content = {
            key: value.to(kind) if value.is_floating_point() else value
            for key, value in state.items()
        }
        backbone = backbone_module.create(RESNET)
        weights_io.load_weights(backbone, saved(tmp_path, content))
        expected = {key: value.to(state[key].dtype) for key, value in content.items()}
        torch.testing.assert_close(dict(backbone.network.state_dict()), expected, rtol=0, atol=0)

    @pytest.mark.parametrize(
        "value", ["[NaN, 0.1, 0.1]", "[Infinity, 0.1, 0.1]", "[0.1, 0.1]", '"x"']
    )
    def test_statistics(self, tmp_path: Path, value: str) -> None:
        weights_io.save_backbone(backbone_module.create(RESNET), tmp_path / "b.pth")
        content = torch.load(tmp_path / "b.pth")
        for which in ("mean", "std"):
            torch.save(
                {**content, "metadata": {**content["metadata"], which: value}}, tmp_path / "b.pth"
            )
            with pytest.raises(UserError, match="mean and std"):
                weights_io.load_backbone(tmp_path / "b.pth")

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


def small(name: str, size: int, **options: Any) -> Backbone:
    """A small ViT of timm."""
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, **options}
    network = randomised(timm.create_model(name, num_classes=0, img_size=size, **options))
    return Backbone(
        network, name=name, stem="imagenet", mean=(0, 0, 0), std=(1, 1, 1), image_size=size
    )


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
    renamed = {}
    gated = "blocks.0.mlp.fc1_g.weight" in state
    for key, value in state.items():
        key = (
            key.replace("reg_token", "storage_tokens").replace("fc1_g", "w1").replace("fc1_x", "w2")
        )
        key = re.sub(r"gamma_([12])", r"ls\1.gamma", key)
        renamed[key.replace("fc2", "w3") if gated else key] = value
    for i in range(2):
        parts = [renamed.pop(f"blocks.{i}.attn.{which}_bias", torch.zeros(64)) for which in "qkv"]
        renamed[f"blocks.{i}.attn.qkv.bias"] = torch.cat([parts[0], torch.zeros(64), parts[2]])
        renamed[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full((192,), float("nan"))
    return {**renamed, "mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.ones(8)}


def clip(state: State) -> State:
    renamed = {}
    names = {
        "patch_embed.proj": "conv1",
        "norm_pre": "ln_pre",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        key = re.sub(r"^norm\.", "ln_post.", re.sub(r"\.norm([12])", r".ln_\1", key))
        key = re.sub(r"^blocks", "transformer.resblocks", key)
        if key == "cls_token":
            key, value = "class_embedding", value[0, 0]
        if key == "pos_embed":
            key, value = "positional_embedding", value[0]
        renamed[f"visual.{key}"] = value
    text = {
        "transformer.resblocks.0.ln_1.weight": torch.ones(3),
        "token_embedding.weight": torch.ones(3, 3),
    }
    beside = {
        "positional_embedding": torch.ones(2, 2),
        "ln_final.weight": torch.ones(2),
        "logit_scale": torch.tensor(1.0),
    }
    return {**renamed, "visual.proj": torch.ones(64, 8), **text, **beside}


CONVERTED: dict[str, tuple[str, int, dict[str, Any], Any]] = {
    "DINOv2": ("vit_small_patch14_dinov2", 56, {}, dinov2),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", 56, {}, dinov2),
    "DINOv2, registers, no mask token": (
        "vit_small_patch14_reg4_dinov2",
        56,
        {},
        lambda s: {k: v for k, v in dinov2(s).items() if k != "mask_token"},
    ),
    "DINOv2, training": (
        "vit_small_patch14_reg4_dinov2",
        56,
        {},
        lambda s: {
            "teacher": {**at("backbone.", dinov2(s)), "dino_head.mlp.0.weight": torch.ones(2)},
            "iteration": 1,
        },
    ),
    "DINOv2, in chunks": (
        "vit_small_patch14_dinov2",
        56,
        {},
        lambda s: {re.sub(r"blocks\.(\d+)", r"blocks.0.\1", k): v for k, v in dinov2(s).items()},
    ),
    "DINOv2, SwiGLU": (
        "vit_giant_patch14_dinov2",
        56,
        {"mlp_ratio": 2.75},
        lambda s: {
            k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v
            for k, v in dinov2(s).items()
        },
    ),
    "DINOv3": ("vit_small_patch16_dinov3", 64, {}, dinov3),
    "DINOv3, biases": ("vit_small_patch16_dinov3_qkvb", 64, {}, dinov3),
    "DINOv3, gated": ("vit_small_plus_patch16_dinov3", 64, {}, dinov3),
    "DeiT III": (
        "deit3_small_patch16_224",
        64,
        {},
        lambda s: {re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): v for k, v in s.items()},
    ),
    "I-JEPA": (
        "vit_base_patch16_224",
        64,
        {},
        lambda s: {
            "encoder": at("module.", other(s)),
            "target_encoder": at("module.", s),
            "opt": {},
            "epoch": 1,
        },
    ),
    "CLIP": ("vit_base_patch32_clip_224", 64, {}, clip),
    "CLIP, wrapped": (
        "vit_base_patch32_clip_224",
        64,
        {},
        lambda s: {"state_dict": at("module.", clip(s))},
    ),
    "OpenCLIP": (
        "vit_base_patch32_clip_224",
        64,
        {},
        lambda s: {
            **at("visual.trunk.", s),
            "visual.head.proj.weight": torch.ones(2),
            "text.transformer.x": torch.ones(2),
        },
    ),
}


class TestConversions:
    """Files with the names of their authors, which timm converts."""

    @pytest.mark.parametrize("kind", CONVERTED)
    def test_the_same_features(self, tmp_path: Path, kind: str) -> None:
        name, size, options, written = CONVERTED[kind]
        source, fresh = small(name, size, **options), small(name, size, **options)
        for value in fresh.network.state_dict().values():
            value.add_(1)
        weights_io.load_weights(fresh, saved(tmp_path, written(dict(source.network.state_dict()))))
        torch.testing.assert_close(
            features(fresh, pixels(size)), features(source, pixels(size)), atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("kind", ["DINOv2", "DINOv2, registers", "DINOv2, training"])
    def test_another_image_size(self, tmp_path: Path, kind: str) -> None:
        name, size, options, written = CONVERTED[kind]
        state = dict(small(name, size, **options).network.state_dict())
        fresh = small(name, 112, **options)
        assert "from 4x4 to 8x8" in weights_io.load_weights(fresh, saved(tmp_path, written(state)))
        expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), fresh.network)[
            "pos_embed"
        ]
        torch.testing.assert_close(fresh.network.pos_embed.detach(), expected, atol=1e-6, rtol=1e-6)

    def test_another_patch_size(self, tmp_path: Path) -> None:
        source = small("vit_base_patch16_224", 64, patch_size=8)
        fresh = small("vit_base_patch16_224", 128)
        state = dict(source.network.state_dict())
        assert "from 8x8 to 16x16" in weights_io.load_weights(fresh, saved(tmp_path, state))
        expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), fresh.network)
        torch.testing.assert_close(dict(fresh.network.state_dict()), expected)

    def test_tensors_that_a_conversion_drops_are_refused(self, tmp_path: Path) -> None:
        """Biases without a place in the network are an error, unless they are 0."""
        backbone = small("vit_small_patch16_dinov3", 64)
        state = dinov3(dict(backbone.network.state_dict()))
        state["blocks.1.attn.qkv.bias"] = torch.ones(192)
        with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.bias"):
            weights_io.load_weights(backbone, saved(tmp_path, state))

    @pytest.mark.parametrize("kind", ["swin", "convnextv2"])
    def test_convolutions_and_windows(self, tmp_path: Path, kind: str) -> None:
        if kind == "swin":
            name = "swin_tiny_patch4_window7_224"
            options = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
            options["img_size"] = 56
        else:
            name, options = "convnextv2_atto", {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)}
        source, network = (timm.create_model(name, num_classes=0, **options) for _ in range(2))
        theirs: State = {}
        for key, value in randomised(source).state_dict().items():
            key = re.sub(r"layers\.1\.downsample", "layers.0.downsample", key)
            key = re.sub(
                r"stages\.(\d)\.blocks", r"stages.\1", key.replace("stem.", "downsample_layers.0.")
            )
            key = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key).replace(
                "conv_dw", "dwconv"
            )
            key = key.replace("mlp.grn.bias", "grn.beta").replace("mlp.grn.weight", "grn.gamma")
            if kind == "convnextv2":
                key = key.replace("mlp.fc", "pwconv").replace("head.norm", "norm")
            theirs[key] = value.view(1, 1, 1, -1) if "grn" in key else value
        if kind == "swin":
            theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.ones(
                49, 49, dtype=torch.long
            )
        theirs |= {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
        backbone = Backbone(network, name=name, stem="imagenet", mean=(0, 0, 0), std=(1, 1, 1))
        weights_io.load_weights(backbone, saved(tmp_path, {"model": theirs}))
        assert torch.equal(features(backbone, pixels(56)), features(source, pixels(56)))

    @pytest.mark.parametrize(
        "name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb", "resnet10t"]
    )
    def test_the_network_is_guessed(self, tmp_path: Path, name: str) -> None:
        if not timm.is_model(name):
            pytest.skip(f"this timm has no {name}")
        state = dict(timm.create_model(name, num_classes=0).state_dict())
        if "reg4" in name:
            position = torch.zeros(1, 1, 384)
            state["register_tokens"] = state.pop("reg_token")
            state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
        assert weights_io.guess(saved(tmp_path, {"model": state})) == (name, "imagenet")


class TestChannels:
    @pytest.mark.parametrize("name", [RESNET, "test_vit", "test_convnext"])
    def test_grey_images_give_the_same_features(self, tmp_path: Path, name: str) -> None:
        options = {"img_size": 64} if "vit" in name else {}
        source = randomised(timm.create_model(name, num_classes=0, in_chans=1, **options))
        backbone = backbone_module.create(name, image_size=64, mean=(0, 0, 0), std=(1, 1, 1))
        assert "grey" in weights_io.load_weights(
            backbone, saved(tmp_path, dict(source.state_dict()))
        )
        grey = pixels()[:, :1]
        torch.testing.assert_close(
            features(backbone, grey.repeat(1, 3, 1, 1)),
            features(source, grey),
            atol=1e-4,
            rtol=1e-4,
        )

    def test_a_fourth_channel_is_left_aside_as_timm_does(
        self, tmp_path: Path, state: State
    ) -> None:
        first = torch.rand(16, 4, 3, 3)
        backbone = backbone_module.create(RESNET)
        assert "four channels" in weights_io.load_weights(
            backbone, saved(tmp_path, {**state, "conv1.0.weight": first})
        )
        torch.testing.assert_close(backbone.network.conv1[0].weight.detach(), first[:, :3] * 4 / 3)

    @pytest.mark.parametrize("channels", [2, 6, 13])
    def test_others_are_refused(self, tmp_path: Path, state: State, channels: int) -> None:
        content = {**state, "conv1.0.weight": torch.rand(16, channels, 3, 3)}
        with pytest.raises(UserError, match=rf"conv1\.0\.weight \[16, {channels}, 3, 3\]"):
            weights_io.load_weights(backbone_module.create(RESNET), saved(tmp_path, content))


def of_transformers(kind: str) -> tuple[Any, Any, str, dict[str, Any]]:
    """A tiny network of transformers, its features as a function, and timm's name for it."""
    hf: Any = pytest.importorskip("transformers")
    plain = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "image_size": 56,
        "patch_size": 14,
    }
    own = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 56}
    ratio = {key: value for key, value in plain.items() if key != "intermediate_size"}

    def token(network: Any, x: torch.Tensor) -> Any:
        return network(x).last_hidden_state[:, 0]

    def pooled(network: Any, x: torch.Tensor) -> Any:
        return network(x).pooler_output.flatten(1)

    if kind == "ViT":
        return (
            hf.ViTModel(hf.ViTConfig(**plain)),
            token,
            "vit_base_patch16_224",
            {**own, "patch_size": 14},
        )
    if kind == "ViT, classifier":
        network = hf.ViTForImageClassification(hf.ViTConfig(**plain))
        return (
            network,
            lambda n, x: token(n.vit, x),
            "vit_base_patch16_224",
            {**own, "patch_size": 14},
        )
    if kind == "DINOv2":
        return hf.Dinov2Model(hf.Dinov2Config(**ratio)), token, "vit_small_patch14_dinov2", own
    if kind == "DINOv2, registers":
        network = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**ratio))
        return network, token, "vit_small_patch14_reg4_dinov2", own
    if kind == "DINOv2, SwiGLU":
        network = hf.Dinov2Model(hf.Dinov2Config(**ratio, use_swiglu_ffn=True))
        return network, token, "vit_giant_patch14_dinov2", {**own, "mlp_ratio": 5.5}
    if kind == "DINOv3":
        config = hf.DINOv3ViTConfig(
            **{**plain, "patch_size": 16, "image_size": 64}, num_register_tokens=4
        )

        def mean(network: Any, x: torch.Tensor) -> Any:
            return network(x).last_hidden_state[:, 5:].mean(1)

        return (
            hf.DINOv3ViTModel(config),
            mean,
            "vit_small_patch16_dinov3_qkvb",
            {**own, "img_size": 64},
        )
    if kind == "ResNet":
        config = hf.ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
        return (
            hf.ResNetForImageClassification(config),
            lambda n, x: pooled(n.resnet, x),
            "resnet18",
            {},
        )
    sizes = {"hidden_sizes": [16, 32, 64, 128], "depths": [2, 1, 1, 1]}
    own = {"dims": (16, 32, 64, 128), "depths": (2, 1, 1, 1)}
    if kind == "ConvNeXt":
        return hf.ConvNextModel(hf.ConvNextConfig(**sizes)), pooled, "convnext_tiny", own
    return hf.ConvNextV2Model(hf.ConvNextV2Config(**sizes)), pooled, "convnextv2_atto", own


TRANSFORMERS = (
    "ViT",
    "ViT, classifier",
    "DINOv2",
    "DINOv2, registers",
    "DINOv2, SwiGLU",
    "DINOv3",
    "ResNet",
    "ConvNeXt",
    "ConvNeXt V2",
)


class TestTransformers:
    @pytest.mark.parametrize("kind", TRANSFORMERS)
    def test_the_same_features(self, tmp_path: Path, kind: str) -> None:
        original, extract, name, options = of_transformers(kind)
        randomised(original).save_pretrained(tmp_path)
        size = options.get("img_size", 64)
        if not timm.is_model(name):
            pytest.skip(f"this timm has no {name}")
        network = timm.create_model(name, num_classes=0, **options)
        backbone = Backbone(
            network, name=name, stem="imagenet", mean=(0, 0, 0), std=(1, 1, 1), image_size=size
        )
        weights_io.load_weights(backbone, tmp_path)
        with torch.no_grad():
            expected = extract(original, pixels(size))
        torch.testing.assert_close(features(backbone, pixels(size)), expected, atol=1e-4, rtol=1e-4)

    def test_resnet_without_the_package(self, tmp_path: Path) -> None:
        network = randomised(timm.create_model("resnet18", num_classes=0))
        theirs: State = {}
        for key, value in network.state_dict().items():
            key = re.sub(
                r"^conv1",
                "embedder.embedder.convolution",
                re.sub(r"^bn1", "embedder.embedder.normalization", key),
            )
            key = key.replace("downsample.0", "shortcut.convolution").replace(
                "downsample.1", "shortcut.normalization"
            )
            match = re.fullmatch(r"layer(\d)\.(\d)\.(.*)", key)
            if match:
                rest = re.sub(r"conv(\d)", lambda m: f"layer.{int(m[1]) - 1}.convolution", match[3])
                rest = re.sub(r"bn(\d)", lambda m: f"layer.{int(m[1]) - 1}.normalization", rest)
                key = f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.{rest}"
            theirs[f"resnet.{key}"] = value
        path = saved(
            tmp_path,
            {
                **theirs,
                "classifier.1.weight": torch.ones(2, 512),
                "classifier.1.bias": torch.ones(2),
            },
        )
        assert weights_io.guess(path) == ("resnet18", "imagenet")
        backbone = backbone_module.create("resnet18")
        weights_io.load_weights(backbone, path)
        assert torch.equal(features(backbone, pixels()), features(network, normalised(pixels())))

    @pytest.mark.parametrize("prefix", ["", "vit.", "dinov2."])
    @pytest.mark.parametrize("kind", ["ViT", "DINOv2"])
    def test_vits_without_the_package(self, tmp_path: Path, kind: str, prefix: str) -> None:
        name = "vit_base_patch16_224" if kind == "ViT" else "vit_small_patch14_dinov2"
        size = 64 if kind == "ViT" else 56
        source, fresh = small(name, size), small(name, size)
        for value in fresh.network.state_dict().values():
            value.add_(1)
        names = {
            "cls_token": "embeddings.cls_token",
            "pos_embed": "embeddings.position_embeddings",
            "norm.": "layernorm.",
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "blocks.": "encoder.layer.",
        }
        if kind == "ViT":
            inner = {
                "norm1": "layernorm_before",
                "norm2": "layernorm_after",
                "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense",
            }
        else:
            inner = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
        theirs: State = {}
        for key, value in source.network.state_dict().items():
            ours = next(start for start in names if key.startswith(start))
            key = names[ours] + key.removeprefix(ours)
            for one, another in inner.items():
                key = key.replace(one, another) if key.startswith("encoder") else key
            if ".attn.qkv" in key:
                for which, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    theirs[prefix + key.replace("attn.qkv", f"attention.attention.{which}")] = part
            else:
                theirs[prefix + key.replace("attn.proj", "attention.output.dense")] = value
        theirs |= (
            {"classifier.weight": torch.ones(2, 64)}
            if prefix
            else {"pooler.dense.weight": torch.ones(64, 64)}
        )
        if kind == "DINOv2":
            theirs[f"{prefix}embeddings.mask_token"] = torch.zeros(1, 64)
        weights_io.load_weights(fresh, saved(tmp_path, theirs))
        assert_same_weights(fresh.network, source.network)

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("vit_base_patch16_224", {"num_attention_heads": 4}),
            (RESNET, {"downsample_in_bottleneck": True}),
        ],
    )
    def test_settings_that_say_it_computes_something_else(
        self, tmp_path: Path, name: str, settings: dict[str, Any]
    ) -> None:
        backbone = small(name, 64) if "vit" in name else backbone_module.create(name)
        torch.save(dict(backbone.network.state_dict()), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(
            str(settings).replace("'", '"').replace("True", "true")
        )
        with pytest.raises(UserError, match=name):
            weights_io.load_weights(backbone, tmp_path)

    @pytest.mark.parametrize("has_config", [True, False])
    def test_one_that_is_not_known_is_named(self, tmp_path: Path, has_config: bool) -> None:
        state = {
            f"encoder.layers.0.blocks.{i}.attention.self.key.weight": torch.ones(2)
            for i in range(9)
        }
        torch.save(state, tmp_path / "pytorch_model.bin")
        if has_config:
            (tmp_path / "config.json").write_text('{"model_type": "swin"}')
        with pytest.raises(UserError, match="swin" if has_config else "transformers"):
            weights_io.load_weights(backbone_module.create(RESNET), tmp_path)


@pytest.mark.parametrize(
    ("key", "word"),
    [("_flat_param", "FSDP"), ("base_model.model.blocks.0.attn.qkv.lora_A.weight", "low-rank")],
)
def test_content_without_a_network_is_named(tmp_path: Path, key: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        weights_io.load_weights(
            backbone_module.create(RESNET), saved(tmp_path, {key: torch.ones(5)})
        )
