"""The commands and their exit codes: 0 done, 2 invalid input, 3 collapse of the features."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from selftaught.cli.console import err, plain
from selftaught.cli.malloc import keep_freed
from selftaught.errors import UserError, describe_error, describe_memory_error

# {name: (module, description)}
COMMANDS = {
    "pretrain": ("pretrain", "train a backbone on a folder of images"),
    "pack": ("pack", "write images to a store that is fast to read, locally or over a network"),
    "adapt": ("adapt", "adapt a backbone to your images in stages, and keep the best weights"),
    "evaluate": (
        "evaluate",
        "score frozen features with few labels, against random initialisation",
    ),
    "study": ("study", "run the experiments of hierarchical pretraining on your images"),
    "report": ("report", "write one HTML page that compares runs"),
    "show": ("report", "show the stages that led to a run: their data, weights and scores"),
    "embed": ("embed", "write the features of images as a table: .csv, .parquet or .npz"),
    "export": ("export", "write the backbone for timm or torch"),
    "methods": ("methods", "list methods, hard examples and optimizers, or show what one takes"),
    "demo": ("demo", "run all of this on the included photographs, in some minutes"),
}
# what takes less memory, by command
MEMORY_REMEDIES = {
    "pretrain": "choose another --out and a lower --batch or --size, or --accumulate 2",
    "adapt": "give a lower --batch or --size, or --accumulate 2",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code.

    Without `args`, the command is that of the process, whose memory allocator is configured too.
    """
    if args is not None:
        return run_command(list(args))
    keep_freed()
    code = run_command(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave(code)
    return code


def leave(code: int) -> None:
    """End the process without destroying its objects.

    With FSDP and gloo, one in twenty processes aborted while they were destroyed, in a thread that
    was not joined (torch 2.15).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_command(words: list[str]) -> int:
    """Run a command, print an error as one line, and return the exit code."""
    try:
        return dispatch(words)
    except UserError as error:
        from selftaught.errors import Collapsed

        return refuse(str(error), 3 if isinstance(error, Collapsed) else 2)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
    except OSError as error:
        return refuse(describe_error(error))
    except (MemoryError, RuntimeError) as error:
        full = describe_memory_error(error)
        if full is None:
            raise
        remedy = MEMORY_REMEDIES.get(words[0], "lower --size")
        return refuse(f"{full}; end other programs that use it, or {remedy}")
    except ModuleNotFoundError as error:
        from importlib.metadata import PackageNotFoundError

        if not isinstance(error, PackageNotFoundError):
            raise
        # A folder of the source on PYTHONPATH can be imported, but names no version.
        return refuse(f"{error.name} is not installed: pip install it")


def refuse(text: str, code: int = 2) -> int:
    """Print an error as one line; return the exit code."""
    err.print(f"[bold red]selftaught:[/] {plain(text)}", highlight=False, soft_wrap=True)
    return code


def dispatch(words: list[str]) -> int:
    """Call the command of the first word with the others; return the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: selftaught COMMAND [FLAGS]      (selftaught COMMAND --help lists the flags)\n"
        )
        print("\n".join(f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()))
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"selftaught {version('selftaught')}")
        return 0
    from selftaught.config.registry import find_name

    among = [*COMMANDS, "--help", "--version"] if words[0].startswith("-") else COMMANDS
    name = find_name(words[0], among, "command")
    for before, word in pairwise(words):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            flag = before if word == "" else word[:-1]
            raise UserError(f"{flag} has an empty value: perhaps a variable is not set")
    # Imported here, so that each command loads its own dependencies only.
    module = importlib.import_module(f"selftaught.cli.{COMMANDS[name][0]}")
    command: Callable[[list[str]], int] = getattr(module, name)
    return command(words[1:])
