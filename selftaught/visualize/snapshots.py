"""The pictures of a run: its views, its hard examples, nearest neighbours and a map of what it
learnt.
"""

from pathlib import Path
from typing import Any

import torch

from selftaught.features.extract import extract
from selftaught.hard import Adversarial, CutMix
from selftaught.hard.base import HardExample, objective, part_name
from selftaught.hard.mixed import Mixed, partner
from selftaught.method import Batch, Tensors, detach, leaves
from selftaught.models.batch_norm import frozen_statistics
from selftaught.seeding import key
from selftaught.training.session import Session
from selftaught.views.augment import centre
from selftaught.visualize import album

MOST = 1000  # images on the map
SHOWN = 4  # images of each kind of hard example


def draw(trainee: Session, folder: Path | None) -> None:
    """Write the album of a trained run into `folder`; None on ranks that only take part in the
    computing.
    """
    raw = next(iter(trainee.batches.epoch(0)))
    batch = trainee.batch(raw, key(trainee.stage.seed, "album"))
    # A plain run shows what HEXA would have trained it on.
    hard = trainee.stage.hard or (Adversarial(), CutMix())
    entries = [entry for h in hard for entry in hard_entries(trainee, h, batch)]
    index = trainee.index
    chosen = index.held_out if len(index.held_out) >= 50 else index.train
    chosen = chosen[
        torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:MOST].sort().values
    ]
    vectors = extract(
        trainee.backbone,
        trainee.images,
        chosen,
        size=trainee.stage.size,
        batch=256,
        device=trainee.device,
        precision=trainee.stage.precision,
    )
    if folder is None:
        return
    square = centre(raw.pixels, raw.aspect, min(trainee.images.canvas, 2 * trainee.stage.size))
    album.write_views(folder, (square * 255).byte(), [v.cpu() for v in batch.views])
    album.write_hard(folder, entries)
    thumbnails = torch.stack([trainee.images[int(i)] for i in chosen])
    aspect = trainee.images.aspect[chosen]
    thumbnails = torch.cat(
        [
            (centre(p, a, 64) * 255).byte()
            for p, a in zip(thumbnails.split(256), aspect.split(256), strict=True)
        ]
    )
    labels = None if index.labels is None else index.labels[chosen]
    album.write_neighbours(folder, thumbnails, vectors, labels, classes=index.classes)
    album.write_map(folder, vectors, thumbnails, labels, index.classes, limit=MOST)


def hard_entries(trainee: Session, hard: HardExample, batch: Batch) -> list[dict[str, Any]]:
    """A few images before and after, with the loss of their batch before and after."""
    method = trainee.method
    rng = torch.Generator().manual_seed(key(trainee.stage.seed, "album"))
    method.train()
    bf16 = torch.autocast(
        trainee.device.type, torch.bfloat16, enabled=trainee.stage.precision == "bf16"
    )
    with frozen_statistics(method), bf16:
        inputs = method.inputs(batch)
        with torch.no_grad():
            predictions = method.predict(inputs)
            targets = detach(method.targets(batch, predictions))
            before = objective(method, predictions, targets).item()
        others: Tensors = None
        note = ""
        if isinstance(hard, Adversarial):
            harder = hard.attack(method, inputs, targets, rng)
        elif isinstance(hard, Mixed):
            state = rng.get_state()
            harder, share = hard.mix(inputs, rng)
            rng.set_state(state)  # the loss below draws the same mask again
            others = partner(leaves(inputs)[0])
            note = f"{100 * share:.0f} % of the image itself; the losses are those of its batch"
        else:
            return []
        with torch.no_grad():
            if isinstance(hard, Mixed):
                after = hard.loss(method, inputs, targets, rng, None).item()
            else:
                after = objective(method, method.predict(harder), targets).item()
    clean, moved = leaves(inputs)[0], leaves(harder)[0]
    return [
        {
            "kind": part_name(hard),
            "clean": clean[i],
            "hard": moved[i],
            "partner": None if others is None else others[i],
            "loss_before": before,
            "loss_after": after,
            "note": note,
        }
        for i in range(min(SHOWN, len(clean)))
    ]
