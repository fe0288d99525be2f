"""`selftaught embed`: the features of images as a table."""

import dataclasses
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from selftaught.cli.console import tell
from selftaught.cli.flag_values import reader
from selftaught.config.overrides import Count


@dataclasses.dataclass(kw_only=True)
class Embed:
    """Write the features of images as a table, with one row for each image."""

    run: Annotated[str, Positional]
    """a run's folder, or a backbone's file"""
    data: tuple[str, ...] = ()
    """images: folders, files, packs, Parquet files, or URLs; by default a run's own data"""
    out: str
    """the table: FILE.csv, FILE.parquet or FILE.npz"""
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, none, or a CSV file"""
    max_pixels: Annotated[int | None, arg(name="max-pixels")] = None
    """maximum size of an image; larger ones are omitted; by default that of the run"""
    size: int | None = None
    """pixels; by default those of the run"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Count, reader("threads", Count, "auto|THREADS")] = "auto"
    """compute threads; auto: one for each free core"""
    workers: Annotated[Count, reader("workers", Count, "auto|PROCESSES")] = "auto"
    """processes that decode images, if these are not in memory; auto: at most 2"""


def embed(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = tyro.cli(Embed, prog="selftaught embed", args=words)
    from selftaught.api.scoring import embed as embed_images

    table = embed_images(
        options.run,
        *options.data,
        out=options.out,
        labels_from=options.labels_from,
        max_pixels=options.max_pixels,
        size=options.size,
        device=options.device,
        threads=options.threads,
        workers=options.workers,
        show=True,
    )
    tell(f"{options.out}: {len(table):,} images, {table.features.shape[1]:,} features each")
    return 0
