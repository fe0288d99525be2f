"""Self-supervised training of vision backbones on unlabelled images, and their evaluation.

    import selftaught as st
    run = st.pretrain("photos/", out="runs/a")
    print(st.evaluate(run, "labelled/").verdict)
    backbone = st.load(run)  # pixels [B, 3, H, W] in [0, 1] -> features [B, D]

docs/python.md describes the rest. Names are imported on first use.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selftaught import hard as hard
    from selftaught import losses as losses
    from selftaught import methods as methods
    from selftaught import views as views
    from selftaught.api.embedding import Embeddings as Embeddings
    from selftaught.api.run import Run as Run
    from selftaught.api.scoring import embed as embed
    from selftaught.api.scoring import evaluate as evaluate
    from selftaught.api.scoring import export as export
    from selftaught.api.scoring import load as load
    from selftaught.api.training import adapt as adapt
    from selftaught.api.training import pretrain as pretrain
    from selftaught.api.training import train as train
    from selftaught.config.stage import Data as Data
    from selftaught.config.stage import Stage as Stage
    from selftaught.errors import UserError as UserError
    from selftaught.evaluation.classifier import Classifier as Classifier
    from selftaught.evaluation.compare import evaluate_features as evaluate_features
    from selftaught.evaluation.evaluate import Evaluation as Evaluation
    from selftaught.evaluation.finetune import FineTune as FineTune
    from selftaught.features.knn import KNN as KNN
    from selftaught.features.linear import LinearProbe  # noqa: F401
    from selftaught.features.protocol import Features as Features
    from selftaught.hard import HARD as HARD
    from selftaught.hard.base import HardExample as HardExample
    from selftaught.method import Batch as Batch
    from selftaught.method import Encoder as Encoder
    from selftaught.method import Method as Method
    from selftaught.method import Setup as Setup
    from selftaught.method import image_seeds as image_seeds
    from selftaught.methods import METHODS as METHODS
    from selftaught.models.anchor import Anchor as Anchor
    from selftaught.models.anchor import AnchorLoss as AnchorLoss
    from selftaught.models.backbone import Backbone as Backbone
    from selftaught.models.backbone import create as create_backbone  # noqa: F401
    from selftaught.optim import LARS as LARS
    from selftaught.optim import SGD as SGD
    from selftaught.optim import AdamW as AdamW
    from selftaught.optim import Cosine as Cosine
    from selftaught.pipeline.plan import Plan as Plan
    from selftaught.training.step import Step as Step
    from selftaught.views.augment import Augment as Augment
    from selftaught.views.spec import Views as Views

# {name: module}, or {name: "module:name"} if the name there differs; "" for a module itself
_HOMES = {
    "hard": "",
    "losses": "",
    "methods": "",
    "views": "",
    "Embeddings": "api.embedding",
    "Run": "api.run",
    "embed": "api.scoring",
    "evaluate": "api.scoring",
    "export": "api.scoring",
    "load": "api.scoring",
    "adapt": "api.training",
    "pretrain": "api.training",
    "train": "api.training",
    "Data": "config.stage",
    "Stage": "config.stage",
    "UserError": "errors",
    "Classifier": "evaluation.classifier",
    "evaluate_features": "evaluation.compare",
    "Evaluation": "evaluation.evaluate",
    "Features": "features.protocol",
    "FineTune": "evaluation.finetune",
    "KNN": "features.knn",
    "LinearProbe": "features.linear:LinearProbe",
    "HARD": "hard",
    "HardExample": "hard.base",
    "Batch": "method",
    "Encoder": "method",
    "Method": "method",
    "Setup": "method",
    "image_seeds": "method",
    "METHODS": "methods",
    "Anchor": "models.anchor",
    "AnchorLoss": "models.anchor",
    "Backbone": "models.backbone",
    "create_backbone": "models.backbone:create",
    "LARS": "optim",
    "SGD": "optim",
    "AdamW": "optim",
    "Cosine": "optim",
    "Plan": "pipeline.plan",
    "Step": "training.step",
    "Augment": "views.augment",
    "Views": "views.spec",
}

__all__ = [*_HOMES, "report"]  # noqa: PLE0604


# Imported before `report` is defined, as the first import of a module sets its name here.
importlib.import_module("selftaught.report")


def report(*runs: str | os.PathLike[str], out: str | os.PathLike[str] = "report.html") -> Path:
    """Write one self-contained HTML page that compares runs; return its path."""
    from selftaught.api.scoring import write_report

    return write_report(runs, out)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not (home := _HOMES[name]):
        return importlib.import_module(f"{__name__}.{name}")
    module, _, other = home.partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
