"""`selftaught export`: write the backbone for timm or torch."""

import dataclasses
from pathlib import Path

from selftaught.cli.console import tell
from selftaught.cli.options import option, parse_options


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a run's backbone with timm's names, as .safetensors or .pth."""

    run: str = option("RUN", "a run's folder", positional=True)
    to: str = option("FILE", "file of weights: .safetensors or .pth")


def export(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Export, "export", words)
    from selftaught.api.scoring import export_backbone
    from selftaught.models import backbone as backbone_module

    backbone, lines = export_backbone(Path(options.run), Path(options.to))
    for line in lines:
        tell(line)
    print(backbone_module.recipe(backbone, options.to))
    return 0
