"""The album of a trained run, computed from its session."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selftaught.features.extract import extract
from selftaught.hard import Adversarial, CutMix
from selftaught.hard.base import HardExample, objective, part_name
from selftaught.hard.mixed import Mixed, partner
from selftaught.method import Batch, Illustration, Method, Tensors, detach, image_seeds, leaves
from selftaught.models.batch_norm import frozen_statistics
from selftaught.seeding import key
from selftaught.training.pretext_accuracy import held_out_batch, predict_held_out
from selftaught.training.session import Session
from selftaught.views.augment import centre
from selftaught.visualize import album

MOST = 1000  # images on the map
EXAMPLES = 4  # images of each kind of hard example
ANSWERS = 8  # images whose pretext task is shown


def draw(session: Session, folder: Path | None) -> None:
    """Write the album of a trained run into `folder`, which is None on ranks other than 0.

    All ranks call it, because features are extracted by all of them.
    """
    raw = next(iter(session.batches.epoch(0)))
    batch = session.batch(raw, key(session.stage.seed, "album"))
    # A run without hard examples gets pictures of the default ones.
    default = () if session.stage.method.two_player else (Adversarial(), CutMix())
    hard = session.stage.hard or default
    entries = [entry for h in hard for entry in hard_entries(session, h, batch)]
    answers = illustrate(session)
    index = session.index
    positions = index.held_out if len(index.held_out) >= 50 else index.train
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    positions = positions[order[:MOST].sort().values]
    vectors = extract(
        session.backbone,
        session.images,
        positions,
        size=session.stage.size,
        batch=256,
        device=session.device,
        precision=session.stage.precision,
    )
    if folder is None:
        return
    square = centre(raw.pixels, raw.aspect, min(session.images.canvas, 2 * session.stage.size))
    album.write_views(folder, (square * 255).byte(), [v.cpu() for v in batch.views])
    album.write_hard(folder, entries)
    if answers:
        album.write_answers(folder, answers)
    canvases = torch.stack([session.images[int(i)] for i in positions])
    aspect = session.images.aspect[positions]
    batches = zip(canvases.split(256), aspect.split(256), strict=True)
    thumbnails = torch.cat([(centre(p, a, 64) * 255).byte() for p, a in batches])
    labels = None if index.labels is None else index.labels[positions]
    album.write_neighbours(folder, thumbnails, vectors, labels, classes=index.classes)
    album.write_map(folder, vectors, thumbnails, labels, index.classes, limit=MOST)


def illustrate(session: Session) -> Sequence[Illustration]:
    """The method's answers to some held-out images, or to training images if there are none.

    Every rank computes the same ones.
    """
    method, index = session.method, session.index
    if type(method).illustrate is Method.illustrate:
        return ()
    positions = index.held_out if len(index.held_out) else index.train
    # spread over the set, which is sorted by class
    positions = positions[:: max(len(positions) // ANSWERS, 1)][:ANSWERS]
    seeds = image_seeds(key(session.stage.seed, "album"), 0, len(positions))
    batch = held_out_batch(session, positions, seeds)
    return method.illustrate(batch, *predict_held_out(session, batch))


def hard_entries(session: Session, hard: HardExample, batch: Batch) -> list[dict[str, Any]]:
    """Entries of `album.write_hard`: a few images, and the loss of their batch before and after."""
    method = session.method
    rng = torch.Generator().manual_seed(key(session.stage.seed, "album"))
    method.train()
    bf16 = torch.autocast(
        session.device.type, torch.bfloat16, enabled=session.stage.precision == "bf16"
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
            others = tile(partner(leaves(inputs)[0]))
            note = f"{100 * share:.0f} % of the image itself; the losses are those of its batch"
        else:
            return []
        with torch.no_grad():
            if isinstance(hard, Mixed):
                after = hard.loss(method, inputs, targets, rng, None).item()
            else:
                after = objective(method, method.predict(harder), targets).item()
    clean, changed = tile(leaves(inputs)[0]), tile(leaves(harder)[0])
    return [
        {
            "kind": part_name(hard),
            "clean": clean[i],
            "hard": changed[i],
            "partner": None if others is None else others[i],
            "loss_before": before,
            "loss_after": after,
            "note": note,
        }
        for i in range(min(EXAMPLES, len(clean)))
    ]


def tile(leaf: Tensor) -> Tensor:
    """Lay out the parts of each image in a grid: [B, ..., C, h, w] -> [B, 3, H, W].

    Parts are patches, pieces or turned copies. One channel is shown as grey.
    """
    parts = leaf.flatten(1, -4) if leaf.ndim > 4 else leaf[:, None]
    columns = math.ceil(parts.shape[1] ** 0.5)
    missing = -parts.shape[1] % columns
    parts = torch.cat([parts, torch.zeros_like(parts[:, :1]).expand(-1, missing, -1, -1, -1)], 1)
    rows = parts.unflatten(1, (-1, columns)).permute(0, 3, 1, 4, 2, 5)
    sheet = rows.flatten(4, 5).flatten(2, 3)
    return sheet.expand(-1, 3, -1, -1) if sheet.shape[1] == 1 else sheet
