"""Normal random numbers of a batch."""

import math
from collections.abc import Sequence

from torch import Tensor

from selftaught.method import Batch


def draw_normal(batch: Batch, shape: Sequence[int], salt: str) -> Tensor:
    """Normal numbers [B, *shape] of the views' type, from `batch.random` (Box & Muller, 1958)."""
    first, second = batch.random((2, *shape), salt).to(batch.views[0].dtype).unbind(1)
    return (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()
