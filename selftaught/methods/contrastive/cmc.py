"""Contrastive multiview coding (Tian et al., 2019, https://arxiv.org/abs/1906.05849)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.parts.lab import has_colour, light_and_colour
from selftaught.methods.parts.memory_bank import MemoryBank, MemoryConfig
from selftaught.models.layers import Normalize, on_views
from selftaught.ranges import Count


class CMC(Method):
    """Match an image's lightness with the stored embedding of its colours, and the reverse."""

    paper = "Tian et al., 2019, https://arxiv.org/abs/1906.05849"
    views = 1

    @dataclass(frozen=True, kw_only=True)
    class Config(MemoryConfig):
        negatives: Count = 16384

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use those of a memory bank, and views without changes of colour."""
            return replace(
                super().defaults(setting), views={"jitter": 0.0, "gray": 0.0, "blur": 0.0}
            )

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.light_head, self.colour_head = (
            nn.Sequential(nn.Linear(setup.backbone.features, config.dim), Normalize())
            for _ in range(2)
        )
        self.lights, self.colours = (MemoryBank(config, setup.images) for _ in range(2))

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return light_and_colour(batch.views[0])

    def predict(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        light, colour = on_views(self.backbone, inputs)
        return self.light_head(light), self.colour_head(colour)

    def targets(self, batch: Batch, predictions: tuple[Tensor, Tensor]) -> Tensor:
        # a grey view has no second modality, so it does not count
        return torch.where(has_colour(batch.views[0]), batch.index, -1)

    def loss(self, predictions: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        light, colour = predictions  # each is compared with the memory bank of the other
        return (self.colours.loss(light, targets) + self.lights.loss(colour, targets)) / 2

    def collapsed_loss(self, batch_size: int) -> float | None:
        return self.lights.collapsed_loss(batch_size)

    @torch.no_grad()
    def before_epoch(self, batches: Iterable[Batch]) -> None:
        if self.lights.seen.any():
            return
        rows = []
        for batch in batches:
            predictions = self.predict(self.inputs(batch))
            rows.append((self.targets(batch, predictions), *predictions))
        _, light, colour = rows[0]
        self.lights.fill(((index, light) for index, light, _ in rows), queries=colour)
        self.colours.fill(((index, colour) for index, _, colour in rows), queries=light)
        if not self.lights.seen.any():
            raise UserError(
                "cmc needs images with colour, and all images are grey: take another --method"
            )

    def after_step(self, batch: Batch, predictions: tuple[Tensor, Tensor], targets: Tensor) -> None:
        self.lights.remember(targets, predictions[0])
        self.colours.remember(targets, predictions[1])
