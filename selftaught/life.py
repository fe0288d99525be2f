"""A run as it is lived: its folder, journal, watch and checkpoints, told in one place; hence some 200 lines."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from selftaught import checkpoint, choice, files, sharding
from selftaught.choice import Candidate
from selftaught.data.index.build import Index
from selftaught.distributed import anywhere, gather_values, is_sharded, own_share, rank, same, shared
from selftaught.errors import Collapsed, FileError, UserError, damage_error
from selftaught.features import statistics
from selftaught.features.extract import extract
from selftaught.features.metrics import effective_count
from selftaught.fit import Report
from selftaught.loggers.jsonl import Journal
from selftaught.models import heads
from selftaught.models.backbone import Backbone
from selftaught.models.batch_norm import running_statistics
from selftaught.models.weights import io as weights
from selftaught.runs import folder as run
from selftaught.text import counted, listed
from selftaught.threads import WaitDetector
from selftaught.trainee import Trainee
from selftaught.training import collapse as watch

CHECKPOINTS = ("last.pt", "best.pt")  # what a run goes on with: the first of them that is whole


WATCHED = 256  # held-back images whose features are followed


MEASURES = 20  # how often in a whole run, and


RARELY = 50  # steps between them at least: a measurement costs as much as some four steps


EARLY = (10, 25, 50, 100, 200, 400)  # besides: a collapse shows soon


SOON = 5  # steps after a measurement that looked like one


MOST_LOST = 0.1  # share of the training images that may vanish or break before training stops


NAMED = 20  # lost images whose names run.json holds


ASKED = 8  # steps between questions that all ranks answer: each costs a collective


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How a run is carried out, which does not change its outcome."""

    device: str = "cpu"
    workers: int = 2
    threads: int | None = None  # that compute; as a run that goes on began, or else as torch is set
    on_collapse: Literal["stop", "warn"] = "stop"
    save_every: float = 120.0  # seconds between checkpoints
    fsdp: bool = False  # each process holds its share of weights, gradients and the optimizer's memory
    watched: int = WATCHED  # images whose features are followed; with labels, four times as many vote on them
    album: bool = True  # pictures at the end
    resume: bool = False
    show: Callable[[dict[str, Any]], None] = lambda entry: None  # each journal entry, as it is made
    say: Callable[[str], None] = lambda text: None  # what a person should know
    note: dict[str, Any] = field(default_factory=dict)  # more for run.json: the command, the versions


