"""The report: a run that looks real is written to disk, and the page, the album and the tables made of it are read back."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from selftaught.report import album

PHOTOS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "rocket.jpg")


def patches(n: int, size: int = 64) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """n patches of photographs that scikit-image ships: uint8 [n, 3, size, size], labels [n], classes."""
    import numpy as np
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for i in range(n):
        with Image.open(folder / PHOTOS[i % len(PHOTOS)]) as photo:
            pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)
        side = 110
        top, left = (int(torch.randint(0, d - side, (1,), generator=generator)) for d in pixels.shape[1:])
        crop = pixels[None, :, top : top + side, left : left + side].float()
        small = torch.nn.functional.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        pictures.append(small[0].round().clamp(0, 255).to(torch.uint8))
    classes = tuple(photo.partition(".")[0] for photo in PHOTOS)
    return torch.stack(pictures), torch.arange(n) % len(PHOTOS), classes


def fake_album(folder: Path, *, n: int = 60, labelled: bool = True, hard: bool = True, spread: float = 0.45) -> None:
    """What a run leaves of pictures, made of photographs and random features that know the class a little."""
    pixels, labels, classes = patches(n)
    generator = torch.Generator().manual_seed(1)
    views = []
    for size in (64, 64, 32):
        top = int(torch.randint(0, 20, (1,), generator=generator))
        crop = pixels[:6, :, top : top + 40, 10:50].float() / 255
        crop = torch.nn.functional.interpolate(crop, size=(size, size), mode="bilinear")
        gain = 0.7 + 0.6 * torch.rand(6, 3, 1, 1, generator=generator)
        views.append((crop * gain).clamp(0, 1))
    album.write_views(folder, pixels[:6], views)
    entries: list[dict[str, Any]] = []
    for i in range(4 if hard else 0):
        clean = pixels[i].float() / 255
        if i % 2 == 0:
            noise = torch.randn(3, 64, 64, generator=generator).sign() * 2 / 255
            entries.append(
                {
                    "kind": "adversarial",
                    "clean": clean,
                    "hard": (clean + noise).clamp(0, 1),
                    "loss_before": 4.31,
                    "loss_after": 6.02,
                }
            )
        else:
            mixed = clean.clone()
            mixed[:, 8:40, 20:60] = pixels[i + 6, :, 8:40, 20:60].float() / 255
            entries.append(
                {
                    "kind": "cutmix",
                    "clean": clean,
                    "partner": pixels[i + 6].float() / 255,
                    "hard": mixed,
                    "loss_before": 4.5,
                    "loss_after": 5.9,
                    "note": "69 % of the area kept",
                }
            )
    album.write_hard(folder, entries)
    centres = torch.randn(len(classes), 32, generator=generator)
    vectors = spread * centres[labels] + 0.6 * torch.randn(n, 32, generator=generator)
    shown = labels if labelled else None
    album.write_neighbours(folder, pixels, vectors, shown, classes=classes)
    album.write_map(folder, vectors, pixels, shown, classes)


def journal(steps: int = 2000, every: int = 10, *, hard: bool = True, level: float = 0.0) -> list[dict[str, Any]]:
    """Records of a run in which nothing goes wrong."""
    noise = torch.randn(steps // every + 1, 4, generator=torch.Generator().manual_seed(int(level * 10) + 3)).tolist()
    records = []
    for i, step in enumerate(range(0, steps + 1, every)):
        share = step / steps
        clean = 4.2 - 1.6 * (1 - math.exp(-4 * share)) + 0.08 * noise[i][0] + level
        parts = (
            {"clean": clean, "adversarial": clean + 0.9 + 0.05 * noise[i][1], "cutmix": clean + 0.5}
            if hard
            else {"clean": clean}
        )
        features = None
        if step % (every * 10) == 0:
            features = {
                "std": 0.35 + 0.5 * share + 0.01 * noise[i][2] - 0.1 * level,
                "rank": 20 + 60 * share,
                "alignment": 0.9 - 0.4 * share,
                "uniformity": -1.2 - 1.6 * share,
                "knn": 0.42 + 0.3 * share**0.5 + 0.01 * noise[i][3] - 0.05 * level,
            }
        records.append(
            {
                "step": step,
                "epoch": step / 74,
                "loss": sum(parts.values()) / len(parts),
                "losses": parts,
                "lr": 0.03 * (1 + math.cos(math.pi * share)),
                "images_per_s": 310 + 12 * noise[i][1],
                "wait": min(1.0, abs(0.04 + 0.01 * noise[i][2])),
                "seconds": step * 0.4,
                "features": features,
            }
        )
    return records


def evaluation(
    *, lift: float = 0.12, data: str = "labelled/", trained: str = "trained", shift: float = 0.0
) -> dict[str, Any]:
    """What `selftaught evaluate` writes: against random initialisation, and against weights that were no worse."""
    rows, differences = [], []
    for protocol in ("knn", "linear"):
        for labels, base in (("5", 0.48), ("20", 0.60), ("all", 0.74)):
            setting = {"protocol": protocol, "labels": labels, "metric": "balanced_accuracy"}
            for name, mean in ((trained, base + lift + shift), ("random", base), ("init", base + lift - 0.01)):
                rows.append(
                    {"backbone": name, **setting, "mean": mean, "low": mean - 0.02, "high": mean + 0.021, "draws": 5}
                )
            differences.append(
                {
                    "backbone": trained,
                    "against": "random",
                    **setting,
                    "mean": lift,
                    "low": lift - 0.02,
                    "high": lift + 0.02,
                }
            )
            differences.append({"backbone": trained, "against": "init", **setting, "mean": 0.01, "low": -0.01, "high": 0.03})
    return {
        "data": data,
        "fingerprint": "e" * 64,
        "command": "selftaught evaluate runs/hexa --data labelled/ --protocol knn linear --labels 5 20 all --against random init",
        "date": "2031-05-04T10:00:00",
        "rows": rows,
        "differences": differences,
        "verdict": "+12.0 points over random initialisation with 5 labels a class (95 % interval +10.0 to +14.0); "
        "not distinguishable from the starting weights.",
    }


def fake_run(
    folder: Path,
    *,
    labelled: bool = True,
    hard: bool = True,
    records: Sequence[dict[str, Any]] | None = None,
    evaluations: Sequence[dict[str, Any]] | None = None,
    pictures: bool = False,
    **changes: Any,
) -> Path:
    """A run folder as `selftaught pretrain` leaves it; `changes` replace parts of run.json."""
    folder.mkdir(parents=True)
    about: dict[str, Any] = {
        "selftaught": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.9.0", "timm": "1.0.22"},
        "config": {
            "method": {"name": "moco-v2", "temperature": 0.2, "queue": 4096, "symmetric": True},
            "hard": [{"name": "adversarial", "eps": 2, "steps": 1}, {"name": "cutmix", "beta": 1.0}] if hard else [],
            "backbone": {"name": "resnet18", "stem": "cifar"},
            "size": 64,
            "batch": 128,
            "epochs": 27,
            "optimizer": {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 0.0005},
            "views": {"pipeline": "fast", "scale": [0.2, 1.0], "large": 2},
        },
        "data": {
            "fingerprint": "0123456789abcdef" * 4,
            "images": 9469,
            "train": 7575,
            "held_out": 1894,
            "classes": [photo.partition(".")[0] for photo in PHOTOS] if labelled else [],
            "labels": labelled,
            "split": "drawn",
            "unreadable": [["photos/half.jpg", "truncated"], ["photos/notes.jpg", "not an image"]],
            "roots": ["photos"],
        },
        "command": "selftaught pretrain --data photos/ --method moco-v2 --hard adversarial cutmix --backbone resnet18 --size 64 --out runs/hexa",
        "seed": 0,
        "lineage": [{"init": None, "data": "photos", "steps": 2000}],
        "device": "cpu",
        "finished": True,
        "outcome": "done",
    } | changes
    (folder / "run.json").write_text(json.dumps(about))
    lines = [json.dumps(record) for record in (journal(hard=hard) if records is None else records)]
    (folder / "journal.jsonl").write_text("".join(line + "\n" for line in lines))
    if evaluations is not None:
        (folder / "evaluation.json").write_text(json.dumps(list(evaluations)))
    if pictures:
        fake_album(folder / "album", labelled=labelled, hard=hard)
    return folder
