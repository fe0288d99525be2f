"""CPC (van den Oord et al., 2018, https://arxiv.org/abs/1807.03748), and CPC v2's options.

CPC v2: Hénaff et al., 2019.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from torch import Tensor, nn

from selftaught.errors import UserError, require
from selftaught.losses import pick_nce
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.parts.patches import Context, automatic_side, cut, drop_colours
from selftaught.models.layers import unit
from selftaught.ranges import Count, Natural, Positive, Range, Share


class CPC(Method):
    """Find patches of an image among those of the batch, from the rows of patches above them."""

    paper = "van den Oord et al., 2018, https://arxiv.org/abs/1807.03748"
    views = 1
    couples_samples = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        # pixels of a patch; 0 = for seven rows, or fewer (at least three) to keep 32 pixels a patch
        side: Natural = 0
        stride: Natural = 0  # pixels from patch to patch; 0 = half a side
        colour_drop: Share = 0.5  # share of patches that keep only one colour channel
        hidden: Count = 256  # width of the context network
        blocks: Count = 5  # of the context network
        norm: Literal["layer", "batch"] = "layer"  # of the context network
        dim: Count = 64  # of embeddings
        # rows to the nearest patch to predict; nearer ones share pixels with the context
        nearest: Count = 2
        farthest: Count = 3  # rows to the farthest patch to predict
        # directions of context: from above, then from the right, from below, from the left
        directions: Annotated[int, Range(1, 4)] = 4
        temperature: Positive = 0.1  # of the similarities

        def __post_init__(self) -> None:
            super().__post_init__()
            require(
                self.farthest >= self.nearest,
                "--method.farthest",
                f"{self.nearest} or more",
                self.farthest,
            )

        def defaults(self, setting: Setting) -> Defaults[Self]:
            return Defaults(config=replace(self, hidden=min(self.hidden, setting.features)))

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        c = self.config = config
        self.embed = nn.Linear(setup.backbone.features, c.dim)
        ahead = c.farthest - c.nearest + 1
        self.contexts = nn.ModuleList(
            Context(setup.backbone.features, c.hidden, c.blocks, c.norm, ahead, c.dim)
            for _ in range(c.directions)
        )
        self.patches = 0  # patches of an image; set by the first loss

    def inputs(self, batch: Batch) -> Tensor:
        """A grid of overlapping patches [B, G, G, 3, side, side]."""
        view = batch.views[0]
        side = self.config.side or automatic_side(view.shape[-1])
        patches = cut(view, side, self.config.stride or max(side // 2, 1))
        numbers = batch.random(patches.shape[1:3], "colours")
        return drop_colours(patches, numbers, self.config.colour_drop)

    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted [B, directions, K, G, G, dim] and own [B, G, G, dim] embeddings.

        Entry k, i, j predicts the patch at i + nearest + k, j from rows 0 to i. Rows count in the
        grid as it is rotated for the direction.
        """
        grid = self.backbone(inputs.flatten(0, 2)).unflatten(0, inputs.shape[:3])
        rotations = [
            grid.rot90(turns, (1, 2)).permute(0, 3, 1, 2) for turns in range(self.config.directions)
        ]
        predictions = torch.stack(
            [context(g) for context, g in zip(self.contexts, rotations, strict=True)], dim=1
        )
        return unit(predictions, -1), unit(self.embed(grid), -1)

    def targets(self, batch: Batch, predictions: tuple[Tensor, Tensor]) -> Tensor:
        # with their gradient: it makes patches easier to predict, and the negatives keep them apart
        return predictions[1]

    def loss(self, predictions: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        shape = targets.shape[:3]
        place = torch.arange(shape.numel(), device=targets.device).view(shape)
        rows, self.patches = targets.shape[1], targets.shape[1:3].numel()
        if rows <= self.config.nearest:
            raise UserError(
                f"CPC predicts patches {self.config.nearest} rows below, and the view makes {rows}"
                " rows: take smaller patches (--method.side)"
            )
        queries, keys = [], []
        for turns, direction in enumerate(predictions[0].unbind(1)):
            for below, prediction in enumerate(direction.unbind(1), self.config.nearest):
                if below < rows:
                    queries.append(prediction[:, : rows - below].flatten(0, 2))
                    keys.append(place.rot90(turns, (1, 2))[:, below:].flatten())
        return pick_nce(
            torch.cat(queries), targets.flatten(0, 2), torch.cat(keys), self.config.temperature
        )

    def collapsed_loss(self, batch_size: int) -> float | None:
        return math.log(batch_size * self.patches) if self.patches else None
