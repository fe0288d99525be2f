"""Features of the stages of a backbone: their maps, averaged over all places."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Encoder
from selftaught.models.backbone import Backbone


def stage_widths(backbone: Backbone) -> dict[str, int]:
    """Return the channels of every stage by name, from the first to the last; empty without stages.

    They are those of `Backbone.maps`.
    """
    network = backbone.network
    info = getattr(network, "feature_info", None)
    if not info or not hasattr(network, "forward_intermediates"):
        return {}
    return {str(one["module"]): int(one["num_chs"]) for one in info}


def require_stages(backbone: Backbone, shown: str) -> dict[str, int]:
    """Return `stage_widths`. Raises UserError where there are none; `shown` names the backbone."""
    if widths := stage_widths(backbone):
        return widths
    raise UserError(
        f"{shown}: {backbone.name} gives no maps of its stages; leave out --layers, which scores"
        " its final features"
    )


def stage_at(backbone: Backbone, depth: float | None) -> str | None:
    """Return the stage at `depth`, of 0 (the first) to 1 (the last).

    None where `depth` is None or the backbone has no stages.
    """
    names = list(stage_widths(backbone))
    return names[round(depth * (len(names) - 1))] if names and depth is not None else None


def stage_of_stride(encoder: Encoder, stride: int) -> tuple[str, int] | None:
    """Return the last stage whose places are at most `stride` pixels apart, and its channels.

    None where there is no such stage, or there are no stages.
    """
    if not isinstance(encoder, Backbone) or not (widths := stage_widths(encoder)):
        return None
    network: Any = encoder.network
    largest = stride * (4 if encoder.stem == "cifar" else 1)  # of the imagenet stem
    fine = [str(one["module"]) for one in network.feature_info if one["reduction"] <= largest]
    return (fine[-1], widths[fine[-1]]) if fine else None


class StageFeatures(nn.Module):
    """Pixels [B, 3, H, W] -> pooled maps [B, D] of some stages, side by side.

    widths: the channels of each stage by name. final: whether the final features come after them.
    features: D, the sum of all widths.
    """

    def __init__(
        self, backbone: Backbone, widths: Mapping[str, int], *, final: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.final = backbone, final
        self.widths = dict(widths)
        self.features = sum(widths.values()) + (backbone.features if final else 0)

    def forward(self, pixels: Tensor) -> Tensor:
        features, _, maps = self.backbone.with_stages(pixels)
        pooled = [maps[name].mean((2, 3)) for name in self.widths]
        return torch.cat([*pooled, features] if self.final else pooled, 1)
