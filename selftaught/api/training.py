"""Train a stage or a chain of stages; the commands `pretrain` and `adapt` do it by these
functions, too.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from selftaught import files
from selftaught.api.dataset import roots_of
from selftaught.api.launch import Launch, refuse_file
from selftaught.api.run import Run
from selftaught.config import registry, serialization
from selftaught.config.overrides import CONDUCT, FIELDS, GROUPS, normalise
from selftaught.config.resolve import resolve_stage
from selftaught.config.stage import Data, Stage, differences, shared_index
from selftaught.data.index.build import Index
from selftaught.data.pixel_range import PixelRange
from selftaught.distributed import broadcast_object, rank
from selftaught.errors import UserError
from selftaught.loggers.terminal import Progress
from selftaught.models.backbone import given_backbone
from selftaught.pipeline import execute
from selftaught.pipeline import plan as plans
from selftaught.pipeline.plan import Plan
from selftaught.runs import folder as run_folder
from selftaught.text import count_text
from selftaught.training import trainer

IMAGES = "images"  # in a run's folder: what was written of a Dataset


def pretrain(
    *data: Any,
    out: str | os.PathLike[str],
    backbone: str | nn.Module | None = None,
    resume: bool = False,
    config: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Run:
    """Train a backbone on images without labels; return the run.

    data: paths of folders or files, URLs, or torch Datasets, whose images are written once into
    `out`. backbone: timm's name, `package.module:function`, or a module from pixels [B, 3, H, W] in
    [0, 1] to features [B, D], of which a copy is trained. resume: go on with the run in `out`.
    config: a run.json to start from. settings: fields of Stage and Data (`method`, `hard`, `size`,
    `steps`, ...), fields of their values (`method__temperature`, as in --method.temperature), and
    of Launch (`device`, `workers`, ...). A value that is given whole is taken as it is; all else
    follows the data and the hardware.

    Raises UserError for what does not fit, before anything is trained, and Stopped after Ctrl-C.
    """
    overrides, launch = split_settings(settings)
    place = Path(out)
    with given_backbone(backbone if isinstance(backbone, nn.Module) else None) as name:
        overrides["backbone"] = name or backbone
        start = find_start(place, resume, Path(config) if config else None)
        if data:
            with Progress(show=rank() == 0) as progress:
                overrides["data"] = roots_of(data, place / IMAGES, progress)
        command = describe_call(
            "pretrain", data, out=str(out), backbone=name or backbone, **settings
        )
        pretrain_run(overrides, place, start, launch, command)
    return Run(place)


def adapt(
    *,
    out: str | os.PathLike[str],
    target: Any = None,
    source: Any = None,
    init: str | os.PathLike[str] | None = None,
    plan: str | os.PathLike[str] | Mapping[str, Any] | Plan | None = None,
    source_steps: int | None = None,
    **settings: Any,
) -> Run:
    """Lead weights to the images of `target`, through those of `source` where there are some;
    return the run of the outcome.

    init: a run, a file or folder of weights, or a name in timm. plan: stages in any chain or tree,
    in place of all these: a YAML file, what such a file holds, or a Plan. settings: as for
    `pretrain`. The same call goes on with what broke off.
    """
    overrides, launch = split_settings(settings)
    place = Path(out)
    if plan is not None:
        if overrides or target or source or init:
            raise UserError("settings and a plan do not go together: write them into the plan")
        asked = read_plan(plan)
    else:
        with Progress(show=rank() == 0) as progress:
            images = {
                name: roots_of(data, place / IMAGES / name, progress)
                for name, data in (("target", target), ("source", source))
                if data
            }
        asked = plans.chain(
            overrides,
            target=images.get("target"),
            source=images.get("source"),
            init=None if init is None else os.fspath(init),
            source_steps=source_steps,
        )
    command = describe_call("adapt", (), out=str(out), target=target, init=init, **settings)
    adapt_run(asked, place, launch, command)
    return Run(place)


def train(
    stage: Stage,
    out: str | os.PathLike[str],
    *,
    backbone: nn.Module | None = None,
    resume: bool = False,
    **launch: Any,
) -> Run:
    """Carry out a stage just as it is, or go on with it; return the run.

    backbone: a module to train a copy of, in place of the one that the stage names. launch: fields
    of Launch.
    """
    overrides, conduct = split_settings(launch)
    if overrides:
        raise UserError(
            f"{', '.join(overrides)}: a stage has its settings; use dataclasses.replace"
        )
    place = Path(out)
    with given_backbone(backbone) as name:
        stage = replace(stage, backbone=name) if name else stage
        start = find_start(place, resume, None)
        if start.begun:
            refuse_other(stage, start.base, place)
        with conduct.start(describe_call("train", (), out=str(out))) as (runtime, _):
            stage = run_folder.resolved(stage)
            trainer.train(stage, place, replace(runtime, resume=resume and start.begun))
    return Run(place)


# ------------------------------------------------------------------------------- what both the
# commands and Python do


@dataclass(frozen=True)
class Start:
    """What a run goes on from: the stage of a run that broke off, or of a configuration."""

    base: Stage | None = None
    # measured on the images, but a run goes on with its own
    pixel_range: PixelRange | None = PixelRange()
    begun: bool = False  # the folder holds a run
    resume: bool = False
    run: run_folder.Run | None = None  # that goes on


def find_start(out: Path | None, resume: bool, config: Path | None) -> Start:
    """Raises UserError where the folder is in use, or holds something else."""
    if out is not None:
        refuse_file(out)
        files.refuse_busy(out)
        if run_folder.is_plan(out):
            raise UserError(
                f"{out} holds stages of `selftaught adapt`: go on by the same command, or choose"
                " another --out"
            )
    begun = out is not None and run_folder.has_run(out)
    if resume and begun:
        assert out is not None
        run = run_folder.read_run(out)
        return Start(run.stage, run.pixel_range, begun, resume, run)
    base = read_config(config) if config else None
    return Start(base=base, begun=begun, resume=resume)


def pretrain_run(
    overrides: Mapping[str, Any], out: Path, start: Start, launch: Launch, command: str
) -> Path:
    """Train the stage that is asked for in `out`, or go on with it; return the backbone's file."""
    base = start.base
    if start.run and not overrides.get("data"):
        start.run.refuse_missing(labels=overrides.get("labels_from") is None)
    if start.begun and not start.resume:
        raise UserError(
            f"{out} holds a run already: go on with it by --resume, or choose another --out"
        )
    if start.resume and not start.begun and not overrides.get("data"):
        raise UserError(
            f"{out} holds no run to go on with: leave out --resume, and name the images by --data"
        )
    with launch.start(command) as (runtime, progress):
        indices = []

        def index_of(data: Data, seed: int) -> Index:
            indices.append(
                shared_index(data, seed, progress.of("reading images"), start.pixel_range)
            )
            progress.say(indices[-1].describe())
            return indices[-1]

        if base is None and overrides.get("init"):
            network = execute.network_of(os.fspath(overrides["init"]))
            overrides = {**network, **{k: v for k, v in overrides.items() if v is not None}}
        # rank 0's choice decides
        stage = broadcast_object(
            resolve_stage(overrides, base, runtime.device, index_of, progress.say)
        )
        stage = run_folder.resolved(stage)
        if start.run:
            refuse_other(stage, start.run.stage, out)
        if not start.run:
            progress.say(registry.summary(stage))
        file = trainer.train(stage, out, replace(runtime, resume=start.resume), indices[-1])
        progress.say(
            f"{registry.method_name(stage)}: {stage.steps} steps done; the backbone is in"
            f" {file}{lost_in(file.parent)}"
        )
    return file


