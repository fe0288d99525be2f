"""Stages as values: written down, read back, refused when they do not fit; the flags that make
them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftaught.cli import flags
from selftaught.config import defaults, registry, serialization
from selftaught.config.recipes import RECIPES
from selftaught.config.stage import Data, Stage, differences
from selftaught.errors import UserError
from selftaught.hard import HARD
from selftaught.method import Defaults, Setting
from selftaught.methods import METHODS
from selftaught.optim import OPTIMIZERS, SGD, AdamW, Cosine
from selftaught.views.spec import Views
from tests.commands import argv
from tests.fixtures import Patch, Places
from tests.laws.toys import WITH_HARD
from tests.pictures import folder

stages = st.builds(
    Stage,
    data=st.builds(Data, roots=st.lists(st.text(min_size=1), min_size=1).map(tuple)),
    size=st.integers(16, 512),
    method=st.sampled_from([METHODS[name].Config() for name in WITH_HARD]),
    hard=st.lists(st.sampled_from(list(HARD)), unique=True).map(
        lambda names: tuple(HARD[n](weight=0.3) for n in names)
    ),
    optimizer=st.sampled_from([o(lr=0.123) for o in OPTIMIZERS.values()]),
    schedule=st.builds(Cosine, warmup=st.floats(0, 0.5)),
    views=st.sampled_from([Views(), Views(small=4, small_size=32), Views(pipeline="reference")]),
    init=st.none() | st.text(min_size=1),
    steps=st.integers(1, 10**9),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=60, deadline=None)
@given(stages)
def test_a_stage_written_and_read_is_the_same(stage: Stage) -> None:
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(stage)))) == stage


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mehtod": {}}, "there is no field mehtod"),
        ({"method": {"name": "moco"}}, "there is no method 'moco'; .*moco-v2"),
        ({"method": {"name": "moco-v2", "temprature": 1}}, "method has no field temprature"),
        ({"method": [1]}, 'method: give an object with "name"'),
        ({"optimizer": {}}, 'optimizer: give an object with "name"'),
        ({"hard": "cutmix"}, 'hard example: give an object with "name"'),
        ({"optimizer": {"name": "sgd", "lr": "fast"}}, "optimizer.lr takes a number"),
        ({"steps": "many"}, "steps takes a whole number"),
        ({"stem": "vgg"}, "stem takes imagenet or cifar"),
        ({"views": 5}, "views takes fields with names"),
        ({"views": {"scale": 5}}, "views.scale takes a list"),
        ({"views": {"scale": ["a", 1]}}, r"views.scale\[0\] takes a number"),
        ({"data": {"rots": 3}}, "data.roots is missing; data has no field rots"),
        ({"anchor": 5}, "anchor takes fields with names"),
        ({"size": 0}, "--size must be 8"),
        ({name: 1 for name in "abcdef"}, "there is no field a, b, c, d, e, f"),
        ({"size": "a", "batch": "b", "steps": "c", "seed": "d", "stem": "e"}, "and 1 more"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, object], word: str) -> None:
    written = serialization.to_json(Stage(data=Data(roots=("a",)), size=32)) | change
    with pytest.raises(UserError, match=f"does not fit: .*{word}"):
        serialization.from_json(written)


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


def stage(images: Path, *words: str, base: Stage | None = None) -> Stage:
    every = ["--out", "x", "--precision", "fp32", "--backbone", "test_resnet", *words]
    if base is None:
        every += ["--data", str(images)]
    return flags.stage_from(every, base, "cpu", lambda data, seed: data.index(seed))


def test_every_field_is_a_flag(images: Path) -> None:
    result = stage(
        images,
        *argv("--method simclr --method.temperature 0.3 --hard cutmix adversarial"),
        *argv("--hard.adversarial.eps 2 --optimizer adamw --optimizer.lr 0.01"),
        *argv("--views reference --views.flip 0.1 --schedule.warmup 0.2 --epochs 2"),
        *argv("--batch 8 --seed 7"),
    )
    assert isinstance(result.method, METHODS["simclr"].Config)
    assert result.method.temperature == 0.3
    assert [registry.hard_name(h) for h in result.hard] == ["cutmix", "adversarial"]
    assert result.hard[1].eps == 2
    assert (result.optimizer.lr, result.views.pipeline, result.views.flip) == (
        0.01,
        "reference",
        0.1,
    )
    assert (result.schedule.warmup, result.seed, result.batch) == (0.2, 7, 8)
    assert result.steps == 2 * (39 // 8)  # 80 % of 48 images are trained on, whole batches


def test_defaults_follow_the_data(images: Path) -> None:
    result = stage(images)
    assert result.size == 32
    assert result.method.hidden == defaults.features_of("test_resnet")  # as wide as the features
    assert stage(images, "--method", "moco-v2").method.queue <= 39
    assert result.batch <= 39
    assert result.steps > 0


@pytest.mark.parametrize(
    ("device", "begun", "size"),
    [("cpu", False, 32), ("cuda", False, 32), ("cpu", True, 64), ("cuda", True, 128)],
)
def test_small_images_are_enlarged_for_trained_weights(
    images: Path, device: str, begun: bool, size: int
) -> None:
    index = Data(roots=(str(images),)).index(0)
    assert defaults.size_for(index, device, begun) == size


@pytest.mark.parametrize(
    ("statistics", "backbone", "seen"),
    [
        ("weights", "test_resnet", 5_000),
        ("data", "test_resnet", 15_000),
        ("weights", "test_vit", 15_000),  # it has no batch norms
    ],
)
def test_weights_are_trained_shorter_where_their_batch_norms_stay(
    images: Path, statistics: str, backbone: str, seen: int
) -> None:
    words = ["--init", "w.pth", "--norm-statistics", statistics, "--batch", "8"]
    words += ["--backbone", backbone]
    epochs = round(seen / 39)
    assert stage(images, *words).steps == epochs * (39 // 8)


SETTING = Setting(images=1000, batch=100, steps=100, features=512)


def own(name: str, pretrained: bool) -> Defaults[Any]:
    setting = dataclasses.replace(SETTING, pretrained=pretrained)
    return defaults.defaults_for(METHODS[name], setting)


def test_a_method_knows_its_rate_and_whether_to_clip(images: Path) -> None:
    lr = own("supervised", pretrained=False).lr
    sgd = Defaults(config=None, lr=lr)
    rates = [defaults.optimizer_for("sgd", sgd, batch).lr for batch in (64, 256, 4096)]
    assert rates == pytest.approx([0.015, 0.06, 0.96])
    vicreg = stage(images, "--method", "vicreg", "--batch", "8")
    assert (vicreg.optimizer.lr, vicreg.clip) == (0.00625, 5.0)
    assert stage(images, "--method", "vicreg", "--clip", "0").clip == stage(images).clip == 0.0


def test_weights_that_are_there_are_moved_at_the_common_rate_at_most(monkeypatch: Patch) -> None:
    # a rate below the common one, as none has now
    slow = dataclasses.replace(RECIPES["simsiam"], lr=0.05)
    monkeypatch.setitem(RECIPES, "simsiam", slow)
    for name, there in (("simclr", 0.06), ("simsiam", 0.05)):
        assert own(name, pretrained=True).lr == there
    assert own("simclr", pretrained=False).lr == 0.24


@pytest.mark.parametrize(("init", "lr"), [([], 5e-4), (["--init", "w.pth"], 4e-4)])
def test_a_network_with_layer_norms_gets_adamw(images: Path, init: list[str], lr: float) -> None:
    """SimCLR at SGD's rate collapsed a ViT-Ti that MAE had trained, in 35 steps."""
    words = ["--method", "simclr", "--batch", "16", *init]
    vit = stage(images, *words, "--backbone", "test_vit")
    assert isinstance(vit.optimizer, AdamW)
    assert vit.optimizer.lr == pytest.approx(lr * 16 / 256, rel=0.02)
    assert vit.clip == 3.0
    resnet = stage(images, *words, "--backbone", "test_resnet")
    assert isinstance(resnet.optimizer, SGD)
    chosen = stage(images, *words, "--backbone", "test_vit", "--optimizer", "sgd")
    assert isinstance(chosen.optimizer, SGD)


