"""Writes the pictures of a run (its `album/`): views, hard examples, nearest neighbours, a map of
the embedding.

Each function takes tensors, writes into `folder` (made if it is missing) and returns the JSON file,
which it writes last, so that a torn album is never taken for a whole one. Over 200 lines: four
pictures, each with its format beside it.

    views.png, views.json   one tile grid, rows = images, columns = the original and its views
                            {"columns": ["original", "view 1", ...], "rows": 6, "tile": 96}
    hard-I-*.png|jpg        hard.json: [{"kind", "clean", "perturbation" | null, "hard", "partner" |
    null,
                            "loss_before", "loss_after", "note"}]; pictures are file names
    n-I-q.png, n-I-J.png    neighbours.json: {"of": images searched, "groups": [{"query",
    "neighbours": [file],
                            "similarity": [cosine], "label": str | null, "labels": [str] | null}]}
    map.jpg, map.json       {"points": [[x, y]] in 0..1, y downwards, "labels": [int] | null (-1 =
    none or several),
                            "classes": [str], "sprite": "map.jpg", "tile": 32, "columns": 32, "of":
                            images there were, "method": str} One sprite for all thumbnails, and a
                            JPEG: 1000 of them as PNG would be 3 MB in the page.
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

LARGEST = 160  # pixels a side of a picture in the album: the page holds them all
PLAIN = 72  # up to this side pictures are kept exactly (PNG); larger ones are JPEG


def write_views(
    folder: Path, originals: Tensor, views: Sequence[Tensor], *, tile: int = 96, rows: int = 6
) -> Path:
    """The first `rows` images beside their views.

    originals: uint8 [n, 3, H, W]; views: float [n, 3, h, w] in [0, 1] each, sizes may differ
    (multi-crop): a smaller view is drawn smaller.
    """
    shown = originals[:rows]
    largest = max((view.shape[-1] for view in views), default=originals.shape[-1])
    tile = min(tile, max(largest, 32))
    columns = ["original"] + [("view" if v.shape[-1] == largest else "small view") for v in views]
    gap = 4
    grid = Image.new(
        "RGBA", (len(columns) * (tile + gap) - gap, max(1, len(shown) * (tile + gap) - gap))
    )
    for row in range(len(shown)):
        side = [tile] + [max(1, round(tile * view.shape[-1] / largest)) for view in views]
        pictures = [_picture(shown[row])] + [_picture(view[row]) for view in views]
        for column, (picture, pixels) in enumerate(zip(pictures, side, strict=True)):
            inset = (tile - pixels) // 2
            place = (column * (tile + gap) + inset, row * (tile + gap) + inset)
            grid.paste(picture.resize((pixels, pixels), Image.Resampling.LANCZOS), place)
    atomic(folder / "views.png", lambda draft: grid.save(draft, optimize=True))
    numbered = [columns[0]] + [
        f"{kind} {columns[1 : i + 2].count(kind)}" for i, kind in enumerate(columns[1:])
    ]
    return _write_json(
        folder / "views.json", {"columns": numbered, "rows": len(shown), "tile": tile}
    )


def write_hard(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Hard examples beside what they were made of.

    An entry holds `kind` ("adversarial", "cutmix", "mixup"), `clean` and `hard` (float [3, H, W] in
    [0, 1]), `loss_before` and `loss_after` (numbers or None), and may hold `partner` (float [3, H,
    W], the image mixed in) and `note` (str). For an adversarial one the difference is drawn too,
    magnified by a power of two around grey.
    """
    written = []
    for i, entry in enumerate(entries):
        clean, hard = entry["clean"].detach().float().cpu(), entry["hard"].detach().float().cpu()
        said: dict[str, Any] = {
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
            said["partner"] = _save(
                _picture(entry["partner"].detach().cpu()), folder / f"hard-{i}-partner"
            )
        if said["kind"] == "adversarial":
            magnified, factor, radius = magnify(clean, hard)
            said["perturbation"] = _save(_picture(magnified), folder / f"hard-{i}-perturbation")
            said["note"] = (
                said["note"] or f"perturbation ×{factor}; at most {radius * 255:.2g}/255 a pixel"
            )
        written.append(said)
    return _write_json(folder / "hard.json", written)


def magnify(clean: Tensor, hard: Tensor) -> tuple[Tensor, int, float]:
    """The difference as a picture around mid-grey, by which power of two it is magnified, its
    largest absolute value.
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
    """For some images those whose features are nearest by cosine, the nearest first.

    thumbnails: uint8 [n, 3, h, w]; vectors: [n, D]; labels: [n], [n, C] (0/1) or None. The queries
    are not picked by hand: they are spread evenly over the images, class by class where there are
    labels.
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
        groups.append(
            {
                "query": _save(_picture(thumbnails[query]), folder / f"n-{i}-q", PLAIN),
                "neighbours": [
                    _save(_picture(thumbnails[j]), folder / f"n-{i}-{rank}", PLAIN)
                    for rank, j in enumerate(near)
                ],
                "similarity": [round(value, 4) for value in best.tolist()],
                "label": None if labels is None else label_text(labels[query], classes),
                "labels": (
                    None if labels is None else [label_text(labels[j], classes) for j in near]
                ),
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
    """The embedding in two dimensions, with a small picture of every point.

    vectors: [n, D]; thumbnails: uint8 [n, 3, h, w]; labels: [n], [n, C] (0/1) or None. Above
    `limit` images an even sample of them is shown: exact enough to see, seconds to compute, and a
    page that stays below 3 MB.
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
    # Tiles of 32 px are whole JPEG blocks (16 px with halved colour), so that no tile bleeds into
    # the next.
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
    """[n, D] -> [n, 2] in 0..1, and how it was done.

    PCA to 50 dimensions first: it takes noise and time away and leaves the distances that t-SNE
    looks at. t-SNE starts from the first two components (`init="pca"`) and from a fixed seed, so
    that the same features give the same map and its large shape means something; with a random
    start it would not. Few or equal vectors: plain PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = torch.nn.functional.normalize(vectors, dim=1).double().numpy()
    n = len(x)
    if (
        n < 3 or float(x.var(axis=0).sum()) < 1e-10
    ):  # one point, to any eye: t-SNE would divide by its spread
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
    """[n] long from [n] or from [n, C] (0/1), where an image with no class or several gets -1: a
    point has one colour.
    """
    if labels.ndim == 1:
        return labels.long().cpu()
    return torch.where((labels > 0).sum(dim=1) == 1, labels.float().argmax(dim=1), -1).long().cpu()


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """The name of one image's class, or of its classes; the number where the classes have no
    names.
    """
    positions = [int(label)] if label.ndim == 0 else (label > 0).nonzero().flatten().tolist()
    names = [str(classes[k]) if 0 <= k < len(classes) else str(k) for k in positions if k >= 0]
    return " | ".join(names) or "none"


def _picture(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W], or float in [0, 1], as a picture."""
    pixels = pixels.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _save(picture: Image.Image, stem: Path, largest: int = LARGEST) -> str:
    """Writes a picture of at most `largest` pixels a side; returns the name of the file."""
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
