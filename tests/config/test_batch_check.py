"""Batches of one image, sets of one: trained with finite losses, or refused before anything is."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.cli.main import main
from selftaught.config.batch_check import check_counts, takes_one_image
from selftaught.config.defaults import defaults_for
from selftaught.config.stage import Data, Stage
from selftaught.errors import UserError
from selftaught.hard import CutMix, MixUp
from selftaught.method import Setting
from selftaught.methods import METHODS
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.commands import argv
from tests.fixtures import Capture, Places
from tests.laws.toys import batch, config, setup
from tests.pictures import folder

SMALL = [
    *argv("--backbone resnet10t --stem imagenet --size 32 --precision fp32"),
    *argv("--workers 0"),
]
CLUSTERING = [name for name, method in METHODS.items() if hasattr(method.Config(), "clusters")]


def fewest(name: str) -> int:
    method = METHODS[name]
    return max(config(name).min_batch, 2 if method.couples_samples else 1)


def stage(name: str, **fields: Any) -> Stage:
    more = {"size": 64, "backbone": "resnet10t", "method": config(name), "steps": 2, **fields}
    return Stage(data=Data(roots=("unread",)), **more)


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_as_few_images_as_it_declares_train_it(name: str, images: int) -> None:
    """The declared number is enough: the losses of as small a batch, from as small a set, are
    finite.
    """
    size = fewest(name)
    shown = images // size * size
    if not shown:
        pytest.skip("refused: fewer images than a batch")
    torch.manual_seed(0)
    small = {"clusters": shown, "queue": 1, "negatives": images}
    settings = config(name)
    settings = dataclasses.replace(
        settings, **{k: v for k, v in small.items() if hasattr(settings, k)}
    )
    method = METHODS[name](settings, setup(name, images=images))
    step = Step(method).train()
    batches = [batch(size, seed=i, first=i * size) for i in range(shown // size)]
    optimizer = torch.optim.SGD(
        [{"params": [p for p in step.parameters() if p.requires_grad], "peak": 0.01}], lr=0
    )
    loop = Loop(steps=3, steps_per_epoch=len(batches), schedule=lambda p: 1.0)
    losses = [
        report.loss.item()
        for report in fit(step, method, lambda e, first: batches[first:], optimizer, loop)
    ]
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_smaller_part_is_refused_with_the_batch_that_would_do(name: str, accumulate: int) -> None:
    alone = {"batch": accumulate, "accumulate": accumulate}
    if fewest(name) == 1:
        check_counts(stage(name, **alone), images=12)
        return
    with pytest.raises(UserError, match=f"{name} .*--batch {2 * accumulate}"):
        check_counts(stage(name, **alone), images=12)
    check_counts(stage(name, batch=2 * accumulate, accumulate=accumulate), images=12)


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", METHODS)
def test_a_set_of_one_image_is_refused(name: str, images: int) -> None:
    with pytest.raises(UserError, match="add images"):
        check_counts(stage(name, batch=1), images=images)


@pytest.mark.parametrize("name", CLUSTERING)
@pytest.mark.parametrize(("images", "size"), [(2, 2), (3, 2), (5, 4), (9, 2)])
def test_default_clusters_are_no_more_than_the_images_of_an_epoch(
    name: str, images: int, size: int
) -> None:
    setting = Setting(images=images, batch=size, steps=4, features=512)
    fitted = defaults_for(METHODS[name], setting).config
    check_counts(stage(name, method=fitted, batch=size), images)
    more = dataclasses.replace(fitted, clusters=images // size * size + 1)
    with pytest.raises(UserError, match=f"--method.clusters {images // size * size} "):
        check_counts(stage(name, method=more, batch=size), images)


@pytest.mark.parametrize("hard", [CutMix(), MixUp()])
def test_mixing_needs_a_second_image(hard: CutMix | MixUp) -> None:
    with pytest.raises(UserError, match="--batch 2 "):
        check_counts(stage("moco-v2", hard=(hard,), batch=1), images=12)
    check_counts(
        stage("moco-v2", hard=(dataclasses.replace(hard, weight=0.0),), batch=1), images=12
    )


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({"size": 32}, False),  # the last map is one pixel
        ({"size": 64}, True),
        ({"size": 32, "stem": "cifar"}, True),
        ({"size": 32, "backbone": "test_vit"}, True),  # without batch norm
        ({"size": 32, "trainable": "last-1"}, False),
        ({"size": 32, "trainable": "norm"}, False),
    ],
)
def test_a_backbone_that_takes_no_image_alone(fields: dict[str, Any], takes: bool) -> None:
    request = stage("supervised", batch=1, **fields)
    assert takes_one_image(request) == takes
    if takes:
        check_counts(request, images=12)
    else:
        with pytest.raises(UserError, match="--batch 2 "):
            check_counts(request, images=12)


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"), classes=2, each=6)


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "byol", "--batch", "1"],
        ["--method", "simsiam", "--batch", "4", "--accumulate", "4"],
        ["--method", "simclr", "--batch", "1"],
        ["--method", "moco-v2", "--batch", "1"],
        ["--method", "supervised", "--batch", "2", "--accumulate", "2"],
        ["--method", "deepcluster", "--batch", "8", "--method.clusters", "9"],
        ["--method", "pcl", "--batch", "4", "--method.clusters", "13"],
        ["--batch", "64"],
    ],
    ids=" ".join,
)
def test_the_command_line_refuses_before_it_begins(
    words: list[str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    assert (
        main(["pretrain", "--data", str(images), "--out", str(out), "--steps", "2", *words, *SMALL])
        == 2
    )
    assert not out.exists()
    errors = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(errors)
    assert "--batch" in errors[-1] or "--method.clusters" in errors[-1]


@pytest.mark.parametrize(("each", "holdout", "code"), [(1, "0", 2), (2, "0.5", 2), (2, "0", 0)])
def test_a_set_of_one_image_or_two_by_default(
    each: int, holdout: str, code: int, tmp_path: Path
) -> None:
    data, out = folder(tmp_path / "data", classes=1, each=each), tmp_path / "run"
    words = [*argv(f"pretrain --data {data} --out {out} --steps 2 --holdout"), holdout, *SMALL]
    assert main(words) == code
    assert out.exists() == (code == 0)
