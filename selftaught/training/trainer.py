"""Training of a stage in a run's folder: start or resume, train, finish, and save on failure."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from selftaught import files
from selftaught.config.stage import Stage, shared_index
from selftaught.data.index.build import Index
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import (
    any_rank,
    broadcast_object,
    broadcast_tensors,
    local_rank,
    local_share,
    rank,
    world_size,
    wrap,
)
from selftaught.errors import (
    Collapsed,
    FileError,
    Stopped,
    UserError,
    WorkerDied,
    find_dead_worker,
    name_outcome,
)
from selftaught.loggers.logger import LOGGERS, build_loggers
from selftaught.models import heads
from selftaught.models.batch_norm import running_statistics
from selftaught.runs import folder as run_folder
from selftaught.training.checkpoint_folder import QUESTION_STEPS, Checkpoints, is_finite
from selftaught.training.fsdp import shard
from selftaught.training.loop import Loop, Report, fit
from selftaught.training.lost_images import LostImages
from selftaught.training.monitor import Monitor
from selftaught.training.run_record import RunRecord
from selftaught.training.runtime import Runtime
from selftaught.training.selection import Candidates, save_weights
from selftaught.training.session import Session, build_session
from selftaught.training.signals import signals
from selftaught.training.threads import WaitDetector, threads_of_run, use_threads

log = logging.getLogger(__name__)


class Trainer:
    """Trains one stage in a run's folder: logs metrics, monitors features, writes checkpoints.

    Every rank measures its share of the images and has the same state. Only rank 0 writes and
    logs; of a sharded network every rank writes its shards.
    """

    def __init__(
        self, session: Session, optimizer: torch.optim.Optimizer, folder: Path, runtime: Runtime
    ) -> None:
        self.session, self.folder, self.runtime = session, folder, runtime
        self.first = rank() == 0
        self.step = 0  # the next one
        self.skipped = 0
        self.log_every = max(session.stage.steps // 500, 1)
        self.checkpoints = Checkpoints(
            session.step, optimizer, folder / "checkpoints", runtime.save_every
        )
        self.monitor = Monitor(session, runtime.monitor_images)
        self.candidates = Candidates(session, folder)
        self.lost = LostImages(session)
        self.record = RunRecord(session, folder, runtime, self.lost)
        measured = [*self.monitor.positions(), self.candidates.positions]
        session.images.cache(torch.cat([local_share(p) for p in measured]).unique())
        self.waits = WaitDetector(
            torch.get_num_threads() if self.first and session.device.type == "cpu" else 1
        )

    def begin(self) -> int:
        """Load the checkpoint of a resumed run, open the record, and measure the start.

        Returns the step to continue with. Raises Collapsed if the run had collapsed.
        """
        present = self.checkpoints.files()
        if self.runtime.resume and present:
            self.record.refuse_other_data()
            self.checkpoints.load(present, self.session.device, self.load_state_dict)
            if self.monitor.detector.collapsed and self.runtime.on_collapse == "stop":
                # It would collapse again, or end as if it were done.
                reason = run_folder.read_run(self.folder).facts.get("reason")
                raise Collapsed(reason or "the features collapsed")
        self.record.begin(self.step)
        if self.step == 0:
            self.monitor_features(None)
        self.score_candidates()
        self.record.stopwatch.restart()
        self.checkpoints.restart_clock()
        return self.step

    def after_step(self, report: Report) -> None:
        """Log, measure, score and save after a step, each when it is due."""
        self.step = report.step + 1
        self.skipped += report.skipped
        self.record.images += self.session.stage.batch
        if report.skipped:
            log.warning(f"step {report.step}: the gradients were not finite; the step was skipped")
        if self.monitor.due(self.step):
            self.monitor_features(report)
        elif self.step % self.log_every == 0:
            self.record.log(report, None, self.skipped)
        self.score_candidates()
        if warning := self.waits.check():
            log.warning(warning)
        if self.checkpoints.due(self.step):
            self.save()

    def monitor_features(self, report: Report | None) -> None:
        """Measure and log the features. Raises Collapsed if this stops the run."""
        with self.record.stopwatch.paused():
            self.monitor.measured_at = self.step
            # On CPUs the batch norms of each rank have their own statistics.
            broadcast_tensors(running_statistics(self.session.step))
            features = self.monitor.measure()
            pretext = self.monitor.measure_pretext()
            self.lost.update()
        warning = None
        if self.first:
            loss = float(report.losses["clean"]) if report else None
            warning = self.monitor.observe(self.step, features, loss)
            if warning:
                log.warning(warning)
        self.record.log(report, features, self.skipped, pretext)
        if report and self.monitor.improves(features):
            self.save("best.pt")
        self.monitor.synchronise()
        if self.monitor.detector.collapsed and self.runtime.on_collapse == "stop":
            raise Collapsed(broadcast_object(warning) or "the features collapsed")

    def score_candidates(self) -> None:
        """Score the present weights if they are a candidate."""
        if self.candidates.due(self.step):
            with self.record.stopwatch.paused():
                self.candidates.score_candidates(self.step)

    def save(self, name: str = "last.pt") -> None:
        """Save a checkpoint."""
        self.checkpoints.save(self.state_dict(), name)

    def state_dict(self) -> dict[str, Any]:
        """The state of the run without that of the network and the optimizer."""
        return {
            "next": self.step,
            "skipped": self.skipped,
            "seconds": self.record.stopwatch.seconds,
            **self.monitor.state_dict(),
            **self.candidates.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.step, self.skipped = state["next"], state["skipped"]
        self.record.stopwatch.seconds = state["seconds"]
        self.monitor.load_state_dict(state)
        self.candidates.load_state_dict(state)

    def finish(self, outcome: str, **more: Any) -> Path:
        """Write the run's weights and its outcome; return the file of the weights.

        They are those of the best candidate, or of the last step. A run that was stopped has no
        candidate beyond its start yet.
        """
        session, file = self.session, self.folder / "backbone.safetensors"
        more = {**self.monitor.facts(), **more}
        if self.candidates.candidates and self.step and outcome != "stopped":
            more["choice"] = self.candidates.keep_best().facts()
        elif is_finite(session.method.state_dict(), self.checkpoints.sharded):
            has_head = self.step and session.stage.learns
            head_file = self.folder / heads.FILE if has_head else None
            save_weights(session, session.backbone, file, head_file)
        self.record.close(outcome, **more)
        return file

    def abandon(self, reason: str) -> None:
        """Record a failure without saving the weights, which may be half updated."""
        if self.record.begun:
            self.record.close("failed", reason=reason)

    def fail(self, outcome: str, reason: str) -> None:
        """Save the weights and the outcome of a run that failed, if possible.

        It waits for no other rank, because the error may have occurred on this rank only.
        """
        # Otherwise the folder belongs to another run, or another rank writes.
        if not self.record.begun:
            return
        try:
            # Other ranks may not save their shards now, so the last checkpoint remains.
            if self.checkpoints.sharded:
                self.record.close(outcome, reason=reason)
                return
            if self.step:
                self.save()
            self.finish(outcome, reason=reason)
        except FileError:  # the caller reports the first error
            with contextlib.suppress(FileError):
                self.record.close(outcome, reason=reason)


def train(
    stage: Stage, out: Path, runtime: Runtime = Runtime(), index: Index | None = None
) -> Path:
    """Train `stage` in the folder `out`, or resume it there; return the backbone's file.

    index: that of the stage's data, if it is built already. Raises UserError for invalid input
    (another process that trains in `out`, a full disk), Collapsed when the features collapse, and
    Stopped after SIGTERM or Ctrl-C. On errors the weights are saved, if possible.
    """
    before = run_folder.read_run(out) if runtime.resume and run_folder.has_run(out) else None
    if index is None or (before is not None and before.pixel_range != index.pixel_range):
        index = shared_index(
            stage.data, stage.seed, pixel_range=before.pixel_range if before else PixelRange()
        )
    facts = before.facts if before else {}
    if names := run_folder.loggers_of(facts):
        runtime = with_loggers(runtime, names)
    with use_threads(threads_of_run(facts.get("threads"), runtime.threads, log.info)):
        return train_in_folder(stage, out, runtime, index, facts)


def with_loggers(runtime: Runtime, names: Sequence[str]) -> Runtime:
    """Add the loggers that a resumed run recorded, unless the runtime has loggers of its own."""
    if any(logger.name in LOGGERS for logger in runtime.loggers):
        return runtime
    return replace(runtime, loggers=(*runtime.loggers, *build_loggers(names)))


def train_in_folder(
    stage: Stage, out: Path, runtime: Runtime, index: Index, facts: Mapping[str, Any]
) -> Path:
    """Train with an index and a number of threads. `facts`: run.json of a resumed run."""
    device = (
        torch.device(runtime.device, local_rank())
        if runtime.device == "cuda"
        else torch.device("cpu")
    )
    # On a CPU the views of images in memory differ slightly from those of images on disk. So a
    # resumed run keeps its images where they were.
    in_memory = facts.get("held") if device.type == "cpu" else None
    session = build_session(stage, index, device, runtime.workers, log.info, in_memory=in_memory)
    steps_per_epoch = session.batches.steps_per_epoch // stage.accumulate if stage.steps else 0
    step = session.step
    if runtime.fsdp and world_size() == 1:
        log.info("there is one process only: --fsdp has no effect")
    elif runtime.fsdp and stage.compile:
        raise UserError("--compile and --fsdp do not go together: omit one of them")
    elif runtime.fsdp and stage.method.two_player:
        raise UserError(
            "this method calls its discriminator with detached weights, which must not be sharded:"
            " omit --fsdp"
        )
    elif runtime.fsdp and step.anchor and step.anchor.kind == "l2-sp":
        raise UserError("--anchor.kind l2-sp and --fsdp do not go together: use another kind")
    elif runtime.fsdp:
        shard(step, device)
    optimizer = stage.optimizer.build(step.named_parameters(), step.parameter_groups())
    loop = Loop(
        steps=stage.steps,
        steps_per_epoch=steps_per_epoch,
        schedule=stage.schedule,
        accumulate=stage.accumulate,
        clip=stage.clip,
        bf16=stage.precision == "bf16",
        seed=stage.seed,
    )
    with hold_folder(out, runtime):
        trainer = Trainer(session, optimizer, out, runtime)
        try:
            file = run(trainer, optimizer, loop)
            draw_album(trainer)
        finally:
            trainer.record.loggers.finish(trainer.record.outcome)
    return file


@contextmanager
def hold_folder(out: Path, runtime: Runtime) -> Iterator[None]:
    """Lock the run's folder by rank 0. Raises its UserError on all ranks."""
    with ExitStack() as stack:
        refusal: UserError | None = None
        if rank() == 0:
            try:
                stack.enter_context(files.hold_run(out, log.info))
                if not runtime.resume and run_folder.has_run(out):  # since the last check
                    refusal = UserError(
                        f"{out} holds a run already: continue it with --resume, or choose another"
                        " --out"
                    )
            except UserError as error:
                refusal = error
        refusal = broadcast_object(refusal)
        if refusal is not None:
            raise refusal
        yield


