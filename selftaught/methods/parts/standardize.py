"""Standardisation of a teacher's outputs by statistics that are measured once."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from selftaught.distributed import all_reduce_sum, world_size
from selftaught.models.layers import Counter

IMAGES = 4096  # behind the statistics, at most about
Outputs = tuple[Tensor, ...]  # each [B, C] or [B, C, h, w]


class Standardize(nn.Module):
    """Gives each channel of several outputs mean 0 and deviation 1 over images and places.

    Without it a few channels of large values, or a large common mean, decide every cosine.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for i, width in enumerate(channels):
            self.register_buffer(f"mean{i}", torch.zeros(width))
            self.register_buffer(f"std{i}", torch.ones(width))
        self.images = Counter()

    def measure(self, batches: Iterable[Outputs]) -> None:
        """Measure the first images of all processes; later calls change nothing.

        `batches` is lazy, so later calls compute nothing either.
        """
        if self.images.value:
            return
        moments_of_passes: list[list[Tensor]] = []
        for outputs in batches:
            moments_of_passes.append([channel_moments(x) for x in outputs])
            self.images.value += len(outputs[0]) * world_size()
            if self.images.value >= IMAGES:
                break
        for i, moments in enumerate(zip(*moments_of_passes, strict=True)):
            count, total, squares = all_reduce_sum(torch.stack(moments).sum(0))
            mean = total / count
            std = (squares / count - mean.square()).clamp_min(0).sqrt()
            self.get_buffer(f"mean{i}").copy_(mean)
            self.get_buffer(f"std{i}").copy_(std.clamp_min(1e-6))  # for channels that never change

    def forward(self, outputs: Outputs) -> Outputs:
        scaled = []
        for i, x in enumerate(outputs):
            shape = (-1, *(1 for _ in x.shape[2:]))
            mean, std = self.get_buffer(f"mean{i}"), self.get_buffer(f"std{i}")
            scaled.append((x - mean.view(shape)) / std.view(shape))
        return tuple(scaled)


def channel_moments(x: Tensor) -> Tensor:
    """Return the count, sum and sum of squares of each channel of x [B, C, ...]: float64 [3, C]."""
    rows = x.movedim(1, -1).flatten(0, -2).double()
    return torch.stack([torch.ones_like(rows).sum(0), rows.sum(0), rows.square().sum(0)])
