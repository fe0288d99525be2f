"""`selftaught adapt`: adapt a backbone to images."""

import shlex
from pathlib import Path

from selftaught.api.training import adapt_run
from selftaught.cli import flags
from selftaught.cli.console import tell
from selftaught.cli.pretrain import launch_of
from selftaught.config.overrides import CONDUCT, flag, normalise
from selftaught.errors import Stopped, UserError
from selftaught.pipeline import plan


def adapt(words: list[str]) -> int:
    """Run the command; return the exit code."""
    words = words or ["--help"]
    options = flags.parse_adapt(words)
    launch = launch_of(options)
    if options.plan:
        allowed = CONDUCT | {"plan", "out"}
        if more := [name for name in map(normalise, flags.names(words)) if name not in allowed]:
            raise UserError(
                f"{flag(more[0])} and --plan do not go together: write it into the plan"
            )
        stages = plan.read(Path(options.plan))
    else:
        overrides = flags.overrides_of(words, options)
        overrides.pop("init", None)
        stages = plan.chain(
            overrides,
            target=options.target,
            source=options.source,
            init=options.init,
            source_steps=options.source_steps,
        )
    try:
        lines = adapt_run(
            stages, Path(options.out), launch, shlex.join(["selftaught", "adapt", *words])
        )
    except Stopped as stopped:
        text = str(stopped).replace("; continue with --resume", "")
        tell(f"{text}: the same command goes on with it")
        return 0
    for line in lines:
        print(line)
    return 0