def test_settings_of_a_default_optimizer_need_no_name_of_it(images: Path) -> None:
    """The default optimizer depends on the network: only its own settings are taken."""
    betas, momentum = ["--optimizer.betas", "0.9", "0.95"], ["--optimizer.momentum", "0.8"]
    vit, resnet = (["--batch", "16", "--backbone", name] for name in ("test_vit", "test_resnet"))
    assert stage(images, *vit, *betas).optimizer.betas == (0.9, 0.95)
    assert stage(images, *resnet, *momentum).optimizer.momentum == 0.8
    with pytest.raises(UserError, match=r"sgd has no --optimizer\.betas: it is of adamw"):
        stage(images, *resnet, *betas)
    with pytest.raises(UserError, match=r"adamw has no --optimizer\.momentum"):
        stage(images, *vit, *momentum)


def test_a_rate_of_adamw_that_a_method_brings_holds_for_vits_too(images: Path) -> None:
    mae = stage(images, "--method", "mae", "--batch", "16", "--backbone", "test_vit")
    own = METHODS["mae"].Config().defaults(SETTING)
    assert mae.optimizer.lr == pytest.approx(own.lr * 16 / 256, rel=0.02)


def test_tuned_rates_stand_in_one_table() -> None:
    """A class holds published values: no method has a tuned rate of its own."""
    published = {"jigsaw": 0.1, "context-prediction": 0.1}
    assert set(RECIPES) < set(METHODS)
    for name in RECIPES:
        result = METHODS[name].Config().defaults(SETTING)
        assert (result.lr, result.clip) == (published.get(name, Defaults.lr), Defaults.clip)


