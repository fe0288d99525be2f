"""Pictures of a run for the page: views, hard examples, neighbours and the map."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from selftaught.report.format import as_list, format_integer, format_sentence
from selftaught.runs.reader import RunContent, number


def embed_views(run: RunContent) -> dict[str, Any] | None:
    """The grid of views as {"src", "columns"}; None if there is none."""
    grid = run.album.get("views")
    picture = embed_picture(run.folder, "views.png")
    if picture is None:
        return None
    columns = as_list(grid.get("columns")) if isinstance(grid, dict) else []
    return {"src": picture, "columns": [str(column) for column in columns]}


def embed_hard(run: RunContent) -> list[dict[str, Any]]:
    """Hard examples as a list of {"kind", "pictures", "change" of the loss, "note"}."""
    examples: list[dict[str, Any]] = []
    for entry in as_list(run.album.get("hard")):
        if not isinstance(entry, dict):
            continue
        kind = str(entry.get("kind", "hard"))
        chain = [
            ("clean", "Clean", "clean view"),
            ("perturbation", "Perturbation", "perturbation, magnified around grey"),
            ("partner", "Mixed in", "view that is mixed in"),
            ("hard", kind.capitalize(), f"{kind} example made of it"),
        ]
        pictures = [
            {"src": picture, "label": label, "alt": f"{alt} of hard example {len(examples) + 1}"}
            for key, label, alt in chain
            if (picture := embed_picture(run.folder, entry.get(key))) is not None
        ]
        before, after = number(entry.get("loss_before")), number(entry.get("loss_after"))
        change = None
        if before is not None and after is not None:
            share = f" ({100 * (after - before) / abs(before):+.0f} %)" if before else ""
            word = (
                "harder" if after > before else "easier" if after < before else "as hard as before"
            )
            change = {
                "before": f"{before:.2f}",
                "after": f"{after:.2f}",
                "word": word + share.replace("-", "\u2212"),
            }
        if pictures:
            examples.append(
                {
                    "kind": kind,
                    "pictures": pictures,
                    "change": change,
                    "note": format_sentence(entry.get("note")),
                }
            )
    return examples


def embed_answers(run: RunContent) -> list[dict[str, Any]]:
    """Answers to the pretext task as a list of {"pictures", "text", "correct"}."""
    answers = []
    for entry in as_list(run.album.get("answers")):
        if not isinstance(entry, dict):
            continue
        pictures = [
            {"src": src, "title": str(one.get("title", ""))}
            for one in as_list(entry.get("pictures"))
            if isinstance(one, dict) and (src := embed_picture(run.folder, one.get("file")))
        ]
        if pictures:
            text, correct = str(entry.get("text") or ""), entry.get("correct")
            answers.append({"pictures": pictures, "text": text, "correct": correct})
    return answers


def embed_neighbours(run: RunContent) -> dict[str, Any] | None:
    """Queries with neighbours, and the number of pairs of equal labels; None if there are none."""
    album = run.album.get("neighbours")
    if not isinstance(album, dict):
        return None
    groups, pairs = [], []
    for i, group in enumerate(g for g in as_list(album.get("groups")) if isinstance(g, dict)):
        query = embed_picture(run.folder, group.get("query"))
        labels, similarity = as_list(group.get("labels")), as_list(group.get("similarity"))
        near = []
        for rank, name in enumerate(as_list(group.get("neighbours"))):
            if (picture := embed_picture(run.folder, name)) is None:
                continue
            label = str(labels[rank]) if run.labelled and rank < len(labels) else None
            cosine = number(similarity[rank]) if rank < len(similarity) else None
            same = None if label is None else label == str(group.get("label"))
            near.append(
                {"src": picture, "label": label, "cosine": cosine, "same": same, "rank": rank + 1}
            )
        label = str(group["label"]) if run.labelled and group.get("label") is not None else None
        if query and near:
            groups.append({"src": query, "label": label, "near": near, "number": i + 1})
            pairs += [one["same"] for one in near if one["same"] is not None]
    if not groups:
        return None
    return {
        "groups": groups,
        "of": format_integer(album.get("of")),
        "same": sum(pairs),
        "pairs": len(pairs),
    }


def embed_map(run: RunContent) -> dict[str, Any] | None:
    """Points, legend and a sample of thumbnails of the map, in the coordinates of its SVG."""
    album = run.album.get("map")
    if not isinstance(album, dict):
        return None
    entries = as_list(album.get("points"))
    pairs = [p for p in entries if isinstance(p, list) and len(p) == 2]
    places = [
        (x, y) for p in pairs if (x := number(p[0])) is not None and (y := number(p[1])) is not None
    ]
    if not places or len(places) != len(entries):
        return None
    width, height, margin, side = 640, 480, 24, 36
    labels = as_list(album.get("labels")) if run.labelled else []
    if len(labels) != len(places):
        labels = []
    labels = [int(k) if number(k) is not None else -1 for k in labels]
    classes = [str(name) for name in as_list(album.get("classes"))]
    inner_width, inner_height = width - 2 * margin, height - 2 * margin
    places = [
        (round(margin + x * inner_width, 1), round(margin + y * inner_height, 1)) for x, y in places
    ]
    points = [{"x": x, "y": y, "k": labels[i] if labels else -1} for i, (x, y) in enumerate(places)]
    tile, columns = number(album.get("tile")), number(album.get("columns"))
    sprite = embed_picture(run.folder, album.get("sprite")) if tile and columns else None
    counts = {k: labels.count(k) for k in sorted(set(labels))}
    return {
        "points": points,
        "width": width,
        "height": height,
        "side": side,
        "sprite": sprite,
        "tile": int(tile or 0),
        "columns": int(columns or 0),
        "rows": -(-len(points) // int(columns)) if columns else 0,
        "sample": sample_points(places, side + 6) if sprite else [],
        "legend": [
            {"k": k, "name": _class_name(k, classes), "count": count}
            for k, count in counts.items()
            if len(counts) <= 64
        ],
        "names": {k: _class_name(k, classes) for k in counts},
        "of": number(album.get("of")),
        "method": str(album.get("method") or ""),
    }


def sample_points(points: Sequence[tuple[float, float]], gap: float, most: int = 42) -> list[int]:
    """Select points whose thumbnails do not overlap; returns at most `most` positions."""
    # A stride by a prime visits every point once, in an order that is spread over the set.
    stride = next(s for s in (7919, 7907, 7901) if len(points) % s)
    chosen: list[int] = []
    for i in ((k * stride) % len(points) for k in range(len(points))):
        x, y = points[i]
        if all(max(abs(x - points[j][0]), abs(y - points[j][1])) >= gap for j in chosen):
            chosen.append(i)
        if len(chosen) == most:
            break
    return chosen


def _class_name(k: int, classes: Sequence[str]) -> str:
    return "none or several" if k < 0 else classes[k] if k < len(classes) else f"class {k}"


def embed_picture(folder: Path, name: object) -> str | None:
    """A picture of the album as a data URI; None if it is missing, outside the album, or broken."""
    if not isinstance(name, str) or Path(name).name != name:
        return None
    try:
        content = (folder / "album" / name).read_bytes()
        with Image.open(BytesIO(content)) as picture:
            kind = picture.format
            picture.load()  # fails for a truncated file, which a browser could not show
    except (OSError, SyntaxError, ValueError):
        return None
    if kind not in ("PNG", "JPEG", "WEBP"):
        return None
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
