"""The pictures of a run (its `album/`): views, hard examples, nearest neighbours and a map.

Each function writes into `folder`, which it creates, and returns the JSON file. The JSON file is
written last, so an incomplete album is not read. Its contents are:

- views.json: {"columns": ["original", "view 1", ...], "rows": 6, "tile": 96}. views.png is a grid
  with a row for each image.
- hard.json: [{"kind", "clean", "perturbation" | null, "hard", "partner" | null, "loss_before",
  "loss_after", "note"}]. Pictures are names of files, hard-I-*.png or .jpg.
- answers.json: [{"pictures": [{"file", "title"}], "text", "correct": bool | null}], of methods that
  illustrate their task. Files are answer-I-J.png or .jpg.
- neighbours.json: {"of": number of images searched, "groups": [{"query", "neighbours": [file],
  "similarity": [cosine], "label": str | null, "labels": [str] | null}]}. Files are n-I-q.png and
  n-I-J.png.
- map.json: {"points": [[x, y]] in 0..1 with y downwards, "labels": [int] | null, "classes": [str],
  "sprite": "map.jpg", "tile": 32, "columns": 32, "of": number of images, "method": str}. A label of
  -1 means no class or several. The sprite has all thumbnails; 1000 PNG files would be 3 MB.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selftaught.files import atomic, write_text
from selftaught.method import Illustration

LARGEST = 160  # maximum side of a picture in pixels, because the page contains them all
PLAIN = 72  # maximum side of a PNG; larger pictures are JPEG


def write_views(
    folder: Path, originals: Tensor, views: Sequence[Tensor], *, tile: int = 96, rows: int = 6
) -> Path:
    """Write the first `rows` images beside their views.

    originals: uint8 [n, 3, H, W]; views: float [n, 3, h, w] in [0, 1] each. Views of multi-crop
    differ in size, and are drawn in proportion.
    """
    first = originals[:rows]
    largest = max((view.shape[-1] for view in views), default=originals.shape[-1])
    tile = min(tile, max(largest, 32))
    columns = ["original"] + [("view" if v.shape[-1] == largest else "small view") for v in views]
    gap = 4
    grid = Image.new(
        "RGBA", (len(columns) * (tile + gap) - gap, max(1, len(first) * (tile + gap) - gap))
    )
    for row in range(len(first)):
        side = [tile] + [max(1, round(tile * view.shape[-1] / largest)) for view in views]
        pictures = [_picture(first[row])] + [_picture(view[row]) for view in views]
        for column, (picture, pixels) in enumerate(zip(pictures, side, strict=True)):
            inset = (tile - pixels) // 2
            place = (column * (tile + gap) + inset, row * (tile + gap) + inset)
            grid.paste(picture.resize((pixels, pixels), Image.Resampling.LANCZOS), place)
    atomic(folder / "views.png", lambda draft: grid.save(draft, optimize=True))
    names = [columns[0]] + [
        f"{kind} {columns[1 : i + 2].count(kind)}" for i, kind in enumerate(columns[1:])
    ]
    return _write_json(folder / "views.json", {"columns": names, "rows": len(first), "tile": tile})


def write_hard(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Write hard examples beside their clean images.

    An entry has these keys:

    - kind: "adversarial", "cutmix" or "mixup"
    - clean and hard: float [3, H, W] in [0, 1]
    - loss_before and loss_after: numbers or None
    - partner, optional: the image that is mixed in, float [3, H, W]
    - note, optional: text

    For an adversarial example the perturbation
    is written too, magnified by a power of two around grey.
    """
    records = []
    for i, entry in enumerate(entries):
        clean, hard = entry["clean"].detach().float().cpu(), entry["hard"].detach().float().cpu()
        record: dict[str, Any] = {
            "kind": str(entry["kind"]),
            "clean": _save(_picture(clean), folder / f"hard-{i}-clean"),
            "perturbation": None,
            "hard": _save(_picture(hard), folder / f"hard-{i}-hard"),
            "partner": None,
            "loss_before": _finite(entry.get("loss_before")),
            "loss_after": _finite(entry.get("loss_after")),
            "note": str(entry.get("note", "")),
        }
        if entry.get("partner") is not None:
            partner = _picture(entry["partner"].detach().cpu())
            record["partner"] = _save(partner, folder / f"hard-{i}-partner")
        if record["kind"] == "adversarial":
            picture, factor, radius = magnify(clean, hard)
            record["perturbation"] = _save(_picture(picture), folder / f"hard-{i}-perturbation")
            note = f"perturbation ×{factor}; at most {radius * 255:.2g}/255 a pixel"
            record["note"] = record["note"] or note
        records.append(record)
    return _write_json(folder / "hard.json", records)


