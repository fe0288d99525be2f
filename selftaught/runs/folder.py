"""Writing and reading the folder of a run or a plan, and the paths in its records."""

import errno
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from selftaught import files
from selftaught.config.serialization import from_json, to_json
from selftaught.config.stage import Stage
from selftaught.data.index.build import Index
from selftaught.data.io.filesystem import is_url
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError, damage_error, read_error
from selftaught.loggers.logger import LOGGERS
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.models.python_objects import MissingObject
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import weight_files
from selftaught.seeding import key

PLAN = "plan.json"  # names of a plan's stages, in the plan's folder
COPY = "copied_from"  # in the run.json of a plan's folder: the stage whose outcome is copied there
EVALUATIONS = "evaluation.json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
_RESTORE = "restore it from a copy, or begin anew in another --out"
_REPEAT = "the same `selftaught adapt` writes it anew, and skips the stages that are done"


@dataclass(frozen=True)
class Run:
    """The records of a run. `facts` is run.json unchanged; `stage` has the present paths."""

    folder: Path
    stage: Stage
    facts: dict[str, Any]
    base: str | None = None  # the weights that the first stage of a plan started from

    def backbone(self) -> Backbone:
        """Load the trained backbone.

        Raises UserError where it is missing or damaged, and MissingObject where its class cannot be
        imported.
        """
        file = self.folder / "backbone.safetensors"
        if not file.exists():
            raise UserError(
                f"{self.folder} has no backbone yet: finish it by --out {self.folder} --resume"
            )
        if file.is_dir():
            raise read_error(file, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
        try:
            return weights_io.load_backbone(file)
        except MissingObject:
            raise  # training again would not help
        except UserError as error:
            raise UserError(
                f"{str(error).rstrip('.')}; --out {self.folder} --resume writes it anew"
            ) from error

    @property
    def doubt(self) -> str | None:
        """The reason why its weights are not those of a finished training, or None."""
        outcome, reason = self.facts["outcome"], self.facts.get("reason")
        reasons = {
            "collapsed": (
                f"the features collapsed{f' ({reason})' if reason else ''}: do not use this"
                " backbone"
            ),
            "diverged": f"training diverged{f' ({reason})' if reason else ''}",
            "stopped": (
                f"training was stopped before its end: continue it by --out {self.folder} --resume"
            ),
            "running": (
                "training is still running, or was killed: in that case continue it by --out"
                f" {self.folder} --resume"
            ),
            "failed": (
                f"training failed{f' ({reason})' if reason else ''}: continue it by --out"
                f" {self.folder} --resume"
            ),
        }
        return reasons.get(outcome)

    @property
    def pixel_range(self) -> PixelRange | None:
        """The range by which its images were scaled to 8 bits.

        None: a run of an older version, which had no range for a whole set. Raises UserError where
        the record is damaged.
        """
        record = self.facts["data"].get("pixel_range")
        try:
            return None if record is None else PixelRange.from_json(record)
        except UserError as error:
            raise UserError(
                f"{self.folder / 'run.json'}: {error}; restore it, or begin the run anew"
            ) from None

    def refuse_missing(self, labels: bool = True) -> None:
        """Raise UserError where the images, or the table of labels if `labels`, are missing."""
        data, names = self.stage.data, self.facts["config"]["data"]
        for place, name in zip(data.roots, names["roots"], strict=False):
            if not is_url(place) and not os.path.exists(place):
                raise UserError(
                    f"{self.folder} was trained on {self._where(place, name)}: name its new place"
                    " by --data"
                )
        if labels and data.labels not in LABELS and not os.path.exists(data.labels):
            where = self._where(data.labels, names["labels"])
            raise UserError(
                f"{self.folder} has its labels from {where}: name its new place by --labels-from"
            )

    def _where(self, place: str, name: str) -> str:
        if not os.path.isabs(name) and name not in (self.facts.get("places") or {}):
            # a run of an older version, which stored no absolute paths
            return (
                f"{name}, relative to the folder where it was started, which is not there"
                f" relative to {os.getcwd()}"
            )
        typed = f" (typed as {name})" if not os.path.isabs(name) else ""
        return f"{os.path.abspath(place)}{typed}, which is not there"

    def random(self) -> Backbone:
        """Build its network with random weights, of the same seed and statistics."""
        return random_like(self.backbone(), self.stage.seed)

    def start(self) -> Backbone | None:
        """Load the weights that it started from, or return None where they were random.

        For the outcome of a plan, these are the weights that the plan started from.
        """
        init = self.base or self.stage.init
        if init is None:
            return None
        backbone = random_like(self.backbone(), self.stage.seed, drawn=False)
        weights_io.load_weights(backbone, resolve_run(Path(init)))
        return backbone


def random_like(learnt: Backbone, seed: int, drawn: bool = True) -> Backbone:
    """Return the same network with the random weights of a stage of this seed.

    A network that the user passed as an object gets new weights, layer by layer, if `drawn`. Else
    it keeps the weights of the object.
    """
    torch.manual_seed(key(seed, "weights"))
    backbone = backbone_module.create(
        learnt.name,
        stem=learnt.stem,
        mean=learnt.mean.tolist(),
        std=learnt.std.tolist(),
        image_size=learnt.image_size,
    )
    if drawn and backbone_module.is_given(learnt.name):
        backbone_module.redraw(backbone.network, learnt.name)
    backbone.pixel_range = learnt.pixel_range
    return backbone


def open_backbone(path: Path) -> Backbone:
    """Load a backbone from a run's folder, or from a file that `export` or `pretrain` wrote.

    Raises UserError where the path is missing or holds no backbone.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: give a run's folder, or a file that export wrote")
    return read_run(path).backbone() if is_run(path) else weights_io.load_backbone(path)


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run or of a plan."""
    return any(os.path.lexists(path / name) for name in weight_files.RECORDS)


def write_run(folder: Path, stage: Stage, index: Index, outcome: str, note: dict[str, Any]) -> None:
    """Write run.json. `note`: further fields, which replace those of the same name."""
    labels = index.labels is not None
    facts = {
        "selftaught": version("selftaught"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "config": to_json(stage),
        "data": {
            "fingerprint": index.fingerprint,
            "roots": list(stage.data.roots),
            "images": len(index.paths),
            "train": len(index.train),
            "held_out": len(index.held_out),
            "split": index.split,
            "labels": labels,
            "classes": list(index.classes) if labels else [],
            "unreadable": [list(pair) for pair in index.unreadable],
            "pixel_range": None if index.pixel_range is None else index.pixel_range.to_json(),
        },
        **record_paths(folder, *names_of(stage)),
        "seed": stage.seed,
        "lineage": lineage(stage),
        "outcome": outcome,
        "finished": outcome == "done",
        **note,
    }
    files.write_json(folder / "run.json", facts)


def lineage(stage: Stage) -> list[dict[str, Any]]:
    """Return the records of all trainings up to this stage, the first one first.

    Earlier trainings are left out where their records cannot be read.
    """
    own = {
        "init": stage.init,
        "teacher": teacher_of(stage),
        "data": list(stage.data.roots),
        "steps": stage.steps,
    }
    before = Path(stage.init) if stage.init else None
    try:
        if before and (resolve_run(before) / "run.json").is_file():
            return [*read_run(before).facts["lineage"], own]
    except (UserError, KeyError, TypeError):  # the lineage is only information
        pass
    return [own]


# ---------------------------------------------------------------------------- reading a folder


def resolve_run(folder: Path) -> Path:
    """Return the run of a folder: the folder itself, or the outcome of the plan that it holds.

    `folder` can also be the path of its run.json.
    """
    folder = weight_files.folder_of(folder)
    if not is_plan(folder):
        return folder
    place = _outcome(folder)
    copied = (facts_of(folder) or {}).get(COPY)
    if copied == place and not (folder / place / "run.json").is_file():
        return folder
    return folder / place


def is_plan(folder: Path) -> bool:
    """Whether a folder is that of a plan. It may hold a copy of the plan's outcome."""
    return os.path.lexists(folder / PLAN) and COPY in (facts_of(folder) or {COPY: None})


def holds_own(folder: Path) -> bool:
    """Whether a folder holds a run that is not part of a plan."""
    return (
        os.path.lexists(folder / "run.json")
        and not is_plan(folder)
        and COPY not in (facts_of(folder) or {})
    )


def read_plan(folder: Path) -> dict[str, Any]:
    """Read plan.json. Raises FileError where it is missing or damaged."""
    plan: dict[str, Any] = files.read_json(folder / PLAN, dict, _REPEAT)
    try:
        complete = {"folder", "after", "init"} <= set.intersection(
            *(set(stage) for stage in plan["stages"].values())
        )
        complete = complete and "base" in plan and plan["outcome"] in plan["stages"]
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise damage_error(folder / PLAN, "it lacks the stages", _REPEAT)
    return plan


def _outcome(folder: Path) -> str:
    plan = read_plan(folder)
    return str(plan["stages"][plan["outcome"]]["folder"])


def read_facts(folder: Path, remedy: str = _RESTORE) -> dict[str, Any]:
    """Read run.json in this folder. Raises FileError where it is missing or damaged."""
    facts: dict[str, Any] = files.read_json(folder / "run.json", dict, remedy)
    return facts


def facts_of(folder: Path) -> dict[str, Any] | None:
    """Read run.json in this folder; None where it is missing or damaged."""
    try:
        return read_facts(folder)
    except UserError:
        return None


def loggers_of(facts: Mapping[str, Any]) -> list[str]:
    """Return the names of a run's loggers, besides its journal. Unknown names are left out."""
    names = facts.get("log")
    return [name for name in names if name in LOGGERS] if isinstance(names, list) else []


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run that must not be overwritten.

    A run that failed before its first checkpoint may be.
    """
    try:
        facts = read_run(folder).facts
    except UserError:
        return (folder / "run.json").exists()
    return facts["outcome"] != "failed" or any((folder / "checkpoints").glob("*.pt"))


def read_run(folder: Path) -> Run:
    """Read a run, or the outcome of a plan.

    Raises UserError where the folder holds neither, and FileError where a record is damaged. Raises
    MissingObject where a class of the stage cannot be imported.
    """
    folder, base = weight_files.folder_of(folder), None
    if is_plan(folder):
        plan = read_plan(folder)
        base = plan["base"] and find_path(str(plan["base"]), plan, folder)
        folder = resolve_run(folder)
    file = folder / "run.json"
    if not os.path.lexists(file):
        raise UserError(
            f"{folder} is not a run: it has no run.json; give a folder that `selftaught pretrain"
            " --out` wrote"
        )
    facts = read_facts(folder)
    if lacking := [name for name in ("config", "data", "outcome", "finished") if name not in facts]:
        raise damage_error(file, f"it lacks {', '.join(lacking)}", _RESTORE)
    if not isinstance(facts["data"], dict) or not {"fingerprint", "train"} <= facts["data"].keys():
        raise damage_error(file, "it lacks the facts on the images", _RESTORE)
    try:
        stage = from_json(facts["config"])
    except MissingObject as error:
        raise MissingObject(f"{file}: {error}") from error
    except UserError as error:
        raise damage_error(file, error, _RESTORE) from error
    return Run(folder, with_places(stage, lambda name: find_path(name, facts, folder)), facts, base)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Read the evaluations of a run, the first one first. Raises FileError where damaged."""
    file = folder / EVALUATIONS
    if not os.path.lexists(file):
        return []
    records: list[Any] = files.read_json(file, list)
    needs = {"data", "rows", "verdict"}
    if not all(
        isinstance(one, dict) and needs <= one.keys() and isinstance(one["data"], list)
        for one in records
    ):
        raise damage_error(file, "it holds no evaluations", "move it away")
    return records


# ---------------------------------------------------------------------------- paths in records

LABELS = ("auto", "folders", "none")  # where labels come from, besides a table


def with_places(stage: Stage, change: Callable[[str], str]) -> Stage:
    """Return a stage with `change` applied to every path, and to names of timm's weights."""
    data = replace(stage.data, roots=tuple(change(root) for root in stage.data.roots))
    if data.labels not in LABELS:
        data = replace(data, labels=change(data.labels))
    stage = replace(stage, data=data)
    if isinstance(stage.method, TeacherConfig) and stage.method.teacher:
        stage = replace(stage, method=replace(stage.method, teacher=change(stage.method.teacher)))
    return replace(
        stage, init=stage.init and change(stage.init), base=stage.base and change(stage.base)
    )


def names_of(stage: Stage) -> list[str]:
    """Return the paths of a stage, as the user typed them."""
    names: list[str] = []

    def note(name: str) -> str:
        names.append(name)
        return name

    with_places(stage, note)
    return names


def make_absolute(stage: Stage) -> Stage:
    """Return the same stage with absolute paths."""
    return with_places(stage, lambda name: os.path.abspath(name) if _is_relative(name) else name)


def record_paths(folder: Path, *names: str) -> dict[str, Any]:
    """Return records from which `find_path` finds the paths `names`, also from other folders.

    They are the absolute path of `folder`, and that of each relative name.
    """
    places = {name: os.path.abspath(name) for name in names if _is_relative(name)}
    return {"folder": os.path.realpath(folder), "places": places}


def find_path(name: str, written: dict[str, Any], folder: Path) -> str:
    """Return the present path of `name`, which a user typed in another working directory.

    `written`: the records of `record_paths`. The first of these paths that exists is the result:
    the same place relative to `folder`, which may have been moved; the absolute path of then; and
    `name` from here. The result is `name` itself where that means the same.
    """
    places, old_folder = written.get("places"), written.get("folder")
    old_path = places.get(name) if isinstance(places, dict) else None
    if not isinstance(old_path, str) or not isinstance(old_folder, str):
        return name  # an absolute path or a name in timm, or a record of an older version
    relative = os.path.relpath(old_path, old_folder)
    new_path = os.path.normpath(os.path.join(os.path.realpath(folder), relative))
    candidates = (new_path, old_path, os.path.abspath(name))
    path = next((path for path in candidates if os.path.exists(path)), old_path)
    return name if os.path.abspath(name) == path else path


def _is_relative(name: str) -> bool:
    """Whether a name is a path relative to the working directory."""
    if os.path.isabs(name) or is_url(name):
        return False
    return os.path.exists(name) or not timm.is_model(name)


def resolve_names(stage: Stage) -> Stage:
    """Return the same stage with each plan's folder replaced by the run of its outcome.

    Raises FileError where the record of such a run is damaged.
    """
    if stage.init:
        before = resolve_run(Path(stage.init))
        if is_run(before):
            # its record is needed for the lineage, so damage must show before training
            read_run(before)
        stage = replace(stage, init=str(before))
    if isinstance(stage.method, TeacherConfig) and stage.method.teacher:
        stage = replace(
            stage,
            method=replace(stage.method, teacher=str(resolve_run(Path(stage.method.teacher)))),
        )
    return stage


def teacher_of(stage: Stage) -> str | None:
    """Return the teacher of a stage, a run or weights, or None."""
    return stage.method.teacher or None if isinstance(stage.method, TeacherConfig) else None
