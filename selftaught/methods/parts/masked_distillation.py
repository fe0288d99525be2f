"""The base of iBOT and DINOv2: DINO on whole views, and on masked patches of one view."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.method import Batch, Encoder, Fixed, Setup
from selftaught.methods.parts.patch_masks import (
    draw_masks,
    masked_places,
    most_masked,
    patch_shares,
    require_patches,
)
from selftaught.methods.parts.prototype_distillation import PrototypeDistillation
from selftaught.methods.parts.prototypes import PrototypeHead
from selftaught.models.layers import on_views
from selftaught.models.teacher import Teacher
from selftaught.ranges import Share

# two large views with a mask each, then the small views
Inputs = tuple[tuple[Tensor, Fixed], tuple[Tensor, Fixed], *tuple[Tensor, ...]]
# similarities [B, K] of each view and [B, M, K] of patches; features [B, D] of the first view
Predictions = tuple[tuple[Tensor, ...], Tensor, Tensor]
# log-probabilities [B, K] of each large view and [B, M, K] of patches; the patches' numbers [B, M],
# and 1 for each of them that is masked [B, M]
Targets = tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]


class MaskedDistillation(PrototypeDistillation):
    """A subclass defines `loss`. One of an image's two large views is masked, drawn at random."""

    masks_patches = True
    network: "_TokenNetwork"

    @dataclass(frozen=True, kw_only=True)
    class Config(PrototypeDistillation.Config):
        separate_heads: bool = False  # views and patches have a head each
        mask_low: Share = 0.1  # smallest share of masked patches
        mask_high: Share = 0.5  # largest share

    config: Config

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        backbone = setup.backbone
        self.patch_size = require_patches(backbone, type(self).__name__, "dino")
        patch_head = self.build_head(backbone.channels) if config.separate_heads else None
        self.network = _TokenNetwork(backbone, self.build_head(backbone.features), patch_head)
        self.teacher = Teacher(self.network)
        self.patch_centering = self.build_centering()

    def inputs(self, batch: Batch) -> Inputs:
        first, second, *small = batch.views
        one, other = self.draw_masks(batch)
        return ((first, Fixed(one)), (second, Fixed(other)), *small)

    def predict(self, inputs: Inputs) -> Predictions:
        (first, one), (second, other) = inputs[:2]
        masks = (one.value, other.value)
        places, _, _ = self.find_masked(masks)
        logits, patches, features = self.network(
            torch.cat([first, second]), torch.cat(masks), places
        )
        small = on_views(self.network.of_views, inputs[2:])
        return (*logits.chunk(2), *small), patches, features.chunk(2)[0]

    @torch.no_grad()
    def targets(self, batch: Batch, predictions: Predictions) -> Targets:
        places, patches, masked = self.find_masked(self.draw_masks(batch))
        logits, patch_logits, _ = self.teacher(torch.cat(batch.views[:2]), None, places)
        of_patches = self.patch_centering(
            patch_logits.flatten(0, 1), self.teacher_temperature, masked.flatten()
        )
        return self.class_targets(logits), of_patches.view_as(patch_logits), patches, masked

    def patch_loss(self, patches: Tensor, targets: Targets) -> Tensor:
        """Cross-entropy of the masked patches of each image (Zhou et al., 2022, equation 2)."""
        _, target, _, masked = targets
        log_p = (patches / self.config.temperature).log_softmax(2)
        masked = masked.to(log_p)
        return -((target.exp() * log_p).sum(2) * masked / masked.sum(1, keepdim=True)).sum(1).mean()

    def mix_targets(self, own: Targets, partner: Targets, mask: Tensor) -> Targets:
        """A patch has the distributions of both images by their shares of its pixels."""
        views, of_patches, patches, masked = own
        share = patch_shares(mask, patches, self.patch_size)[:, :, None].to(of_patches)
        whole = mask.mean().item()
        mixed = tuple(_mix(*pair, whole) for pair in zip(views, partner[0], strict=True))
        return mixed, _mix(of_patches, partner[1], share), patches, masked

    def after_step(self, batch: Batch, predictions: Predictions, targets: Targets) -> None:
        views, of_patches, _, masked = targets
        self.patch_centering.follow(
            of_patches.flatten(0, 1), self.teacher_temperature, masked.flatten()
        )
        self.follow(views)

    def draw_masks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Masks [B, N] of both large views; one of them is empty."""
        (h, w), (high, wide) = batch.views[0].shape[2:], self.patch_size
        return draw_masks(
            batch, (h // high, w // wide), self.config.mask_low, self.config.mask_high
        )

    def find_masked(self, masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """See `masked_places`. The first result is the place of each patch among both views'."""
        images, count = masks[0].shape
        most = most_masked(count, self.config.mask_low, self.config.mask_high)
        view, patches, masked = masked_places(masks, most)
        image = view * images + torch.arange(images, device=view.device)
        return image[:, None] * count + patches, patches, masked


class _TokenNetwork(nn.Module):
    """A backbone with heads for whole views and for patches, which may be one."""

    def __init__(
        self, backbone: Encoder, head: PrototypeHead, patch_head: PrototypeHead | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.patch_head = head if patch_head is None else patch_head
        self.mask_token = nn.Embedding(1, backbone.channels)  # as a layer, FSDP gathers it
        nn.init.zeros_(self.mask_token.weight)

    def forward(
        self, pixels: Tensor, mask: Tensor | None, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities [B, K] and those of the patches at `places`; features [B, D]."""
        token = None
        if mask is not None:
            token = self.mask_token(torch.zeros(1, dtype=torch.long, device=pixels.device))[0]
        features, tokens = self.backbone.tokens(pixels, mask, token)
        return self.head(features), self.patch_head(tokens.flatten(0, 1)[places]), features

    def of_views(self, pixels: Tensor) -> Tensor:
        """Similarities [B, K] of views without masks."""
        similarities: Tensor = self.head(self.backbone(pixels))
        return similarities


def _mix(own: Tensor, partner: Tensor, share: Tensor | float) -> Tensor:
    """Mix log-probabilities."""
    return (share * own.exp() + (1 - share) * partner.exp()).log()