def write_answers(folder: Path, illustrations: Sequence[Illustration]) -> Path:
    """Write the answers of a method to some images: pictures and text of each."""
    records = [
        {
            "pictures": [
                {
                    "file": _save(_picture(pixels.float().cpu()), folder / f"answer-{i}-{j}"),
                    "title": title,
                }
                for j, (title, pixels) in enumerate(one.pictures.items())
            ],
            "text": one.text,
            "correct": one.correct,
        }
        for i, one in enumerate(illustrations)
    ]
    return _write_json(folder / "answers.json", records)


def magnify(clean: Tensor, hard: Tensor) -> tuple[Tensor, int, float]:
    """Magnify the difference of two images around grey.

    Returns the picture, the factor (a power of two), and the largest absolute difference.
    """
    difference = hard - clean
    radius = float(difference.abs().max())
    factor = 1
    while radius > 0 and 2 * factor * radius < 0.51 and factor < 1024:
        factor *= 2
    return (0.5 + factor * difference).clamp(0, 1), factor, radius


def write_neighbours(
    folder: Path,
    thumbnails: Tensor,
    vectors: Tensor,
    labels: Tensor | None,
    queries: int = 8,
    neighbours: int = 6,
    *,
    classes: Sequence[str] = (),
) -> Path:
    """Write some images with their nearest neighbours by cosine similarity, the nearest first.

    thumbnails: uint8 [n, 3, h, w]; vectors: [n, D]; labels: [n], [n, C] (0/1) or None. The queries
    are spread evenly over the images, sorted by class if there are labels.
    """
    direction = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1)
    usable = torch.isfinite(direction).all(dim=1).nonzero().flatten()
    single = None if labels is None else single_labels(labels)
    order = usable if single is None else usable[torch.argsort(single[usable], stable=True)]
    chosen = order[
        torch.linspace(0, max(len(order) - 1, 0), min(queries, len(order))).round().long()
    ]
    groups = []
    for i, query in enumerate(chosen.tolist() if len(usable) > 1 else []):
        similarity = direction[usable] @ direction[query]
        similarity[usable == query] = -torch.inf
        best, where = similarity.topk(min(neighbours, len(usable) - 1))
        near = usable[where].tolist()
        names = [] if labels is None else [label_text(labels[j], classes) for j in near]
        groups.append(
            {
                "query": _save(_picture(thumbnails[query]), folder / f"n-{i}-q", PLAIN),
                "neighbours": [
                    _save(_picture(thumbnails[j]), folder / f"n-{i}-{rank}", PLAIN)
                    for rank, j in enumerate(near)
                ],
                "similarity": [round(value, 4) for value in best.tolist()],
                "label": None if labels is None else label_text(labels[query], classes),
                "labels": None if labels is None else names,
            }
        )
    return _write_json(folder / "neighbours.json", {"of": len(vectors), "groups": groups})


