"""Execution of a study's cells on one machine or several, and collection of their results."""

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
from selftaught.errors import Collapsed, Diverged, FileError, UserError, damage_error, name_outcome
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

# marks the folder for `data.scan`, so that its figures are not read as images
MARKER = "study.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """Part i of n of a study, counted from 1: the cells i, i + n, i + 2n, ..."""

    i: int = 1
    n: int = 1

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of this part."""
        return list(cells[self.i - 1 :: self.n])


def carry_out(
    cells: Sequence[Cell],
    out: Path,
    runtime: Runtime,
    progress: Progress,
    on_cell: Callable[[int, Cell], None] = lambda number, cell: None,
) -> None:
    """Train and evaluate every cell that is not done yet.

    A stage that several cells share is trained once. Interrupted stages resume. `on_cell` is called
    before each cell. Raises UserError if a cell cannot be trained, before any training.
    """
    indices: dict[tuple[Data, int], Index] = {}

    def index_of(data: Data, seed: int) -> Index:
        if (data, seed) not in indices:
            indices[data, seed] = shared_index(data, seed)
        return indices[data, seed]

    say = cache(log.info)  # drops lines that several cells repeat
    open_cells = [cell for cell in cells if not is_done(cell, out, index_of)]
    check(open_cells, out, runtime.device, index_of, say)
    if rank() == 0:
        files.write_json(out / MARKER, {"selftaught": version("selftaught")})
    for number, cell in enumerate(cells):
        on_cell(number, cell)
        if is_done(cell, out, index_of, log.info):
            continue
        stages = execute.resolve_plan(Plan(nodes=cell.nodes), out, runtime.device, index_of)
        outcome, folder = "done", out
        for resolved in stages.values():
            index = indices[resolved.stage.data, resolved.stage.seed]
            try:
                folder = execute.execute_stage(resolved, out, runtime, index)
            except (Collapsed, Diverged) as error:  # a result, as a repetition would fail again
                folder, outcome = resolved.folder(out), name_outcome(error)
                log.info(str(error))
            wait_for_rank0()  # rank 0 may still be writing
            if outcome != "done":
                break
            if rank() == 0:  # a ResNet-18 has 200 MB of them, and a study hundreds of stages
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        rows = evaluate(cell, folder, runtime.device, progress, runtime.workers)
        if rank() == 0:
            images = [
                {
                    "data": asdict(s.stage.data),
                    "seed": s.stage.seed,
                    "fingerprint": indices[s.stage.data, s.stage.seed].fingerprint,
                }
                for s in stages.values()
            ]
            done = {
                "outcome": outcome,
                "folder": str(folder.relative_to(out)),
                "rows": rows,
                "images": images,
            }
            files.write_json(file_of(cell, out), {**cell.inputs, **done})
        wait_for_rank0()  # other ranks check whether the file exists


def file_of(cell: Cell, out: Path) -> Path:
    """The file of a cell's result."""
    return out / "cells" / f"{cell.key}.json"


def read_cell(cell: Cell, out: Path) -> dict[str, Any] | None:
    """Read the result of a cell; None if it is not done. Raises FileError if it is damaged."""
    file = file_of(cell, out)
    if not os.path.lexists(file):
        return None
    done: dict[str, Any] = files.read_json(file, dict)
    names = {"protocol", "labels", "metric", "mean", "low", "high"}
    rows = done.get("rows")
    complete = isinstance(rows, list) and all(
        isinstance(row, dict) and names <= row.keys() for row in rows
    )
    if not complete or not {"outcome", "folder"} <= done.keys():
        raise damage_error(file, "it has no scores", "the same command writes it again")
    return done


def is_done(
    cell: Cell,
    out: Path,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> bool:
    """Whether a cell has a result of the present images."""
    try:
        done = read_cell(cell, out)
    except FileError as error:
        say(f"{error}; the cell is done again")
        return False
    for images in done.get("images", ()) if done else ():
        # pyrefly: ignore[bad-argument-type]
        data = Data(**{**images["data"], "roots": tuple(images["data"]["roots"])})
        try:
            same = index_of(data, images["seed"]).fingerprint == images["fingerprint"]
        except UserError:  # the images are no longer here
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
    """Resolve one cell of each kind, so that errors occur before hours of training.

    Raises UserError if a cell cannot be trained or evaluated.
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
                f"{target} has no labels to evaluate by: use class folders, or write a labels.csv"
            )


def evaluate(
    cell: Cell, folder: Path, device: str, progress: Progress, workers: int = 2
) -> list[dict[str, Any]]:
    """Evaluate the outcome of a cell on its target's test images; return rows."""
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
    """Collect one flat row for every score of every cell that is done."""
    rows = []
    for cell in cells:
        try:
            done = read_cell(cell, out)
        except FileError:  # `carry_out` repeats the cell
            continue
        if done is None:
            continue
        about = {name: getattr(cell, name) for name in ("target", "base", "variant", "x", "seed")}
        for row in done["rows"]:
            scores = {k: row[k] for k in ("protocol", "labels", "metric", "mean", "low", "high")}
            rows.append({**about, **scores, "outcome": done["outcome"], "folder": done["folder"]})
    return rows
