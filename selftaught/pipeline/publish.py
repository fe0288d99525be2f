"""The outcome of a plan, put where people look for it: into the plan's own folder, beside the
stages.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from selftaught import files
from selftaught.models import heads
from selftaught.runs import folder as run_folder

FILES = ("backbone.safetensors", heads.FILE)


def publish_outcome(out: Path, stage: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Give the weights of a finished stage's folder a second name in `out`, with a run.json that
    says so.

    What lies there of another outcome is replaced. Commands go on looking into the stage's folder,
    as long as it is there.
    """
    facts = {
        **run_folder.read_run(stage).facts,
        "folder": os.path.realpath(out),
        run_folder.COPY: stage.relative_to(out).as_posix(),
    }
    with files.locked(out / "outcome.lock", log=say):
        for name in FILES:
            if (stage / name).is_file():
                files.atomic(out / name, lambda draft, source=stage / name: link(source, draft))  # type: ignore[misc]
            else:
                (out / name).unlink(missing_ok=True)
        files.write_json(out / "run.json", facts)
    say(f"its outcome lies in {out / FILES[0]}, too")


def link(source: Path, draft: Path) -> None:
    """The same file under a second name; a copy where the disk knows no such thing."""
    draft.unlink()
    try:
        draft.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, draft)
