"""`selftaught pack`: write images to a store, or verify one."""

import dataclasses
from pathlib import Path

from selftaught.cli.options import MAX_PIXELS_HELP, labels_option, option, parse_options
from selftaught.data.io import integrity
from selftaught.data.pack.encode import Encoding, Format
from selftaught.errors import UserError, require


@dataclasses.dataclass(kw_only=True)
class Pack:
    """Pack images into Parquet shards, resized once. `--data` reads them locally, over HTTP or from
    S3. The same command continues after an interruption. See docs/pack.md.
    """

    images: tuple[str, ...] = option(
        "PATH ...",
        "folders of images, or Parquet files to pack again",
        "required without --verify",
        default=(),
        positional=True,
    )
    out: str | None = option(
        "FOLDER", "the pack, such as photos.pack", "required without --verify", default=None
    )
    size: int | None = option(
        "PIXELS", "short side of an image, never enlarged", "unchanged", default=None
    )
    format: Format = option(
        "jpeg|webp|png", "format of images that are resized or have another format", default="jpeg"
    )
    quality: int | None = option("1..100", "of jpeg and webp", "90", default=None)
    labels_from: str = labels_option()
    masks: str | None = option(
        "FOLDER", "masks, each under the path of its image", "none", default=None
    )
    shard: int = option("MEGABYTES", "approximate size of a file", default=256)
    max_pixels: int = option("PIXELS", MAX_PIXELS_HELP, default=integrity.MAX_PIXELS)
    verify: str | None = option(
        "PACK", "a pack, or its URL: only compare files with their checksums", "no", default=None
    )


def pack(words: list[str]) -> int:
    """Run the command; return the exit code."""
    options = parse_options(Pack, "pack", words or ["--help"])
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
