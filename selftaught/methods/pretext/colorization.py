"""Colorization (Zhang et al., 2016, https://arxiv.org/abs/1603.08511)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from selftaught.method import Batch, Defaults, Illustration, Method, Setting, Setup
from selftaught.methods.parts.colour_bins import NEVER, ColourBins
from selftaught.methods.parts.decoder import Decoder
from selftaught.methods.parts.lab import colours, has_colour, lightness, paint
from selftaught.models.layers import mix_areas, resize
from selftaught.ranges import Count, Positive, Share

RANGE = 110.0  # of a and b


class Colorization(Method):
    """Predict the colours at every place of an image from its lightness."""

    paper = "Zhang et al., 2016, https://arxiv.org/abs/1603.08511"
    views = 1
    recommended_stage = 0.75  # conv4 of AlexNet's five is the best one in the published probes

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        stride: Count = 4  # pixels of a view for each place whose colour is predicted
        # share of the uniform distribution in that of the colours; rare ones weigh more with less
        rebalance: Share = 0.5
        temperature: Positive = 0.38  # of the mean that makes one colour of a distribution
        regression: bool = False  # predict one colour a place instead of a distribution
        hidden: Count = 128  # width of the decoder

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use crops and flips alone, because the colours are what is predicted.

            From random weights 1e-3 taught nothing in 400 steps (docs/LOG.md).
            """
            views = {"scale": (0.35, 1.0), "jitter": 0.0, "gray": 0.0, "blur": 0.0}
            lr = 1e-3 if setting.pretrained else 4e-3
            return Defaults(config=self, views=views, optimizer="adamw", lr=lr)

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.bins = ColourBins()
        outputs = 2 if config.regression else len(self.bins)
        self.decoder = Decoder(setup.backbone, config.hidden, outputs)

    def grid(self, view: Tensor) -> tuple[int, int]:
        height, width = (max(side // self.config.stride, 1) for side in view.shape[2:])
        return height, width

    def coarse_colours(self, view: Tensor) -> Tensor:
        """The mean a and b of each place, [B, 2, h, w]."""
        return F.adaptive_avg_pool2d(colours(view), self.grid(view))

    def before_epoch(self, batches: Iterable[Batch]) -> None:
        views = (batch.views[0] for batch in batches)
        rows = ((self.coarse_colours(view), has_colour(view)) for view in views)
        self.bins.measure(rows, self.config.rebalance)

    def inputs(self, batch: Batch) -> Tensor:
        return lightness(batch.views[0])

    def predict(self, inputs: Tensor) -> Tensor:
        """Return logits [B, K, h, w], or colours [B, 2, h, w] in units of 110."""
        grey = inputs.mean(1, keepdim=True).expand_as(inputs)  # no attack can write colour
        outputs = self.decoder(*self.backbone.with_map(grey), self.grid(inputs))
        if self.config.regression:
            return outputs
        return outputs.masked_fill(~self.bins.occupied[:, None, None], NEVER)

    def targets(self, batch: Batch, predictions: Tensor) -> Tensor:
        """Return weighted codes [B, K, h, w], 0 for grey images, or colours [B, 2, h, w]."""
        view = batch.views[0]
        ab = self.coarse_colours(view)
        if self.config.regression:
            return ab / RANGE
        return self.bins.weigh(self.bins.encode(ab)) * has_colour(view)[:, None, None, None]

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if self.config.regression:
            return F.mse_loss(predictions, targets)
        return -(targets * predictions.log_softmax(1)).sum(1).mean()

    def mix_targets(self, own: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
        """Mix by areas, as the loss is linear in the codes; each already has its weight."""
        return mix_areas(own, partner, mask)

    def grade(self, predictions: Tensor, targets: Tensor) -> Tensor | None:
        """The share of the loss of the best constant prediction that is avoided.

        The most likely colour is mostly grey, whatever a network has learnt. So no place is right
        or wrong by itself. A mean over the batch is 1 - loss / loss of the constant prediction.
        """
        if self.config.regression:
            return None
        constant = self.bins.marginal.clamp_min(1e-9).log()[:, None, None].to(predictions.dtype)
        own, guess = (-(targets * p).sum((1, 2, 3)) for p in (predictions.log_softmax(1), constant))
        return (guess - own) / guess.mean().clamp_min(1e-9)

    def chance(self) -> float | None:
        return 0.0

    def illustrate(
        self, batch: Batch, predictions: Tensor, targets: Tensor
    ) -> Sequence[Illustration]:
        view, grey = batch.views[0], self.inputs(batch)
        ab = predictions * RANGE
        if not self.config.regression:
            ab = self.bins.annealed_mean(predictions, self.config.temperature)
        painted = paint(grey, resize(ab, view.shape[2:]))
        rows = zip(grey, painted, view, strict=True)
        return [
            Illustration(pictures=dict(zip(("input", "prediction", "truth"), row, strict=True)))
            for row in rows
        ]
