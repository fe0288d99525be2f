"""`selftaught export`: write the backbone for timm or torch."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from selftaught.cli.console import tell


@dataclasses.dataclass(kw_only=True)
class Export:
    """Write a run's backbone for others: timm's names, .safetensors or .pth."""

    run: Annotated[str, Positional]
    to: str


def export(words: list[str]) -> int:
    asked = tyro.cli(Export, prog="selftaught export", args=words)
    from selftaught.errors import UserError
    from selftaught.models import backbone as backbone_module
    from selftaught.models.weights import io as weights_io
    from selftaught.models.weights import weight_files
    from selftaught.runs import folder as run_folder

    source, to = weight_files.folder_of(Path(asked.run)), Path(asked.to)
    if to.is_dir():
        raise UserError(f"--to {to} is a folder: name the file, as {to / weight_files.BACKBONE}")
    backbone = run_folder.open_backbone(source)
    if to.exists() and any(file.samefile(to) for file in weight_files.locate(source)):
        raise UserError(f"--to {to} is the file that is exported: choose another name")
    if run_folder.is_run(source) and (doubt := run_folder.read_run(source).doubt):
        tell(f"{asked.run}: {doubt}")
    replaced = " in place of the file that was there" if to.exists() else ""
    try:
        weights_io.save_backbone(backbone, to)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"--to {to} cannot be written: {why}. Nothing was changed there: choose another place"
        ) from error
    size = f"{to.stat().st_size / 2**20:.1f} MiB"
    tell(f"{to}: {backbone.name}, {backbone.features:,} features an image, {size}{replaced}")
    tell(
        f"goes on by --init {to}, is scored by selftaught evaluate {to} --data LABELLED; without"
        " selftaught, in Python:"
    )
    print(backbone_module.recipe(backbone, to))
    return 0
