"""The commands' names, and how a command ends: 0 done, 2 bad input, 3 training was stopped by its
guard.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from selftaught.cli.console import err, plain
from selftaught.cli.malloc import keep_freed
from selftaught.errors import UserError, describe_error

# name: (module, what it is for)
COMMANDS = {
    "pretrain": ("pretrain", "teach a backbone from a folder of images"),
    "pack": ("pack", "images into a store that is quick to read again and again, here or far away"),
    "adapt": (
        "adapt",
        "lead a backbone that you have to your images, through stages, if that is worth it",
    ),
    "evaluate": ("evaluate", "score frozen features with few labels, beside random initialisation"),
    "study": ("study", "the experiments of hierarchical pretraining, on your images"),
    "report": ("report", "one HTML page of a run, or of several side by side"),
    "show": ("report", "what led to a run: its stages, their data, weights and scores"),
    "embed": ("embed", "the features of images as a table: .csv, .parquet or .npz"),
    "export": ("export", "write the backbone for timm or torch"),
    "methods": ("methods", "what there is to train with"),
    "demo": ("demo", "all of it on photographs that come along, in some minutes"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code. Without arguments the whole process is ours, with those
    that it was given.
    """
    if args is not None:
        return ended(list(args))
    keep_freed()
    code = ended(sys.argv[1:])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave(code)
    return code


def leave(code: int) -> None:
    """End the process without taking its objects apart: where FSDP held gloo's groups, one such end
    in twenty aborted, with all work done, in a thread that nobody had joined (torch 2.15).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(words: list[str]) -> int:
    """Run a command and say in one line what stopped it, if anything did; return the exit code."""
    try:
        return dispatch(words)
    except UserError as error:
        from selftaught.errors import Collapsed

        err.print(f"[bold red]selftaught:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
        return 3 if isinstance(error, Collapsed) else 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
    except OSError as error:
        err.print(
            f"[bold red]selftaught:[/] {plain(describe_error(error))}",
            highlight=False,
            soft_wrap=True,
        )
        return 2


def dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: selftaught COMMAND [FLAGS]      (selftaught COMMAND --help tells the flags)\n"
        )
        print("\n".join(f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()))
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"selftaught {version('selftaught')}")
        return 0
    from selftaught.config.registry import find_name

    name = find_name(words[0], COMMANDS, "command")
    # each command loads what it needs alone
    module = importlib.import_module(f"selftaught.cli.{COMMANDS[name][0]}")
    command: Callable[[list[str]], int] = getattr(module, name)
    return command(words[1:])
