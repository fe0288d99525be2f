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
    """Write the features of images as a table: a row an image, with its path, and its label where
    there is one.
    """

    run: Annotated[str, Positional]
    """a run's folder, or a backbone's file"""
    data: tuple[str, ...] = ()
    """images: folders, files, packs, Parquet files, or URLs; a run's own data when left out"""
    out: str
    """the table: FILE.csv, FILE.parquet or FILE.npz"""
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, none, or a CSV file"""
    max_pixels: Annotated[int | None, arg(name="max-pixels")] = None
    """of an image, larger ones are left out; as in the run's training when left out"""
    size: int | None = None
    """pixels; what the run was trained with when left out"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[Count, reader("threads", Count, "auto|THREADS")] = "auto"
    """that compute; auto: one for each free core"""
    workers: Annotated[Count, reader("workers", Count, "auto|PROCESSES")] = "auto"
    """that decode images, where these are not held in memory; auto: at most 2"""


def embed(words: list[str]) -> int:
    asked = tyro.cli(Embed, prog="selftaught embed", args=words)
    from selftaught.api.scoring import embed as embed_images

    found = embed_images(
        asked.run,
        *asked.data,
        out=asked.out,
        labels_from=asked.labels_from,
        max_pixels=asked.max_pixels,
        size=asked.size,
        device=asked.device,
        threads=asked.threads,
        workers=asked.workers,
        show=True,
    )
    tell(f"{asked.out}: {len(found):,} images, {found.features.shape[1]:,} features each")
    return 0
