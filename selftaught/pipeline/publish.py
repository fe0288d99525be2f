"""Publication of a plan's outcome: its weights in the plan's own folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from selftaught import files
from selftaught.models import heads
from selftaught.runs import folder as run_folder

FILES = ("backbone.safetensors", heads.FILE)


def publish_outcome(out: Path, stage: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Link the weights of a finished stage into `out`, and write a run.json that names the stage.

    They replace an earlier outcome. Commands read the stage's folder while it exists.
    """
    facts = {
        **run_folder.read_run(stage).facts,
        "folder": os.path.realpath(out),
        run_folder.COPY: stage.relative_to(out).as_posix(),
    }
    with files.locked(out / "outcome.lock", log=say):
        for name in FILES:
            if (stage / name).is_file():
                files.atomic(out / name, lambda draft, source=stage / name: link(source, draft))
            else:
                (out / name).unlink(missing_ok=True)
        files.write_json(out / "run.json", facts)


def link(source: Path, draft: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    draft.unlink()
    try:
        draft.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, draft)
