"""A run as it is lived: its folder, journal, watch and checkpoints, told in one place; hence some
200 lines.
"""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught import files
from selftaught.config.stage import Stage, shared_index
from selftaught.data.index.build import Index
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import (
    any_rank,
    broadcast_object,
    broadcast_tensors,
    gather_values,
    is_sharded,
    local_rank,
    local_share,
    rank,
    world_size,
    wrap,
)
from selftaught.errors import Collapsed, FileError, Stopped, UserError, damage_error, name_outcome
from selftaught.features import statistics
from selftaught.features.extract import extract
from selftaught.features.metrics import effective_count
from selftaught.loggers.jsonl import Journal
from selftaught.models import heads
from selftaught.models.backbone import Backbone
from selftaught.models.batch_norm import running_statistics
from selftaught.models.weights import io as weights_io
from selftaught.runs import folder as run_folder
from selftaught.text import count_text, list_reasons
from selftaught.training import checkpoint, collapse, fsdp, selection
from selftaught.training.fsdp import shard
from selftaught.training.loop import Loop, Report, fit
from selftaught.training.monitor import sample
from selftaught.training.runtime import Runtime
from selftaught.training.selection import Candidate
from selftaught.training.session import Session, build_session
from selftaught.training.signals import signals
from selftaught.training.threads import WaitDetector, threads_of_run, use_threads

CHECKPOINTS = ("last.pt", "best.pt")  # what a run goes on with: the first of them that is whole


MEASURES = 20  # how often in a whole run, and


RARELY = 50  # steps between them at least: a measurement costs as much as some four steps


EARLY = (10, 25, 50, 100, 200, 400)  # besides: a collapse shows soon


SOON = 5  # steps after a measurement that looked like one


MOST_LOST = 0.1  # share of the training images that may vanish or break before training stops


NAMED = 20  # lost images whose names run.json holds


ASKED = 8  # steps between questions that all ranks answer: each costs a collective


