"""The commands. Every word that a user can type is here or in flags.py; hence over 200 lines."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from selftaught.errors import UserError, require
from selftaught.evaluation.knn import KNN
from selftaught.evaluation.linear import Linear

err = Console(stderr=True)

ABOUT = {
    "pretrain": "teach a backbone from a folder of images",
    "evaluate": "score frozen features with few labels, beside random initialisation",
    "report": "one HTML page of a run, or of several side by side",
    "export": "write the backbone for timm or torch",
    "methods": "what there is to train with",
    "demo": "all of it on photographs that come along, in some minutes",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0 done, 2 bad input, 3 training was stopped by its guard."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        return dispatch(words)
    except UserError as error:
        from selftaught.life import Collapsed

        err.print(f"[bold red]selftaught:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        return 3 if isinstance(error, Collapsed) else 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
    except OSError as error:
        err.print(f"[bold red]selftaught:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        return 2


def dispatch(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "pretrain": pretrain, "evaluate": evaluate, "report": report, "export": export, "methods": methods, "demo": demo,
    }  # fmt: skip
    if not words or words[0] in ("-h", "--help"):
        print("usage: selftaught COMMAND [FLAGS]      (selftaught COMMAND --help tells the flags)\n")
        print("\n".join(f"  {name:10} {about}" for name, about in ABOUT.items()))
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"selftaught {version('selftaught')}")
        return 0
    from selftaught.recipe import find

    return commands[find(words[0], commands, "command")](words[1:])


def plain(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", r"\[")


def device_named(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: use --device cpu, or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# -------------------------------------------------------------------------------------------------- pretrain


def pretrain(words: list[str]) -> int:
    from selftaught.train import Stopped

    try:
        train(words or ["--help"])
    except Stopped as stopped:
        err.print(plain(str(stopped)), highlight=False)
    return 0


def train(words: list[str]) -> None:
    """What `pretrain` does, with its flags; raises UserError and Stopped."""
    from selftaught import flags, recipe, run
    from selftaught.distributed import processes, rank, shared
    from selftaught.life import Conduct
    from selftaught.progress import Progress
    from selftaught.stage import Data
    from selftaught.train import shared_index
    from selftaught.train import train as carry_out

    out = flags.chosen(words, "out")
    resume = "--resume" in words
    known = Path(out) if out else None
    base, config = None, flags.chosen(words, "config")
    begun = known is not None and run.begun(known)
    if resume and begun:
        assert known is not None
        base = run.read(known).stage
    elif config:
        base = read_config(Path(config))
    asked = flags.parse(words, base)  # refuses unknown words before anything is looked at
    require(asked.workers >= 0, "--workers", "0 or more", asked.workers)
    if begun and not resume:
        raise UserError(f"{out} holds a run already: go on with it by --resume, or choose another --out")
    if resume and not begun and not asked.data:
        raise UserError(f"{out} holds no run to go on with: leave out --resume, and name the images by --data")
    device = device_named(asked.device)
    with processes(device), Progress(show=rank() == 0) as progress:

        def index_of(data: Data, seed: int) -> Any:
            index = shared_index(data, seed, progress.of("reading images"))
            if rank() == 0:
                progress.say(index.describe())
            return index

        stage = shared(flags.stage_from(words, base, device, index_of))  # rank 0's probe decides
        if resume and begun and base is not None and stage != base:
            raise UserError(
                f"{out} was begun with other settings ({', '.join(flags.differences(stage, base))}): leave those flags out "
                "to go on with it, or begin a new run in another --out"
            )
        conduct = Conduct(
            device=device, workers=asked.workers, on_collapse=asked.on_collapse, save_every=asked.save_every,
            resume=resume, show=progress.entry, say=progress.say,
            note={"command": shlex.join(["selftaught", "pretrain", *words]), "device": device},
        )  # fmt: skip
        progress.begin(stage)
        file = carry_out(stage, Path(asked.out), conduct)
        progress.say(f"{recipe.method_name(stage)}: {stage.steps} steps done; the backbone is in {file}")


def read_config(file: Path) -> Any:
    from selftaught import recipe

    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"--config {file} cannot be read: {error}") from error
    return recipe.from_json(written.get("config", written) if isinstance(written, dict) else written)


# -------------------------------------------------------------------------------------------------- evaluate


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Score frozen features with few labels, beside random initialisation and the starting weights."""

    run: Annotated[str, Positional]
    """a run's folder, or a backbone's file"""
    data: tuple[str, ...] = ()
    """labelled images: class folders or a labels.csv; a run's own data when left out"""
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, or a CSV file"""
    protocol: tuple[Literal["knn", "linear"], ...] = ("knn", "linear")
    labels: tuple[str, ...] = ("5", "20", "all")
    """how many: 5 = five a class; total:1000 = a thousand in all; all"""
    against: tuple[str, ...] = ("random", "init")
    """what to compare with: random, init (the starting weights), another run, or a backbone's file"""
    knn: KNN = dataclasses.field(default_factory=KNN)
    linear: Linear = dataclasses.field(default_factory=Linear)
    size: int | None = None
    """pixels; what the run was trained with when left out"""
    draws: int = 5
    """of the labels, where not all are used"""
    seed: int = 0
    json: bool = False
    """one JSON list of results on standard output"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = 2


def evaluate(words: list[str]) -> int:
    asked = tyro.cli(Evaluate, prog="selftaught evaluate", args=words)
    from selftaught.judge import judge
    from selftaught.progress import Progress
    from selftaught.report import table

    protocols = [getattr(asked, name) for name in asked.protocol]
    with Progress() as progress:
        judgement = judge(
            asked.run, asked.data, labels_from=asked.labels_from, protocols=protocols, labels=asked.labels,
            against=asked.against, size=asked.size, draws=asked.draws, seed=asked.seed,
            device=device_named(asked.device), workers=asked.workers, progress=progress,
            command=shlex.join(["selftaught", "evaluate", *words]),
        )  # fmt: skip
    if asked.json:
        print(json.dumps(judgement.rows))
    differences = [dataclasses.asdict(d) for d in judgement.results.differences]
    table.show(table.evaluation(judgement.rows, differences), stderr=True)
    for text in (*judgement.results.notes, judgement.verdict):
        err.print(plain(text), highlight=False, soft_wrap=True)
    return 0


# ---------------------------------------------------------------------------------- report, export, methods, demo


@dataclasses.dataclass(kw_only=True)
class Report:
    """Write one self-contained HTML page of a run, or of several side by side."""

    runs: Annotated[tuple[str, ...], Positional]
    out: str = "report.html"


def report(words: list[str]) -> int:
    asked = tyro.cli(Report, prog="selftaught report", args=words)
    from selftaught.report.page import write

    err.print(plain(str(write([Path(r) for r in asked.runs], Path(asked.out)))), highlight=False)
    return 0


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a run's backbone for others: timm's names, .safetensors or .pth."""

    run: Annotated[str, Positional]
    to: str


