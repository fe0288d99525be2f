"""Contrastive multiview coding (Tian et al., 2019, https://arxiv.org/abs/1906.05849)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn

from selftaught.errors import UserError
from selftaught.method import Batch, Defaults, Method, Setting, Setup
from selftaught.methods.parts.memory_bank import MemoryBank, MemoryConfig
from selftaught.models.layers import Normalize, on_views
from selftaught.ranges import Count

# from linear RGB
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
KNEE = 6 / 29  # Lab's cube root is linear below this value
LIGHTNESS = 60.0  # of 100: at this lightness most colours fit into RGB
GREY = 0.01  # mean difference of the channels up to which a view counts as grey


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
        return torch.where(coloured(batch.views[0]), batch.index, -1)

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


def coloured(pixels: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> bool [B]: whether an image has colour."""
    return (pixels.amax(1) - pixels.amin(1)).mean((1, 2)) > GREY


def light_and_colour(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Split images into L of Lab, as grey images, and ab at one lightness.

    The images and both results are sRGB [B, 3, H, W] in [0, 1]. Colours outside RGB at that
    lightness are clipped.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        to_xyz, to_rgb, white = _colours(pixels.device, pixels.dtype)
        linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
        xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear) / white
        root = torch.where(xyz > KNEE**3, xyz ** (1 / 3), xyz / (3 * KNEE**2) + 4 / 29)
        # a and b are differences of the roots, so a shift leaves them unchanged
        shift = root - root[:, 1:2] + (LIGHTNESS + 16) / 116
        cube = torch.where(shift > KNEE, shift**3, 3 * KNEE**2 * (shift - 4 / 29))
        colour = torch.einsum("ij,bjhw->bihw", to_rgb, cube * white)
        return _gamma(xyz[:, 1:2]).expand_as(pixels), _gamma(colour)


@lru_cache
def _colours(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices from linear RGB to XYZ and back, and the XYZ of white [3, 1, 1].

    They are cached by device and type, so that they are sent once.
    """
    matrix = torch.tensor(TO_XYZ, dtype=torch.float64)
    to_xyz, to_rgb, white = (
        x.to(device, dtype) for x in (matrix, matrix.inverse(), matrix.sum(1)[:, None, None])
    )
    return to_xyz, to_rgb, white


def _gamma(linear: Tensor) -> Tensor:
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
