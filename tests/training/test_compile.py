"""Compiled networks: the same losses, gradients and states as plain ones; and runs with them."""

import copy
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from selftaught.cli.main import main
from selftaught.config.defaults import defaults_for
from selftaught.config.stage import Data, Stage
from selftaught.errors import UserError
from selftaught.hard import Adversarial, CutMix
from selftaught.hard.base import HardExample
from selftaught.method import Batch, Setting, Setup, image_seeds
from selftaught.methods import METHODS
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.runs import folder as run_folder
from selftaught.training import session
from selftaught.training.compile import compile_backbones
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.commands import argv
from tests.fixtures import Capture, Patch
from tests.networks import RESNET, VIT
from tests.pictures import folder
from tests.stopping import stopped_at

# Nothing to do for a C++ compiler; but what is recorded, how long that holds and its gradients are
# as with one.
RECORDED = "aot_eager"
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step_of(name: str, hard: tuple[HardExample, ...], network: str = RESNET) -> Step:
    torch.manual_seed(0)
    backbone = backbone_module.create(network, image_size=64)
    kind = METHODS[name]
    setting = Setting(images=64, batch=8, steps=10, features=backbone.features)
    config = defaults_for(kind, setting).config
    step = Step(kind(config, Setup(backbone, 64, 5)), hard)
    return step.to(memory_format=torch.channels_last).train()


