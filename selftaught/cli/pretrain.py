"""`selftaught pretrain`: train a backbone on a folder of images."""

import shlex
from pathlib import Path
from typing import Any

from selftaught.api.launch import Launch
from selftaught.api.training import find_start, pretrain_run
from selftaught.cli import flags
from selftaught.cli.console import tell
from selftaught.errors import Stopped


def pretrain(words: list[str]) -> int:
    """Run the command; return the exit code."""
    words = words or ["--help"]
    out, config = flags.find_value(words, "out"), flags.find_value(words, "config")
    start = find_start(
        Path(out) if out else None, "--resume" in words, Path(config) if config else None
    )
    options = flags.parse(words, start.base)  # raises for unknown words before images are read
    overrides = flags.overrides_of(words, options)
    command = shlex.join(["selftaught", "pretrain", *words])
    try:
        pretrain_run(overrides, Path(options.out), start, launch_of(options), command)
    except Stopped as stopped:
        tell(str(stopped))
    return 0


def launch_of(options: Any) -> Launch:
    """The settings of execution, from parsed flags."""
    return Launch(
        device=options.device,
        threads=options.threads,
        workers=options.workers,
        on_collapse=options.on_collapse,
        save_every=options.save_every,
        fsdp=options.fsdp,
        log=tuple(options.log),
    )
