"""MoCo v3 (Chen, Xie, He, 2021, https://arxiv.org/abs/2104.02057)."""

import math
from dataclasses import dataclass

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from selftaught.losses import pick_nce
from selftaught.method import Encoder, Setup
from selftaught.methods.parts.teacher_student import TeacherStudent
from selftaught.models.layers import Normalize, mlp, on_views
from selftaught.models.teacher import Teacher
from selftaught.ranges import Count, Positive, Share


class MoCoV3(TeacherStudent):
    """Find an image's momentum-encoded key among the keys of the batch. There is no queue."""

    paper = "Chen et al., 2021, https://arxiv.org/abs/2104.02057"
    couples_samples = True

    @dataclass(frozen=True, kw_only=True)
    class Config(TeacherStudent.Config):
        layers: Count = 3  # of the projection head; the predictor has two
        momentum: Share = 0.99  # of the key encoder at the start; it rises to 1 along a cosine
        temperature: Positive = 0.2  # the paper's for ViTs; its ResNet-50 has 1
        # keep a ViT's projection of patches random, which makes training stable
        freeze_patches: bool = True

        @property
        def min_batch(self) -> int:
            return 2  # the predictor's batch norms get one view at a time

    def __init__(self, config: Config, setup: Setup) -> None:
        super().__init__(config, setup)
        c = self.config = config
        self.network = nn.Sequential(
            setup.backbone,
            _normed_mlp(setup.backbone.features, *[c.hidden] * (c.layers - 1), c.dim),
        )
        self.predictor = nn.Sequential(_normed_mlp(c.dim, c.hidden, c.dim), Normalize())
        self.teacher = Teacher(nn.Sequential(self.network, Normalize()))

    def predict(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.predictor(z) for z in on_views(self.network, inputs))

    def loss(self, predictions: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        """Sum over both directions, times 2 * temperature.

        The factor makes the size of the gradient independent of the temperature.
        """
        own = torch.arange(len(targets[0]), device=targets[0].device)
        t = self.config.temperature
        pairs = zip(predictions, targets, strict=True)
        return torch.stack([pick_nce(q, k, own, t) for q, k in pairs]).sum() * 2 * t

    def collapsed_loss(self, batch_size: int) -> float:
        return 4 * self.config.temperature * math.log(batch_size)

    def after_backward(self) -> None:
        """Remove the gradient of the patch projection.

        `requires_grad` stays, because the stage's `trainable` decides on it.
        """
        if self.config.freeze_patches:
            for p in _patch_projection(self.backbone):
                p.grad = None  # optimizers skip it, weight decay included


def _normed_mlp(*widths: int) -> nn.Sequential:
    """Build an mlp with a last batch norm, without scale and shift."""
    last = nn.Linear(widths[-2], widths[-1], bias=False)
    return nn.Sequential(*mlp(*widths)[:-1], last, nn.BatchNorm1d(widths[-1], affine=False))


def _patch_projection(backbone: Encoder) -> list[nn.Parameter]:
    """Return the parameters of a ViT's patch projection; none for other networks."""
    network = getattr(backbone, "network", None)
    if isinstance(network, VisionTransformer):
        return list(network.patch_embed.proj.parameters())
    return []
