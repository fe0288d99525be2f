"""Images of different sizes as one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class RaggedImages(Sequence[Tensor]):
    """Images in their own sizes, uint8 [3, h, w] each. Pickled as one tensor."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        return self.images[i]

    def __reduce__(
        self,
    ) -> tuple[Callable[..., RaggedImages], tuple[Tensor, list[tuple[int, ...]]]]:
        rows = [image.permute(1, 2, 0) for image in self.images]
        return _unpack, (
            torch.cat([row.flatten() for row in rows]),
            [tuple(row.shape) for row in rows],
        )


def _unpack(flat: Tensor, shapes: list[tuple[int, ...]]) -> RaggedImages:
    parts = flat.split([math.prod(shape) for shape in shapes])
    return RaggedImages(
        [part.view(shape).permute(2, 0, 1) for part, shape in zip(parts, shapes, strict=True)]
    )


def join_batches(parts: Sequence[Tensor | RaggedImages]) -> Tensor | RaggedImages:
    """Join the parts of a batch: tensors to a tensor, ragged images to ragged images."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return (
        torch.cat(tensors) if tensors else RaggedImages([image for part in parts for image in part])
    )