def test_a_method_from_elsewhere_brings_its_own_rate() -> None:
    class Own(METHODS["byol"]):
        class Config(METHODS["byol"].Config):
            def defaults(self, setting: Setting) -> Defaults[Any]:
                return dataclasses.replace(super().defaults(setting), lr=0.3, clip=2.0)

    result = defaults.defaults_for(Own, SETTING)
    assert (result.lr, result.clip) == (0.3, 2.0)


def test_simclr_stops_its_keys_gradient_where_it_begins_from_random_weights(images: Path) -> None:
    assert stage(images).method.stop_gradient
    assert not stage(images, "--init", "weights.pth").method.stop_gradient
    assert not stage(images, "--method.no-stop-gradient").method.stop_gradient


@pytest.mark.parametrize(
    ("fields", "word"), [({}, "--init"), ({"init": "w.pth", "trainable": "none"}, "none")]
)
def test_statistics_to_keep_need_weights_that_train(fields: dict[str, str], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Stage(data=Data(roots=("a",)), size=32, norm_statistics="weights", **fields)


@pytest.mark.parametrize(
    ("words", "clip"),
    [("", 0.0), ("--norm-statistics weights", 1.0), ("--norm-statistics weights --clip 2", 2.0)],
)
def test_gradients_are_clipped_where_norms_keep_their_statistics(
    images: Path, words: str, clip: float
) -> None:
    begun = argv("--init weights.pth", *argv(words))
    assert stage(images, *begun).clip == clip
    if "--clip" not in words:  # a ViT has no batch norms
        assert stage(images, *begun, "--backbone", "test_vit").clip == 3.0


def test_a_base_is_kept_but_for_what_is_given(images: Path) -> None:
    base = stage(
        images, *argv("--hard adversarial --hard.adversarial.eps 3 --method.temperature 0.5")
    )
    assert stage(images, base=base) == base
    other = stage(images, "--steps", "5", "--hard.adversarial.eps", "4", base=base)
    assert differences(other, base) == ["hard", "steps"]
    assert other.hard == (dataclasses.replace(base.hard[0], eps=4),)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--method", "moco"], "moco-v2"),
        (["--method.temprature", "1"], "--method.temperature"),
        (["--steps", "x"], "whole number"),
        (["--hard", "cut"], "cutmix"),
    ],
)
def test_an_unknown_word_is_refused(images: Path, words: list[str], near: str) -> None:
    with pytest.raises(UserError, match=near):
        stage(images, *words)


def test_steps_and_epochs_exclude_each_other(images: Path) -> None:
    with pytest.raises(UserError, match="not both"):
        stage(images, "--steps", "1", "--epochs", "1")
    with pytest.raises(UserError, match="above 0"):
        stage(images, "--epochs", "0")


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.masks_patches])
def test_a_method_that_masks_patches_gets_a_vit(images: Path, name: str) -> None:
    words = ["--out", "x", "--precision", "fp32", "--data", str(images), "--method", name]
    result = flags.stage_from(words, None, "cpu", lambda data, seed: data.index(seed))
    assert result.backbone == "vit_tiny_patch16_224"
    assert result.size % 16 == 0


def test_a_method_has_its_own_augmentations(images: Path) -> None:
    assert stage(images, "--method", "cmc").views.jitter == 0
    assert stage(images, "--method", "cmc", "--views.jitter", "0.5").views.jitter == 0.5
    assert stage(images, "--method", "moco-v1").views.blur == 0