def run(trainer: Trainer, optimizer: torch.optim.Optimizer, loop: Loop) -> Path:
    """Train from the run's present step to its end; return the backbone's file."""
    session = trainer.session
    stage, step = session.stage, session.step
    try:
        start = trainer.begin()
        step.train()
        if not stage.learns and start < stage.steps:
            session.refresh(stage.steps)
            start = trainer.step = stage.steps
            trainer.monitor_features(None)
            trainer.score_candidates()
        reports: Iterable[Report] = ()
        if start < stage.steps:
            wrapped = wrap(step, session.device)
            reports = fit(
                wrapped, session.method, session.epochs, optimizer, loop, start, session.overview
            )
        with signals() as received:
            for report in reports:
                trainer.after_step(report)
                due = (
                    report.step % QUESTION_STEPS == 0
                    or report.step + 1 == stage.steps
                    or world_size() == 1
                )
                if due and any_rank(bool(received)):
                    trainer.save()
                    trainer.finish("stopped")
                    raise Stopped(
                        f"stopped at step {report.step + 1} of {stage.steps};"
                        " continue with --resume"
                    )
        trainer.save()
        learns = stage.steps and stage.learns
        if trainer.first and learns and (warning := trainer.monitor.warn_of_task()):
            log.warning(warning)
        return trainer.finish("done")
    except UserError as error:  # perhaps on this rank only, so no collective may follow
        trainer.fail(name_outcome(error), str(error))
        if (
            isinstance(error, FileError)
            and trainer.record.begun
            and any((trainer.folder / "checkpoints").glob("*.pt"))
        ):
            raise FileError(
                f"{error}; the last checkpoint remains, and --resume continues from it"
            ) from error
        raise
    except RuntimeError as error:
        if (died := find_dead_worker(error)) is None:
            raise
        # Perhaps in the middle of a step, so the present weights are not saved.
        trainer.abandon(str(died))
        raise WorkerDied(f"{died}; --resume continues from the last checkpoint") from error


def draw_album(trainer: Trainer) -> None:
    """Draw the album of a run that is done. Errors are logged only."""
    session, draw = trainer.session, trainer.runtime.draw
    if not session.stage.steps or draw is None:
        return
    album = trainer.folder / "album"
    try:
        with session.eagerly():
            draw(session, album if rank() == 0 else None)
    except (OSError, RuntimeError) as error:
        log.warning(f"the run is done and saved, but its pictures could not be made: {error}")
        return
    for picture in sorted(album.iterdir()) if rank() == 0 and album.is_dir() else ():
        # Pictures of neighbours (n-*) are many, and have no meaning without their order.
        if picture.suffix not in (".png", ".jpg") or picture.name.startswith("n-"):
            continue
        trainer.record.loggers.image(trainer.step, f"album/{picture.stem}", picture)
