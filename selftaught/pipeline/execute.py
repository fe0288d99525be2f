"""Carry out a plan in a folder: every stage once, in a folder of its own whose name is the hash of
what decides it.

Stages that two plans share are therefore trained once, and a plan that broke off goes on where it
was. Over 200 lines with all that settles a stage before it is trained.
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
from selftaught.methods.distillation.logits import Distillation
from selftaught.models import heads
from selftaught.models.weights import io as weights_io
from selftaught.pipeline.fingerprint import identify, origin
from selftaught.pipeline.plan import Node, Plan
from selftaught.pipeline.publish import publish_outcome
from selftaught.runs import folder as run_folder
from selftaught.training.runtime import Runtime
from selftaught.training.session import check
from selftaught.training.trainer import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedStage:
    """A node with all that decides it: ready to be trained."""

    node: Node
    stage: Stage
    identity: str
    root: str | None  # the weights that its chain began from
    classes: tuple[str, ...]  # that it will tell

    def folder(self, out: Path) -> Path:
        return out / "stages" / self.identity


def resolve_plan(
    plan: Plan,
    out: Path,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, ResolvedStage]:
    """Every stage of a plan, by name. Images are counted, nothing is trained; the same on every
    rank.
    """
    found: dict[str, ResolvedStage] = {}
    for node in plan.nodes:
        try:
            before, teacher = (found[name] if name else None for name in (node.after, node.teacher))
            found[node.name] = resolve_node(node, before, teacher, out, device, index_of, say)
        except UserError as error:
            raise UserError(f"stage {node.name}: {error}") from error
    return found


def resolve_node(
    node: Node,
    before: ResolvedStage | None,
    teacher: ResolvedStage | None,
    out: Path,
    device: str,
    index_of: Callable[[Data, int], Index],
    say: Callable[[str], None],
) -> ResolvedStage:
    overrides = dict(node.overrides)
    if teacher:
        overrides["method.teacher"] = taught_by(teacher, overrides, out)
    if before:
        overrides = {**network_of_stage(before.stage), **overrides}
        overrides["init"] = str(before.folder(out))
    elif node.init is not None:
        overrides = {**network_of(node.init), **overrides}
        overrides["init"] = str(run_folder.resolve_run(Path(node.init)))
    if not overrides.get("data"):
        raise UserError("it has no images: give it data")
    stage = run_folder.resolved(
        broadcast_object(resolve_stage(overrides, None, device, index_of, say))
    )
    root = before.root if before else stage.init
    if before and root is not None and stage.keep == "best":
        stage = replace(stage, base=root)  # a stage in between may have made them worse
    index = index_of(stage.data, stage.seed)
    check(stage, index)
    classes = classes_of(stage, index, before, teacher)
    start = (
        before.identity
        if before
        else broadcast_object(
            origin(stage.init, head=stage.method.previous_run(stage.init) is not None)
        )
    )
    taught = (
        teacher.identity
        if teacher
        else broadcast_object(origin(run_folder.teacher_of(stage), head=True))
    )
    precise = node.overrides.get("precision") not in (None, "auto")
    # An older version knew contents by their sizes: what it began is gone on with.
    identity, older = (
        identify(stage, data, start, taught, precise) for data in (index.fingerprint, index.listing)
    )
    if broadcast_object(
        run_folder.has_run(out / "stages" / older)
        and not run_folder.has_run(out / "stages" / identity)
    ):
        identity = older
    return ResolvedStage(node, as_begun(stage, out / "stages" / identity), identity, root, classes)


def network_of_stage(stage: Stage) -> dict[str, Any]:
    """The network of a stage, as overrides."""
    return {"backbone": stage.backbone, "stem": stage.stem}


def network_of(init: str) -> dict[str, Any]:
    """The network that weights are of, as overrides, where they say so."""
    path = Path(init)
    known = None
    if path.exists():
        known = weights_io.guess(path)
    elif timm.is_model(init):
        known = (init.partition(".")[0], "imagenet")
    return dict(zip(("backbone", "stem"), known, strict=True)) if known else {}


def taught_by(teacher: ResolvedStage, overrides: Mapping[str, Any], out: Path) -> str:
    """A teacher that is a stage of the same plan: its folder."""
    if find_method(overrides) is not Distillation:
        raise UserError(
            "only distillation has a teacher: give it `method: distillation`, or leave the"
            " teacher out"
        )
    if not method_of(teacher.stage.method).classifies:
        raise UserError(
            f"{teacher.node.name} tells no classes and cannot teach: name a stage of supervised or"
            " distillation"
        )
    return str(teacher.folder(out))


def classes_of(
    stage: Stage, index: Index, before: ResolvedStage | None, teacher: ResolvedStage | None
) -> tuple[str, ...]:
    """The classes that a stage will tell; raises UserError where the head that it goes on from will
    not do.
    """
    earlier, kind = stage.method.previous_run(stage.init), method_of(stage.method)
    if kind.labels == "required":
        if earlier and before:
            wanted, there = stage.method.hidden_layers, before.stage.method.hidden_layers
            if wanted > there:
                raise UserError(
                    f"--method.head-layers {wanted}: {before.node.name} has a head of {there}"
                    " hidden layers"
                )
        elif earlier:
            heads.load_head(earlier)
        return index.classes
    if earlier is None:
        return ()
    told = teacher.classes if teacher else heads.classifier(earlier).classes
    if index.labels is not None:
        heads.refuse_other(
            teacher.node.name if teacher else earlier, told, index.classes, heads.UNLABELLED
        )
    return told


def as_begun(stage: Stage, folder: Path) -> Stage:
    """The stage in the precision that it was begun with, if it was."""
    return (
        replace(stage, precision=run_folder.read_run(folder).stage.precision)
        if run_folder.has_run(folder)
        else stage
    )


def execute_stage(
    settled: ResolvedStage, out: Path, conduct: Runtime, index: Index | None = None
) -> Path:
    """Train a stage, or go on with it, or take what is there; return its folder. Its ancestors must
    be done.
    """
    folder, name = settled.folder(out), settled.node.name
    # several parts of a study may want one stage
    alone = files.locked(
        folder.with_suffix(".lock"),
        lambda: log.info(f"{name}: another process trains it in {folder}; waiting"),
        log.info,
    )
    with alone if rank() == 0 else nullcontext():
        wait_for_rank0()
        # asked once: rank 0 will have begun before the last one looks
        begun = broadcast_object(run_folder.has_run(folder))
        if begun and broadcast_object(run_folder.read_run(folder).facts["finished"]):
            log.info(f"{name}: done already, in {folder}")
            return folder
        conduct = replace(conduct, resume=True) if begun else conduct
        log.info(f"{name}: {settled.stage.steps:,} steps, in {folder}")
        try:
            train(as_begun(settled.stage, folder), folder, conduct, index)
        except UserError as error:
            raise type(error)(f"{name}: {error}") from error
    return folder


def execute_plan(
    plan: Plan,
    out: Path,
    conduct: Runtime,
    command: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Carry out every stage of a plan; return their folders by name. What is done already is not
    done again.

    Raises UserError (Collapsed and Diverged are such) and Stopped as `train` does; the same call
    goes on from there.
    """
    known: dict[tuple[Data, int], Index] = {}

    def index_of(data: Data, seed: int) -> Index:
        if (data, seed) not in known:
            known[data, seed] = shared_index(data, seed, on_progress)
            log.info("\n".join([", ".join(data.roots), known[data, seed].describe()]))
        return known[data, seed]

    if broadcast_object(run_folder.holds_own(out)):
        raise UserError(f"{out} holds a run of its own: choose another --out for stages")
    # each line once, however many stages say it
    stages = resolve_plan(plan, out, conduct.device, index_of, cache(log.info))
    if rank() == 0:
        note(out, plan, stages, command)
    for settled in stages.values():
        execute_stage(settled, out, conduct, known[settled.stage.data, settled.stage.seed])
    if rank() == 0:
        publish_outcome(out, stages[plan.leaves[-1].name].folder(out), log.info)
    return {name: settled.folder(out) for name, settled in stages.items()}


def note(out: Path, plan: Plan, stages: dict[str, ResolvedStage], command: str) -> None:
    """Write down what the folders are called, and which is the plan's outcome."""
    last = plan.leaves[-1]
    root = next((n for n in plan.ancestors(last.name) if n.after is None), last)
    files.write_json(
        out / run_folder.PLAN,
        {
            "command": command,
            "base": root.init,
            "outcome": last.name,
            **run_folder.whereabouts(out, *(node.init for node in plan.nodes if node.init)),
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
    """A value of an override as JSON can say it: of objects, how Python writes them."""
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    plain = value is None or isinstance(value, str | int | float | bool)
    return value if plain else str(value) if isinstance(value, Path) else repr(value)
