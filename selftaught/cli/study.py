"""The command that carries out studies."""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from selftaught import files
from selftaught.api.launch import find_device
from selftaught.cli.console import tell
from selftaught.cli.flag_values import reader
from selftaught.config.overrides import Count
from selftaught.distributed import process_group, rank
from selftaught.errors import Stopped, UserError
from selftaught.loggers.logger import build_loggers
from selftaught.loggers.terminal import Progress, clock
from selftaught.study import design, figures, report, runner, tables
from selftaught.study.design import Cell
from selftaught.training.runtime import Runtime
from selftaught.training.threads import check, take_share


@dataclasses.dataclass(kw_only=True)
class Study:
    """The experiments of hierarchical pretraining on your images: tables, figures and a page. It
    resumes, and can be split over machines by --shard.
    """

    study: Annotated[
        Literal["separability", "labels", "sequential", "augmentations", "data"], Positional
    ]
    plan: str
    """a YAML file: bases, targets, settings, steps, seeds (see docs/hpt.md)"""
    out: str
    """a folder for trained stages, cells, table, figures and page; several studies may share it"""
    shard: str = "1/1"
    """part i of n of the cells, as in 2/8; --shard 0/8 trains nothing and gathers what is there"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Count, reader("threads", Count, "auto|THREADS")] = "auto"
    """that compute; auto: one for each free core"""
    workers: Annotated[Count, reader("workers", Count, "auto|PROCESSES")] = "auto"
    """that decode images, where these are not held in memory; auto: at most 2"""
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """metrics, pictures and scores of every stage go there, too"""


def study(words: list[str]) -> int:
    asked = tyro.cli(Study, prog="selftaught study", args=words)
    check(asked.threads, asked.workers)
    build_loggers(asked.log)
    setup = design.read(Path(asked.plan))
    i, n = part(asked.shard)
    out = Path(asked.out)
    command = shlex.join(["selftaught", "study", *words])
    cells = design.cells(asked.study, setup)
    device = find_device(asked.device)
    with (
        process_group(device),
        Progress(show=rank() == 0) as progress,
        take_share(asked.threads, asked.workers, progress.say) as share,
    ):
        conduct = Runtime(
            device=device,
            workers=share.workers,
            threads=None if asked.threads == "auto" else asked.threads,
            watched=64,
            loggers=(progress, *build_loggers(asked.log)),
            note={"command": command, "device": device},
        )
        mine = runner.Shard(i, n).of(cells) if i else []
        began, first = (
            time.perf_counter(),
            sum((out / "cells" / f"{c.key}.json").exists() for c in mine),
        )

        def told(number: int, cell: Cell) -> None:
            done = sum((out / "cells" / f"{c.key}.json").exists() for c in mine)
            passed = time.perf_counter() - began
            left = (
                f", {clock(passed / (done - first) * (len(mine) - done))} left"
                if done > first
                else ""
            )
            progress.say(f"cell {number + 1} of {len(mine)} ({done} done{left}): {cell.name}")

        try:
            runner.carry_out(mine, out, conduct, progress, told)
        except Stopped:
            tell("stopped; the same command goes on with it")
            return 0
        if rank() == 0:
            print(gather(asked.study, cells, out, command, Path(asked.plan)))
    return 0


def part(shard: str) -> tuple[int, int]:
    i, slash, n = shard.partition("/")
    if not slash or not i.isdecimal() or not n.isdecimal() or int(n) < 1 or int(i) > int(n):
        raise UserError(f"--shard {shard}: say which part of how many, as in 2/8")
    return int(i), int(n)


def gather(study: str, cells: list[Cell], out: Path, command: str, plan: Path) -> Path:
    """Table, figures and page of the cells that are done; returns the page."""
    rows = runner.gather(cells, out)
    if not rows:
        raise UserError(f"no cell of {study} is done yet in {out}")
    points = tables.by_seed(rows, [c for c in dict.fromkeys((c.variant, c.x) for c in cells)])
    done = sum((out / "cells" / f"{c.key}.json").exists() for c in cells)
    found = [*tables.findings(study, points), *tables.fallen(rows)]
    files.write_json(
        out / f"{study}.json",
        {
            "command": command,
            "plan": plan.read_text(),
            "done": done,
            "cells": len(cells),
            "findings": found,
            "rows": rows,
        },
    )
    files.write_text(out / f"{study}.csv", tables.as_csv(points))
    drawn = figures.draw(study, points, out)
    for line in found:
        tell(line)
    return report.write(
        study,
        points,
        found,
        drawn,
        out,
        command=command,
        plan=plan.read_text(),
        done=done,
        total=len(cells),
    )