class Life:
    """A run's folder as it is lived: journal, watch, checkpoints.

    Every rank measures its share of the images and knows the same; rank 0 alone writes, but for the shards of a network.
    """

    def __init__(self, trainee: Trainee, optimizer: torch.optim.Optimizer, out: Path, conduct: Conduct) -> None:
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
        self.guard = watch.Guard(voters=effective_count(labels[self.voted]) if labels is not None and judged else 0)
        self.candidates: list[Candidate] = []
        scored = choice.sample(trainee.index) if trainee.stage.keep == "best" else self.bank
        again = [own_share(positions) for positions in (self.bank, self.voted, self.watched, scored)]
        trainee.images.keep(torch.cat(again).unique())
        self.stops = choice.log_spaced(trainee.stage.steps) if trainee.stage.keep == "best" else set()
        self.clock = self.saved = time.perf_counter()
        self.images = 0
        self.waits = WaitDetector(torch.get_num_threads() if self.first and trainee.device.type == "cpu" else 1)

    def begin(self) -> int:
        files = [file for name in CHECKPOINTS if os.path.lexists(file := self.out / "checkpoints" / name)]
        if self.conduct.resume and files:
            self.refuse_other_data()
            self.restore(files)
            if self.guard.collapsed and self.conduct.on_collapse == "stop":
                # it would only collapse again, or end as though done
                raise Collapsed(run.read(self.out).facts.get("reason") or "the features collapsed")
        if self.first:
            self.write_run("running")
            self.journal = Journal(self.out / "journal.jsonl", after=self.step)
            if self.journal.damaged:
                self.conduct.say(f"journal.jsonl: {self.journal.damaged} lines are damaged, and left out")
        if self.step == 0:
            self.look(None)
        self.consider()
        self.clock = self.saved = time.perf_counter()
        return self.step

    def restore(self, files: Sequence[Path]) -> None:
        """Go on with the first of some checkpoints that is whole: an older one leads to the same end."""
        failures: list[str] = []
        for file in files:
            error: Exception | None = None
            try:
                self.take(file)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except FileError as damage:
                error = damage
            except Exception as misfit:  # what another version wrote fails in many ways, each for the same reason
                error = damage_error(file, f"it does not fit: {misfit!r}", "take the version that wrote it, or delete it")
            if not anywhere(error is not None):
                if failures:
                    self.conduct.say(f"{failures[0]}; going on with {file.name}, from step {self.step}")
                return
            failures.append(str(error or f"{file} is damaged, as another process sees it"))
        raise FileError(f"{'; '.join(failures)}; without any checkpoint --resume begins at the first step")

    def take(self, file: Path) -> None:
        """Be where a checkpoint was written."""
        state = checkpoint.load(file, self.trainee.device)
        sharding.restore(self.trainee.step, self.optimizer, state, file.parent)
        self.guard.load_state_dict(state["guard"])
        self.step, self.skipped, self.seconds = state["next"], state["skipped"], state["seconds"]
        self.best, self.looked = state["best"], state["looked"]
        self.candidates = [Candidate(**c) for c in state["candidates"]]

    def refuse_other_data(self) -> None:
        """A resumed run goes on with the images that it began with: its order and memories count them."""
        was, index = run.read(self.out).facts["data"]["fingerprint"], self.trainee.index
        if was not in (index.fingerprint, index.listing):
            raise UserError(
                f"the images have changed since {self.out} was begun: bring the old ones back to go on with it, or begin a "
                "new run in another --out, with this one's weights by --init"
            )

    def after(self, report: Report) -> None:
        self.step = report.step + 1
        self.skipped += report.skipped
        self.images += self.trainee.stage.batch
        last = self.step == self.trainee.stage.steps
        if report.skipped:
            self.conduct.say(f"step {report.step}: the gradients were not finite; the step was skipped")
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
        return (self.step % ASKED == 0 and bool(shared(late))) if self.sharded else late

    def look(self, report: Report | None) -> None:
        """Measure the features, and ask the guard. The clock of images a second stands still meanwhile."""
        began = time.perf_counter()
        self.looked = self.step
        same(running_statistics(self.trainee.step))  # on CPUs each rank's norms saw images of their own
        features = self.measure()
        self.report_lost()
        spent = time.perf_counter() - began
        self.seconds += spent
        self.clock += spent
        warning = None
        if self.first:
            loss = float(report.losses["clean"]) if report else None  # chance is that of one loss
            warning = self.guard.observe(self.step, features, loss=loss, chance=self.trainee.method.chance())
            if warning:
                self.conduct.say(warning)
        self.log(report, features)
        quality = features.get("knn", features.get("rank", 0.0))
        if report and quality > self.best:
            self.best = quality
            self.save("best.pt")
        self.guard.bad = shared(self.guard.bad)  # every rank looks again at the same step
        if self.guard.collapsed and self.conduct.on_collapse == "stop":
            raise Collapsed(shared(warning) or "the features collapsed")

    def report_lost(self) -> None:
        """Say which images vanished or broke since they were indexed; raise UserError where training has too few left."""
        lost = sorted({pair for pairs in gather_values(self.trainee.images.lost) for pair in pairs})
        new = [pair for pair in lost if pair not in set(self.lost)]
        self.lost = lost
        if not new:
            return
        self.conduct.say(f"{counted(len(lost), 'image')} vanished or broke since they were indexed: {listed(new)}")
        images = len(self.trainee.index.paths)
        if len(lost) > MOST_LOST * images:
            raise UserError(
                f"{len(lost):,} of {counted(images, 'image')} vanished or broke during training, for example "
                f"{listed(lost[:1])}: bring them back and give the same command with --resume"
            )

    def consider(self) -> None:
        """Keep the weights of this step beside the run, with their scores, where the best are to be kept."""
        if self.step not in self.stops or any(c.step == self.step for c in self.candidates):
            return
        began = time.perf_counter()
        same(running_statistics(self.trainee.step))
        t = self.trainee
        if self.step == 0 and t.stage.base is not None:
            with torch.random.fork_rng(devices=[]):
                base = run.random_like(t.backbone, 0)
            weights.load_weights(base, t.stage.base, own_statistics=False)
            self.compete(base.to(t.device).to(memory_format=torch.channels_last), choice.BASE)
        self.compete(t.backbone, self.step)
        spent = time.perf_counter() - began
        self.seconds += spent
        self.clock += spent

    def compete(self, backbone: Backbone, step: int) -> None:
        """Score weights, and keep them beside the run."""
        t = self.trainee
        positions = choice.sample(t.index)
        vectors, closer = (self.features(positions, share, backbone) for share in (1.0, 0.7))
        if not self.finite([backbone.state_dict(), vectors, closer]):
            return
        scores = statistics.measure(vectors, closer)
        if t.index.labels is not None:
            scores |= choice.label_scores(vectors, t.index.labels[positions])
        name = "base" if step == choice.BASE else f"step-{step}"
        file = f"checkpoints/{name}.safetensors"
        self.write(backbone, self.out / file, self.out / f"checkpoints/{name}-{heads.FILE}" if step > 0 else None)
        self.candidates.append(Candidate(step=step, file=file, scores=scores))
        self.conduct.say(f"{name}: {choice.said(self.candidates[-1])}")

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of two centre crops of every watched image: the whole one, and a closer one."""
        found = statistics.measure(self.features(self.watched, 1.0), self.features(self.watched, 0.7))
        labels = self.trainee.index.labels
        if labels is not None and len(self.bank) and len(self.voted):
            bank, voted = self.features(self.bank, 1.0), self.features(self.voted, 1.0)
            found |= statistics.votes(voted, labels[self.voted], bank, labels[self.bank])
        return found

    def features(self, positions: Tensor, share: float, backbone: Backbone | None = None) -> Tensor:
        t = self.trainee
        with t.eagerly():
            return extract(
                backbone or t.backbone, t.images, positions, size=t.stage.size, batch=256, device=t.device,
                precision=t.stage.precision, share=share,
            )  # fmt: skip

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
            self.conduct.say(f"step {self.step}: the weights are not finite; the last good checkpoint is kept")
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
            sharding.save(self.trainee.step, self.optimizer, state, file)
        else:
            checkpoint.save(file, {**state, "step": network, "optimizer": self.optimizer.state_dict()})

    def finite(self, state: Any) -> bool:
        """Of shards, on every rank."""
        return not anywhere(not checkpoint.all_finite(state)) if self.sharded else checkpoint.all_finite(state)

    def write(self, backbone: Backbone, file: Path, beside: Path | None) -> None:
        """Weights for others: a backbone's and, in a file beside it, the method's head where later stages can use it."""
        head = self.trainee.method.kept_head()
        if head is not None and beside is not None:
            labels = self.trainee.index.labels
            heads.save(head, self.trainee.classes, labels is not None and labels.dim() == 2, beside)
        weights.save(backbone, file, {"size": str(self.trainee.stage.size)})

    def end(self, outcome: str, **more: Any) -> Path:
        file, head = self.out / "backbone.safetensors", self.out / heads.FILE
        if self.candidates and self.step:
            chosen = choice.choose(self.candidates)
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
        beside = kept.with_name(f"{kept.stem}-{heads.FILE}")  # the start's head has learnt nothing: there is none
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
        """Keep what was learnt before it went wrong, if it is worth keeping, and if the disk takes it."""
        if self.journal is None:  # it never began, and what lies in the folder is not this run's; or another rank writes
            return
        try:
            if self.sharded:  # the others may not be here to give their shares: the last checkpoint is what is kept
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
        facts = {**self.conduct.note, "held": t.images.hold, "threads": torch.get_num_threads(), **self.lost_facts()}
        run.write(self.out, t.stage, t.index, outcome, {**facts, **more})

    def lost_facts(self) -> dict[str, Any]:
        """What run.json says of images that vanished or broke."""
        return {"lost": len(self.lost), "lost_images": [list(pair) for pair in self.lost[:NAMED]]}


def finite(value: Tensor | float) -> float | None:
    """As JSON can say it."""
    return float(value) if math.isfinite(value) else None


def sample(index: Index, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the labelled images that vote, of those that are voted on, and of those whose features are watched:
    fixed for a data set. Held-back images are voted on and watched; where there are few, training images are watched
    besides, and where there are none, some are voted on that do not vote.
    """
    rng = torch.Generator().manual_seed(0)

    def some(positions: Tensor, most: int) -> Tensor:
        return positions[torch.randperm(len(positions), generator=rng)[:most]]

    known = index.labelled
    bank, held = some(index.train[known[index.train]], 5 * number), some(index.held_out, number)
    voted = held[known[held]]
    if not len(voted):
        half = min(number, len(bank) // 2)
        bank, voted = bank[half:], bank[:half]
    watched = torch.cat([held, some(index.train, number)])[:number]
    return bank[: 4 * number], voted, watched
