"""Carry out a study's cells in any order, on one machine or on several; gather what is there."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selftaught import files
from selftaught.config.stage import Data, shared_index
from selftaught.data.index.build import Index
from selftaught.distributed import rank, wait_for_rank0
from selftaught.errors import Collapsed, Diverged, FileError, UserError, damage_error, outcome_of
from selftaught.evaluation.evaluate import evaluate_run
from selftaught.evaluation.finetune import FineTune
from selftaught.features.knn import KNN
from selftaught.features.linear import LinearProbe
from selftaught.features.protocol import Protocol
from selftaught.loggers.terminal import Progress
from selftaught.pipeline import execute
from selftaught.pipeline.plan import Plan
from selftaught.study.design import Cell
from selftaught.training.runtime import Runtime

# by which `data.scan` knows the folder, with all its figures, as one that holds no images of a set
MARKER = "study.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """The cells i, i + n, i + 2n, ... of a study: part i of n, counted from 1."""

    i: int = 1
    n: int = 1

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        return list(cells[self.i - 1 :: self.n])


def carry_out(
    cells: Sequence[Cell],
    out: Path,
    conduct: Runtime,
    progress: Progress,
    told: Callable[[int, Cell], None] = lambda done, cell: None,
) -> None:
    """Every cell that is not done yet. A stage that several cells share is trained once; what broke
    off goes on.
    """
    known: dict[tuple[Data, int], Index] = {}

    def index_of(data: Data, seed: int) -> Index:
        if (data, seed) not in known:
            known[data, seed] = shared_index(data, seed)
        return known[data, seed]

    say = cache(log.info)  # each line once, however many cells say it
    check(
        [cell for cell in cells if not is_done(cell, out, index_of)],
        out,
        conduct.device,
        index_of,
        say,
    )
    if rank() == 0:
        files.write_json(out / MARKER, {"selftaught": version("selftaught")})
    for number, cell in enumerate(cells):
        told(number, cell)
        if is_done(cell, out, index_of, log.info):
            continue
        stages = execute.resolve_plan(Plan(nodes=cell.nodes), out, conduct.device, index_of)
        outcome, folder = "done", out
        for settled in stages.values():
            data = known[settled.stage.data, settled.stage.seed]
            try:
                folder = execute.execute_stage(settled, out, conduct, data)
            except (
                Collapsed,
                Diverged,
            ) as error:  # a result, too: the same command would come to it again
                folder, outcome = settled.folder(out), outcome_of(error)
                log.info(str(error))
            wait_for_rank0()  # rank 0 may still be writing
            if outcome != "done":
                break
            if rank() == 0:  # 200 MB each for a ResNet-18, of hundreds of stages
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        rows = evaluate(cell, folder, conduct.device, progress, conduct.workers)
        if rank() == 0:
            images = [
                {
                    "data": asdict(s.stage.data),
                    "seed": s.stage.seed,
                    "fingerprint": known[s.stage.data, s.stage.seed].fingerprint,
                }
                for s in stages.values()
            ]
            done = {
                "outcome": outcome,
                "folder": str(folder.relative_to(out)),
                "rows": rows,
                "images": images,
            }
            files.write_json(file_of(cell, out), {**cell.judged, **done})
        wait_for_rank0()  # the others will ask whether it is there


def file_of(cell: Cell, out: Path) -> Path:
    return out / "cells" / f"{cell.key}.json"


def read_cell(cell: Cell, out: Path) -> dict[str, Any] | None:
    """What came of a cell; None where it is not done. Raises FileError where that makes no
    sense.
    """
    file = file_of(cell, out)
    if not os.path.lexists(file):
        return None
    done: dict[str, Any] = files.read_json(file, dict)
    scored = {"protocol", "labels", "metric", "mean", "low", "high"}
    rows = done.get("rows")
    whole = isinstance(rows, list) and all(
        isinstance(row, dict) and scored <= row.keys() for row in rows
    )
    if not whole or not {"outcome", "folder"} <= done.keys():
        raise damage_error(file, "it tells no scores", "the same command makes it anew")
    return done


def is_done(
    cell: Cell,
    out: Path,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Whether what came of a cell is there, and is that of the images as they are now."""
    try:
        done = read_cell(cell, out)
    except FileError as error:
        say(f"{error}; the cell is done again")
        return False
    for images in done.get("images", ()) if done else ():
        data = Data(**{**images["data"], "roots": tuple(images["data"]["roots"])})
        try:
            same = index_of(data, images["seed"]).fingerprint == images["fingerprint"]
        except UserError:  # they are not here any more
            continue
        if not same:
            say(f"{', '.join(data.roots)}: the images have changed; the cell is done again")
            return False
    return done is not None


def check(
    cells: Sequence[Cell],
    out: Path,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """One cell of each kind, before the first is trained: what does not fit shall not come to light
    after hours.
    """
    kinds: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        kinds.setdefault((cell.target, cell.base, cell.variant), cell)
    for (target, base, _), cell in kinds.items():
        try:
            *_, last = execute.resolve_plan(
                Plan(nodes=cell.nodes), out, device, index_of, say
            ).values()
        except UserError as error:
            raise UserError(f"{target} from {base}: {error}") from error
        if cell.labels_from == "auto" and index_of(last.stage.data, last.stage.seed).labels is None:
            raise UserError(
                f"{target} has no labels to be judged by: use class folders, or write a labels.csv"
            )


def evaluate(
    cell: Cell, folder: Path, device: str, progress: Progress, workers: int = 2
) -> list[dict[str, Any]]:
    """A cell's outcome on its target's test images."""
    protocols: dict[str, Protocol] = {
        "knn": KNN(),
        "linear": LinearProbe(),
        "finetune": cell.finetune or FineTune(),
    }
    evaluation = evaluate_run(
        folder,
        cell.data,
        labels_from=cell.labels_from,
        protocols=[protocols[p] for p in cell.protocols],
        labels=cell.labels,
        against=(),
        draws=1 if cell.finetune else 5,
        seed=cell.seed,
        device=device,
        workers=workers,
        progress=progress,
    )
    return evaluation.rows


def gather(cells: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """A flat row for every score of every cell that is done."""
    found = []
    for cell in cells:
        try:
            done = read_cell(cell, out)
        except FileError:  # it will be done again
            continue
        if done is None:
            continue
        about = {name: getattr(cell, name) for name in ("target", "base", "variant", "x", "seed")}
        for row in done["rows"]:
            scored = {k: row[k] for k in ("protocol", "labels", "metric", "mean", "low", "high")}
            found.append({**about, **scored, "outcome": done["outcome"], "folder": done["folder"]})
    return found
