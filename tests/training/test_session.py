"""The session of a stage: the views of pseudo-labels and of training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from selftaught.cli import flags
from selftaught.optim import SGD
from selftaught.training.loop import Loop, fit
from selftaught.training.session import build_session
from selftaught.training.step import Step
from tests.commands import argv
from tests.fixtures import Places
from tests.laws.toys import batch, build
from tests.pictures import folder

SMALL = argv("--backbone test_resnet --size 32 --batch 8 --precision fp32 --steps 3")


@pytest.fixture(scope="module")
def images(tmp_path_factory: Places) -> Path:
    return folder(tmp_path_factory.mktemp("images"))


def test_pseudo_labels_are_made_of_other_views_than_those_that_must_predict_them(
    images: Path,
) -> None:
    """The clustering met the very pixels that were then trained on: nothing asked for
    invariance.
    """
    words = ["--data", str(images), "--out", "unused", *SMALL]
    stage = flags.stage_from(words, None, "cpu", lambda data, seed: data.index(seed))
    trainee = build_session(stage, stage.data.index(stage.seed), torch.device("cpu"), 0)
    labelled, trained = next(iter(trainee.overview(1))), next(iter(trainee.epochs(1, 0)))
    assert torch.equal(labelled.index, trained.index)
    assert not torch.equal(labelled.views[0], trained.views[0])
    # and a resumed run meets them again
    assert torch.equal(labelled.views[0], next(iter(trainee.overview(1))).views[0])

    seen: list[str] = []
    step = Step(build("simclr"))
    step.method.before_epoch = seen.extend
    loop = Loop(steps=2, steps_per_epoch=1, schedule=lambda progress: 1)
    optimizer = SGD(lr=0.01).build(step.named_parameters())
    names: Any = lambda n: [f"of {n}"]  # noqa: E731
    list(fit(step, step.method, lambda *_: [batch(8)], optimizer, loop, overview=names))
    assert seen == ["of 0", "of 1"]
