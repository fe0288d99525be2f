"""`selftaught embed`: the features of images as a table."""

import dataclasses

from selftaught.cli.console import tell
from selftaught.cli.options import (
    MAX_PIXELS_HELP,
    Device,
    device_option,
    labels_option,
    option,
    parse_options,
    threads_option,
    workers_option,
)
from selftaught.config.overrides import Count


@dataclasses.dataclass(kw_only=True)
class Embed:
    """Write the features of images as a table, with one row for each image."""

    run: str = option("RUN", "a run's folder, or a backbone's file", positional=True)
    data: tuple[str, ...] = option(
        "PATH ...",
        "folders of images, files, packs, Parquet files, or URLs",
        "the run's own data",
        default=(),
    )
    out: str = option("FILE", "file of the table: .csv, .parquet or .npz")
    labels_from: str = labels_option()
    max_pixels: int | None = option("PIXELS", MAX_PIXELS_HELP, "the run's", default=None)
    size: int | None = option("PIXELS", "side of an image", "the run's", default=None)
    device: Device = device_option()
    threads: Count = threads_option()
    workers: Count = workers_option()


def embed(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Embed, "embed", words)
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
