"""Hash of everything that decides a stage's outcome: configuration, weights, teacher and data."""

import hashlib
import json
from pathlib import Path

import timm

from selftaught.config import serialization
from selftaught.config.stage import Stage
from selftaught.errors import UserError
from selftaught.models.weights import weight_files
from selftaught.runs import folder as run_folder


def origin(init: str | None, more: str | None = None, flag: str = "--init") -> str:
    """Identity of the weights that a chain starts from: a hash of the files, or a name in timm.

    more: another file in the run's folder that counts. flag: the one that names the weights.
    Raises UserError if there are no such weights.
    """
    if init is None:
        return "random"
    path = run_folder.resolve_run(Path(init))
    if not path.exists():
        if not timm.is_model(init):
            raise UserError(
                f"{flag} {init} is neither a run nor a file, and timm has no weights of this name"
            )
        return init
    files = [*weight_files.sources(path)]
    if more and (path / more).is_file():
        files.append(path / more)
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return "/".join(digests)


def identify(stage: Stage, fingerprint: str, start: str, teacher: str, precise: bool) -> str:
    """Hash of a stage, its ancestors and its teacher, 12 hexadecimal digits.

    The content of the data counts, and not its location. A precision that was chosen by a speed
    test does not count (`precise` is False).
    """
    values = serialization.to_json(stage)
    values["data"] = {**values["data"], "roots": fingerprint, "labels": "as the fingerprint says"}
    values["data"].pop("max_pixels")  # part of the fingerprint
    values["init"] = start
    values["base"] = stage.base is not None  # the base itself is part of `start`
    if run_folder.teacher_of(stage):
        values["method"] = {**values["method"], "teacher": teacher}
    # Stages from before these fields keep their names.
    if not stage.compile:
        values.pop("compile")
    if stage.anchor is None:
        values.pop("anchor")
    if stage.norm_statistics == "data":
        values.pop("norm_statistics")
    if not precise:
        values.pop("precision")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
