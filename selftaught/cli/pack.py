"""`selftaught pack`: write images to a store, or verify one."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.data.pack.encode import Encoding, Format
from selftaught.errors import UserError, require


@dataclasses.dataclass(kw_only=True)
class Pack:
    """Pack images into Parquet shards, resized once. `--data` reads them locally, over HTTP or from
    S3. The same command continues after an interruption. See docs/pack.md.
    """

    images: Annotated[tuple[str, ...], Positional] = ()
    """folders of images, or Parquet files to pack again"""
    out: str | None = None
    """the pack's folder, such as photos.pack"""
    size: int | None = None
    """pixels of the short side, never enlarged; by default unchanged"""
    format: Format = "jpeg"
    """format of images that are resized or have another format"""
    quality: int | None = None
    """of jpeg and webp, 1 to 100; by default 90"""
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, none, or a CSV file"""
    masks: str | None = None
    """a folder of masks, each under the path of its image"""
    shard: int = 256
    """approximate size of a file in megabytes"""
    max_pixels: Annotated[int, arg(name="max-pixels")] = MAX_PIXELS
    """maximum size of an image; larger ones are omitted"""
    verify: str | None = None
    """a pack, or its URL: only compare files with their checksums"""


def pack(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = tyro.cli(Pack, prog="selftaught pack", args=words or ["--help"])
    from selftaught.data.pack import write
    from selftaught.loggers.terminal import Progress

    if options.verify is not None:
        if options.images or options.out is not None:
            raise UserError("--verify checks an existing pack: omit the images and --out")
        print(write.verify(options.verify))
        return 0
    if not options.images or options.out is None:
        raise UserError(
            "name the images and a folder for the pack, as in `selftaught pack photos/ --out"
            " photos.pack`"
        )
    require(options.max_pixels >= 1, "--max-pixels", "1 or more", options.max_pixels)
    with Progress() as progress:
        write.pack(
            options.images,
            Path(options.out),
            Encoding(size=options.size, format=options.format, quality=options.quality),
            labels=options.labels_from,
            masks=Path(options.masks) if options.masks else None,
            shard=options.shard,
            max_pixels=options.max_pixels,
            say=progress.say,
            on_index=progress.of("reading images"),
            on_progress=progress.of("packing"),
        )
    return 0
