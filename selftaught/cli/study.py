"""`selftaught study`: run the experiments of hierarchical pretraining."""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Literal

from selftaught import files
from selftaught.api.launch import Launch
from selftaught.cli.console import tell
from selftaught.cli.options import (
    Device,
    device_option,
    option,
    parse_options,
    threads_option,
    workers_option,
)
from selftaught.config.overrides import Count
from selftaught.distributed import rank
from selftaught.errors import Stopped, UserError
from selftaught.loggers.terminal import clock
from selftaught.study import design, figures, report, runner, tables
from selftaught.study.design import Cell


@dataclasses.dataclass(kw_only=True)
class Study:
    """Run the experiments of hierarchical pretraining on your images: tables, figures and a page.
    The same command continues, and --shard splits a study over machines.
    """

    study: Literal["separability", "labels", "sequential", "augmentations", "data"] = option(
        "STUDY", "separability, labels, sequential, augmentations or data", positional=True
    )
    plan: str = option("FILE.yaml", "bases, targets, settings, steps and seeds (see docs/hpt.md)")
    out: str = option(
        "FOLDER", "folder of stages, cells, table, figures and page; several studies may share it"
    )
    shard: str = option(
        "I/N", "part i of n of the cells, as in 2/8; 0/8 only collects the results", default="1/1"
    )
    device: Device = device_option()
    threads: Count = threads_option()
    workers: Count = workers_option()
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = option(
        "tensorboard|wandb|mlflow ...",
        "loggers of metrics, pictures and scores of every stage",
        default=(),
    )


def study(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Study, "study", words)
    launch = Launch(
        device=options.device, threads=options.threads, workers=options.workers, log=options.log
    )
    setup = design.read(Path(options.plan))
    i, n = part(options.shard)
    out = Path(options.out)
    command = shlex.join(["selftaught", "study", *words])
    cells = design.cells(options.study, setup)
    with launch.start(command) as (runtime, progress):
        runtime = dataclasses.replace(runtime, monitor_images=64, draw=None)  # hundreds of stages
        own_cells = runner.Shard(i, n).of(cells) if i else []
        start, first = time.perf_counter(), count_done(own_cells, out)

        def report_cell(number: int, cell: Cell) -> None:
            done, left = count_done(own_cells, out), ""
            if done > first:
                rate = (time.perf_counter() - start) / (done - first)
                left = f", {clock(rate * (len(own_cells) - done))} left"
            progress.say(f"cell {number + 1} of {len(own_cells)} ({done} done{left}): {cell.name}")

        try:
            runner.carry_out(own_cells, out, runtime, progress, report_cell)
        except Stopped:
            tell("stopped; the same command goes on with it")
            return 0
        if rank() == 0:
            print(gather(options.study, cells, out, command, Path(options.plan)))
    return 0


def count_done(cells: list[Cell], out: Path) -> int:
    """The number of cells that have a result."""
    return sum(runner.file_of(cell, out).exists() for cell in cells)


def part(shard: str) -> tuple[int, int]:
    """The numbers of --shard i/n. Raises UserError for other texts."""
    i, slash, n = shard.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or int(n) < 1 or int(i) > int(n):
        raise UserError(f"--shard {shard}: give which part of how many, as in 2/8")
    return int(i), int(n)


def gather(study: str, cells: list[Cell], out: Path, command: str, plan: Path) -> Path:
    """Write table, figures and page of the cells that are done; return the page."""
    rows = runner.gather(cells, out)
    if not rows:
        raise UserError(f"no cell of {study} is done yet in {out}")
    points = tables.by_seed(rows, [c for c in dict.fromkeys((c.variant, c.x) for c in cells)])
    done = count_done(cells, out)
    findings = [*tables.findings(study, points), *tables.fallen(rows)]
    files.write_json(
        out / f"{study}.json",
        {
            "command": command,
            "plan": plan.read_text(),
            "done": done,
            "cells": len(cells),
            "findings": findings,
            "rows": rows,
        },
    )
    files.write_text(out / f"{study}.csv", tables.as_csv(points))
    pictures = figures.draw(study, points, out)
    for line in findings:
        tell(line)
    return report.write(
        study,
        points,
        findings,
        pictures,
        out,
        command=command,
        plan=plan.read_text(),
        done=done,
        total=len(cells),
    )
