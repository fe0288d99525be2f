"""Which precision is chosen: by what processors compute in, on ones that are made up; what a timing
said is remembered.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selftaught.cli.main import main
from selftaught.config import defaults, precision
from selftaught.config.precision import by_features, cpu_flags, cpu_name, load_or_measure
from selftaught.errors import UserError
from selftaught.evaluation import evaluate
from selftaught.runs import folder as run_folder
from tests.commands import argv
from tests.fixtures import Capture, Patch
from tests.pictures import folder

XEON = """processor : 0
model name : Intel(R) Xeon(R) Platinum 8488C
flags : fpu sse2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile

processor : 1
model name : other
flags : fpu
"""
ZEN4 = "model name : AMD EPYC 9654\nflags : fpu avx2 avx512f avx512_bf16\n"
ZEN3 = "model name : AMD EPYC\nflags : fpu avx2 fma\n"
CASCADE = "model name : Intel(R) Xeon(R) Gold\nflags : fpu avx2 avx512f avx512_vnni\n"
GRAVITON = (
    "processor : 0\nFeatures : fp asimd bf16 i8mm\nCPU implementer : 0x41\nCPU part : 0xd40\nCPU"
    " variant : 0x1\n"
)
OLD_ARM = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd0c\n"


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "plain", "grouped", "depthwise"),
    [
        (XEON, "x86_64", True, None, False),
        (ZEN4, "x86_64", True, None, False),
        (ZEN4, "AMD64", True, None, False),
        (ZEN3, "x86_64", False, False, False),
        (CASCADE, "x86_64", False, False, False),
        (GRAVITON, "aarch64", None, None, False),
        (OLD_ARM, "aarch64", False, False, False),
        ("", "arm64", False, False, False),
        ("", "x86_64", False, False, False),
    ],
)
def test_features_of_the_processor_decide(
    cpuinfo: str, machine: str, plain: bool | None, grouped: bool | None, depthwise: bool | None
) -> None:
    def chosen(convolutions: Any, onednn: bool = True) -> bool | None:
        result = by_features(cpu_flags(cpuinfo), machine, onednn, convolutions)
        return None if result is None else result[0]

    assert [chosen("plain"), chosen("grouped"), chosen("depthwise")] == [plain, grouped, depthwise]
    assert chosen("plain", onednn=False) is False


def test_processors_have_names() -> None:
    assert cpu_name(XEON) == "Intel(R) Xeon(R) Platinum 8488C"
    assert cpu_name(GRAVITON) != cpu_name(OLD_ARM)
    assert cpu_name("")
    assert cpu_flags(precision.cpu_description()) == cpu_flags(precision.cpu_description())


def test_convolutions_are_told_apart() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2))
    assert precision.grouping(plain) == "plain"
    grouped = nn.Sequential(plain, nn.Conv2d(8, 8, 3, groups=2))
    assert precision.grouping(grouped) == "grouped"
    assert precision.grouping(nn.Sequential(grouped, nn.Conv2d(8, 16, 3, groups=8))) == "depthwise"


def chosen(monkeypatch: Patch, cpuinfo: str, machine: str, backbone: str) -> tuple[bool, str]:
    precision.choose_on_cpu.cache_clear()
    monkeypatch.setattr(precision, "cpu_description", lambda: cpuinfo)
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    try:
        return precision.choose(backbone, "imagenet", 32, "cpu")
    finally:
        precision.choose_on_cpu.cache_clear()


def test_what_features_settle_is_not_timed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(precision, "is_faster", lambda *_: pytest.fail("timed"))
    assert chosen(monkeypatch, XEON, "x86_64", "resnet18") == (
        True,
        "this processor computes in bf16 (amx_bf16)",
    )
    assert not chosen(monkeypatch, ZEN3, "x86_64", "resnet18")[0]
    assert not chosen(monkeypatch, XEON, "x86_64", "mobilenetv3_small_100")[0]


def test_what_they_do_not_settle_is_timed_once_for_a_machine(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timings = iter([True, False, False])  # a noisy machine
    monkeypatch.setattr(precision, "is_faster", lambda *_: next(timings))
    assert [chosen(monkeypatch, GRAVITON, "aarch64", "resnet18")[0] for _ in range(3)] == [True] * 3
    assert not chosen(monkeypatch, XEON, "x86_64", "resnext50_32x4d")[0]
    # another machine
    assert not chosen(monkeypatch, OLD_ARM.replace("asimd", "bf16"), "aarch64", "resnet18")[0]
    assert next(timings, None) is None
    (file,) = tmp_path.rglob("bf16.json")
    assert len(json.loads(file.read_text())) == 3
    assert all(torch.__version__ in key for key in json.loads(file.read_text()))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": "yes"}', "\0\0"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path) -> None:
    (tmp_path / "bf16.json").write_text(damage)
    assert load_or_measure(tmp_path, "a", lambda: True)
    assert load_or_measure(tmp_path, "a", lambda: False)  # as the first time


def test_without_a_place_to_remember_it_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in (None, tmp_path / "file" / "below"):
        assert load_or_measure(cache, "a", lambda: True)
        assert not load_or_measure(cache, "a", lambda: False)


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_is_asked_what_it_computes_in(able: bool, monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or able,
    )
    assert defaults.faster_in_bf16("resnet18", "imagenet", 32, "cuda") is able


def test_an_evaluation_is_made_in_the_precision_of_the_run(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    images = folder(tmp_path / "images", each=8)
    words = argv(f"--data {images} --out {tmp_path}/run --steps 0")
    words += ["--backbone", "test_resnet", "--size", "32", "--batch", "8", "--workers", "0"]
    monkeypatch.setattr(precision, "choose_on_cpu", lambda *_: (False, "a reason"))
    assert main(["pretrain", *words]) == 0
    assert "a reason" in capsys.readouterr().err
    assert run_folder.read_run(tmp_path / "run").stage.precision == "fp32"
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("bf16", "fp32"):
        used: list[str] = []

        def extract(*_: Any, precision: str, used: list[str] = used, **__: Any) -> Any:
            used.append(precision)
            raise UserError("enough")

        monkeypatch.setattr(evaluate, "extract", extract)
        written["config"]["precision"] = name
        (tmp_path / "run" / "run.json").write_text(json.dumps(written))
        assert main(["evaluate", str(tmp_path / "run"), "--workers", "0"]) == 2
        assert used == [name]
