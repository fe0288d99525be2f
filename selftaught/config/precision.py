"""The choice of float32 or bfloat16, by the features of the processor.

Equal commands so make equal choices. Where the features do not decide, a timing does. It runs once,
and a file in the cache folder keeps its result.
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

# Linux's names of the x86 instructions that multiply and add in bfloat16
BF16 = ("amx_bf16", "avx512_bf16")
X86 = ("x86_64", "amd64", "i386", "i686")

Stem = Literal["imagenet", "cifar"]
Choice = tuple[bool, str]  # whether to take bfloat16, and why


def choose(backbone: str, stem: Stem, size: int, device: str) -> Choice:
    """Choose the precision of a backbone on images of `size` pixels."""
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return bf16, "the GPU computes in bf16" if bf16 else "the GPU has no bf16"
    return choose_on_cpu(backbone, stem, size)


@lru_cache
def choose_on_cpu(backbone: str, stem: Stem, size: int) -> Choice:
    """Choose by the processor's features, else by a timing on this machine."""
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
    """Choose by features, or return None where a timing must decide.

    A timing decides for other processors than x86, and for grouped convolutions. flags: of the
    processor. onednn: whether torch has oneDNN; only oneDNN uses these instructions.
    """
    x86 = machine.lower() in X86
    instructions = [name for name in BF16 if name in flags]
    if not onednn or not (instructions if x86 else "bf16" in flags):
        return False, "this processor does not compute in bf16"
    if convolutions == "depthwise":
        # with AMX, an EfficientNet-Lite0 takes .98 s instead of .50 (docs/LOG.md)
        return False, "depthwise convolutions are slower in bf16 on a CPU"
    if x86 and convolutions == "plain":
        return True, f"this processor computes in bf16 ({instructions[0]})"
    return None


def grouping(network: nn.Module) -> Literal["plain", "grouped", "depthwise"]:
    """Classify a network by its convolutions: depthwise before grouped before plain."""
    groups = {
        (m.groups, m.in_channels)
        for m in network.modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    }
    if any(number == channels for number, channels in groups):
        return "depthwise"
    return "grouped" if groups else "plain"


def cpu_description() -> str:
    """Return /proc/cpuinfo; without that file, torch's facts on the processor in its form."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    checks = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    flags = [flag for flag, name in checks.items() if getattr(torch.cpu, name, bool)()]
    return f"model name: {platform.processor()}\nflags: {' '.join(flags)}\n"


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags of the first processor. ARM calls them features."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next(
        (frozenset(v.split()) for k, _, v in lines if k.strip() in ("flags", "Features")),
        frozenset(),
    )


def cpu_name(cpuinfo: str) -> str:
    """Return the processor's name. ARM has numbers in place of a name."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    lines = [(k.strip(), v.strip()) for k, _, v in pairs]
    names = [v for k, v in lines if k == "model name"]
    numbers = ("CPU implementer", "CPU part", "CPU variant")
    # reversed, so that the first processor's values stay
    parts = dict(reversed([(k, v) for k, v in lines if k in numbers]))
    return names[0] if names else " ".join(parts[k] for k in sorted(parts)) or platform.machine()


def load_or_measure(cache: Path | None, key: str, measure: Callable[[], bool]) -> bool:
    """Return the result for `key` from a file in the folder `cache`, else measure and store it."""
    if cache is None:
        return measure()
    file = cache / "bf16.json"
    try:
        # a second process waits for the first one, and makes the same choice
        with locked(file.with_suffix(".lock")):
            results = contents(file)
            if key not in results:
                results[key] = measure()
                write_json(file, results)
            return results[key]
    except OSError:  # a folder that cannot be written to
        results = contents(file)
        return results[key] if key in results else measure()


def contents(file: Path) -> dict[str, bool]:
    """Read the results in a file; none where it is missing or damaged."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in read.items() if isinstance(v, bool)} if isinstance(read, dict) else {}


def is_faster(backbone: str, stem: Stem, size: int) -> bool:
    """Whether bf16 is at least a tenth faster than fp32 in a few steps of this network."""
    network = backbone_module.create(backbone, stem=stem, image_size=size).to(
        memory_format=torch.channels_last
    )
    images = torch.rand(16, 3, size, size).to(memory_format=torch.channels_last)

    def seconds(bf16: bool) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = network(images)
            out.float().square().mean().backward()
            times.append(time.perf_counter() - start)
        return min(times[1:])  # the first step warms up; noise only makes the others slower

    fp32 = seconds(False)
    return seconds(True) < 0.9 * fp32
