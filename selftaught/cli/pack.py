"""The command that packs images into a store, and checks one."""

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
    """Pack images into Parquet shards, resized once, which `--data` reads here, over HTTP or from
    S3. The same command goes on where it broke off. See docs/pack.md.
    """

    images: Annotated[tuple[str, ...], Positional] = ()
    """folders of images, or Parquet files to be packed anew"""
    out: str | None = None
    """the pack's folder, such as photos.pack"""
    size: int | None = None
    """pixels of the short side, never enlarged; as they are when left out"""
    format: Format = "jpeg"
    """what is not of this format, or is resized, is written in it"""
    quality: int | None = None
    """of jpeg and webp, 1 to 100; 90 when left out"""
    labels_from: Annotated[str, arg(name="labels-from")] = "auto"
    """auto, folders, none, or a CSV file"""
    masks: str | None = None
    """a folder of masks, each under the path of its image"""
    shard: int = 256
    """megabytes a file, roughly"""
    max_pixels: Annotated[int, arg(name="max-pixels")] = MAX_PIXELS
    """of an image; larger ones are left out"""
    verify: str | None = None
    """a pack, or its URL: only compare its files with their checksums"""


def pack(words: list[str]) -> int:
    asked = tyro.cli(Pack, prog="selftaught pack", args=words or ["--help"])
    from selftaught.data.pack import write
    from selftaught.loggers.terminal import Progress

    if asked.verify is not None:
        if asked.images or asked.out is not None:
            raise UserError(
                "--verify looks at a pack that is there: leave out the images and --out"
            )
        print(write.verify(asked.verify))
        return 0
    if not asked.images or asked.out is None:
        raise UserError(
            "name the images and a folder for the pack, as in `selftaught pack photos/ --out"
            " photos.pack`"
        )
    require(asked.max_pixels >= 1, "--max-pixels", "1 or more", asked.max_pixels)
    with Progress() as progress:
        write.pack(
            asked.images,
            Path(asked.out),
            Encoding(size=asked.size, format=asked.format, quality=asked.quality),
            labels=asked.labels_from,
            masks=Path(asked.masks) if asked.masks else None,
            shard=asked.shard,
            max_pixels=asked.max_pixels,
            say=progress.say,
            on_index=progress.of("reading images"),
            on_progress=progress.of("packing"),
        )
    return 0
