"""`selftaught pretrain`: teach a backbone from a folder of images."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selftaught import files
from selftaught.cli.console import device_named, tell
from selftaught.config import flags, registry, serialization
from selftaught.config.stage import Data, Stage, shared_index
from selftaught.data.index.build import Index
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import broadcast_object, process_group, rank
from selftaught.errors import Stopped, UserError, require
from selftaught.loggers.logger import build_loggers
from selftaught.loggers.terminal import Progress
from selftaught.pipeline import execute
from selftaught.runs import folder as run_folder
from selftaught.text import count_text
from selftaught.training import threads
from selftaught.training.runtime import Runtime
from selftaught.training.threads import take_share
from selftaught.training.trainer import train as train_command
from selftaught.visualize import snapshots


def pretrain(words: list[str]) -> int:
    try:
        train(words or ["--help"])
    except Stopped as stopped:
        tell(str(stopped))
    return 0


def train(words: list[str]) -> None:
    """What `pretrain` does, with its flags; raises UserError and Stopped."""
    typed, out = words, flags.chosen(words, "out")
    resume = "--resume" in words
    known = Path(out) if out else None
    base, config = None, flags.chosen(words, "config")
    # measured on the images, but a run goes on with its own
    pixel_range: PixelRange | None = PixelRange()
    if known is not None:
        files.refuse_busy(known)
        if run_folder.is_plan(known):
            raise UserError(
                f"{out} holds stages of `selftaught adapt`: go on by the same command, or choose"
                " another --out"
            )
    begun = known is not None and run_folder.has_run(known)
    if resume and begun:
        assert known is not None
        before = run_folder.read_run(known)
        base, pixel_range = before.stage, before.pixel_range
        if flags.chosen(words, "data") is None:
            before.refuse_missing(labels=flags.chosen(words, "labels-from") is None)
    elif config:
        base = read_config(Path(config))
    asked = flags.parse(words, base)  # refuses unknown words before anything is looked at
    check_conduct(asked)
    if begun and not resume:
        raise UserError(
            f"{out} holds a run already: go on with it by --resume, or choose another --out"
        )
    if resume and not begun and not asked.data:
        raise UserError(
            f"{out} holds no run to go on with: leave out --resume, and name the images by --data"
        )
    device = device_named(asked.device)
    with (
        process_group(device),
        Progress(show=rank() == 0) as progress,
        take_share(asked.threads, asked.workers, progress.say) as share,
    ):
        indices = []

        def index_of(data: Data, seed: int) -> Index:
            indices.append(shared_index(data, seed, progress.of("reading images"), pixel_range))
            progress.say(indices[-1].describe())
            return indices[-1]

        if base is None and asked.init:
            words = [*execute.network_flags(words, *execute.network_of(asked.init)), *words]
        # rank 0's choice decides
        stage = broadcast_object(flags.stage_from(words, base, device, index_of, progress.say))
        stage = run_folder.resolved(stage)
        if resume and begun and base is not None:
            refuse_other(stage, base, out)
        conduct = conduct_of(asked, device, share.workers, progress, ["pretrain", *typed], resume)
        if not (resume and begun):
            progress.say(registry.summary(stage))
        file = train_command(stage, Path(asked.out), conduct, indices[-1])
        progress.say(
            f"{registry.method_name(stage)}: {stage.steps} steps done; the backbone is in"
            f" {file}{lost_in(file.parent)}"
        )


def lost_in(folder: Path) -> str:
    """What the last line says of images that vanished or broke during training."""
    lost = run_folder.read_run(folder).facts.get("lost", 0) if rank() == 0 else 0
    return (
        f"; {count_text(lost, 'image')} vanished or broke meanwhile (run.json names them)"
        if lost
        else ""
    )


def refuse_other(stage: Stage, base: Stage, out: str | None) -> None:
    """A resumed run has the settings that it was begun with. Its images and their table of labels
    may lie elsewhere now: whether they are the same, the fingerprint tells.
    """
    table = base.data.labels not in run_folder.LABELS and stage.data.labels not in run_folder.LABELS
    labels = stage.data.labels if table else base.data.labels
    base = dataclasses.replace(
        base, data=dataclasses.replace(base.data, roots=stage.data.roots, labels=labels)
    )
    if other := flags.differences(run_folder.absolute(stage), run_folder.absolute(base)):
        raise UserError(
            f"{out} was begun with other settings ({', '.join(other)}): leave those flags out to go"
            " on with it, or begin a new run in another --out"
        )


def read_config(file: Path) -> Any:
    try:
        written = files.read_json(file, dict)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    stage = serialization.from_json(written.get("config", written))
    return run_folder.with_places(
        stage, lambda name: run_folder.located(name, written, file.parent)
    )


def check_conduct(asked: Any) -> None:
    """Before anything is looked at."""
    threads.check(asked.threads, asked.workers)
    build_loggers(asked.log)
    require(asked.save_every >= 0, "--save-every", "0 or more", asked.save_every)
    if Path(asked.out).is_file():
        raise UserError(f"{asked.out} is a file: choose another --out")


def conduct_of(
    asked: Any,
    device: str,
    workers: int,
    progress: Progress,
    words: Sequence[str],
    resume: bool = False,
) -> Runtime:
    return Runtime(
        device=device,
        workers=workers,
        threads=None if asked.threads == "auto" else asked.threads,
        on_collapse=asked.on_collapse,
        save_every=asked.save_every,
        fsdp=asked.fsdp,
        resume=resume,
        draw=snapshots.draw,
        loggers=(progress, *build_loggers(asked.log)),
        note={"command": shlex.join(["selftaught", *words]), "device": device},
    )
