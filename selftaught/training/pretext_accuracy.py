"""Accuracy of a pretext task on held-out images: a loss alone does not show what was learnt."""

import math

import torch
from torch import Tensor

from selftaught.devices import to_device, upcast
from selftaught.distributed import gather, local_share
from selftaught.features.extract import evaluation_mode
from selftaught.method import Batch, Method, Tensors, image_seeds, map_tensors
from selftaught.seeding import key
from selftaught.training.session import Session
from selftaught.views.augment import centre

BATCH = 64  # images; a method may make several inputs of each
CLOSER = 0.7  # of the short side: further views, as in the measures of features


def has_grades(method: Method) -> bool:
    """Whether the method can tell right predictions from wrong ones."""
    return type(method).grade is not Method.grade


def measure_accuracy(session: Session, positions: Tensor) -> dict[str, float]:
    """Measure the mean grade of the images at `positions` [n]; empty if the method gives none.

    Returns `pretext`, its standard error over images `pretext_error` and, where it is known,
    `pretext_chance`. The random numbers of an image follow its place in `positions`, so equal
    positions get equal numbers. Every rank grades its share, and all get the whole. Grades that
    compare the images of a batch differ a little with the number of ranks.
    """
    method, count = session.method, len(positions)
    if not count or not has_grades(method):
        return {}
    seeds = image_seeds(key(session.stage.seed, "pretext"), 0, count)
    parts = zip(local_share(positions).split(BATCH), local_share(seeds).split(BATCH), strict=True)
    grades = []
    for where, seed in parts:
        grade = method.grade(*predict_held_out(session, held_out_batch(session, where, seed)))
        if grade is None:
            return {}
        grades.append(grade.double())
    all_grades = gather(torch.cat(grades))[:count]
    error = float(all_grades.std(correction=min(count - 1, 1))) / math.sqrt(count)
    accuracy = {"pretext": float(all_grades.mean()), "pretext_error": error}
    chance = method.chance()
    return accuracy if chance is None else {**accuracy, "pretext_chance": chance}


def held_out_batch(session: Session, positions: Tensor, seeds: Tensor) -> Batch:
    """Make a batch of the images at `positions` [b], without augmentation; seeds: [b].

    Views are centre squares. `index` is -1, as the images are not in the training set.
    """
    pixels, sources = session.images.read(positions)
    pixels = pixels.to(session.device)
    aspect, labels = session.images.aspect[sources], session.index.labels
    shares = [1.0] + [CLOSER] * (session.stage.views.large - 1)
    batch = Batch(
        tuple(centre(pixels, aspect, session.stage.size, share) for share in shares),
        torch.full_like(sources, -1),
        torch.full_like(sources, -1) if labels is None else labels[sources],
        seeds,
    )
    return batch.map(lambda tensor: to_device(tensor, session.device))


@torch.no_grad()
def predict_held_out(session: Session, batch: Batch) -> tuple[Tensors, Tensors]:
    """Compute predictions and targets in evaluation mode, at full precision."""
    method, device = session.method, session.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=session.stage.precision == "bf16")
    with session.eagerly(), evaluation_mode(method), bf16:
        predictions = method.predict(method.inputs(batch))
        targets = method.targets(batch, predictions)
    return map_tensors(upcast, predictions), map_tensors(upcast, targets)
