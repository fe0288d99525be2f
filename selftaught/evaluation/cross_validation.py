"""Cross-validation on labelled images: the choice among settings of a training."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.features.linear import stratified_folds
from selftaught.features.metrics import auroc, balanced_accuracy
from selftaught.features.protocol import LabelledImages, class_count

T = TypeVar("T")
Part = tuple[LabelledImages, LabelledImages]  # images to learn from, and those that are held out


def can_judge(rest: LabelledImages, held_out: LabelledImages) -> bool:
    """Whether a training with `rest` can be judged by the images that were held out."""
    if rest.multi_label:
        return len(held_out.labels) > 0 and len(rest.labels) > 1  # batch norm needs two images
    return len(rest.labels.unique()) > 1 and bool(torch.isin(held_out.labels, rest.labels).any())


def hold_out(
    train: LabelledImages,
    folds: int,
    parts: int,
    seed: int,
    usable: Callable[[LabelledImages, LabelledImages], bool] = can_judge,
) -> list[Part]:
    """Divide the images into `folds`, and hold out the first `parts` of them in turn.

    Parts that are not `usable(rest, held out)` are left out: all of them, with one image a class.
    """
    fold = stratified_folds(train.labels, folds, seed)
    divided = [(train.take(fold != part), train.take(fold == part)) for part in range(parts)]
    return [(rest, held_out) for rest, held_out in divided if usable(rest, held_out)]


def choose(
    settings: Sequence[T],
    parts: Sequence[Part],
    score: Callable[[LabelledImages, Tensor, Sequence[T]], Sequence[Tensor | None]],
) -> T:
    """The setting with the best scores of the held-out images, the first one of equal ones.

    `score(rest, positions, settings)`: logits [M, C] of each setting; None where it diverged.
    Without parts it is the first setting.
    """
    if not parts or len(settings) == 1:
        return settings[0]
    labels = torch.cat([held_out.labels for _, held_out in parts])
    classes = max(class_count(rest.labels) for rest, _ in parts)
    scores = [score(rest, held_out.positions, settings) for rest, held_out in parts]
    values = [
        goodness(
            labels,
            torch.cat(
                [
                    fill(logits, len(held_out.labels), classes)
                    for logits, (_, held_out) in zip(of_setting, parts, strict=True)
                ]
            ),
        )
        for of_setting in zip(*scores, strict=True)
    ]
    return settings[max(range(len(settings)), key=values.__getitem__)]


def fill(values: Tensor | None, images: int, classes: int) -> Tensor:
    """Scores [images, classes]: 0 where training diverged, -inf for classes without images."""
    if values is None:
        return torch.zeros(images, classes)
    return F.pad(values, (0, classes - values.shape[1]), value=-torch.inf)


def goodness(labels: Tensor, values: Tensor) -> float:
    """Balanced accuracy of scores [M, C]; AUROC for several classes an image.

    -1 where no class of several has images on both sides.
    """
    if labels.ndim == 2:
        area, skipped = auroc(labels, values)
        return area if skipped < labels.shape[1] else -1.0
    return balanced_accuracy(labels, values)
