"""What a person feeds to a loaded backbone: brought into [0, 1] where that is clear, else refused
in one line.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_MOST, _LEAST = 1.5, -0.25  # resampling overshoots [0, 1] by less
_NORMALISED = 20.0  # that normalised pixels stay below


class PixelCheck:
    """A hook before `forward`: uint8 is divided by 255, other floats are cast to those of the
    weights.

    Raises ValueError for what is no batch of images [B, 3, H, W], for other whole numbers, and for
    floats above 1; warns of negative ones. On a GPU values are looked at once alone, as each look
    would wait for it.
    """

    def __init__(self) -> None:
        self.seen = False

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], Any]:
        kwargs = dict(kwargs)
        pixels, *rest = args or (kwargs.pop("pixels", None),)
        if not isinstance(pixels, Tensor):
            raise ValueError(
                f"a {type(pixels).__name__} is no batch of images: give a tensor [B, 3, H, W] in"
                " [0, 1]"
            )
        return (self.ready(pixels, module), *rest), kwargs

    def ready(self, pixels: Tensor, module: nn.Module) -> Tensor:
        shape = tuple(pixels.shape)
        if pixels.ndim != 4 or shape[1] != 3:
            advice = "; add a dimension in front" if pixels.ndim == 3 and shape[0] == 3 else ""
            advice = (
                "; colours come second: pixels.permute(0, 3, 1, 2)"
                if pixels.ndim == 4 and shape[3] == 3
                else advice
            )
            advice = (
                "; colours come first: pixels.permute(2, 0, 1)[None]"
                if pixels.ndim == 3 and shape[2] == 3
                else advice
            )
            raise ValueError(
                f"pixels of shape {list(shape)} ({pixels.dtype}) are no batch of images [B, 3, H,"
                f" W]{advice}"
            )
        weights = next(
            (p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32
        )
        if pixels.dtype == torch.uint8:
            return pixels.to(weights) / 255
        if not pixels.is_floating_point():
            raise ValueError(
                f"{pixels.dtype} pixels: give uint8 in 0..255 or floats in [0,"
                f" 1]{self.scaling(module)}"
            )
        traced = torch.compiler.is_compiling()  # what is traced has no values
        if not (traced or pixels.is_meta or not pixels.numel() or (self.seen and pixels.is_cuda)):
            self.seen = True
            self.look(pixels.detach(), module)
        return pixels.to(weights) if pixels.dtype == torch.float64 else pixels

    def look(self, pixels: Tensor, module: nn.Module) -> None:
        low, high = (float(value) for value in pixels.aminmax())
        if high > _NORMALISED or (high > _MOST and low >= 0):
            raise ValueError(
                f"{pixels.dtype} pixels up to {high:.5g}: give floats in [0, 1], such as pixels /"
                f" 255{self.scaling(module)}"
            )
        if high > _MOST or low < _LEAST:
            warnings.warn(
                f"pixels from {low:.3g} to {high:.3g} look normalised: give them in [0, 1], the"
                " backbone normalises them",
                stacklevel=2,
            )

    @staticmethod
    def scaling(module: nn.Module) -> str:
        """How values of more than 8 bits were shown in training."""
        pixel_range = getattr(module, "pixel_range", None)
        pairs = (
            [pair for pair in (pixel_range.integers, pixel_range.floats) if pair]
            if pixel_range is not None
            else []
        )
        return "".join(
            f"; in training {low:,.6g} was 0 and {high:,.6g} was 1" for low, high in pairs
        )
