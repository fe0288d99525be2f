"""`selftaught evaluate`: score features with few labels."""

import dataclasses
import json
import shlex
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from selftaught.cli.console import tell
from selftaught.cli.flag_values import reader
from selftaught.config.overrides import Count
from selftaught.errors import UserError
from selftaught.evaluation.classifier import Classifier
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Score frozen features with few labels, against random and starting weights."""

    run: Annotated[str, Positional]
    """a run's folder, or a backbone's file"""
    data: tuple[str, ...] = ()
    """labelled images: class folders, a labels.csv, a pack, Parquet files, or a URL; by default a
    run's own data
    """
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, or a CSV file"""
    max_pixels: Annotated[int | None, arg(name="max-pixels")] = None
    """maximum size of an image; larger ones are omitted; by default that of the run"""
    protocol: tuple[Literal["knn", "linear", "finetune", "classifier"], ...] = ("knn", "linear")
    labels: tuple[str, ...] = ("5", "20", "all")
    """number of labels: 5 = five a class; total:1000 = a thousand in all; all"""
    against: tuple[str, ...] = ("random", "init")
    """other backbones: random, init (the starting weights), a run, or a backbone's file"""
    layers: str = "last"
    """features to score: last (the final ones), all (every stage, too), best (of each backbone, the
    stage that is the best on training images), or the name of a stage
    """
    knn: KNN = dataclasses.field(default_factory=KNN)
    linear: LinearProbe = dataclasses.field(default_factory=LinearProbe)
    finetune: FineTune = dataclasses.field(default_factory=FineTune)
    classifier: tyro.conf.Suppress[Classifier] = dataclasses.field(default_factory=Classifier)
    size: int | None = None
    """pixels; by default those of the run"""
    draws: int = 5
    """random draws of the labels, if not all are used"""
    seed: int = 0
    json: bool = False
    """print a JSON list of results to standard output"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Count, reader("threads", Count, "auto|THREADS")] = "auto"
    """compute threads; auto: one for each free core"""
    workers: Annotated[Count, reader("workers", Count, "auto|PROCESSES")] = "auto"
    """processes that decode images, if these are not in memory; auto: at most 2"""


def evaluate(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = tyro.cli(Evaluate, prog="selftaught evaluate", args=words)
    from selftaught.api.launch import Launch
    from selftaught.distributed import rank
    from selftaught.evaluation.evaluate import evaluate_run
    from selftaught.evaluation.results import to_fields
    from selftaught.report import console_tables

    for name, usual in (("knn", KNN()), ("linear", LinearProbe()), ("finetune", FineTune())):
        if name not in options.protocol and getattr(options, name) != usual:
            raise UserError(f"flags of --{name} do nothing without --protocol {name}")
    launch = Launch(device=options.device, threads=options.threads, workers=options.workers)
    protocols = [getattr(options, name) for name in options.protocol]
    command = shlex.join(["selftaught", "evaluate", *words])
    with launch.start(command) as (runtime, progress):
        evaluation = evaluate_run(
            options.run,
            options.data,
            labels_from=options.labels_from,
            max_pixels=options.max_pixels,
            protocols=protocols,
            labels=options.labels,
            against=options.against,
            layers=options.layers,
            size=options.size,
            draws=options.draws,
            seed=options.seed,
            device=runtime.device,
            workers=runtime.workers,
            progress=progress,
            command=command,
        )
        if rank() != 0:
            return 0
    if options.json:
        print(json.dumps(evaluation.rows))
    differences = [to_fields(d) for d in evaluation.results.differences]
    console_tables.show(console_tables.evaluation(evaluation.rows, differences), stderr=True)
    for text in (*evaluation.results.notes, evaluation.verdict):
        tell(text)
    return 0
