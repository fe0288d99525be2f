"""`selftaught pretrain`: teach a backbone from a folder of images."""

import shlex
from pathlib import Path
from typing import Any

from selftaught.api.launch import Launch
from selftaught.api.training import find_start, pretrain_run
from selftaught.cli import flags
from selftaught.cli.console import tell
from selftaught.errors import Stopped


def pretrain(words: list[str]) -> int:
    words = words or ["--help"]
    out, config = flags.chosen(words, "out"), flags.chosen(words, "config")
    start = find_start(
        Path(out) if out else None, "--resume" in words, Path(config) if config else None
    )
    asked = flags.parse(words, start.base)  # refuses unknown words before anything is looked at
    overrides = flags.overrides_of(words, asked)
    command = shlex.join(["selftaught", "pretrain", *words])
    try:
        pretrain_run(overrides, Path(asked.out), start, launch_of(asked), command)
    except Stopped as stopped:
        tell(str(stopped))
    return 0


def launch_of(asked: Any) -> Launch:
    """How it is to be carried out."""
    return Launch(
        device=asked.device,
        threads=asked.threads,
        workers=asked.workers,
        on_collapse=asked.on_collapse,
        save_every=asked.save_every,
        fsdp=asked.fsdp,
        log=tuple(asked.log),
    )