def batch(seed: int, small: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    views = [torch.rand(8, 3, size, size, generator=rng) for size in [64] * 2 + [32] * small]
    return Batch(tuple(views), torch.arange(8), torch.full((8,), -1), image_seeds(seed, 0, 8))


def trained(
    step: Step, small: int, bf16: bool, steps: int = 3
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Losses of some steps, of which the later ones may record nothing anew; and the last one's
    gradients.
    """
    optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 1e-3}], lr=0)
    loop = Loop(steps=steps, steps_per_epoch=steps, schedule=lambda progress: 1.0, bf16=bf16)

    def epochs(number: int, first: int) -> Iterator[Batch]:
        return (batch(i, small) for i in range(first, steps))

    reports = fit(step, step.method, epochs, optimizer, loop)
    losses = [next(reports).losses]
    with torch.compiler.set_stance("fail_on_recompile"):
        losses += [report.losses for report in reports]
    return losses, [p.grad for p in step.parameters() if p.grad is not None]


CASES = {
    "byol": ("byol", (), 0),
    "two-players": ("bigan", (), 0),
    "swav-multi-crop": ("swav", (Adversarial(), CutMix()), 3),
    "densecl": ("densecl", (), 0),
    "moco-several-attacks": ("moco-v2", (Adversarial(steps=2, eps=4), CutMix(norm="auxiliary")), 0),
}


def same(
    name: str,
    hard: tuple[HardExample, ...],
    small: int,
    bf16: bool,
    backend: str,
    network: str = RESNET,
) -> None:
    plain, compiled = step_of(name, hard, network), step_of(name, hard, network)
    compile_backbones(compiled, CPU, backend)
    parts = [part for part in compiled.modules() if isinstance(part, Backbone)]
    there = [part._compiled_call_impl is not None for part in parts]
    assert there == [True] * (1 if name in ("swav", "bigan") else 2)  # the teacher's copy, too
    losses, gradients = trained(plain, small, bf16)
    theirs, others = trained(compiled, small, bf16)
    torch.testing.assert_close(theirs, losses, rtol=3e-2 if bf16 else 1e-4, atol=1e-5)
    flat, other = (torch.cat([g.flatten() for g in each]) for each in (gradients, others))
    assert torch.nn.functional.cosine_similarity(flat, other, dim=0) > (0.95 if bf16 else 0.999)
    state, its = plain.state_dict(), compiled.state_dict()
    assert list(its) == list(state)
    for key, value in state.items():  # what batch norms remember: of clean images alone
        message: Any = lambda m, key=key: f"{key}: {m}"  # noqa: E731
        close = {"rtol": 2e-2, "atol": 2e-2 if bf16 else 2e-3}
        torch.testing.assert_close(its[key], value, msg=message, **close)


@pytest.mark.parametrize(("case", "bf16"), [("byol", False)])
def test_a_recorded_network_is_the_same(case: str, bf16: bool) -> None:
    same(*CASES[case], bf16, RECORDED)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_network_is_the_same_in_every_case(case: str, bf16: bool) -> None:
    same(*CASES[case], bf16, RECORDED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swav", "dinov2"])
def test_a_recorded_vit_is_the_same(name: str) -> None:
    same(name, (), 3, False, RECORDED, VIT)


class Tiny(nn.Sequential):
    num_features = 8


@needs_compiler
def test_a_compiled_backbone_is_the_same() -> None:
    layers = (nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    network = Tiny(*layers, nn.Flatten())  # a compiler takes seconds for each layer
    plain, compiled = (
        Backbone(copy.deepcopy(network), name="", stem="", mean=[0.5], std=[0.2]).train()
        for _ in range(2)
    )
    compile_backbones(compiled, CPU)
    pixels = torch.rand(8, 3, 32, 32)
    result, expected = compiled(pixels), plain(pixels)
    result.square().sum().backward(), expected.square().sum().backward()
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    for p, q in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert torch.linalg.norm(p.grad - q.grad) <= 1e-2 * torch.linalg.norm(q.grad) + 1e-3


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_network_is_the_same(case: str, bf16: bool) -> None:
    same(*CASES[case], bf16, "inductor")


SMALL = ["--backbone", RESNET, *argv("--size 32 --batch 8 --precision fp32 --workers 0 --steps 6")]


@pytest.mark.slow
def test_a_compiled_run_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Of four steps an epoch; stopped and resumed, without saying --compile again."""
    graphs = []

    def counted(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(session, "compile_backbones", partial(compile_backbones, backend=counted))
    images = folder(tmp_path / "images")
    words = argv(f"pretrain --data {images} --method byol --hard cutmix", *SMALL)
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    assert graphs == []
    assert main([*words, "--compile", "--out", str(tmp_path / "whole")]) == 0
    # an addition; clean and cut-mixed views; the teacher. Nothing that is measured or drawn
    assert len(graphs) == 4
    with stopped_at(2):
        assert main([*words, "--compile", "--out", str(tmp_path / "parts")]) == 0
    capsys.readouterr()
    assert main(["pretrain", "--out", str(tmp_path / "parts"), "--resume", "--no-compile"]) == 2
    assert "(compile)" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(tmp_path / "parts"), "--resume", "--workers", "0"]) == 0
    assert run_folder.read_run(tmp_path / "parts").stage.compile
    weights = [
        load_file(tmp_path / name / "backbone.safetensors") for name in ("plain", "whole", "parts")
    ]
    for key, plain in weights[0].items():
        assert torch.equal(weights[1][key], weights[2][key]), key
        torch.testing.assert_close(
            weights[1][key], plain, rtol=1e-3, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_without_a_compiler_it_says_so_before_anything_is_written(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    images = folder(tmp_path / "images")
    words = argv(f"pretrain --data {images} --compile --out {tmp_path}/run", *SMALL)
    # as torch reads it from the variable CXX when it is imported
    with inductor_config.patch({"cpp.cxx": (None, str(tmp_path / "none"))}):
        assert main(words) == 2
    printed = capsys.readouterr().err
    text = [line for line in printed.splitlines() if "--compile" in line]
    assert len(text) == 1, printed
    assert "No working C++ compiler" in text[0]
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_where_nothing_is_trained_nothing_is_compiled() -> None:
    with pytest.raises(UserError, match="--trainable none"):
        Stage(data=Data(roots=("a",)), size=32, trainable="none", compile=True)
