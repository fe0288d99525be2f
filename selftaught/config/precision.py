"""float32 or bfloat16: by what the processor computes in, so that equal commands choose alike.

Where that does not tell, a timing decides. It is made once and remembered for the machine.
"""

import contextlib
import json
import platform
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from selftaught.data.io.cache_folder import default_cache_folder
from selftaught.files import locked, write_json
from selftaught.models import backbone as backbone_module

# what Linux calls the instructions that multiply and add in bfloat16 on x86
BF16 = ("amx_bf16", "avx512_bf16")
X86 = ("x86_64", "amd64", "i386", "i686")

Stem = Literal["imagenet", "cifar"]
Choice = tuple[bool, str]  # whether to take bfloat16, and why


def choose(backbone: str, stem: Stem, size: int, device: str) -> Choice:
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return bf16, "the GPU computes in bf16" if bf16 else "the GPU has no bf16"
    return choose_on_cpu(backbone, stem, size)


@lru_cache
def choose_on_cpu(backbone: str, stem: Stem, size: int) -> Choice:
    with torch.device("meta"):
        network = backbone_module.create(backbone, stem=stem, image_size=size)
    cpuinfo = cpu_description()
    choice = by_features(
        cpu_flags(cpuinfo),
        platform.machine(),
        torch.backends.mkldnn.is_available(),
        grouping(network),
    )
    if choice is not None:
        return choice
    key = " | ".join([cpu_name(cpuinfo), f"torch {torch.__version__}", backbone, stem, str(size)])
    bf16 = load_or_measure(default_cache_folder(), key, lambda: is_faster(backbone, stem, size))
    return bf16, f"timed once on this machine: bf16 is {'' if bf16 else 'not '}faster"


def by_features(
    flags: frozenset[str],
    machine: str,
    onednn: bool,
    convolutions: Literal["plain", "grouped", "depthwise"],
) -> Choice | None:
    """None where only a timing tells: other processors than x86, and grouped convolutions.

    flags: of the processor. onednn: whether torch has oneDNN, which alone uses these instructions.
    """
    x86, found = machine.lower() in X86, [name for name in BF16 if name in flags]
    if not onednn or not (found if x86 else "bf16" in flags):
        return False, "this processor does not compute in bf16"
    if (
        convolutions == "depthwise"
    ):  # with AMX, an EfficientNet-Lite0 takes .98 s instead of .50 (docs/LOG.md)
        return False, "depthwise convolutions are slower in bf16 on a CPU"
    return (
        (True, f"this processor computes in bf16 ({found[0]})")
        if x86 and convolutions == "plain"
        else None
    )


def grouping(network: nn.Module) -> Literal["plain", "grouped", "depthwise"]:
    """What is least plain among a network's convolutions."""
    groups = {
        (m.groups, m.in_channels)
        for m in network.modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    }
    if any(number == channels for number, channels in groups):
        return "depthwise"
    return "grouped" if groups else "plain"


def cpu_description() -> str:
    """/proc/cpuinfo, or what torch knows of the processor in the same form where there is no such
    file.
    """
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    known = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    flags = [flag for flag, name in known.items() if getattr(torch.cpu, name, bool)()]
    return f"model name: {platform.processor()}\nflags: {' '.join(flags)}\n"


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Of the first processor; ARM calls them features."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next(
        (frozenset(v.split()) for k, _, v in lines if k.strip() in ("flags", "Features")),
        frozenset(),
    )


def cpu_name(cpuinfo: str) -> str:
    """ARM has numbers instead of a name."""
    lines = [
        (k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in cpuinfo.splitlines())
    ]
    named = [v for k, v in lines if k == "model name"]
    parts = dict(
        reversed([(k, v) for k, v in lines if k in ("CPU implementer", "CPU part", "CPU variant")])
    )
    return named[0] if named else " ".join(parts[k] for k in sorted(parts)) or platform.machine()


def load_or_measure(cache: Path | None, key: str, measure: Callable[[], bool]) -> bool:
    """What was measured for `key` before, from a file in the folder `cache`; else it is measured
    now.
    """
    if cache is None:
        return measure()
    file = cache / "bf16.json"
    try:
        with locked(file.with_suffix(".lock")):  # whoever comes second waits, and chooses alike
            known = contents(file)
            if key not in known:
                known[key] = measure()
                write_json(file, known)
            return known[key]
    except OSError:  # a folder that cannot be written to
        known = contents(file)
        return known[key] if key in known else measure()


def contents(file: Path) -> dict[str, bool]:
    """Of a damaged file, or none: nothing."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in read.items() if isinstance(v, bool)} if isinstance(read, dict) else {}


def is_faster(backbone: str, stem: Stem, size: int) -> bool:
    """Whether bf16 is at least a tenth faster than fp32 in a few steps of this very network."""
    network = backbone_module.create(backbone, stem=stem, image_size=size).to(
        memory_format=torch.channels_last
    )
    images = torch.rand(16, 3, size, size).to(memory_format=torch.channels_last)

    def seconds(bf16: bool) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = network(images)
            out.float().square().mean().backward()
            times.append(time.perf_counter() - began)
        return min(times[1:])  # the first one warms up; the others' noise only adds

    fp32 = seconds(False)
    return seconds(True) < 0.9 * fp32
