"""Golden values: losses and weights that a change of structure must not change.

`python -m tests.golden` records them in tests/laws/golden.json; `--losses` leaves the weights out,
which take 42 runs, and drops those that were recorded. Record them anew only for a change
that is meant, in a commit of its own that says why.
"""

import dataclasses
import hashlib
import json
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from selftaught.cli.main import main
from selftaught.data import demo_images
from selftaught.methods import METHODS
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.training.loop import Loop, fit
from selftaught.training.step import Step
from tests.laws.toys import IMAGES, batch, build, hards

FILE = Path(__file__).parent / "laws" / "golden.json"
HARD = {"plain": (), "hexa": ("adversarial", "cutmix")}
# Methods of two players take no hard examples.
CASES = [
    (name, hard)
    for name, m in METHODS.items()
    for hard in HARD
    if not (HARD[hard] and m.Config().two_player)
]
# a run of it needs a teacher's run
TRAINABLE = [name for name, m in METHODS.items() if not issubclass(m.Config, TeacherConfig)]
RUNS = [(name, hard) for name, hard in CASES if name in TRAINABLE]
# which need a map of more than one place
SMALL_STRIDE = {"colorization", "context-encoder", "denoising-autoencoder", "densecl"}
WIDTHS = {"hidden": 64, "dim": 32}  # of heads, which would take most of the time
RUN = [
    "--backbone",
    "resnet10t",
    "--stem",
    "imagenet",
    "--size",
    "32",
    "--batch",
    "8",
    "--steps",
    "20",
    "--precision",
    "fp32",
    "--workers",
    "0",
    # float32 sums depend on the number of threads, whose default depends on the machine's load
    "--threads",
    "1",
]


def record_losses(name: str, hard: str) -> list[float]:
    """The losses of three steps on fixed batches, in float64: equal on every machine but for
    rounding.
    """
    step = Step(build(name, dtype=torch.float64), hards(*HARD[hard]))
    optimizer = torch.optim.SGD([{"params": step.parameters(), "peak": 0.05}], lr=0, momentum=0.9)
    loop = Loop(steps=3, steps_per_epoch=3, schedule=lambda p: 1.0)
    batches = [batch(16, seed=10 + i, first=16 * i % IMAGES, dtype=torch.float64) for i in range(3)]
    return [
        r.loss.item()
        for r in fit(step, step.method, lambda epoch, first: batches[first:], optimizer, loop)
    ]


def hash_weights(name: str, hard: str, images: Path, out: Path) -> str:
    """A hash of the backbone of a run of 20 steps on photo patches; `out` is the run's folder."""
    flags = ["--hard", *HARD[hard]] if HARD[hard] else []
    fields = {f.name for f in dataclasses.fields(METHODS[name].Config)}
    flags += [f"--method.{field}={width}" for field, width in WIDTHS.items() if field in fields]
    flags += ["--stem", "cifar"] if name in SMALL_STRIDE else []
    flags += ["--backbone", "test_vit"] if METHODS[name].masks_patches else []
    assert (
        main(["pretrain", "--data", str(images), "--out", str(out), "--method", name, *RUN, *flags])
        == 0
    )
    tensors = load_file(out / "backbone.safetensors")
    total = hashlib.sha256()
    for key in sorted(tensors):
        total.update(key.encode() + tensors[key].contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def machine() -> str:
    """What the bits of a float32 training depend on: the processor and the build of torch.

    Virtual machines give many processors the same name, so family and model count too.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n", 1)[0].splitlines() if info.is_file() else []
    fields = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    cpu = fields.get("model name", platform.processor() or "unknown")
    kind = ", ".join(f"{k} {fields[k]}" for k in ("cpu family", "model") if k in fields)
    return ", ".join(filter(None, (cpu, kind, f"torch {torch.__version__}")))


def record(weights: bool = True) -> None:
    """Record all losses anew, and the weights that this machine has not recorded yet."""
    values = json.loads(FILE.read_text()) if FILE.exists() else {"losses": {}, "weights": {}}
    values["losses"] = {f"{n} {h}": record_losses(n, h) for n, h in CASES}
    write(values)
    if not weights:
        return
    hashes = values["weights"].setdefault(machine(), {})
    with tempfile.TemporaryDirectory() as folder:
        images = demo_images.write(Path(folder, "images"), seed=0)
        for name, hard in RUNS:
            if (key := f"{name} {hard}") not in hashes:
                hashes[key] = hash_weights(name, hard, images, Path(folder, key.replace(" ", "-")))
                write(values)


def write(values: dict[str, Any]) -> None:
    FILE.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    record(weights="--losses" not in sys.argv)
