"""A run's folder, written and read back; over 200 lines with the places that its words name,
wherever they are read.
"""

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
from selftaught.methods.distillation.logits import Distillation
from selftaught.models import backbone as backbone_module
from selftaught.models.backbone import Backbone
from selftaught.models.python_objects import MissingObject
from selftaught.models.weights import io as weights_io
from selftaught.models.weights import weight_files
from selftaught.seeding import key

PLAN = "plan.json"  # what a plan's stages are called, in the folder that holds them
# in the run.json of a plan's own folder: the stage whose outcome lies there, too
COPY = "copied_from"
EVALUATIONS = "evaluation.json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")
_ANEW = "bring a whole copy back, or begin anew in another --out"
_AGAIN = "the same `selftaught adapt` writes it anew, and does nothing again that is done"


@dataclass(frozen=True)
class Run:
    """What a run's folder says. `facts` is run.json as it stands; the places that `stage` names are
    where they are now.
    """

    folder: Path
    stage: Stage
    facts: dict[str, Any]
    base: str | None = None  # the weights that a plan as a whole began from

    def backbone(self) -> Backbone:
        """What was learnt."""
        file = self.folder / "backbone.safetensors"
        if not file.exists():
            raise UserError(
                f"{self.folder} has no backbone yet: bring it to its end by --out {self.folder}"
                " --resume"
            )
        if file.is_dir():
            raise read_error(file, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
        try:
            return weights_io.load_backbone(file)
        except UserError as error:
            raise UserError(
                f"{str(error).rstrip('.')}; --out {self.folder} --resume writes it anew"
            ) from error

    @property
    def doubt(self) -> str | None:
        """Why its weights are not those of a training that came to its end, if so."""
        outcome, reason = self.facts["outcome"], self.facts.get("reason")
        words = {
            "collapsed": (
                f"the features collapsed{f' ({reason})' if reason else ''}: do not use this"
                " backbone"
            ),
            "diverged": f"training came to no good end{f' ({reason})' if reason else ''}",
            "stopped": (
                f"training was stopped before its end: go on with --out {self.folder} --resume"
            ),
            "running": (
                f"training runs still, or was killed: then go on with --out {self.folder} --resume"
            ),
            "failed": (
                f"training broke off{f' ({reason})' if reason else ''}: go on with --out"
                f" {self.folder} --resume"
            ),
        }
        return words.get(outcome)

    @property
    def pixel_range(self) -> PixelRange | None:
        """By which its images were brought to 8 bits; None: it is from before there was a range for
        a whole set.
        """
        written = self.facts["data"].get("pixel_range")
        try:
            return None if written is None else PixelRange.from_json(written)
        except UserError as error:
            raise UserError(
                f"{self.folder / 'run.json'}: {error}; restore it, or begin the run anew"
            ) from None

    def refuse_missing(self, labels: bool = True) -> None:
        """Raises UserError where the images, or a table of `labels`, are not where they lay."""
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
        if not os.path.isabs(name) and name not in (
            self.facts.get("places") or {}
        ):  # of an older version
            return (
                f"{name}, as seen from where it was begun, which is not there as seen from"
                f" {os.getcwd()}"
            )
        typed = f" (typed as {name})" if not os.path.isabs(name) else ""
        return f"{os.path.abspath(place)}{typed}, which is not there"

    def random(self) -> Backbone:
        """The very network that it began from, had it not had weights: the same seed, the same
        statistics.
        """
        return random_like(self.backbone(), self.stage.seed)

    def start(self) -> Backbone | None:
        """The weights that it started from, if there were any; of a plan's outcome, those that the
        plan started from.
        """
        init = self.base or self.stage.init
        if init is None:
            return None
        backbone = random_like(self.backbone(), self.stage.seed, drawn=False)
        weights_io.load_weights(backbone, resolve_run(Path(init)))
        return backbone


def random_like(learnt: Backbone, seed: int, drawn: bool = True) -> Backbone:
    """The same network with the random weights that a stage of this seed begins from.

    Of one that was given as an object, the weights are `drawn` anew, layer by layer; else they are
    as given.
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
    """From a run's folder, or from a file that `export` or `pretrain` wrote."""
    if not path.exists():
        raise UserError(f"there is no {path}: give a run's folder, or a file that export wrote")
    return read_run(path).backbone() if is_run(path) else weights_io.load_backbone(path)


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run or of a plan, and not one that holds weights of another
    kind.
    """
    return any(os.path.lexists(path / name) for name in weight_files.RECORDS)


def write_run(folder: Path, stage: Stage, index: Index, outcome: str, note: dict[str, Any]) -> None:
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
        **whereabouts(folder, *names_of(stage)),
        "seed": stage.seed,
        "lineage": lineage(stage),
        "outcome": outcome,
        "finished": outcome == "done",
        **note,
    }
    files.write_json(folder / "run.json", facts)


def lineage(stage: Stage) -> list[dict[str, Any]]:
    """Every training that led here, the first one first, as far as it can be read."""
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
    except (UserError, KeyError, TypeError):  # it decides nothing
        pass
    return [own]


# ------------------------------------------------------------------------------------ a folder,
# read back


def resolve_run(folder: Path) -> Path:
    """The run that a folder stands for: itself, or the outcome of the plan that it holds; also by
    its run.json.
    """
    folder = weight_files.folder_of(folder)
    if not is_plan(folder):
        return folder
    place = _outcome(folder)
    copied = (facts_of(folder) or {}).get(COPY)
    return (
        folder
        if copied == place and not (folder / place / "run.json").is_file()
        else folder / place
    )


def is_plan(folder: Path) -> bool:
    """Whether a folder is that of a plan, whose stages are runs; the outcome's copy there is none
    of its own.
    """
    return os.path.lexists(folder / PLAN) and COPY in (facts_of(folder) or {COPY: None})


def holds_own(folder: Path) -> bool:
    """Whether a folder holds a run that is no plan's."""
    return (
        os.path.lexists(folder / "run.json")
        and not is_plan(folder)
        and COPY not in (facts_of(folder) or {})
    )


def read_plan(folder: Path) -> dict[str, Any]:
    """What a plan's folder says of its stages. Raises FileError where that makes no sense."""
    written: dict[str, Any] = files.read_json(folder / PLAN, dict, _AGAIN)
    try:
        whole = {"folder", "after", "init"} <= set.intersection(
            *(set(stage) for stage in written["stages"].values())
        )
        whole = whole and "base" in written and written["outcome"] in written["stages"]
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise damage_error(folder / PLAN, "it tells no stages", _AGAIN)
    return written


def _outcome(folder: Path) -> str:
    written = read_plan(folder)
    return str(written["stages"][written["outcome"]]["folder"])


def read_facts(folder: Path, remedy: str = _ANEW) -> dict[str, Any]:
    """run.json in this very folder. Raises FileError where it is not there, or makes no sense."""
    facts: dict[str, Any] = files.read_json(folder / "run.json", dict, remedy)
    return facts


def facts_of(folder: Path) -> dict[str, Any] | None:
    """The same; None where that is not to be had."""
    try:
        return read_facts(folder)
    except UserError:
        return None


def loggers_of(facts: Mapping[str, Any]) -> list[str]:
    """The loggers besides its journal that a run was trained with, of those that there are."""
    names = facts.get("log")
    return [name for name in names if name in LOGGERS] if isinstance(names, list) else []


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run of which something would be lost: one that failed before it
    saved is none.
    """
    try:
        facts = read_run(folder).facts
    except UserError:
        return (folder / "run.json").exists()
    return facts["outcome"] != "failed" or any((folder / "checkpoints").glob("*.pt"))


def read_run(folder: Path) -> Run:
    """A run, or the outcome of a plan. Raises UserError when the folder holds neither."""
    folder, base = weight_files.folder_of(folder), None
    if is_plan(folder):
        written = read_plan(folder)
        base = written["base"] and located(str(written["base"]), written, folder)
        folder = resolve_run(folder)
    file = folder / "run.json"
    if not os.path.lexists(file):
        raise UserError(
            f"{folder} is not a run: it has no run.json; give a folder that `selftaught pretrain"
            " --out` wrote"
        )
    facts = read_facts(folder)
    if lacking := [name for name in ("config", "data", "outcome", "finished") if name not in facts]:
        raise damage_error(file, f"it lacks {', '.join(lacking)}", _ANEW)
    if not isinstance(facts["data"], dict) or not {"fingerprint", "train"} <= facts["data"].keys():
        raise damage_error(file, "it tells nothing of the images", _ANEW)
    try:
        stage = from_json(facts["config"])
    except MissingObject as error:
        raise MissingObject(f"{file}: {error}") from error
    except UserError as error:
        raise damage_error(file, error, _ANEW) from error
    return Run(folder, with_places(stage, lambda name: located(name, facts, folder)), facts, base)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """What a run was judged to be, the first time first. Raises FileError where that makes no
    sense.
    """
    file = folder / EVALUATIONS
    if not os.path.lexists(file):
        return []
    written: list[Any] = files.read_json(file, list)
    needs = {"data", "rows", "verdict"}
    if not all(
        isinstance(one, dict) and needs <= one.keys() and isinstance(one["data"], list)
        for one in written
    ):
        raise damage_error(file, "it tells no evaluations", "move it away")
    return written


# ------------------------------------------------------------------------------------ places that
# words name

LABELS = ("auto", "folders", "none")  # where labels come from, besides a table


def with_places(stage: Stage, change: Callable[[str], str]) -> Stage:
    """A stage whose every file and folder is what `change` makes of it; weights of timm's go
    through it, too.
    """
    data = replace(stage.data, roots=tuple(change(root) for root in stage.data.roots))
    if data.labels not in LABELS:
        data = replace(data, labels=change(data.labels))
    stage = replace(stage, data=data)
    if isinstance(stage.method, Distillation.Config) and stage.method.teacher:
        stage = replace(stage, method=replace(stage.method, teacher=change(stage.method.teacher)))
    return replace(
        stage, init=stage.init and change(stage.init), base=stage.base and change(stage.base)
    )


def names_of(stage: Stage) -> list[str]:
    """Its files and folders, as they were typed."""
    names: list[str] = []

    def note(name: str) -> str:
        names.append(name)
        return name

    with_places(stage, note)
    return names


def absolute(stage: Stage) -> Stage:
    """The same stage in words that mean the same everywhere."""
    return with_places(stage, lambda name: os.path.abspath(name) if _is_relative(name) else name)


def whereabouts(folder: Path, *names: str) -> dict[str, Any]:
    """What to write down beside words that were typed here: where `folder` lies, and what they mean
    from anywhere.
    """
    places = {name: os.path.abspath(name) for name in names if _is_relative(name)}
    return {"folder": os.path.realpath(folder), "places": places}


def located(name: str, written: dict[str, Any], folder: Path) -> str:
    """A place that was typed in another working directory, perhaps before `folder` was moved, from
    here: where it lies beside the folder as it did, or else where it was; as it was typed, where
    that is the same.
    """
    places, was = written.get("places"), written.get("folder")
    known = places.get(name) if isinstance(places, dict) else None
    if not isinstance(known, str) or not isinstance(
        was, str
    ):  # absolute, a name in timm; or of an older version
        return name
    moved = os.path.normpath(os.path.join(os.path.realpath(folder), os.path.relpath(known, was)))
    place = next(
        (place for place in (moved, known, os.path.abspath(name)) if os.path.exists(place)), known
    )
    return name if os.path.abspath(name) == place else place


def _is_relative(name: str) -> bool:
    """Whether a word names a place by way of the working directory."""
    if os.path.isabs(name) or is_url(name):
        return False
    return os.path.exists(name) or not timm.is_model(name)


def resolved(stage: Stage) -> Stage:
    """The same with the runs that the folders of plans stand for."""
    if stage.init:
        before = resolve_run(Path(stage.init))
        if is_run(before):
            # its record is a part of what leads here: damage is named before anything is trained
            read_run(before)
        stage = replace(stage, init=str(before))
    if isinstance(stage.method, Distillation.Config) and stage.method.teacher:
        stage = replace(
            stage,
            method=replace(stage.method, teacher=str(resolve_run(Path(stage.method.teacher)))),
        )
    return stage


def teacher_of(stage: Stage) -> str | None:
    """The run that teaches a stage, if one does."""
    return stage.method.teacher if isinstance(stage.method, Distillation.Config) else None
