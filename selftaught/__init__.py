"""Self-supervised vision: teach a backbone from images without labels, and see whether that was
worth it.

import selftaught
run = selftaught.pretrain("photos/", out="runs/a")
print(selftaught.evaluate(run, "labelled/").verdict)
backbone = selftaught.load(run)  # pixels [B, 3, H, W] in [0, 1] -> features [B, D]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `import selftaught` stays quick
    from selftaught.evaluation.evaluate import Evaluation
    from selftaught.models.backbone import Backbone

__all__ = ["evaluate", "load", "pretrain"]


def pretrain(*data: str | Path, out: str | Path, **flags: Any) -> Path:
    """Train on folders or files of images; return the run's folder.

    `flags` are those of the command line, a dot written as two underscores: method="moco-v2",
    hard=("adversarial", "cutmix"), method__temperature=0.1, steps=1000. Raises UserError for bad
    input.
    """
    from selftaught.cli.pretrain import train
    from selftaught.errors import UserError
    from selftaught.pipeline import plan

    words = ["--out", str(out), *(["--data", *map(str, data)] if data else [])]
    words += plan.words(
        {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    )
    try:
        train(words)
    except SystemExit as refused:  # the flags' parser has said why on standard error
        raise UserError(f"these settings do not fit: {' '.join(words)}") from refused
    return Path(out)


def evaluate(run: str | Path, *data: str | Path, **options: Any) -> Evaluation:
    """Score a run's features on labelled images beside random ones; `options` as for
    `evaluate_run`.
    """
    from selftaught.evaluation.evaluate import evaluate_run

    return evaluate_run(run, data, **options)


def load(path: str | Path) -> Backbone:
    """The backbone of a run or an exported file, ready for use: pixels [B, 3, H, W] in [0, 1] ->
    features [B, D].

    uint8 pixels in 0..255 are taken, too. Its `pixel_range` says which values of more than 8 bits
    were 0 and 1 in training. Raises ValueError when it is called with other shapes, kinds or
    ranges; warns of negative pixels.
    """
    from selftaught.models.input_check import PixelCheck
    from selftaught.runs.folder import open_backbone

    backbone = open_backbone(Path(path)).eval()
    backbone.register_forward_pre_hook(PixelCheck(), with_kwargs=True)
    return backbone
