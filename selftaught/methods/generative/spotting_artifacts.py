"""Spotting artifacts (Jenni & Favaro, 2018, https://arxiv.org/abs/1806.05024)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.losses import discriminator_loss
from selftaught.method import (
    Batch,
    Defaults,
    Fixed,
    GroupOptions,
    Illustration,
    Method,
    Previous,
    Setting,
    Setup,
)
from selftaught.methods.parts.autoencoder import Autoencoder, load_autoencoder
from selftaught.methods.parts.code_repair import (
    Repair,
    damage_code,
    illustrate_repairs,
    kept_errors,
)
from selftaught.methods.parts.place_discriminator import PlaceDiscriminator, rank_places
from selftaught.methods.parts.teacher_config import TeacherConfig
from selftaught.methods.parts.two_player import ADAM, BETAS, call_detached
from selftaught.ranges import Count, NonNegative, Share

Inputs = tuple[Tensor, Fixed]  # a view [B, 3, H, W], and its mask [B, 1, h, w]: 1 = kept
Targets = tuple[Tensor, Tensor]  # the same
# Logits of "real" [B, 2], for the decoded and the repaired picture; those of the latter [B], where
# the discriminator does not learn; of "kept" at each place [B, 2, h, w]; the picture [B, 3, H, W]
Predictions = tuple[Tensor, Tensor, Tensor, Tensor]


class SpottingArtifacts(Method):
    """Tell pictures whose code was damaged and repaired from others, and find the damage.

    An autoencoder learns first, and stays as it is from then on. Then two networks play: one
    repairs what the autoencoder decodes from a damaged code, and the backbone finds the repairs.
    """

    paper = "Jenni & Favaro, 2018, https://arxiv.org/abs/1806.05024"
    views = 1
    recommended_stage = 0.75  # the fourth of AlexNet's five convolutions is the best one

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherConfig):
        teacher: str = ""  # a run of this method, whose autoencoder is taken; else one learns first
        # share of the steps in which the autoencoder learns, if there is no teacher
        autoencoder_share: Share = 0.3
        width: Count = 32  # channels of the autoencoder's first layer
        blocks: Count = 4  # times that the autoencoder halves the sides of a view
        keep: Share = 0.3  # probability that a place of the code stays as it is
        places: NonNegative = 0.1  # weight of the loss of places
        # weight of the square error of decoded pixels, and of repaired ones at places that are kept
        pixels: NonNegative = 30.0
        part = "method"
        teachers = "a run of spotting-artifacts"

        def defaults(self, setting: Setting) -> Defaults[Self]:
            """Use a narrower autoencoder for a narrow backbone, and mild views. A code has at
            least as many places as the paper's, 6 x 6.
            """
            width = min(self.width, max(setting.features // 16, 8))
            blocks = min(self.blocks, max(int(math.log2(setting.size / 6)), 1))
            config = replace(self, width=width, blocks=blocks)
            mild = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
            views = {"scale": (1 / 3, 1.0), "gray": 0.0, "blur": 0.0, **mild}
            return Defaults(config=config, views=views, optimizer="adamw", lr=6e-4)

        def previous(self, init: str | None) -> Previous | None:
            return super().previous(init) if self.teacher else None

        @property
        def two_player(self) -> bool:
            return True

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.config = config
        self.share = 0.0 if config.teacher else config.autoencoder_share
        self.autoencoder = Autoencoder(config.width, config.blocks)
        self.repair = Repair(self.autoencoder.widths[::-1])
        self.discriminator = PlaceDiscriminator(setup.backbone, 2**config.blocks)
        if config.teacher:
            load_autoencoder(self.autoencoder, setup.previous, config.teacher)
        elif not self.share:
            raise UserError(
                "--method.autoencoder-share 0 leaves the autoencoder untrained: name a run that has"
                " one by --method.teacher"
            )

    @property
    def trains_autoencoder(self) -> bool:
        """Whether the autoencoder learns in this step, and nothing else does."""
        return self.training and self.progress < self.share

    @property
    def backbone_is_idle(self) -> bool:
        return self.trains_autoencoder

    def draw_mask(self, batch: Batch) -> Tensor:
        """Draw the places of each code that are kept. Raises UserError for too small a code."""
        view = batch.views[0]
        size = self.autoencoder.code_size(view.shape[2:])
        if min(size) < 2:
            raise UserError(
                f"a view of {view.shape[2]} x {view.shape[3]} pixels has too small a code: take"
                f" --size {2 ** (self.config.blocks + 1)} or more, or fewer --method.blocks"
            )
        return (batch.random((1, *size), "mask") < self.config.keep).to(view.dtype)

    def inputs(self, batch: Batch) -> Inputs:
        return batch.views[0], Fixed(self.draw_mask(batch))

    def predict(self, inputs: Inputs) -> Predictions:
        view, mask = inputs[0], inputs[1].value
        count, size = len(view), mask.shape[2:]
        self.autoencoder.train(self.trains_autoencoder)
        if self.trains_autoencoder:
            none = view.new_zeros(count, 2, *size)
            return none[:, :, 0, 0], none[:, 0, 0, 0], none, self.autoencoder(view)[1]
        with torch.no_grad():
            code, decoded = self.autoencoder(view)
        repaired = call_detached(
            self.autoencoder.decoder,
            damage_code(code, mask),
            view.shape[2:],
            self.repair.change(mask),
        )
        scores, place_logits = self.discriminator(torch.cat([decoded, repaired.detach()]), size)
        # the same batch, as batch norms see all of it
        again, _ = call_detached(self.discriminator, torch.cat([decoded, repaired]), size)
        return (
            scores.view(2, -1).T,
            again[count:],
            place_logits.unflatten(0, (2, -1)).transpose(0, 1),
            repaired,
        )

    def targets(self, batch: Batch, predictions: Predictions) -> Targets:
        return batch.views[0], self.draw_mask(batch)

    def loss(self, predictions: Predictions, targets: Targets) -> Tensor:
        scores, repaired_scores, place_logits, picture = predictions
        view, mask = targets
        everywhere = torch.ones_like(mask)
        # Several processes average the gradients of all parameters, so each needs one.
        zero = 0 * torch.stack([p.sum() for p in self.idle_parameters()]).sum()
        if self.trains_autoencoder:
            return self.config.pixels * kept_errors(picture, view, everywhere).mean() + zero
        real, repaired = scores.unbind(1)
        picture_loss = discriminator_loss(real, repaired) / 2
        place_loss = F.binary_cross_entropy_with_logits(
            place_logits, torch.cat([everywhere, mask], 1)
        )
        repair_loss = F.softplus(-repaired_scores).mean() / 2
        errors = kept_errors(picture, view, mask).mean()
        discriminator = picture_loss + self.config.places * place_loss
        return discriminator + repair_loss + self.config.pixels * errors + zero

    def idle_parameters(self) -> list[nn.Parameter]:
        """The parameters that do not learn in this step."""
        playing = (self.discriminator, self.repair)
        idle = playing if self.trains_autoencoder else (self.autoencoder,)
        return [p for module in idle for p in module.parameters() if p.requires_grad]

    def after_backward(self) -> None:
        for p in self.idle_parameters():
            p.grad = None  # the optimizer then leaves it as it is, without decay

    def parameter_groups(self) -> Mapping[str, GroupOptions]:
        return {"backbone": BETAS, "discriminator": BETAS, "autoencoder": ADAM, "repair": ADAM}

    def grade(self, predictions: Predictions, targets: Targets) -> Tensor:
        """The AUROC of the places of each repaired picture."""
        return rank_places(predictions[2][:, 1], targets[1][:, 0] > 0)

    def chance(self) -> float | None:
        return 0.5

    def illustrate(
        self, batch: Batch, predictions: Predictions, targets: Targets
    ) -> Sequence[Illustration]:
        scores, _, place_logits, repaired = predictions
        view, mask = targets
        rows = illustrate_repairs(
            self.autoencoder, view, mask, repaired, place_logits[:, 1:].sigmoid()
        )
        grades, shares = self.grade(predictions, targets), scores.sigmoid()
        return [
            Illustration(
                pictures=pictures,
                text=f"AUROC of the damage {100 * grade:.0f} %; probability of no damage:"
                f" {100 * real:.0f} % of the decoded, {100 * fake:.0f} % of the repaired picture",
            )
            for pictures, grade, (real, fake) in zip(
                rows, grades.tolist(), shares.tolist(), strict=True
            )
        ]
