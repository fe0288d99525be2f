"""Weights between two states of a network (Wortsman et al., 2022, https://arxiv.org/abs/2109.01903)."""

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate_states(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return start + share * (end - start). Counters are whole numbers, and those of `end`."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }
