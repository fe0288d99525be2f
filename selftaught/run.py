"""A run's folder, written and read back."""

import json
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from selftaught import backbones, checkpoint, weights
from selftaught.backbones import Backbone
from selftaught.data.index import Index
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError
from selftaught.fit import key
from selftaught.methods.distillation import Distillation
from selftaught.recipe import from_json, to_json
from selftaught.stage import Stage

PLAN = "plan.json"  # what a plan's stages are called, in the folder that holds them
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """What a run's folder says. `facts` is run.json as it stands."""

    folder: Path
    stage: Stage
    facts: dict[str, Any]
    base: str | None = None  # the weights that a plan as a whole began from

    def backbone(self) -> Backbone:
        """What was learnt."""
        file = self.folder / "backbone.safetensors"
        if not file.exists():
            raise UserError(f"{self.folder} has no backbone yet: bring it to its end by --out {self.folder} --resume")
        return weights.load(file)

    @property
    def doubt(self) -> str | None:
        """Why its weights are not those of a training that came to its end, if so."""
        outcome, reason = self.facts["outcome"], self.facts.get("reason")
        words = {
            "collapsed": f"the features collapsed{f' ({reason})' if reason else ''}: do not use this backbone",
            "diverged": f"training came to no good end{f' ({reason})' if reason else ''}",
            "stopped": f"training was stopped before its end: go on with --out {self.folder} --resume",
            "running": f"training runs still, or was killed: then go on with --out {self.folder} --resume",
        }
        return words.get(outcome)

    @property
    def pixel_range(self) -> PixelRange | None:
        """By which its images were brought to 8 bits; None: it is from before there was a range for a whole set."""
        written = self.facts["data"].get("pixel_range")
        try:
            return None if written is None else PixelRange.from_json(written)
        except UserError as error:
            raise UserError(f"{self.folder / 'run.json'}: {error}; restore it, or begin the run anew") from None

    def random(self) -> Backbone:
        """The very network that it began from, had it not had weights: the same seed, the same statistics."""
        return random_like(self.backbone(), self.stage.seed)

    def start(self) -> Backbone | None:
        """The weights that it started from, if there were any; of a plan's outcome, those that the plan started from."""
        init = self.base or self.stage.init
        if init is None:
            return None
        backbone = self.random()
        weights.load_weights(backbone, resolve(Path(init)))
        return backbone


def random_like(learnt: Backbone, seed: int) -> Backbone:
    """The same network with the random weights that a stage of this seed begins from."""
    torch.manual_seed(key(seed, "weights"))
    backbone = backbones.create(
        learnt.name,
        stem=learnt.stem,
        mean=learnt.mean.tolist(),
        std=learnt.std.tolist(),
        image_size=learnt.image_size,
    )
    backbone.pixel_range = learnt.pixel_range
    return backbone


def open_backbone(path: Path) -> Backbone:
    """From a run's folder, or from a file that `export` or `pretrain` wrote."""
    if not path.exists():
        raise UserError(f"there is no {path}: give a run's folder, or a file that export wrote")
    return read(path).backbone() if path.is_dir() else weights.load(path)


def write(folder: Path, stage: Stage, index: Index, outcome: str, note: dict[str, Any]) -> None:
    labels = index.labels is not None
    facts = {
        "selftaught": version("selftaught"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
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
        "seed": stage.seed,
        "lineage": lineage(stage),
        "outcome": outcome,
        "finished": outcome == "done",
        **note,
    }
    checkpoint.write_json(folder / "run.json", facts)


def lineage(stage: Stage) -> list[dict[str, Any]]:
    """Every training that led here, the first one first."""
    own = {"init": stage.init, "teacher": teacher_of(stage), "data": list(stage.data.roots), "steps": stage.steps}
    before = Path(stage.init) if stage.init else None
    if before and (resolve(before) / "run.json").is_file():
        return [*read(before).facts["lineage"], own]
    return [own]


def resolve(folder: Path) -> Path:
    """The run that a folder stands for: itself, or the outcome of the plan that it holds."""
    plan = folder / PLAN
    if (folder / "run.json").is_file() or not plan.is_file():
        return folder
    written = json.loads(plan.read_text(encoding="utf-8"))
    return folder / str(written["stages"][written["outcome"]]["folder"])


def begun(folder: Path) -> bool:
    """Whether a folder holds a run of which something would be lost: one that failed before it saved is none."""
    try:
        facts = read(folder).facts
    except UserError:
        return (folder / "run.json").exists()
    return facts["outcome"] != "failed" or (folder / "checkpoints" / "last.pt").exists()


def read(folder: Path) -> Run:
    """A run, or the outcome of a plan. Raises UserError when the folder holds neither."""
    plan, folder = folder / PLAN, resolve(folder)
    base = json.loads(plan.read_text(encoding="utf-8"))["base"] if plan.parent != folder else None
    file = folder / "run.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a run: it has no run.json; give a folder that `selftaught pretrain --out` wrote")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return Run(folder, from_json(facts["config"]), facts, base)
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore it, or begin the run anew") from error


def resolved(stage: Stage) -> Stage:
    """The same with the runs that the folders of plans stand for."""
    if stage.init:
        stage = replace(stage, init=str(resolve(Path(stage.init))))
    if isinstance(stage.method, Distillation.Config) and stage.method.teacher:
        stage = replace(stage, method=replace(stage.method, teacher=str(resolve(Path(stage.method.teacher)))))
    return stage


def teacher_of(stage: Stage) -> str | None:
    """The run that teaches a stage, if one does."""
    return stage.method.teacher if isinstance(stage.method, Distillation.Config) else None
