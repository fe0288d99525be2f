"""Anchors: losses that hold a backbone near the weights that it started from.

Continued pretraining can lose features that the start had. An anchor adds the distance from the
start to the loss.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selftaught.devices import upcast
from selftaught.errors import UserError
from selftaught.method import Call, Encoder, record_calls
from selftaught.models.teacher import FrozenTeacher
from selftaught.ranges import Positive, check_ranges


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """`weight` times the distance of a backbone from its start, as an addition to the loss.

    - pooled: 1 - cos of the pooled features of each view, as in feature distillation
    - gram: mean squared difference of the Gram matrices of a map's unit vectors (Gram anchoring;
      Simeoni et al., 2025, https://arxiv.org/abs/2508.10104)
    - l2-sp: half the squared distance of the trained weights (Li et al., 2018,
      https://arxiv.org/abs/1802.01483)

    pooled and gram cost one more forward pass of the clean views.
    """

    kind: Literal["pooled", "gram", "l2-sp"] = "pooled"
    weight: Positive = 2.0

    def __post_init__(self) -> None:
        """Raises UserError for a weight out of range."""
        check_ranges(self, "anchor")


class AnchorLoss:
    """The distance of a backbone from a frozen copy of its start.

    It is no module, so the copy is not part of checkpoints: a resumed run loads the start again.
    """

    def __init__(self, anchor: Anchor, backbone: Encoder) -> None:
        self.kind, self.weight = anchor.kind, anchor.weight
        self.start = FrozenTeacher(backbone)

    def record(self, backbone: Encoder) -> AbstractContextManager[list[Call]]:
        """Inside, the calls of the backbone are recorded for `distance`."""
        return record_calls(backbone, maps=self.kind == "gram")

    def distance(self, backbone: Encoder, calls: Sequence[Call]) -> Tensor:
        """The distance, a scalar: the mean over the images of all calls.

        Raises UserError where the method makes no call that could be compared.
        """
        if self.kind == "l2-sp":
            pairs = zip(backbone.parameters(), self.start.network.parameters(), strict=True)
            return torch.stack(
                [(own - old).square().sum() / 2 for own, old in pairs if own.requires_grad]
            ).sum()
        if self.kind == "gram":
            calls = [call for call in calls if call.places is not None]
        if not calls:
            raise UserError(
                f"no output of this method's backbone is held by {self.kind}: leave out --anchor"
            )
        return torch.cat([self._distances(call) for call in calls]).mean()

    def _distances(self, call: Call) -> Tensor:
        """Distances [B] of the images of one call."""
        with torch.no_grad():
            if self.kind == "gram":
                _, start = self.start.network(call.pixels, mapped=True)
            else:
                start = self.start.network(call.pixels)
        if self.kind == "pooled":
            return 1 - F.cosine_similarity(upcast(call.features), upcast(start))
        assert call.places is not None
        difference = gram_matrix(call.places) - gram_matrix(start.flatten(2))
        return difference.square().mean(dim=(1, 2))


def gram_matrix(places: Tensor) -> Tensor:
    """The cosines between all places of a map: [B, C, N] -> [B, N, N]."""
    places = F.normalize(upcast(places), dim=1)
    return places.transpose(1, 2) @ places