def export(words: list[str]) -> int:
    asked = tyro.cli(Export, prog="selftaught export", args=words)
    from selftaught import backbones, run

    backbone = run.open_backbone(Path(asked.run))
    backbones.save(backbone, Path(asked.to))
    print(backbones.recipe(backbone, Path(asked.to)))
    return 0


@dataclasses.dataclass(kw_only=True)
class Methods:
    """What there is to train with: methods, hard examples and optimizers, with their fields and papers."""

    json: bool = False


def methods(words: list[str]) -> int:
    asked = tyro.cli(Methods, prog="selftaught methods", args=words)
    from selftaught.catalogue import catalogue
    from selftaught.report import table

    if asked.json:
        print(json.dumps(catalogue(), indent=2))
    else:
        table.show(table.methods(catalogue()))
    return 0


@dataclasses.dataclass(kw_only=True)
class Demo:
    """Train a plain method and its HEXA version on photographs that come along, and compare both."""

    out: str = "demo"
    steps: int = 120
    """of each of the two trainings"""
    seed: int = 0


def demo(words: list[str]) -> int:
    asked = tyro.cli(Demo, prog="selftaught demo", args=words)
    from selftaught.demo import demo as carry_out

    print(carry_out(Path(asked.out), asked.steps, asked.seed, main))
    return 0
