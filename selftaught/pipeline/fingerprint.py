"""What decides a stage's outcome, as a hash: the stage, what it began from and was taught by, and
what the data holds.
"""

import hashlib
import json
from pathlib import Path

import timm

from selftaught.config import serialization
from selftaught.config.stage import Stage
from selftaught.errors import UserError
from selftaught.models import heads
from selftaught.models.weights import weight_files
from selftaught.runs import folder as run_folder


def origin(init: str | None, head: bool = False) -> str:
    """What names the weights that a chain begins from, with the `head` beside them where it counts:
    their content, or their name in timm.
    """
    if init is None:
        return "random"
    path = run_folder.resolve_run(Path(init))
    if not path.exists():
        if not timm.is_model(init):
            raise UserError(
                f"--init {init} is neither a run nor a file, and timm knows no weights of this name"
            )
        return init
    files = [*weight_files.sources(path)]
    if head and (path / heads.FILE).is_file():
        files.append(path / heads.FILE)
    found = []
    for each in files:
        with each.open("rb") as opened:
            found.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return "/".join(found)


def identify(stage: Stage, fingerprint: str, start: str, teacher: str, precise: bool) -> str:
    """A hash of a stage, its ancestors and its teacher: of what the data holds and not of where it
    lies, nor of what a probe of the machine's speed chose.
    """
    written = serialization.to_json(stage)
    written["data"] = {**written["data"], "roots": fingerprint, "labels": "as the fingerprint says"}
    written["data"].pop("max_pixels")  # as the fingerprint says
    written["init"] = start
    written["base"] = stage.base is not None  # which one, the ancestors' hash says
    if run_folder.teacher_of(stage):
        written["method"] = {**written["method"], "teacher": teacher}
    if not stage.compile:
        # stages that were trained before there was a choice keep their names
        written.pop("compile")
    if not precise:
        written.pop("precision")
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:12]
