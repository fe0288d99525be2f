"""Packs: an image set as Parquet shards, for fast repeated reading from disks or servers.

    photos.pack/
      train-00000-of-00007.parquet  image: {bytes, path}, label or labels, height, width, mask
      test-00000-of-00002.parquet   names and schema are those of Hugging Face's `datasets`
      index.parquet                 all columns but the pixels, so that readers open one file
      pack.json                     settings, source, and each file's rows, bytes and sha256

Rows are sorted by a hash of their names, so that every row group is a sample of the set. Shards are
planned before any is written. After an interruption the same command continues with the next shard,
and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from selftaught.data.index import parquet_rows
from selftaught.data.index.build import Index, build_index
from selftaught.data.index.scan import SUFFIXES
from selftaught.data.io import filesystem
from selftaught.data.io.integrity import MAX_PIXELS
from selftaught.data.io.parallel import run_parallel
from selftaught.data.pack.encode import Encoded, Encoding, encode
from selftaught.data.pixel_range import PixelRange
from selftaught.errors import UserError
from selftaught.files import atomic, locked, write_json
from selftaught.text import count_text, list_reasons, printable

_GROUP_IMAGES, _GROUP_BYTES = 64, 1 << 20  # a row group ends at the first of both limits
_BATCH = 256  # images that are encoded in parallel before they are written
# estimates, to plan the number of shards
_BYTES_PER_PIXEL = {"jpeg": 0.35, "webp": 0.25, "png": 2.0}
_INDEX = "index.parquet"


@dataclass(frozen=True)
class Plan:
    """Which images go into which shard; equal in every run."""

    index: Index
    masks: dict[int, Path]
    shards: dict[str, list[int]]  # positions of the images in each file, in the order of its rows


def pack(
    roots: Sequence[str | Path],
    out: Path,
    encoding: Encoding = Encoding(),
    *,
    labels: str = "auto",
    masks: Path | None = None,
    shard: int = 256,
    max_pixels: int = MAX_PIXELS,
    say: Callable[[str], None] = lambda text: None,
    on_index: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Pack the images of `roots` into the folder `out`, or continue an interrupted pack; return
    `out`.

    labels, max_pixels: as in `build_index`. masks: a folder with masks under the relative paths of
    their images, of any suffix. shard: approximate megabytes of a file. A split by folders or by a
    table is kept, and none is drawn.

    Raises UserError for invalid input, such as settings or data other than those of a started pack.
    """
    filesystem.import_optional("pyarrow.parquet")
    if filesystem.is_url(str(out)):
        raise UserError(f"--out {out}: pack into a folder of this machine, then copy it to the URL")
    if (
        out.exists()
        and any(out.iterdir())
        and not (out / parquet_rows.MANIFEST).is_file()
        and not (out / ".lock").is_file()
    ):
        raise UserError(f"--out {printable(out)} holds other files: choose a new folder")
    index = build_index(
        roots, labels=labels, holdout=0, max_pixels=max_pixels, on_progress=on_index
    )
    say(index.describe())
    plan = _make_plan(index, _find_masks(index, masks, say), encoding, shard)
    with locked(
        out / ".lock", lambda: say(f"another process packs into {printable(out)}; waiting"), say
    ):
        return _write_pack(plan, out, encoding, shard, say, on_progress)


