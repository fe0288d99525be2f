"""`selftaught export`: write the backbone for timm or torch."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from selftaught.cli.console import tell


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a run's backbone with timm's names, as .safetensors or .pth."""

    run: Annotated[str, Positional]
    to: str


def export(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = tyro.cli(Export, prog="selftaught export", args=words)
    from selftaught.api.scoring import export_backbone
    from selftaught.models import backbone as backbone_module

    backbone, lines = export_backbone(Path(options.run), Path(options.to))
    for line in lines:
        tell(line)
    print(backbone_module.recipe(backbone, options.to))
    return 0
