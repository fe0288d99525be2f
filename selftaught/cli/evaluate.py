"""`selftaught evaluate`: score features with few labels."""

import dataclasses
import json
import shlex
from typing import Literal

from tyro.conf import Suppress

from selftaught.cli.console import tell
from selftaught.cli.options import (
    MAX_PIXELS_HELP,
    Device,
    device_option,
    labels_option,
    option,
    parse_options,
    threads_option,
    workers_option,
)
from selftaught.config.overrides import Count
from selftaught.errors import UserError
from selftaught.evaluation.classifier import Classifier
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Score frozen features with few labels, against random and starting weights."""

    run: str = option("RUN", "a run's folder, or a backbone's file", positional=True)
    data: tuple[str, ...] = option(
        "PATH ...",
        "labelled images: class folders, a labels.csv, a pack, Parquet files, or a URL",
        "the run's own data",
        default=(),
    )
    labels_from: str = labels_option("auto|folders|FILE.csv")
    max_pixels: int | None = option("PIXELS", MAX_PIXELS_HELP, "the run's", default=None)
    protocol: tuple[Literal["knn", "linear", "finetune", "classifier"], ...] = option(
        "knn|linear|finetune|classifier ...",
        "what is trained on the features; finetune also trains the backbone; classifier is the"
        " run's own, of `--method distillation` or `supervised`",
        default=("knn", "linear"),
    )
    labels: tuple[str, ...] = option(
        "LABELS ...",
        "number of labels: 5 = five a class; total:1000 = a thousand in all; all",
        default=("5", "20", "all"),
    )
    against: tuple[str, ...] = option(
        "random|init|RUN ...",
        "other backbones: random, init (the starting weights), a run, or a backbone's file",
        default=("random", "init"),
    )
    layers: str = option(
        "last|all|best|STAGE",
        "features to score: last (the final ones), all (every stage, too), best (of each backbone,"
        " the stage that is the best on training images), or the name of a stage",
        default="last",
    )
    knn: KNN = dataclasses.field(default_factory=KNN)
    linear: LinearProbe = dataclasses.field(default_factory=LinearProbe)
    finetune: FineTune = dataclasses.field(default_factory=FineTune)
    classifier: Suppress[Classifier] = dataclasses.field(default_factory=Classifier)
    size: int | None = option("PIXELS", "side of an image", "the run's", default=None)
    draws: int = option("DRAWS", "random draws of the labels, if not all are used", default=5)
    seed: int = option("NUMBER", "of the draws", default=0)
    json: bool = option("", "print a JSON list of results to standard output", default=False)
    device: Device = device_option()
    threads: Count = threads_option()
    workers: Count = workers_option()


def evaluate(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Evaluate, "evaluate", words)
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