def _write_pack(
    plan: Plan,
    out: Path,
    encoding: Encoding,
    shard: int,
    say: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None,
) -> Path:
    manifest = _open_manifest(out, plan, encoding, shard)
    entries: list[dict[str, Any] | None] = [
        e if e and _is_complete(out, e) else None for e in manifest["shards"]
    ]
    index = manifest["index"]
    if manifest["finished"] and all(entries) and index and _is_complete(out, index):
        say(f"{printable(out)} is done already")
        return out
    rows_before, total = 0, len(plan.index)
    for number, (file, positions) in enumerate(plan.shards.items()):
        if entries[number] is None:
            start = rows_before

            def progress(n: int, start: int = start) -> None:
                if on_progress is not None:
                    on_progress(start + n, total)

            def write_shard(
                draft: Path, rows: list[int] = positions, report: Any = progress
            ) -> None:
                _write_shard(draft, plan, rows, encoding, report)

            atomic(out / file, write_shard)
            entries[number] = _make_entry(out / file, len(positions))
            write_json(
                out / parquet_rows.MANIFEST, {**manifest, "shards": entries, "finished": False}
            )
        rows_before += len(positions)
    atomic(out / _INDEX, lambda draft: _write_index(draft, out, plan))
    final = {
        **manifest,
        "shards": entries,
        "index": _make_entry(out / _INDEX, total),
        "finished": True,
    }
    write_json(out / parquet_rows.MANIFEST, final)
    size = sum(e["bytes"] for e in entries if e) / 1e6
    say(
        f"{printable(out)}: {count_text(total, 'image')} in {count_text(len(entries), 'shard')},"
        f" {size:,.1f} MB: --data {out}"
    )
    return out


def _open_manifest(out: Path, plan: Plan, encoding: Encoding, shard: int) -> dict[str, Any]:
    """Return the manifest in `out`, or write a new one; refuse other settings or other data."""
    index = plan.index
    # `listing`: as in packs of older versions
    source = _hash_source(plan, index.fingerprint)
    listing_source = _hash_source(plan, index.listing)
    several = index.labels is not None and index.labels.dim() == 2
    new: dict[str, Any] = {
        "format": parquet_rows.FORMAT,
        "settings": {
            **asdict(encoding),
            "quality": encoding.options.get("quality"),
            "shard": shard,
        },
        "source": source,
        "images": len(index),
        "classes": list(index.classes),
        "several": several,
        "split": index.split,
        "masks": len(plan.masks),
        "pixel_range": (index.pixel_range or PixelRange()).to_json(),
        "versions": {name: version(name) for name in ("selftaught", "pyarrow", "pillow")},
        "shards": [None] * len(plan.shards),
        "index": None,
        "finished": False,
    }
    manifest = parquet_rows.read_manifest(str(out))
    if manifest is None:
        write_json(out / parquet_rows.MANIFEST, new)
        return new
    if changed := [k for k, v in new["settings"].items() if manifest["settings"].get(k) != v]:
        settings = ", ".join(f"--{k} {manifest['settings'].get(k)}" for k in changed)
        raise UserError(
            f"{printable(out)} was started with {settings}: give the same options, or choose"
            " another --out"
        )
    if manifest["source"] == listing_source:
        new["source"] = listing_source
    same_shards = len(manifest["shards"]) == len(new["shards"])
    if not same_shards or any(
        manifest[k] != new[k] for k in ("source", "classes", "several", "split", "masks")
    ):
        raise UserError(
            f"the images, labels or masks have changed since {printable(out)} was started: choose"
            " another --out, or delete it"
        )
    return manifest


def _hash_source(plan: Plan, fingerprint: str) -> str:
    """Return a hash of images, labels and masks."""
    source = hashlib.sha256(fingerprint.encode())
    for position, mask in sorted(plan.masks.items()):
        source.update(
            f"{plan.index.names[position]}\0{mask.suffix}\0{mask.stat().st_size}\n".encode()
        )
    return source.hexdigest()


