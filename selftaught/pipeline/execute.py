"""Execution of a plan: every stage is trained once, in a folder named by the hash of its inputs.

So a stage that two plans share is trained once, and an interrupted plan resumes.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm

from selftaught import files
from selftaught.config.resolve import find_method, resolve_stage
from selftaught.config.stage import Data, Stage, method_of, shared_index
from selftaught.data.index.build import Index
from selftaught.distributed import broadcast_object, rank, wait_for_rank0
from selftaught.errors import UserError
from selftaught.method import Method
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.models import heads
from selftaught.models.weights import io as weights_io
from selftaught.pipeline.fingerprint import identify, origin
from selftaught.pipeline.plan import BY_WEIGHTS, Node, Plan
from selftaught.pipeline.publish import publish_outcome
from selftaught.runs import folder as run_folder
from selftaught.training import checkpoint
from selftaught.training.runtime import Runtime
from selftaught.training.session import check
from selftaught.training.trainer import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedStage:
    """A node with its complete configuration, ready to be trained."""

    node: Node
    stage: Stage
    identity: str
    root: str | None  # the weights that its chain starts from; None for random ones
    classes: tuple[str, ...]  # the classes that it predicts; empty if none
    several: bool = False  # its images have several classes each

    def folder(self, out: Path) -> Path:
        """The stage's folder below the plan's folder."""
        return out / "stages" / self.identity


def resolve_plan(
    plan: Plan,
    out: Path,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, ResolvedStage]:
    """Resolve every stage of a plan, by name, without training. All ranks return the same.

    Raises UserError, with the stage's name, for a stage that cannot be trained.
    """
    stages: dict[str, ResolvedStage] = {}
    for node in plan.nodes:
        try:
            before = stages[node.after] if node.after else None
            teacher = stages[node.teacher] if node.teacher else None
            stages[node.name] = resolve_node(node, before, teacher, out, device, index_of, say)
        except UserError as error:
            raise UserError(f"stage {node.name}: {error}") from error
    return stages


def resolve_node(
    node: Node,
    before: ResolvedStage | None,
    teacher: ResolvedStage | None,
    out: Path,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None],
) -> ResolvedStage:
    """Resolve one stage, after those that it starts from or learns from."""
    overrides = dict(node.overrides)
    if teacher:
        overrides["method.teacher"] = find_teacher_folder(teacher, overrides, out)
    norm_size = None
    if before:
        overrides = {**network_of_stage(before.stage), **overrides}
        overrides["init"] = str(before.folder(out))
        norm_size = before.stage.norm_size
    elif node.init is not None:
        stated = describe(node.init)
        overrides = {**as_overrides(stated), **overrides}
        overrides["init"] = str(run_folder.resolve_run(Path(node.init)))
        norm_size = stated.norm_size
    if overrides.get("norm_statistics") == BY_WEIGHTS:
        # Norms of views of this size can follow the next data without harm (docs/LOG.md).
        fit = norm_size is not None and str(overrides.get("size")) == str(norm_size)
        overrides["norm_statistics"] = "data" if fit else "weights"
    if not overrides.get("data"):
        raise UserError("it has no images: give it data")
    stage = run_folder.resolve_names(
        broadcast_object(resolve_stage(overrides, None, device, index_of, say))
    )
    root = before.root if before else stage.init
    if before and root is not None and stage.keep == "best":
        stage = replace(stage, base=root)  # stages in between can be worse than the root
    index = index_of(stage.data, stage.seed)
    check(stage, index)
    classes = classes_of(stage, index, before, teacher)
    previous = stage.method.previous(stage.init)
    part = previous.part if previous else "backbone"
    head = heads.FILE if part in ("head", "classifier") else None
    start = before.identity if before else broadcast_object(origin(stage.init, head))
    more = checkpoint.LAST if part == "method" else head
    teacher_identity = (
        teacher.identity
        if teacher
        else broadcast_object(origin(run_folder.teacher_of(stage), more, "--method.teacher"))
    )
    precise = node.overrides.get("precision") not in (None, "auto")
    # An older version identified images by their sizes; its stages are resumed.
    identity, older = (
        identify(stage, data, start, teacher_identity, precise)
        for data in (index.fingerprint, index.listing)
    )
    if broadcast_object(
        run_folder.has_run(out / "stages" / older)
        and not run_folder.has_run(out / "stages" / identity)
    ):
        identity = older
    stage = restore_precision(stage, out / "stages" / identity)
    several = index.labels is not None and index.labels.ndim == 2
    return ResolvedStage(node, stage, identity, root, classes, several)


def network_of_stage(stage: Stage) -> dict[str, Any]:
    """The network of a stage and the size of its views, as overrides."""
    return {"backbone": stage.backbone, "stem": stage.stem, "size": stage.size}


def network_of(init: str) -> dict[str, Any]:
    """The network of some weights and the size of their views, as overrides of what they state."""
    return as_overrides(describe(init))


def describe(init: str) -> weights_io.Stated:
    """What some weights state; nothing if there are none of this name, which fails later."""
    known = Path(init).exists() or timm.is_model(init)
    return weights_io.describe(init) if known else weights_io.Stated(None)


def as_overrides(stated: weights_io.Stated) -> dict[str, Any]:
    """What weights state, as overrides."""
    overrides: dict[str, Any] = {"size": stated.size} if stated.size else {}
    if stated.network:
        overrides["backbone"], overrides["stem"] = stated.network
    return overrides


def find_teacher_folder(teacher: ResolvedStage, overrides: Mapping[str, Any], out: Path) -> str:
    """The folder of a teacher in the same plan. Raises UserError if it cannot teach the stage."""
    config: type[Method.Config] = find_method(overrides).Config
    if not issubclass(config, TeacherConfig):
        raise UserError(
            "only distillation has a teacher: give it `method: distillation` or"
            " `feature-distillation`, or omit the teacher"
        )
    if config.part == "method" and not isinstance(teacher.stage.method, config):
        raise UserError(f"{teacher.node.name} cannot teach: it is not {config.teachers}")
    if config.part == "classifier" and not method_of(teacher.stage.method).classifies:
        raise UserError(
            f"{teacher.node.name} tells no classes and cannot teach: name a stage of supervised or"
            " distillation"
        )
    if config.part == "classifier" and teacher.several:
        raise UserError(
            f"{teacher.node.name} predicts several classes an image and cannot teach: name a stage"
            " that predicts one"
        )
    return str(teacher.folder(out))


def classes_of(
    stage: Stage, index: Index, before: ResolvedStage | None, teacher: ResolvedStage | None
) -> tuple[str, ...]:
    """The classes that a stage predicts.

    Raises UserError if the network for `Setup.previous` does not fit.
    """
    previous, kind = stage.method.previous(stage.init), method_of(stage.method)
    if kind.labels == "required":
        if previous and before:
            layers, available = stage.method.hidden_layers, before.stage.method.hidden_layers
            if layers > available:
                raise UserError(
                    f"--method.head-layers {layers}: {before.node.name} has a head of {available}"
                    " hidden layers"
                )
        elif previous:
            heads.load_head(previous.source)
        return index.classes
    if previous is None:
        return ()
    if previous.part == "backbone":
        if not teacher:
            weights_io.find_network(previous.source)
        return ()
    if previous.part == "method":
        if not teacher:
            checkpoint.load_method(previous.source)
        return ()
    classes = teacher.classes if teacher else heads.classifier(previous.source).classes
    if index.labels is not None:
        name = teacher.node.name if teacher else previous.source
        heads.refuse_other(name, classes, index.classes, heads.UNLABELLED)
    return classes


def restore_precision(stage: Stage, folder: Path) -> Stage:
    """The stage with the precision of the run in its folder, if there is one."""
    if not run_folder.has_run(folder):
        return stage
    return replace(stage, precision=run_folder.read_run(folder).stage.precision)


def execute_stage(
    resolved: ResolvedStage, out: Path, runtime: Runtime, index: Index | None = None
) -> Path:
    """Train or resume a stage, unless it is done already; return its folder.

    The stages that it starts from must be done. Raises UserError and Stopped as `train` does.
    """
    folder, name = resolved.folder(out), resolved.node.name
    # Several processes of a study can train the same stage.
    lock = files.locked(
        folder.with_suffix(".lock"),
        lambda: log.info(f"{name}: another process trains it in {folder}; waiting"),
        log.info,
    )
    with lock if rank() == 0 else nullcontext():
        wait_for_rank0()
        # Rank 0 decides for all, as it can start the run before other ranks check.
        started = broadcast_object(run_folder.has_run(folder))
        if started and broadcast_object(run_folder.read_run(folder).facts["finished"]):
            log.info(f"{name}: done already, in {folder}")
            return folder
        runtime = replace(runtime, resume=True) if started else runtime
        log.info(f"{name}: {resolved.stage.steps:,} steps, in {folder}")
        try:
            train(restore_precision(resolved.stage, folder), folder, runtime, index)
        except UserError as error:
            raise type(error)(f"{name}: {error}") from error
    return folder


def execute_plan(
    plan: Plan,
    out: Path,
    runtime: Runtime,
    command: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Train every stage of a plan that is not done yet; return the folders by name.

    Raises UserError (including Collapsed and Diverged) and Stopped as `train` does. The same call
    then resumes the plan.
    """
    indices: dict[tuple[Data, int], Index] = {}

    def index_of(data: Data, seed: int) -> Index:
        if (data, seed) not in indices:
            indices[data, seed] = shared_index(data, seed, on_progress)
            log.info("\n".join([", ".join(data.roots), indices[data, seed].describe()]))
        return indices[data, seed]

    if broadcast_object(run_folder.holds_own(out)):
        raise UserError(f"{out} holds a run of its own: choose another --out for stages")
    # The cache drops lines that several stages repeat.
    stages = resolve_plan(plan, out, runtime.device, index_of, cache(log.info))
    if rank() == 0:
        write_plan(out, plan, stages, command)
    for resolved in stages.values():
        index = indices[resolved.stage.data, resolved.stage.seed]
        execute_stage(resolved, out, runtime, index)
    if rank() == 0:
        publish_outcome(out, stages[plan.leaves[-1].name].folder(out), log.info)
    return {name: resolved.folder(out) for name, resolved in stages.items()}


def write_plan(out: Path, plan: Plan, stages: dict[str, ResolvedStage], command: str) -> None:
    """Write plan.json: the stages with their folders, and which one is the plan's outcome."""
    last = plan.leaves[-1]
    root = next((n for n in plan.ancestors(last.name) if n.after is None), last)
    files.write_json(
        out / run_folder.PLAN,
        {
            "command": command,
            "base": root.init,
            "outcome": last.name,
            **run_folder.record_paths(out, *(node.init for node in plan.nodes if node.init)),
            "stages": {
                name: {
                    "folder": f"stages/{s.identity}",
                    "after": s.node.after,
                    "teacher": s.node.teacher,
                    "init": s.node.init,
                    "overrides": {k: as_json(v) for k, v in s.node.overrides.items()},
                }
                for name, s in stages.items()
            },
        },
    )


def as_json(value: Any) -> Any:
    """A value of an override for JSON; objects become their repr."""
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    plain = value is None or isinstance(value, str | int | float | bool)
    return value if plain else str(value) if isinstance(value, Path) else repr(value)