def adapt_run(asked: Plan, out: Path, launch: Launch, command: str) -> list[str]:
    """Carry out a plan with the defaults of adapting; return what became of its outcome, in lines,
    on rank 0.
    """
    refuse_file(out)
    with launch.start(command) as (runtime, progress):
        folders = execute.execute_plan(
            plans.with_defaults(asked), out, runtime, command, progress.of("reading images")
        )
        if rank() != 0:
            return []
        # which plan.json names, unless another plan has begun there since
        place = folders[asked.leaves[-1].name]
        facts = run_folder.read_run(place).facts
        choice = [facts["choice"]["text"]] if "choice" in facts else []
        return [*choice, f"the backbone is in {place / 'backbone.safetensors'}{lost_in(place)}"]


def lost_in(folder: Path) -> str:
    """What the last line says of images that vanished or broke during training."""
    lost = run_folder.read_run(folder).facts.get("lost", 0) if rank() == 0 else 0
    return (
        f"; {count_text(lost, 'image')} vanished or broke meanwhile (run.json names them)"
        if lost
        else ""
    )


def refuse_other(stage: Stage, base: Stage | None, out: Path) -> None:
    """A resumed run has the settings that it was begun with. Its images and their table of labels
    may lie elsewhere now: whether they are the same, the fingerprint tells.
    """
    if base is None:
        return
    table = base.data.labels not in run_folder.LABELS and stage.data.labels not in run_folder.LABELS
    labels = stage.data.labels if table else base.data.labels
    base = replace(base, data=replace(base.data, roots=stage.data.roots, labels=labels))
    if other := differences(run_folder.absolute(stage), run_folder.absolute(base)):
        raise UserError(
            f"{out} was begun with other settings ({', '.join(other)}): leave those flags out to go"
            " on with it, or begin a new run in another --out"
        )


def read_config(file: Path) -> Stage:
    try:
        written = files.read_json(file, dict)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    stage = serialization.from_json(written.get("config", written))
    return run_folder.with_places(
        stage, lambda name: run_folder.located(name, written, file.parent)
    )


def read_plan(asked: str | os.PathLike[str] | Mapping[str, Any] | Plan) -> Plan:
    if isinstance(asked, Plan):
        return asked
    if isinstance(asked, Mapping):
        return plans.from_mapping(asked, "the plan")
    return plans.read(Path(asked))


# ------------------------------------------------------------------------------- keywords


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Launch]:
    """What a stage shall be, and how it is carried out. Raises UserError for a keyword that there
    is not.
    """
    overrides: dict[str, Any] = {}
    conduct: dict[str, Any] = {}
    for name, value in settings.items():
        name = normalise(name.replace("__", "."))
        if name in CONDUCT:
            conduct[name] = value
        elif name in FIELDS or name.partition(".")[0] in GROUPS:
            overrides[name] = value
        else:
            allowed = [*FIELDS, *(f.name for f in fields(Launch))]
            near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5) or sorted(allowed)
            raise UserError(f"there is no keyword {name}; did you mean {', '.join(near)}?")
    return overrides, Launch(**{k: v for k, v in conduct.items() if v is not None})


def describe_call(function: str, data: tuple[Any, ...], **settings: Any) -> str:
    """The call as Python writes it, for run.json; of an object, its class."""

    def written(value: Any) -> str:
        if isinstance(value, list | tuple):
            return f"({', '.join(map(written, value))},)"
        if isinstance(value, os.PathLike):
            return repr(os.fspath(value))
        plain = type(value).__module__.startswith("selftaught.") or type(value) in (
            str,
            int,
            float,
            bool,
        )
        return repr(value) if plain else f"<{type(value).__qualname__}>"

    parts = [*map(written, data)]
    parts += [f"{name}={written(value)}" for name, value in settings.items() if value is not None]
    return f"selftaught.{function}({', '.join(parts)})"