def _make_plan(index: Index, masks: dict[int, Path], encoding: Encoding, shard: int) -> Plan:
    if shard < 1:
        raise UserError(f"--shard must be 1 megabyte or more, and not {shard}")
    shards: dict[str, list[int]] = {}
    for split, positions in (("train", index.train.tolist()), ("test", index.held_out.tolist())):
        if not positions:
            continue
        positions.sort(key=lambda i: (hashlib.sha256(bytes(index.names[i])).digest(), i))
        size = torch.tensor(
            [encoding.pixels(*index.sizes[i].tolist()) for i in positions], dtype=torch.float64
        )
        ends = (size * _BYTES_PER_PIXEL[encoding.format]).cumsum(0)
        n = min(max(round(float(ends[-1]) / (shard << 20)), 1), len(positions))
        cuts = torch.searchsorted(
            ends, ends[-1] / n * torch.arange(1, n, dtype=torch.float64)
        ).tolist()
        parts = [
            positions[a:b]
            for a, b in zip([0, *cuts], [*cuts, len(positions)], strict=True)
            if b > a
        ]
        shards |= {
            f"{split}-{i:05}-of-{len(parts):05}.parquet": part for i, part in enumerate(parts)
        }
    return Plan(index, masks, shards)


def _find_masks(index: Index, folder: Path | None, say: Callable[[str], None]) -> dict[int, Path]:
    """Return the mask of each image that has one: the file of the same path below `folder`.

    The suffix may differ.
    """
    if folder is None:
        return {}
    mask_files = {
        p.relative_to(folder).with_suffix(""): p
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES
    }
    masks = {
        i: mask_files[name]
        for i in range(len(index))
        if (name := index.names[i].with_suffix("")) in mask_files
    }
    if not masks:
        raise UserError(
            f"--masks {printable(folder)}: no image has a mask there; a mask has the path of its"
            " image"
        )
    if len(masks) < max(len(index), len(mask_files)):
        unmasked = (
            f"{len(index) - len(masks):,} of {count_text(len(index), 'image')} without a mask"
        )
        say(f"{unmasked}, {len(mask_files) - len(masks):,} masks without an image")
    return masks