def write_map(
    folder: Path,
    vectors: Tensor,
    thumbnails: Tensor,
    labels: Tensor | None,
    classes: Sequence[str] = (),
    *,
    limit: int = 1000,
    tile: int = 32,
) -> Path:
    """Write a map of the features in two dimensions, with a thumbnail for every point.

    vectors: [n, D]; thumbnails: uint8 [n, 3, h, w]; labels: [n], [n, C] (0/1) or None. Above
    `limit` images, a random sample is used. It takes seconds, and the page stays below 3 MB.
    """
    vectors = vectors.detach().float().cpu()
    usable = torch.isfinite(vectors).all(dim=1).nonzero().flatten()
    if len(usable) > limit:
        order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))[:limit]
        usable = usable[order.sort().values]
    points, method = project(vectors[usable])
    columns = max(1, int(np.ceil(np.sqrt(len(usable)))))
    sprite = Image.new("RGB", (columns * tile, max(1, -(-len(usable) // columns)) * tile))
    for i, j in enumerate(usable.tolist()):
        small = _picture(thumbnails[j]).resize((tile, tile), Image.Resampling.LANCZOS)
        sprite.paste(small, (i % columns * tile, i // columns * tile))
    # A tile of 32 px is whole JPEG blocks (16 px with halved colour), so tiles do not mix.
    atomic(folder / "map.jpg", lambda draft: sprite.save(draft, quality=82))
    return _write_json(
        folder / "map.json",
        {
            "points": [[round(x, 4), round(y, 4)] for x, y in points.tolist()],
            "labels": None if labels is None else single_labels(labels)[usable].tolist(),
            "classes": [str(name) for name in classes],
            "sprite": "map.jpg",
            "tile": tile,
            "columns": columns,
            "of": len(vectors),
            "method": method,
        },
    )


def project(vectors: Tensor) -> tuple[Tensor, str]:
    """Project vectors [n, D] to [n, 2] in 0..1; returns the name of the method too.

    PCA to 50 dimensions comes first, to reduce noise and time. t-SNE starts from the first two
    components, so the global shape is meaningful. The seed is fixed, so equal features give equal
    maps. Fewer than 20 vectors are projected by PCA alone.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = torch.nn.functional.normalize(vectors, dim=1).double().numpy()
    n = len(x)
    # Equal features have no spread, by which t-SNE would divide.
    if n < 3 or float(x.var(axis=0).sum()) < 1e-10:
        return torch.full((n, 2), 0.5), "all features are equal"
    reduced = PCA(n_components=min(50, n, x.shape[1]), random_state=0).fit_transform(x)
    method = "PCA"
    if n >= 20:
        perplexity = min(30.0, (n - 1) / 3)
        reduced = TSNE(
            n_components=2, init="pca", random_state=0, perplexity=perplexity
        ).fit_transform(reduced)
        method = (
            f"PCA to {min(50, n, x.shape[1])} dimensions, then t-SNE (perplexity {perplexity:.0f})"
        )
    plane = np.zeros((n, 2))
    plane[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    low, high = plane.min(axis=0), plane.max(axis=0)
    return torch.from_numpy((plane - low) / np.maximum(high - low, 1e-12)), method


def single_labels(labels: Tensor) -> Tensor:
    """One class [n] for labels [n] or [n, C] (0/1); -1 for an image with no class or several."""
    if labels.ndim == 1:
        return labels.long().cpu()
    return torch.where((labels > 0).sum(dim=1) == 1, labels.float().argmax(dim=1), -1).long().cpu()


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """The names of one image's classes; numbers if the classes have no names."""
    positions = [int(label)] if label.ndim == 0 else (label > 0).nonzero().flatten().tolist()
    names = [str(classes[k]) if 0 <= k < len(classes) else str(k) for k in positions if k >= 0]
    return " | ".join(names) or "none"


def _picture(pixels: Tensor) -> Image.Image:
    """Convert uint8 [3, H, W], or float in [0, 1], to a picture."""
    pixels = pixels.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _save(picture: Image.Image, stem: Path, largest: int = LARGEST) -> str:
    """Write a picture of at most `largest` pixels a side; return the name of the file."""
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    file = stem.with_name(stem.name + (".png" if max(picture.size) <= PLAIN else ".jpg"))
    options: dict[str, Any] = (
        {"optimize": True} if file.suffix == ".png" else {"quality": 90, "subsampling": 0}
    )
    atomic(file, lambda draft: picture.save(draft, **options))
    return file.name


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value if np.isfinite(value) else None


def _write_json(file: Path, content: Any) -> Path:
    return write_text(file, json.dumps(content, ensure_ascii=False))
