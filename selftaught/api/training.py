"""Training of a stage or a plan; the commands `pretrain` and `adapt` call these functions."""

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
from selftaught.text import count_text, suggest_names
from selftaught.training import trainer

IMAGES = "images"  # subfolder of a run with the images of a Dataset


def pretrain(
    *data: Any,
    out: str | os.PathLike[str],
    backbone: str | nn.Module | None = None,
    resume: bool = False,
    config: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Run:
    """Train a backbone on images without labels; return the run.

    data: paths of folders or files, URLs, or torch Datasets, whose images are written once to
    `out`. backbone: a name in timm, `package.module:function`, or a module from pixels [B, 3, H, W]
    in [0, 1] to features [B, D]; a copy is trained. resume: continue the run in `out`. config: a
    run.json with other defaults. settings: fields of Stage and Data (`method`, `hard`, `size`,
    `steps`, ...), fields of their values (`method__temperature`, as in --method.temperature), and
    fields of Launch (`device`, `workers`, ...). Objects are used without change. Other defaults
    depend on the data and the hardware.

    Raises UserError for invalid settings, before training, and Stopped after Ctrl-C.
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
    """Adapt weights to the images of `target`, optionally by a stage on `source`; return the run.

    init: a run, a file or folder of weights, or a name in timm. plan: replaces all these by any
    chain or tree of stages: a YAML file, its content, or a Plan. settings: as for `pretrain`. The
    same call resumes. Raises UserError for invalid settings, and Stopped after Ctrl-C.
    """
    overrides, launch = split_settings(settings)
    place = Path(out)
    if "data" in overrides:
        raise UserError("adapt takes its images as target and source, not as data")
    if plan is not None:
        if overrides or target or source or init or source_steps is not None:
            raise UserError("settings and a plan do not go together: write them into the plan")
        stages = read_plan(plan)
    else:
        with Progress(show=rank() == 0) as progress:
            images = {
                name: roots_of(data, place / IMAGES / name, progress)
                for name, data in (("target", target), ("source", source))
                if data
            }
        stages = plans.chain(
            overrides,
            target=images.get("target"),
            source=images.get("source"),
            init=None if init is None else os.fspath(init),
            source_steps=source_steps,
        )
    command = describe_call(
        "adapt",
        (),
        out=str(out),
        target=target,
        source=source,
        init=init,
        plan=plan,
        source_steps=source_steps,
        **settings,
    )
    adapt_run(stages, place, launch, command)
    return Run(place)


def train(
    stage: Stage,
    out: str | os.PathLike[str],
    *,
    backbone: nn.Module | None = None,
    resume: bool = False,
    **launch: Any,
) -> Run:
    """Train a stage without changing its settings, or resume it; return the run.

    backbone: a module that replaces the stage's backbone; a copy is trained. launch: fields of
    Launch. Raises UserError for invalid settings, and Stopped after Ctrl-C.
    """
    overrides, launcher = split_settings(launch)
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
        with launcher.start(describe_call("train", (), out=str(out))) as (runtime, _):
            stage = run_folder.resolve_names(stage)
            trainer.train(stage, place, replace(runtime, resume=resume and start.begun))
    return Run(place)


# Shared by the commands and Python


@dataclass(frozen=True)
class Start:
    """The start of a run: the stage of a resumed run, or of a configuration."""

    base: Stage | None = None
    # a resumed run keeps its own; otherwise it is measured on the images
    pixel_range: PixelRange | None = PixelRange()
    begun: bool = False  # whether the folder holds a run
    resume: bool = False
    run: run_folder.Run | None = None  # the run that is resumed


def find_start(out: Path | None, resume: bool, config: Path | None) -> Start:
    """Read the run to resume, or the configuration. Raises UserError if `out` cannot be used."""
    if out is not None:
        refuse_file(out)
        files.refuse_busy(out)
        if run_folder.is_plan(out):
            raise UserError(
                f"{out} holds stages of `selftaught adapt`: repeat that command to continue, or"
                " choose another --out"
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
    """Train the stage of `overrides` in `out`, or resume it; return the backbone's file."""
    base = start.base
    if start.run and not overrides.get("data"):
        start.run.refuse_missing(labels=overrides.get("labels_from") is None)
    if start.begun and not start.resume:
        raise UserError(
            f"{out} holds a run already: continue it with --resume, or choose another --out"
        )
    if start.resume and not start.begun and not overrides.get("data"):
        raise UserError(
            f"{out} holds no run to resume: omit --resume, and name the images by --data"
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
        # The choice of rank 0 holds for all.
        stage = broadcast_object(
            resolve_stage(overrides, base, runtime.device, index_of, progress.say)
        )
        stage = run_folder.resolve_names(stage)
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


def adapt_run(plan: Plan, out: Path, launch: Launch, command: str) -> list[str]:
    """Execute a plan with the defaults of adapting; return lines on its outcome, on rank 0."""
    refuse_file(out)
    with launch.start(command) as (runtime, progress):
        folders = execute.execute_plan(
            plans.with_defaults(plan), out, runtime, command, progress.of("reading images")
        )
        if rank() != 0:
            return []
        place = folders[plan.leaves[-1].name]
        facts = run_folder.read_run(place).facts
        choice = [facts["choice"]["text"]] if "choice" in facts else []
        # `out` may hold the outcome of another plan by now.
        named = out if run_folder.resolve_run(out) == place else place
        return [*choice, f"the backbone is in {named / 'backbone.safetensors'}{lost_in(place)}"]


def lost_in(folder: Path) -> str:
    """The end of the last line: the number of images that were lost during training, if any."""
    lost = run_folder.read_run(folder).facts.get("lost", 0) if rank() == 0 else 0
    if not lost:
        return ""
    return f"; {count_text(lost, 'image')} vanished or broke meanwhile (run.json names them)"


def refuse_other(stage: Stage, base: Stage | None, out: Path) -> None:
    """Raise UserError if a resumed run would have other settings than before.

    The locations of images and labels may differ; the fingerprint compares their content.
    """
    if base is None:
        return
    table = base.data.labels not in run_folder.LABELS and stage.data.labels not in run_folder.LABELS
    labels = stage.data.labels if table else base.data.labels
    base = replace(base, data=replace(base.data, roots=stage.data.roots, labels=labels))
    if other := differences(run_folder.make_absolute(stage), run_folder.make_absolute(base)):
        raise UserError(
            f"{out} was begun with other settings ({', '.join(other)}): omit those flags to"
            " continue it, or start a new run in another --out"
        )


def read_config(file: Path) -> Stage:
    """Read the stage of a run.json, or of a configuration alone. Raises UserError if it fails."""
    try:
        content = files.read_json(file, dict)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    stage = serialization.from_json(content.get("config", content))
    return run_folder.with_places(
        stage, lambda name: run_folder.find_path(name, content, file.parent)
    )


def read_plan(plan: str | os.PathLike[str] | Mapping[str, Any] | Plan) -> Plan:
    """The plan of a file, of the content of a file, or the Plan itself."""
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, Mapping):
        return plans.from_mapping(plan, "the plan")
    return plans.read(Path(plan))


# Keywords


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Launch]:
    """Split keywords into overrides of a stage and a Launch. Raises UserError for unknown ones."""
    overrides: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in settings.items():
        name = normalise(name.replace("__", "."))
        if name in CONDUCT:
            options[name] = value
        elif name in FIELDS or name.partition(".")[0] in GROUPS:
            overrides[name] = value
        else:
            allowed = [*FIELDS, *(f.name for f in fields(Launch))]
            near = suggest_names(name, allowed, cutoff=0.5)
            raise UserError(f"there is no keyword {name}; did you mean {', '.join(near)}?")
    return overrides, Launch(**{k: v for k, v in options.items() if v is not None})


def describe_call(function: str, data: tuple[Any, ...], **settings: Any) -> str:
    """The call as Python code, for run.json. Other objects are written as their class."""

    def format_value(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"({', '.join(map(format_value, value))},)"
        if isinstance(value, os.PathLike):
            return repr(os.fspath(value))
        plain = type(value) in (str, int, float, bool)
        own = type(value).__module__.startswith("selftaught.")
        return repr(value) if plain or own else f"<{type(value).__qualname__}>"

    parts = [*map(format_value, data)]
    parts += [f"{name}={format_value(v)}" for name, v in settings.items() if v is not None]
    return f"selftaught.{function}({', '.join(parts)})"