def _schema(plan: Plan) -> Any:
    """Return Arrow's schema, with the features of Hugging Face's `datasets`."""
    import pyarrow as pa

    index = plan.index
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields: list[tuple[str, Any]] = [("image", image)]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if index.labels is not None:
        several = index.labels.dim() == 2
        feature = {"names": list(index.classes), "_type": "ClassLabel"}
        name = "labels" if several else "label"
        fields.append((name, pa.list_(pa.int64()) if several else pa.int64()))
        features[name] = {"feature": feature, "_type": "Sequence"} if several else feature
    fields += [("height", pa.int32()), ("width", pa.int32())]
    features |= {name: {"dtype": "int32", "_type": "Value"} for name in ("height", "width")}
    if plan.masks:
        fields.append(("mask", image))
        features["mask"] = {"_type": "Image"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _write_shard(
    draft: Path,
    plan: Plan,
    positions: list[int],
    encoding: Encoding,
    progress: Callable[[int], None],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(plan)
    statistics_columns = [name for name in schema.names if name not in ("image", "mask")]
    with pq.ParquetWriter(
        draft,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=statistics_columns,
        write_page_checksum=True,
    ) as writer:
        for group in _split_groups(_encode_images(plan, positions, encoding, progress)):
            writer.write_table(
                pa.Table.from_pylist([_make_row(plan, i, image) for i, image in group], schema)
            )


def _encode_images(
    plan: Plan, positions: list[int], encoding: Encoding, progress: Callable[[int], None]
) -> Iterator[tuple[int, Encoded]]:
    for at in range(0, len(positions), _BATCH):
        part = positions[at : at + _BATCH]
        encoded: list[Any] = [None] * len(part)

        def encode_one(j: int, part: list[int] = part, encoded: list[Any] = encoded) -> None:
            i = part[j]
            height, width = plan.index.sizes[i].tolist()
            encoded[j] = encode(
                plan.index.paths[i],
                encoding,
                plan.masks.get(i),
                (height, width),
                plan.index.pixel_range,
            )

        run_parallel(len(part), encode_one, on_progress=lambda n, _, at=at: progress(at + n))
        yield from zip(part, encoded, strict=True)


def _split_groups(images: Iterator[tuple[int, Encoded]]) -> Iterator[list[tuple[int, Encoded]]]:
    group: list[tuple[int, Encoded]] = []
    for image in images:
        group.append(image)
        if (
            len(group) == _GROUP_IMAGES
            or sum(len(encoded.image) for _, encoded in group) >= _GROUP_BYTES
        ):
            yield group
            group = []
    if group:
        yield group


def _make_row(plan: Plan, i: int, image: Encoded) -> dict[str, Any]:
    name = os.fsencode(plan.index.names[i].as_posix()).decode("utf-8", "backslashreplace")
    if plan.index.split == "table":  # a pack has no such table: the split becomes part of the names
        name = f"{'test' if plan.index.test[i] else 'train'}/{name}"
    row: dict[str, Any] = {
        "image": {"bytes": image.image, "path": name},
        "height": image.height,
        "width": image.width,
        **_make_label(plan.index, i),
    }
    if plan.masks:
        row["mask"] = None if image.mask is None else {"bytes": image.mask, "path": name}
    return row


def _make_label(index: Index, i: int) -> dict[str, Any]:
    if index.labels is None:
        return {}
    label = index.labels[i]
    if label.dim():
        return {"labels": None if label[0] < 0 else torch.nonzero(label).flatten().tolist()}
    return {"label": None if label < 0 else int(label)}


def _write_index(draft: Path, out: Path, plan: Plan) -> None:
    """Write every column but the pixels, read from the shards, whose checksums this verifies."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tables, groups = [], 0
    for file in plan.shards:
        with pq.ParquetFile(out / file, page_checksum_verification=True) as shard:
            columns = [name for name in shard.schema_arrow.names if name not in ("image", "mask")]
            for g in range(shard.num_row_groups):
                table = shard.read_row_group(g, columns=["image", *columns])
                image = table.column("image").combine_chunks()
                columns_of_group = {
                    "name": image.field("path"),
                    "bytes": pc.binary_length(image.field("bytes")),
                    "group": pa.array([groups] * len(table), pa.int32()),
                    **{name: table.column(name).combine_chunks() for name in columns},
                }
                tables.append(pa.table(columns_of_group))
                groups += 1
    pq.write_table(pa.concat_tables(tables), draft, compression="zstd", row_group_size=1 << 20)


def _make_entry(file: Path, n: int) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"file": file.name, "rows": n, "bytes": file.stat().st_size, "sha256": digest}


def _is_complete(out: Path, entry: dict[str, Any]) -> bool:
    file = out / entry["file"]
    return file.is_file() and file.stat().st_size == entry["bytes"]


def verify(location: str) -> str:
    """Check the bytes of every file of a pack, local or at a URL; return a line that confirms them.

    Raises UserError with the names of damaged and missing files.
    """
    location = filesystem.normalize_location(location)
    manifest = parquet_rows.read_manifest(location)
    if manifest is None:
        raise UserError(f"{printable(location)} is no pack: it has no {parquet_rows.MANIFEST}")
    parquet_rows.refuse_unfinished(location, manifest)
    failures = []
    for entry in [*manifest["shards"], manifest["index"]]:
        digest = hashlib.sha256()
        try:
            file = filesystem.join_location(location, entry["file"])
            size = filesystem.stat_file(file)[0]
            if size != entry["bytes"]:
                failures.append((entry["file"], "damaged"))
                continue
            for start in range(0, entry["bytes"], 8 << 20):
                digest.update(filesystem.fetch(file, start, min(start + (8 << 20), entry["bytes"])))
        except FileNotFoundError:
            failures.append((entry["file"], "missing"))
            continue
        if digest.hexdigest() != entry["sha256"]:
            failures.append((entry["file"], "damaged"))
    if failures:
        raise UserError(
            f"{printable(location)}: {list_reasons(failures)}; copy them again, or delete them and"
            " pack again"
        )
    return (
        f"{printable(location)}: {count_text(len(manifest['shards']), 'shard')} and the index"
        " are as they were written"
    )
