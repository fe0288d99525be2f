"""The commands that look at what was learnt: evaluate, report, show, export; and methods, which says what there is."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from selftaught.commands.console import device_named, plain, tell
from selftaught.config.flag_values import Count, reader
from selftaught.evaluation.classifier import Classifier
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.linear import Linear


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Score frozen features with few labels, beside random initialisation and the starting weights."""

    run: Annotated[str, Positional]
    """a run's folder, or a backbone's file"""
    data: tuple[str, ...] = ()
    """labelled images: class folders, a labels.csv, a pack or Parquet files, or a URL; a run's own data when left out"""
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, or a CSV file"""
    max_pixels: Annotated[int | None, arg(name="max-pixels")] = None
    """of an image, larger ones are left out; as in the run's training when left out"""
    protocol: tuple[Literal["knn", "linear", "finetune", "classifier"], ...] = ("knn", "linear")
    labels: tuple[str, ...] = ("5", "20", "all")
    """how many: 5 = five a class; total:1000 = a thousand in all; all"""
    against: tuple[str, ...] = ("random", "init")
    """what to compare with: random, init (the starting weights), another run, or a backbone's file"""
    knn: KNN = dataclasses.field(default_factory=KNN)
    linear: Linear = dataclasses.field(default_factory=Linear)
    finetune: FineTune = dataclasses.field(default_factory=FineTune)
    classifier: tyro.conf.Suppress[Classifier] = dataclasses.field(default_factory=Classifier)
    size: int | None = None
    """pixels; what the run was trained with when left out"""
    draws: int = 5
    """of the labels, where not all are used"""
    seed: int = 0
    json: bool = False
    """one JSON list of results on standard output"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Count, reader("threads", Count, "auto|THREADS")] = "auto"
    """that compute; auto: one for each free core"""
    workers: Annotated[Count, reader("workers", Count, "auto|PROCESSES")] = "auto"
    """that decode images, where these are not held in memory; auto: at most 2"""


def evaluate(words: list[str]) -> int:
    asked = tyro.cli(Evaluate, prog="selftaught evaluate", args=words)
    from selftaught.distributed import processes, rank
    from selftaught.evaluation.evaluate import judge
    from selftaught.loggers.terminal import Progress
    from selftaught.report import console_tables as table
    from selftaught.training.threads import check, take_share

    check(asked.threads, asked.workers)
    protocols = [getattr(asked, name) for name in asked.protocol]
    device = device_named(asked.device)
    with (
        processes(device),
        Progress(show=rank() == 0) as progress,
        take_share(asked.threads, asked.workers, progress.say) as share,
    ):
        judgement = judge(
            asked.run, asked.data, labels_from=asked.labels_from, max_pixels=asked.max_pixels, protocols=protocols,
            labels=asked.labels, against=asked.against, size=asked.size, draws=asked.draws, seed=asked.seed,
            device=device, workers=share.workers, progress=progress,
            command=shlex.join(["selftaught", "evaluate", *words]),
        )  # fmt: skip
        if rank() != 0:
            return 0
    if asked.json:
        print(json.dumps(judgement.rows))
    differences = [dataclasses.asdict(d) for d in judgement.results.differences]
    table.show(table.evaluation(judgement.rows, differences), stderr=True)
    for text in (*judgement.results.notes, judgement.verdict):
        tell(text)
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

    tell(str(write([Path(r) for r in asked.runs], Path(asked.out))))
    return 0


@dataclasses.dataclass(kw_only=True)
class Show:
    """What led to a run: every stage's data, weights in, weights out, and scores."""

    run: Annotated[str, Positional]
    """a run's folder, or the folder of `selftaught adapt`"""
    json: bool = False


def show(words: list[str]) -> int:
    asked = tyro.cli(Show, prog="selftaught show", args=words)
    from rich.console import Console
    from rich.tree import Tree

    from selftaught.pipeline import lineage

    rows = lineage.lineage(Path(asked.run))
    if asked.json:
        print(json.dumps(rows, indent=2))
        return 0
    branches: dict[str, Tree] = {}
    roots: dict[str, Tree] = {}
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 200
    for row in rows:
        above = branches.get(row["from"]) or roots.setdefault(row["from"], Tree(plain(row["from"])))
        branches[row["stage"]] = above.add(plain("\n".join([f"{row['stage']}: {row['outcome']}", *row["said"]])))
    for root in roots.values():
        console.print(root)
    return 0


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a run's backbone for others: timm's names, .safetensors or .pth."""

    run: Annotated[str, Positional]
    to: str


def export(words: list[str]) -> int:
    asked = tyro.cli(Export, prog="selftaught export", args=words)
    from selftaught.errors import UserError
    from selftaught.models import backbone as backbones
    from selftaught.models.weights import io as weights
    from selftaught.models.weights import weight_files
    from selftaught.runs import folder as run

    source, to = weight_files.folder_of(Path(asked.run)), Path(asked.to)
    if to.is_dir():
        raise UserError(f"--to {to} is a folder: name the file, as {to / weight_files.BACKBONE}")
    backbone = run.open_backbone(source)
    if to.exists() and any(file.samefile(to) for file in weight_files.locate(source)):
        raise UserError(f"--to {to} is the file that is exported: choose another name")
    if run.is_run(source) and (doubt := run.read(source).doubt):
        tell(f"{asked.run}: {doubt}")
    replaced = " in place of the file that was there" if to.exists() else ""
    try:
        weights.save(backbone, to)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"--to {to} cannot be written: {why}. Nothing was changed there: choose another place") from error
    size = f"{to.stat().st_size / 2**20:.1f} MiB"
    tell(f"{to}: {backbone.name}, {backbone.features:,} features an image, {size}{replaced}")
    tell(f"goes on by --init {to}, is scored by selftaught evaluate {to} --data LABELLED; without selftaught, in Python:")
    print(backbones.recipe(backbone, to))
    return 0


@dataclasses.dataclass(kw_only=True)
class Methods:
    """What there is to train with: methods, hard examples and optimizers, with their fields and papers."""

    json: bool = False


def methods(words: list[str]) -> int:
    asked = tyro.cli(Methods, prog="selftaught methods", args=words)
    from selftaught.catalogue import catalogue
    from selftaught.report import console_tables as table

    if asked.json:
        print(json.dumps(catalogue(), indent=2))
    else:
        table.show(table.methods(catalogue()))
    return 0