class Trainer:
    """A run's folder as it is lived: journal, watch, checkpoints.

    Every rank measures its share of the images and knows the same; rank 0 alone writes, but for the
    shards of a network.
    """

    def __init__(
        self, trainee: Session, optimizer: torch.optim.Optimizer, out: Path, conduct: Runtime
    ) -> None:
        self.trainee, self.optimizer, self.out, self.conduct = trainee, optimizer, out, conduct
        self.first = rank() == 0
        self.sharded = is_sharded(trainee.step.parameters())
        self.step = 0  # the next one
        self.skipped = 0
        self.seconds = 0.0
        self.best = -1.0
        self.looked = 0  # at which step
        self.lost: list[tuple[str, str]] = []  # images that vanished or broke, on any rank, and why
        self.watch_every = max(trainee.stage.steps // MEASURES, RARELY)
        self.log_every = max(trainee.stage.steps // 500, 1)
        self.journal: Journal | None = None
        self.bank, self.voted, self.watched = sample(trainee.index, conduct.watched)
        labels = trainee.index.labels
        judged = labels is not None and not trainee.stage.init and len(self.voted) > 0
        self.guard = collapse.CollapseDetector(
            voters=effective_count(labels[self.voted]) if labels is not None and judged else 0
        )
        self.candidates: list[Candidate] = []
        scored = selection.sample(trainee.index) if trainee.stage.keep == "best" else self.bank
        again = [
            local_share(positions) for positions in (self.bank, self.voted, self.watched, scored)
        ]
        trainee.images.keep(torch.cat(again).unique())
        self.stops = (
            selection.log_spaced(trainee.stage.steps) if trainee.stage.keep == "best" else set()
        )
        self.clock = self.saved = time.perf_counter()
        self.images = 0
        self.waits = WaitDetector(
            torch.get_num_threads() if self.first and trainee.device.type == "cpu" else 1
        )

    def begin(self) -> int:
        files = [
            file for name in CHECKPOINTS if os.path.lexists(file := self.out / "checkpoints" / name)
        ]
        if self.conduct.resume and files:
            self.refuse_other_data()
            self.restore(files)
            if self.guard.collapsed and self.conduct.on_collapse == "stop":
                # it would only collapse again, or end as though done
                raise Collapsed(
                    run_folder.read_run(self.out).facts.get("reason") or "the features collapsed"
                )
        if self.first:
            self.write_run("running")
            self.journal = Journal(self.out / "journal.jsonl", after=self.step)
            if self.journal.damaged:
                self.conduct.say(
                    f"journal.jsonl: {self.journal.damaged} lines are damaged, and left out"
                )
        if self.step == 0:
            self.look(None)
        self.consider()
        self.clock = self.saved = time.perf_counter()
        return self.step

    def restore(self, files: Sequence[Path]) -> None:
        """Go on with the first of some checkpoints that is whole: an older one leads to the same
        end.
        """
        failures: list[str] = []
        for file in files:
            error: Exception | None = None
            try:
                self.take(file)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except FileError as damage:
                error = damage
            except (
                Exception
            ) as misfit:  # what another version wrote fails in many ways, each for the same reason
                error = damage_error(
                    file,
                    f"it does not fit: {misfit!r}",
                    "take the version that wrote it, or delete it",
                )
            if not any_rank(error is not None):
                if failures:
                    self.conduct.say(
                        f"{failures[0]}; going on with {file.name}, from step {self.step}"
                    )
                return
            failures.append(str(error or f"{file} is damaged, as another process sees it"))
        raise FileError(
            f"{'; '.join(failures)}; without any checkpoint --resume begins at the first step"
        )

    def take(self, file: Path) -> None:
        """Be where a checkpoint was written."""
        state = checkpoint.load_checkpoint(file, self.trainee.device)
        fsdp.restore(self.trainee.step, self.optimizer, state, file.parent)
        self.guard.load_state_dict(state["guard"])
        self.step, self.skipped, self.seconds = state["next"], state["skipped"], state["seconds"]
        self.best, self.looked = state["best"], state["looked"]
        self.candidates = [Candidate(**c) for c in state["candidates"]]

    def refuse_other_data(self) -> None:
        """A resumed run goes on with the images that it began with: its order and memories count
        them.
        """
        was, index = run_folder.read_run(self.out).facts["data"]["fingerprint"], self.trainee.index
        if was not in (index.fingerprint, index.listing):
            raise UserError(
                f"the images have changed since {self.out} was begun: bring the old ones back to go"
                " on with it, or begin a new run in another --out, with this one's weights by"
                " --init"
            )

    def after(self, report: Report) -> None:
        self.step = report.step + 1
        self.skipped += report.skipped
        self.images += self.trainee.stage.batch
        last = self.step == self.trainee.stage.steps
        if report.skipped:
            self.conduct.say(
                f"step {report.step}: the gradients were not finite; the step was skipped"
            )
        suspicious = 0 < self.guard.bad < self.guard.patience and self.step - self.looked >= SOON
        if self.step % self.watch_every == 0 or self.step in EARLY or suspicious or last:
            self.look(report)
        elif self.step % self.log_every == 0:
            self.log(report, None)
        self.consider()
        if warning := self.waits.check():
            self.conduct.say(warning)
        if self.due():
            self.save()

    def due(self) -> bool:
        """Whether it is time to save; shards, which all ranks save at once, by rank 0's clock."""
        late = time.perf_counter() - self.saved > self.conduct.save_every
        return (self.step % ASKED == 0 and bool(broadcast_object(late))) if self.sharded else late

    def look(self, report: Report | None) -> None:
        """Measure the features, and ask the guard. The clock of images a second stands still
        meanwhile.
        """
        began = time.perf_counter()
        self.looked = self.step
        # on CPUs each rank's norms saw images of their own
        broadcast_tensors(running_statistics(self.trainee.step))
        features = self.measure()
        self.report_lost()
        spent = time.perf_counter() - began
        self.seconds += spent
        self.clock += spent
        warning = None
        if self.first:
            loss = float(report.losses["clean"]) if report else None  # chance is that of one loss
            stage = self.trainee.stage
            collapsed = self.trainee.method.collapsed_loss(stage.batch // stage.accumulate)
            warning = self.guard.observe(self.step, features, loss=loss, chance=collapsed)
            if warning:
                self.conduct.say(warning)
        self.log(report, features)
        quality = features.get("knn", features.get("rank", 0.0))
        if report and quality > self.best:
            self.best = quality
            self.save("best.pt")
        self.guard.bad = broadcast_object(self.guard.bad)  # every rank looks again at the same step
        if self.guard.collapsed and self.conduct.on_collapse == "stop":
            raise Collapsed(broadcast_object(warning) or "the features collapsed")

    def report_lost(self) -> None:
        """Say which images vanished or broke since they were indexed; raise UserError where
        training has too few left.
        """
        lost = sorted({pair for pairs in gather_values(self.trainee.images.lost) for pair in pairs})
        new = [pair for pair in lost if pair not in set(self.lost)]
        self.lost = lost
        if not new:
            return
        self.conduct.say(
            f"{count_text(len(lost), 'image')} vanished or broke since they were indexed:"
            f" {list_reasons(new)}"
        )
        images = len(self.trainee.index.paths)
        if len(lost) > MOST_LOST * images:
            raise UserError(
                f"{len(lost):,} of {count_text(images, 'image')} vanished or broke during training,"
                f" for example {list_reasons(lost[:1])}: bring them back and give the same command"
                " with --resume"
            )

    def consider(self) -> None:
        """Keep the weights of this step beside the run, with their scores, where the best are to be
        kept.
        """
        if self.step not in self.stops or any(c.step == self.step for c in self.candidates):
            return
        began = time.perf_counter()
        broadcast_tensors(running_statistics(self.trainee.step))
        t = self.trainee
        if self.step == 0 and t.stage.base is not None:
            with torch.random.fork_rng(devices=[]):
                base = run_folder.random_like(t.backbone, 0)
            weights_io.load_weights(base, t.stage.base, own_statistics=False)
            self.compete(base.to(t.device).to(memory_format=torch.channels_last), selection.BASE)
        self.compete(t.backbone, self.step)
        spent = time.perf_counter() - began
        self.seconds += spent
        self.clock += spent

    def compete(self, backbone: Backbone, step: int) -> None:
        """Score weights, and keep them beside the run."""
        t = self.trainee
        positions = selection.sample(t.index)
        vectors, closer = (self.features(positions, share, backbone) for share in (1.0, 0.7))
        if not self.finite([backbone.state_dict(), vectors, closer]):
            return
        scores = statistics.measure(vectors, closer)
        if t.index.labels is not None:
            scores |= selection.label_scores(vectors, t.index.labels[positions])
        name = "base" if step == selection.BASE else f"step-{step}"
        file = f"checkpoints/{name}.safetensors"
        self.write(
            backbone,
            self.out / file,
            self.out / f"checkpoints/{name}-{heads.FILE}" if step > 0 else None,
        )
        self.candidates.append(Candidate(step=step, file=file, scores=scores))
        self.conduct.say(f"{name}: {selection.said(self.candidates[-1])}")

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of two centre crops of every watched image: the whole one, and a closer one."""
        found = statistics.measure(
            self.features(self.watched, 1.0), self.features(self.watched, 0.7)
        )
        labels = self.trainee.index.labels
        if labels is not None and len(self.bank) and len(self.voted):
            bank, voted = self.features(self.bank, 1.0), self.features(self.voted, 1.0)
            found |= statistics.measure_knn(voted, labels[self.voted], bank, labels[self.bank])
        return found

    def features(self, positions: Tensor, share: float, backbone: Backbone | None = None) -> Tensor:
        t = self.trainee
        with t.eagerly():
            return extract(
                backbone or t.backbone,
                t.images,
                positions,
                size=t.stage.size,
                batch=256,
                device=t.device,
                precision=t.stage.precision,
                share=share,
            )

    def log(self, report: Report | None, features: dict[str, float] | None) -> None:
        if self.journal is None:
            return
        now = time.perf_counter()
        passed = max(now - self.clock, 1e-9)
        self.seconds += passed
        waited, self.trainee.waited = self.trainee.waited, 0.0
        entry: dict[str, Any] = {
            "step": self.step if report else 0,
            "epoch": report.epoch if report else 0,
            "loss": finite(report.loss) if report else None,
            "losses": {k: finite(v) for k, v in report.losses.items()} if report else {},
            "lr": report.lr if report else 0.0,
            "images_per_s": self.images / passed if report else None,
            "wait": waited / passed if report else None,
            "skipped": self.skipped,
            "lost": len(self.lost),
            "seconds": self.seconds,
            "features": None if features is None else {k: finite(v) for k, v in features.items()},
        }
        self.clock, self.images = now, 0
        self.journal.write(entry)
        self.conduct.show(entry)

    def save(self, name: str = "last.pt") -> None:
        if name == "last.pt":
            self.saved = time.perf_counter()
        if not self.first and not self.sharded:
            return
        network = self.trainee.step.state_dict()
        if not self.finite(network):
            self.conduct.say(
                f"step {self.step}: the weights are not finite; the last good checkpoint is kept"
            )
            return
        file = self.out / "checkpoints" / name
        state = {
            "guard": self.guard.state_dict(),
            "looked": self.looked,
            "next": self.step,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "best": self.best,
            "candidates": [asdict(c) for c in self.candidates],
        }
        if self.sharded:
            fsdp.save(self.trainee.step, self.optimizer, state, file)
        else:
            checkpoint.save_checkpoint(
                file, {**state, "step": network, "optimizer": self.optimizer.state_dict()}
            )

    def finite(self, state: Any) -> bool:
        """Of shards, on every rank."""
        return (
            not any_rank(not checkpoint.all_finite(state))
            if self.sharded
            else checkpoint.all_finite(state)
        )

    def write(self, backbone: Backbone, file: Path, beside: Path | None) -> None:
        """Weights for others: a backbone's and, in a file beside it, the method's head where later
        stages can use it.
        """
        head = self.trainee.method.head
        if head is not None and beside is not None:
            labels = self.trainee.index.labels
            heads.save_head(
                head, self.trainee.classes, labels is not None and labels.dim() == 2, beside
            )
        weights_io.save_backbone(backbone, file, {"size": str(self.trainee.stage.size)})

    def end(self, outcome: str, **more: Any) -> Path:
        file, head = self.out / "backbone.safetensors", self.out / heads.FILE
        if self.candidates and self.step:
            chosen = selection.choose(self.candidates)
            more["choice"] = chosen.facts()
            self.conduct.say(chosen.text)
            if self.first:
                self.put(self.out / chosen.kept.file, file, head)
        elif self.finite(self.trainee.method.state_dict()):
            learnt = self.step and self.trainee.stage.trainable != "none"
            self.write(self.trainee.backbone, file, head if learnt else None)
        self.close(outcome, **more)
        return file

    @staticmethod
    def put(kept: Path, file: Path, head: Path) -> None:
        """A candidate's weights in the run's place."""
        # the start's head has learnt nothing: there is none
        beside = kept.with_name(f"{kept.stem}-{heads.FILE}")
        if beside.is_file():
            files.atomic(head, lambda draft: shutil.copyfile(beside, draft))
        else:
            head.unlink(missing_ok=True)
        files.atomic(file, lambda draft: shutil.copyfile(kept, draft))

    def close(self, outcome: str, **more: Any) -> None:
        if self.first:
            self.write_run(outcome, **more)
        if self.journal is not None:
            self.journal.close()

    def fail(self, outcome: str, reason: str) -> None:
        """Keep what was learnt before it went wrong, if it is worth keeping, and if the disk takes
        it.
        """
        if (
            self.journal is None
        ):  # it never began, and what lies in the folder is not this run's; or another rank writes
            return
        try:
            # the others may not be here to give their shares: the last checkpoint is what is kept
            if self.sharded:
                self.close(outcome, reason=reason)
                return
            if self.step:
                self.save()
            self.end(outcome, reason=reason)
        except FileError:  # what is told is why it failed first
            with contextlib.suppress(FileError):
                self.close(outcome, reason=reason)

    def write_run(self, outcome: str, **more: Any) -> None:
        t = self.trainee
        facts = {
            **self.conduct.note,
            "held": t.images.hold,
            "threads": torch.get_num_threads(),
            **self.lost_facts(),
        }
        run_folder.write_run(self.out, t.stage, t.index, outcome, {**facts, **more})

    def lost_facts(self) -> dict[str, Any]:
        """What run.json says of images that vanished or broke."""
        return {"lost": len(self.lost), "lost_images": [list(pair) for pair in self.lost[:NAMED]]}


def finite(value: Tensor | float) -> float | None:
    """As JSON can say it."""
    return float(value) if math.isfinite(value) else None


def train(
    stage: Stage, out: Path, conduct: Runtime = Runtime(), index: Index | None = None
) -> Path:
    """Carry out `stage` in the folder `out`, or go on where it broke off; return the backbone's
    file.

    `index` is that of the stage's data, where it has been made already.

    Raises UserError for what the user can mend (another process that trains in `out`, a full disk),
    Collapsed when the features fell into one point, Stopped after SIGTERM or Ctrl-C. What was
    learnt is saved as far as the disk takes it.
    """
    begun = run_folder.read_run(out) if conduct.resume and run_folder.has_run(out) else None
    if index is None or (begun is not None and begun.pixel_range != index.pixel_range):
        index = shared_index(
            stage.data, stage.seed, pixel_range=begun.pixel_range if begun else PixelRange()
        )
    facts = begun.facts if begun else {}
    with use_threads(threads_of_run(facts.get("threads"), conduct.threads, conduct.say)):
        return carry_out(stage, out, conduct, index, facts)


def carry_out(
    stage: Stage, out: Path, conduct: Runtime, index: Index, facts: Mapping[str, Any]
) -> Path:
    """`facts`: of the run that goes on."""
    device = (
        torch.device(conduct.device, local_rank())
        if conduct.device == "cuda"
        else torch.device("cpu")
    )
    # On a CPU views of images that are held differ a little from those of images that are not: a
    # run goes on as it began.
    held = facts.get("held") if device.type == "cpu" else None
    trainee = build_session(stage, index, device, conduct.workers, conduct.say, hold=held)
    steps_per_epoch = trainee.batches.steps_per_epoch // stage.accumulate if stage.steps else 0
    step = trainee.step
    if conduct.fsdp and world_size() == 1:
        conduct.say("one process holds all: --fsdp has nothing to share out")
    elif conduct.fsdp and stage.compile:
        raise UserError("--compile and --fsdp do not go together: leave one of them out")
    elif conduct.fsdp:
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
    with alone(out, conduct):
        file = follow(Trainer(trainee, optimizer, out, conduct), optimizer, loop)
        if stage.steps and conduct.draw:
            try:
                with trainee.eagerly():
                    conduct.draw(trainee, out / "album" if rank() == 0 else None)
            except (OSError, RuntimeError) as error:
                conduct.say(
                    f"the run is done and saved, but its pictures could not be made: {error}"
                )
    return file


@contextmanager
def alone(out: Path, conduct: Runtime) -> Iterator[None]:
    """Hold the run's folder, by rank 0; what it is refused, every process is."""
    with ExitStack() as stack:
        refusal: UserError | None = None
        if rank() == 0:
            try:
                stack.enter_context(files.hold_run(out, conduct.say))
                if not conduct.resume and run_folder.has_run(out):  # since it was last looked at
                    refusal = UserError(
                        f"{out} holds a run already: go on with it by --resume, or choose another"
                        " --out"
                    )
            except UserError as error:
                refusal = error
        refusal = broadcast_object(refusal)
        if refusal is not None:
            raise refusal
        yield


def follow(life: Trainer, optimizer: torch.optim.Optimizer, loop: Loop) -> Path:
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
            reports = fit(
                wrapped, trainee.method, trainee.epochs, optimizer, loop, start, trainee.overview
            )
        with signals() as received:
            for report in reports:
                life.after(report)
                due = (
                    report.step % ASKED == 0 or report.step + 1 == stage.steps or world_size() == 1
                )
                if due and any_rank(bool(received)):
                    life.save()
                    life.end("stopped")
                    raise Stopped(
                        f"stopped at step {report.step + 1} of {stage.steps}; go on with --resume"
                    )
        life.save()
        return life.end("done")
    except UserError as error:  # on this rank, perhaps alone: nothing here may wait for the others
        life.fail(name_outcome(error), str(error))
        if (
            isinstance(error, FileError)
            and life.journal
            and any((life.out / "checkpoints").glob("*.pt"))
        ):
            raise FileError(
                f"{error}; the last checkpoint stays, and can be gone on with"
            ) from error
        raise
