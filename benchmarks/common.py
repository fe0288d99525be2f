"""What every benchmark notes beside its numbers."""

import contextlib
import io
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from selftaught.cli.main import main
from selftaught.data import demo_images
from selftaught.loggers import jsonl
from selftaught.runs import folder as run_folder
from selftaught.runs.folder import Run

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Hardware, versions and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "selftaught"], capture_output=True, text=True, check=False
    )
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next(
        (line.split(":")[1].strip() for line in described.splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() + ("+" if dirty.stdout.strip() else ""),
    }


Row = dict[str, Any]
Times = dict[str, list[float]]  # by case, the seconds of each round


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Every case once a round, in turn: what disturbs the machine disturbs all of them alike."""
    actual: Times = {name: [] for name in cases}
    for number in range(-warmup, rounds):
        for name, case in cases.items():
            wait_for_gpu()
            began = clock()
            case()
            wait_for_gpu()
            if number >= 0:
                actual[name].append(clock() - began)
    return actual


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Bytes that this process held at most. (getrusage's figure begins with that of the process
    that started it.)
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(times: Times, case: str, reference: str) -> dict[str, float]:
    """Of the seconds of `case` to those of `reference`, round by round."""
    return spread([a / b for a, b in zip(times[case], times[reference], strict=True)])


def format_ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def command_line() -> str:
    """The command that runs, its paths without this machine's folders."""
    return hide_folders(["python", "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]])


def hide_folders(words: Sequence[str]) -> str:
    """A command, its absolute paths by their last part."""
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in words)


def command_of(run: Run, out: Path, name: str, data: str) -> str:
    """The command of a run in `out`, which is named `name`, without this machine's folders."""
    command = run.facts["command"].replace(str(out), name).replace(data, "images/")
    return hide_folders(shlex.split(command))


def write(name: str, result: dict[str, Any]) -> Path:
    """Its `command` is what was typed, unless the result gathers what several commands did and
    names one for all.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    command = result.get("command") or command_line()
    file.write_text(
        json.dumps({"machine": machine(), **result, "command": command}, indent=1) + "\n"
    )
    return file


def merge_earlier(name: str, rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """`rows`, and those of results/NAME.json that differ from all of them in `keys`.

    Each names its processor, GPU and commit: they may come from several machines.
    """
    facts = ("cpu", "gpu", "commit")
    here = machine()
    result = [{**{fact: here[fact] for fact in facts}, **row} for row in rows]
    done = {tuple(row[key] for key in keys) for row in rows}
    if (file := RESULTS / f"{name}.json").exists():
        earlier = json.loads(file.read_text())
        there = {fact: earlier["machine"][fact] for fact in facts}
        others = (r for r in earlier["rows"] if tuple(r[key] for key in keys) not in done)
        result += [{**there, **row} for row in others]
    return result


def make_once(file: Path, make: Callable[..., Any], *arguments: Any) -> Any:
    """Return `make(*arguments)`, or what an earlier call wrote into `file`, as JSON."""
    if not file.exists():
        file.write_text(json.dumps(make(*arguments)))
    return json.loads(file.read_text())


def find(rows: Sequence[Mapping[str, Any]], **where: str) -> Any:
    """The first row with these values, or None."""
    return next((r for r in rows if all(r[k] == v for k, v in where.items())), None)


def mark(gain: Mapping[str, float] | None) -> str:
    """▲ or ▼ where the interval of a gain excludes 0."""
    if gain is None:
        return ""
    return " ▲" if gain["low"] > 0 else " ▼" if gain["high"] < 0 else ""


def evaluate_rows(what: Path, *more: str) -> list[dict[str, Any]]:
    """The rows of `selftaught evaluate`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["evaluate", str(what), *more, "--json"])
    rows: list[dict[str, Any]] = json.loads(printed.getvalue())
    return rows


def training_seconds(folder: Path) -> float:
    """Of a run's training alone, at the speed that it had when nothing disturbed it: others' work
    only slows a run.
    """
    speeds = [
        e["images_per_s"] for e in jsonl.read_journal(folder / "journal.jsonl") if e["images_per_s"]
    ]
    stage = run_folder.read_run(folder).stage
    return stage.steps * stage.batch / statistics.quantiles(speeds, n=10)[-1]


@contextlib.contextmanager
def photo_patches() -> Iterator[tuple[Path, Path]]:
    """A folder for what lasts as long as the benchmark, and in it the demo's images."""
    with tempfile.TemporaryDirectory() as scratch:
        demo_images.write(Path(scratch) / "images", seed=0)
        yield Path(scratch), Path(scratch) / "images"
