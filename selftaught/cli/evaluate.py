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
from selftaught.evaluation.classifier import Classifier
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Score frozen features with few labels, beside random initialisation and the starting
    weights.
    """

    run: Annotated[str, Positional]
    """a run's folder, or a backbone's file"""
    data: tuple[str, ...] = ()
    """labelled images: class folders, a labels.csv, a pack or Parquet files, or a URL; a run's own
    data when left out
    """
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, or a CSV file"""
    max_pixels: Annotated[int | None, arg(name="max-pixels")] = None
    """of an image, larger ones are left out; as in the run's training when left out"""
    protocol: tuple[Literal["knn", "linear", "finetune", "classifier"], ...] = ("knn", "linear")
    labels: tuple[str, ...] = ("5", "20", "all")
    """how many: 5 = five a class; total:1000 = a thousand in all; all"""
    against: tuple[str, ...] = ("random", "init")
    """what to compare with: random, init (the starting weights), another run, or a backbone's file
    """
    knn: KNN = dataclasses.field(default_factory=KNN)
    linear: LinearProbe = dataclasses.field(default_factory=LinearProbe)
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
    from selftaught.api.launch import find_device
    from selftaught.distributed import process_group, rank
    from selftaught.evaluation.evaluate import evaluate_run
    from selftaught.loggers.terminal import Progress
    from selftaught.report import console_tables
    from selftaught.training.threads import check, take_share

    check(asked.threads, asked.workers)
    protocols = [getattr(asked, name) for name in asked.protocol]
    device = find_device(asked.device)
    with (
        process_group(device),
        Progress(show=rank() == 0) as progress,
        take_share(asked.threads, asked.workers, progress.say) as share,
    ):
        evaluation = evaluate_run(
            asked.run,
            asked.data,
            labels_from=asked.labels_from,
            max_pixels=asked.max_pixels,
            protocols=protocols,
            labels=asked.labels,
            against=asked.against,
            size=asked.size,
            draws=asked.draws,
            seed=asked.seed,
            device=device,
            workers=share.workers,
            progress=progress,
            command=shlex.join(["selftaught", "evaluate", *words]),
        )
        if rank() != 0:
            return 0
    if asked.json:
        print(json.dumps(evaluation.rows))
    differences = [dataclasses.asdict(d) for d in evaluation.results.differences]
    console_tables.show(console_tables.evaluation(evaluation.rows, differences), stderr=True)
    for text in (*evaluation.results.notes, evaluation.verdict):
        tell(text)
    return 0
