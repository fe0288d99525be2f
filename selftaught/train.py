"""Carry out a stage in a folder of its own: begin, train, watch, save, stop, resume."""

import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from selftaught import files, pictures
from selftaught.config.stage import Stage, shared_index
from selftaught.data.index.build import Index
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import anywhere, local_rank, rank, shared, world_size, wrap
from selftaught.errors import FileError, Stopped, UserError, outcome_of
from selftaught.fit import Loop, Report, fit
from selftaught.life import ASKED, Conduct, Life
from selftaught.runs import folder as run
from selftaught.sharding import shard
from selftaught.threads import threads_of_run, use_threads
from selftaught.trainee import assemble

# SIGUSR1 is what SLURM sends ahead of the end of a job (sbatch --signal=USR1@120).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def train(stage: Stage, out: Path, conduct: Conduct = Conduct(), index: Index | None = None) -> Path:
    """Carry out `stage` in the folder `out`, or go on where it broke off; return the backbone's file.

    `index` is that of the stage's data, where it has been made already.

    Raises UserError for what the user can mend (another process that trains in `out`, a full disk), Collapsed when the
    features fell into one point, Stopped after SIGTERM or Ctrl-C. What was learnt is saved as far as the disk takes it.
    """
    begun = run.read(out) if conduct.resume and run.begun(out) else None
    if index is None or (begun is not None and begun.pixel_range != index.pixel_range):
        index = shared_index(stage.data, stage.seed, pixel_range=begun.pixel_range if begun else PixelRange())
    facts = begun.facts if begun else {}
    with use_threads(threads_of_run(facts.get("threads"), conduct.threads, conduct.say)):
        return carry_out(stage, out, conduct, index, facts)


def carry_out(stage: Stage, out: Path, conduct: Conduct, index: Index, facts: Mapping[str, Any]) -> Path:
    """`facts`: of the run that goes on."""
    device = torch.device(conduct.device, local_rank()) if conduct.device == "cuda" else torch.device("cpu")
    # On a CPU views of images that are held differ a little from those of images that are not: a run goes on as it began.
    held = facts.get("held") if device.type == "cpu" else None
    trainee = assemble(stage, index, device, conduct.workers, conduct.say, hold=held)
    steps_per_epoch = trainee.batches.steps_per_epoch // stage.accumulate if stage.steps else 0
    if not steps_per_epoch and stage.steps:
        raise UserError(f"{len(index.train)} training images are fewer than a batch of {stage.batch}: lower --batch")
    step, method = trainee.step, trainee.method
    if conduct.fsdp and world_size() == 1:
        conduct.say("one process holds all: --fsdp has nothing to share out")
    elif conduct.fsdp and stage.compile:
        raise UserError("--compile and --fsdp do not go together: leave one of them out")
    elif conduct.fsdp:
        shard(step, device)
    optimizer = stage.optimizer.build(step.named_parameters(), [f"method.{part}." for part in method.steady])
    loop = Loop(
        steps=stage.steps, steps_per_epoch=steps_per_epoch, schedule=stage.schedule, accumulate=stage.accumulate,
        clip=stage.clip, bf16=stage.precision == "bf16", seed=stage.seed,
    )  # fmt: skip
    with alone(out, conduct):
        file = follow(Life(trainee, optimizer, out, conduct), optimizer, loop)
        if stage.steps and conduct.album:
            try:
                with trainee.eagerly():
                    pictures.draw(trainee, out / "album" if rank() == 0 else None)
            except (OSError, RuntimeError) as error:
                conduct.say(f"the run is done and saved, but its pictures could not be made: {error}")
    return file


@contextmanager
def alone(out: Path, conduct: Conduct) -> Iterator[None]:
    """Hold the run's folder, by rank 0; what it is refused, every process is."""
    with ExitStack() as stack:
        refusal: UserError | None = None
        if rank() == 0:
            try:
                stack.enter_context(files.hold_run(out, conduct.say))
                if not conduct.resume and run.begun(out):  # since it was last looked at
                    refusal = UserError(f"{out} holds a run already: go on with it by --resume, or choose another --out")
            except UserError as error:
                refusal = error
        refusal = shared(refusal)
        if refusal is not None:
            raise refusal
        yield


def follow(life: Life, optimizer: torch.optim.Optimizer, loop: Loop) -> Path:
    """Train from where the run is to its end, in its folder; return the backbone's file."""
    trainee = life.trainee
    stage, step = trainee.stage, trainee.step
    try:
        start = life.begin()
        step.train()
        if stage.trainable == "none" and start < stage.steps:
            trainee.refresh(stage.steps)
            start = life.step = stage.steps
            life.look(None)
            life.consider()
        reports: Iterable[Report] = ()
        if start < stage.steps:
            wrapped = wrap(step, trainee.device)
            reports = fit(wrapped, trainee.method, trainee.epochs, optimizer, loop, start, trainee.overview)
        with signals() as received:
            for report in reports:
                life.after(report)
                due = report.step % ASKED == 0 or report.step + 1 == stage.steps or world_size() == 1
                if due and anywhere(bool(received)):
                    life.save()
                    life.end("stopped")
                    raise Stopped(f"stopped at step {report.step + 1} of {stage.steps}; go on with --resume")
        life.save()
        return life.end("done")
    except UserError as error:  # on this rank, perhaps alone: nothing here may wait for the others
        life.fail(outcome_of(error), str(error))
        if isinstance(error, FileError) and life.journal and any((life.out / "checkpoints").glob("*.pt")):
            raise FileError(f"{error}; the last checkpoint stays, and can be gone on with") from error
        raise


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect what asks a run to stop instead of dying of it; a second Ctrl-C does as ever."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread can be asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:  # alone: at a job's time limit SLURM sends SIGTERM twice, a few milliseconds apart
            signal.signal(number, before[number])

    before: dict[int, Any] = {n: signal.signal(n, note) for n in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
