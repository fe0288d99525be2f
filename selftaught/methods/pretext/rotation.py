"""Rotation (Gidaris et al., 2018, https://arxiv.org/abs/1803.07728)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.method import Batch, Defaults, Illustration, Method, Setting, Setup

TURNS = 4  # by 0, 90, 180 and 270 degrees, against the clock


class Rotation(Method):
    """Find the angle by which an image was turned: 0, 90, 180 or 270 degrees."""

    paper = "Gidaris et al., 2018, https://arxiv.org/abs/1803.07728"
    views = 1
    square_images = True  # else unequal sharpness tells 0 and 180 degrees from 90 and 270
    recommended_stage = 0.75  # stage 3 of 4 is the best one in all published probes

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        # copies of an image in a batch: all four turns as in the paper, or one at random
        turns: Literal["all", "one"] = "all"

        def defaults(self, setting: Setting) -> Defaults[Self]:
            # The paper has crops and flips alone, as strong colours and blurs hide the object. Its
            # rate is .1 for 128 images.
            mild = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
            views = {"scale": (0.35, 1.0), "blur": 0.0, **mild}
            return Defaults(config=self, views=views, lr=0.2)

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.copies = TURNS if config.turns == "all" else 1
        self.network = nn.Sequential(setup.backbone, nn.Linear(setup.backbone.features, TURNS))

    def inputs(self, batch: Batch) -> Tensor:
        """Return turned images [B, copies, 3, S, S]."""
        view, turns = batch.views[0], self.draw_turns(batch)
        turned = torch.stack([torch.rot90(view, k, (2, 3)) for k in range(TURNS)], 1)
        return turned[torch.arange(len(view), device=view.device)[:, None], turns]

    def draw_turns(self, batch: Batch) -> Tensor:
        """Return quarter turns [B, copies] in 0..3.

        The first one is random, so that images which are mixed in the same place differ.
        """
        first = (TURNS * batch.random((1,), "turn")).long()
        return (first + torch.arange(self.copies, device=first.device)) % TURNS

    def predict(self, inputs: Tensor) -> Tensor:
        """Return logits [B, copies, 4]."""
        return self.network(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        return self.draw_turns(batch)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(predictions.flatten(0, 1), targets.flatten())

    def collapsed_loss(self, batch_size: int) -> float | None:
        return math.log(TURNS)

    def grade(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions.argmax(2) == targets).float().mean(1)

    def chance(self) -> float | None:
        return 1 / TURNS

    def illustrate(
        self, batch: Batch, predictions: Tensor, targets: Tensor
    ) -> Sequence[Illustration]:
        turned = self.inputs(batch)[:, 0]
        answers = zip(predictions[:, 0].argmax(1).tolist(), targets[:, 0].tolist(), strict=True)
        return [
            Illustration(
                pictures={"input": picture},
                text=f"predicted {90 * answer}°, truth {90 * truth}°",
                correct=answer == truth,
            )
            for picture, (answer, truth) in zip(turned, answers, strict=True)
        ]
